// Where the time of a parallel region goes: how long each thread of the team was at work, and how much of that it held a core.
// Compiled once, for the baseline ISA.
#pragma once

#include <stdint.h>

namespace autotune {

// Sums over the regions that one thread forked since it last took them, seconds.
struct TeamTimes {
  int64_t regions;
  double longest;       // at work, of each region's busiest thread: the others wait for it
  double longest_core;  // that it held a core meanwhile; the rest something else took from it
  double mean_core;     // that a thread of the team held a core while at work, in the mean
};

// Teams are timed only while somebody watches: reading a thread's own clock is a system call.
void watch_teams(bool watched);
TeamTimes take_team_times();

struct TeamSlot;

// Lives around a region; each of its threads takes a Turn.
class TeamClock {
 public:
  explicit TeamClock(int threads);
  ~TeamClock();
  TeamClock(const TeamClock&) = delete;
  TeamClock& operator=(const TeamClock&) = delete;

  class Turn {
   public:
    explicit Turn(const TeamClock& clock);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    void barrier();  // of the team; waiting at it is not work

   private:
    void start();
    void stop();
    TeamSlot* slot_;  // null while nobody watches
    int64_t began_ns_ = 0, core_began_ns_ = 0;
  };

 private:
  TeamSlot* slots_;
};

}  // namespace autotune
