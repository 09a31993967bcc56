// The module: targets, memory and ceilings. Checks stand here; arithmetic does not.
#include "bindings.h"

#include <nanobind/stl/tuple.h>
#include <omp.h>

#include "memory.h"
#include "team.h"

namespace autotune {
namespace {

nb::ndarray<nb::numpy, float, nb::ndim<1>> allocate(int64_t count, bool huge_pages) {
  require(count >= 0 && count <= (int64_t{1} << 46), "count must be between 0 and 2^46 floats, got " + str(count));
  struct Pages {
    void* data;
    size_t bytes;
  };
  const size_t bytes = static_cast<size_t>(count > 0 ? count : 1) * sizeof(float);
  void* data = map_pages(bytes, huge_pages);
  if (data == nullptr) throw std::bad_alloc();
  auto* pages = new Pages{data, bytes};
  nb::capsule owner(pages, [](void* p) noexcept {
    auto* held = static_cast<Pages*>(p);
    unmap_pages(held->data, held->bytes);
    delete held;
  });
  const size_t shape[] = {static_cast<size_t>(count)};
  return nb::ndarray<nb::numpy, float, nb::ndim<1>>(data, 1, shape, owner);
}

void uniform(const Floats<1>& data, float low, float high, uint64_t seed, int threads, uint64_t first) {
  require_contiguous("data", data);
  require_threads(threads);
  nb::gil_scoped_release release;
  fill_uniform(data.data(), static_cast<int64_t>(data.shape(0)), low, high, seed, threads, first);
}

void zero(const Floats<1>& data, int threads) {
  require_contiguous("data", data);
  require_threads(threads);
  nb::gil_scoped_release release;
  fill_zero(data.data(), static_cast<int64_t>(data.shape(0)), threads);
}

double ceiling_fma(int64_t iterations, int threads) {
  require_threads(threads);
  require(iterations >= 0, "iterations must be at least 0, got " + str(iterations));
  float sink = 0;
  nb::gil_scoped_release release;
  return kernels().ceiling_fma(iterations, threads, &sink);
}

void ceiling_stream(const StreamName& name, const Floats<1>& a, const Floats<1>& b, const Floats<1>& c, int threads) {
  const std::string& kind = name.word;
  const char* names[] = {"read", "copy", "triad", "copy_nt", "update"};
  int chosen = -1;
  for (int i = 0; i < 5; ++i)
    if (kind == names[i]) chosen = i;
  require(chosen >= 0, "kind must be read, copy, triad, copy_nt or update, got '" + kind + "'");
  require_threads(threads);
  const int64_t count = static_cast<int64_t>(a.shape(0));
  for (const Floats<1>* array : {&a, &b, &c}) {
    require_contiguous("a stream array", *array);
    require_shape("a stream array", *array, {count});
  }
  require_disjoint({extent_of("a", a)}, {extent_of("b", b), extent_of("c", c)});
  float sink = 0;
  nb::gil_scoped_release release;
  kernels().ceiling_stream(static_cast<StreamKind>(chosen), a.data(), b.data(), c.data(), count, threads, &sink);
}

using Rows = nb::ndarray<const int64_t, nb::ndim<1>, nb::device::cpu>;

void require_walk(int64_t distance, int threads) {
  require_threads(threads);
  require(distance >= 0 && distance <= 1024, "prefetch_distance must be between 0 and 1024, got " + str(distance));
}

void check_rows(const Floats<2>& table, const Rows& rows) {
  require_contiguous("table", table);
  require_contiguous("rows", rows);
  const int64_t limit = static_cast<int64_t>(table.shape(0));
  for (size_t i = 0; i < rows.shape(0); ++i)
    if (rows.data()[i] < 0 || rows.data()[i] >= limit)
      throw nb::index_error(("row must lie in [0, " + str(limit) + "), got " + str(rows.data()[i]) + " (position " + str(static_cast<int64_t>(i)) + ")").c_str());
}

// Row lists are checked when a handle is made, so that the check is outside whatever times `gather` and `scatter`.
class RowWalk {
 public:
  RowWalk(Floats<2> table, const Rows& rows) : table_(std::move(table)) {
    check_rows(table_, rows);
    rows_.assign(rows.data(), rows.data() + rows.shape(0));  // a copy: what was checked must stay as it is
  }

  void gather(int64_t distance, int threads) const {
    require_walk(distance, threads);
    float sink = 0;
    nb::gil_scoped_release release;
    kernels().ceiling_gather(table_.data(), static_cast<int64_t>(table_.shape(1)), rows_.data(), static_cast<int64_t>(rows_.size()), distance, threads, &sink);
  }

  void scatter(int64_t distance, int threads) const {
    require_walk(distance, threads);
    nb::gil_scoped_release release;
    kernels().ceiling_scatter(table_.data(), static_cast<int64_t>(table_.shape(1)), rows_.data(), static_cast<int64_t>(rows_.size()), distance, threads);
  }

 private:
  Floats<2> table_;
  std::vector<int64_t> rows_;
};

// `repeats` empty parallel regions: the cost of a fork and a join.
void fork_join(int64_t repeats, int threads) {
  require_threads(threads);
  nb::gil_scoped_release release;
  for (int64_t i = 0; i < repeats; ++i) {
#pragma omp parallel num_threads(threads)
    asm volatile("" ::: "memory");
  }
}

std::tuple<int64_t, double, double, double> team_times() {
  const TeamTimes t = take_team_times();
  return {t.regions, t.longest, t.longest_core, t.mean_core};
}

std::vector<std::string> targets() {
  std::vector<std::string> names;
  for (const KernelTable* table : runnable_targets()) names.push_back(table->name);
  return names;
}

std::string target() { return kernels().name; }
int lanes() { return kernels().lanes; }

}  // namespace

NB_MODULE(_kernels, m) {
  m.doc() =
      "Kernels of the optimized DLRM. Import torch first, so that both share one OpenMP library.\n\n"
      "Arrays are taken in place, never converted or copied: fp32 on the CPU (halves of weights: int16), rows contiguous, outputs overlapping\n"
      "nothing else. What does not fit raises TypeError (dtype, number of dimensions, read-only output) or ValueError (sizes, strides, overlaps,\n"
      "options) before anything is written. `threads` is the size of the OpenMP team.";
  m.def("targets", &targets, "Kernel targets that this CPU runs, in rising order of preference; `reference` first.");
  m.def("target", &target, "The target in use. Raises ValueError when AUTOTUNE_TARGET names none that runs here.");
  m.def("set_target", &set_target, "name"_a, "Use one target from now on. Raises ValueError when it does not run here.");
  m.def("lanes", &lanes, "Floats per vector of the target in use.");
  m.def("allocate", &allocate, "count"_a, "huge_pages"_a,
        "Zero floats [count] on pages of their own, aligned to 2 MiB. Raises MemoryError.");
  m.def("fill_uniform", &uniform, "data"_a.noconvert(), "low"_a, "high"_a, "seed"_a, "threads"_a, "first"_a = 0,
        "data [n]: uniform in low..high from (seed, first + position) alone, the same at any team size.");
  m.def("fill_zero", &zero, "data"_a.noconvert(), "threads"_a, "data [n] = 0, each page touched by the thread that owns its slice.");
  m.def("ceiling_fma", &ceiling_fma, "iterations"_a, "threads"_a,
        "Runs independent chains of vector FMAs; returns the flops done by the whole team.");
  m.def("ceiling_stream", &ceiling_stream, "kind"_a, "a"_a.noconvert(), "b"_a.noconvert(), "c"_a.noconvert(), "threads"_a,
        "One pass over arrays [n], n a multiple of 16: sum b | a = b | a = b + c/2 | a = b past the caches | a = a/2.");
  m.def("watch_teams", &watch_teams, "watched"_a, "Whether teams are timed from now on.");
  m.def("take_team_times", &team_times,
        "Of the parallel regions that this thread forked since it last asked: how many, and seconds of each region's busiest thread at\n"
        "work, of that thread on a core meanwhile, and of the mean thread on a core while at work.");
  m.def("fork_join", &fork_join, "repeats"_a, "threads"_a, "Runs empty parallel regions.");
  nb::class_<RowWalk>(m, "RowWalk",
                      "Rows of table [R, E], listed by rows [n] (int64), to be gathered or updated in that order; the list must not change afterwards.")
      .def(nb::init<Floats<2>, Rows>(), "table"_a.noconvert(), "rows"_a.noconvert(), "Raises IndexError when a row is outside the table.")
      .def("gather", &RowWalk::gather, "prefetch_distance"_a, "threads"_a, "Sums the rows into registers.")
      .def("scatter", &RowWalk::scatter, "prefetch_distance"_a, "threads"_a,
           "Scales each listed row in place; the threads' slices of the list must name disjoint rows.");
  bind_embedding(m);
  bind_dense(m);
  bind_interaction(m);
}

}  // namespace autotune
