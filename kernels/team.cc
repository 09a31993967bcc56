#include "team.h"

#include <omp.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <vector>

namespace autotune {

struct alignas(64) TeamSlot {
  int64_t busy_ns = 0, core_ns = 0;
  int team = 0;  // its size, as this thread saw it; 0: the slot had no turn
};

namespace {

std::atomic<bool> watching = false;
thread_local std::vector<TeamSlot> slots;  // of the teams that this thread forks, one after another
thread_local TeamTimes sums = {};

int64_t now_ns(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return int64_t{t.tv_sec} * 1000000000 + t.tv_nsec;
}

}  // namespace

void watch_teams(bool watched) { watching = watched; }

TeamTimes take_team_times() {
  const TeamTimes taken = sums;
  sums = {};
  return taken;
}

TeamClock::TeamClock(int threads) : slots_(nullptr) {
  if (!watching) return;
  slots.assign(std::max<size_t>(slots.size(), static_cast<size_t>(threads)), TeamSlot{});
  slots_ = slots.data();
}

TeamClock::~TeamClock() {
  if (slots_ == nullptr) return;
  const int team = std::min(slots_[0].team, static_cast<int>(slots.size()));
  if (team == 0) return;
  int busiest = 0;
  int64_t core = 0;
  for (int i = 0; i < team; ++i) {
    // Its clock is read around the other one, so that short turns do not seem to lack a core.
    slots_[i].core_ns = std::min(slots_[i].core_ns, slots_[i].busy_ns);
    core += slots_[i].core_ns;
    if (slots_[i].busy_ns > slots_[busiest].busy_ns) busiest = i;
  }
  sums.regions += 1;
  sums.longest += 1e-9 * static_cast<double>(slots_[busiest].busy_ns);
  sums.longest_core += 1e-9 * static_cast<double>(slots_[busiest].core_ns);
  sums.mean_core += 1e-9 * static_cast<double>(core) / team;
}

TeamClock::Turn::Turn(const TeamClock& clock) : slot_(nullptr) {
  if (clock.slots_ == nullptr) return;
  slot_ = clock.slots_ + omp_get_thread_num();
  slot_->team = omp_get_num_threads();
  start();
}

TeamClock::Turn::~Turn() {
  if (slot_ != nullptr) stop();
}

void TeamClock::Turn::barrier() {
  if (slot_ != nullptr) stop();
#pragma omp barrier
  if (slot_ != nullptr) start();
}

void TeamClock::Turn::start() {
  core_began_ns_ = now_ns(CLOCK_THREAD_CPUTIME_ID);
  began_ns_ = now_ns(CLOCK_MONOTONIC);
}

void TeamClock::Turn::stop() {
  slot_->busy_ns += now_ns(CLOCK_MONOTONIC) - began_ns_;
  slot_->core_ns += now_ns(CLOCK_THREAD_CPUTIME_ID) - core_began_ns_;
}

}  // namespace autotune
