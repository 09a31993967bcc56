// Embedding bags: checks, then one call.
#include <algorithm>
#include <cmath>
#include <mutex>
#include <numeric>
#include <vector>

#include "bindings.h"
#include "embedding_shares.h"
#include "isa/vector.h"
#include "rounding.h"

namespace autotune {
namespace {

UpdateStrategy strategy_of(const StrategyName& strategy) {
  const std::string& name = strategy.word;
  if (name == "race_free_range") return UpdateStrategy::kRaceFreeRange;
  if (name == "race_free_modulo") return UpdateStrategy::kRaceFreeModulo;
  if (name == "bucketed") return UpdateStrategy::kBucketed;
  if (name == "atomic") return UpdateStrategy::kAtomic;
  if (name == "unfused") return UpdateStrategy::kUnfused;
  reject("strategy must be race_free_range, race_free_modulo, bucketed, atomic or unfused, got '" + name + "'");
}

using Halves = nb::ndarray<int16_t, nb::ndim<2>, nb::device::cpu>;  // bit patterns; torch has no arithmetic for uint16
constexpr double kEpsilon = 1e-10;  // as torch.optim.Adagrad has it
using State = std::optional<std::vector<Floats<1>>>;

// T tables as one native handle: pointers are taken once, not at every call.
class Tables {
 public:
  Tables(std::vector<Floats<2>> weights, State state, double epsilon) : arrays_(std::move(weights)) {
    take("tables", arrays_, pointers_);
    tables_.weights = pointers_.data();
    finish(std::move(state), epsilon);
  }
  Tables(std::vector<Halves> upper, std::vector<Halves> lower, State state, double epsilon)
      : upper_(std::move(upper)), lower_(std::move(lower)) {
    take("upper", upper_, upper_pointers_);
    const std::vector<int64_t> rows = rows_;
    take("lower", lower_, lower_pointers_);
    require(rows == rows_ && upper_[0].shape(1) == lower_[0].shape(1), "upper and lower must have the same shapes, table by table");
    tables_.upper = upper_pointers_.data();
    tables_.lower = lower_pointers_.data();
    finish(std::move(state), epsilon);
  }
  Tables(std::vector<Halves> upper, std::vector<uint64_t> streams, State state, double epsilon)
      : upper_(std::move(upper)), streams_(std::move(streams)) {
    take("upper", upper_, upper_pointers_);
    require(streams_.size() == rows_.size(), "streams must have one number a table, got " + str(static_cast<int64_t>(streams_.size())));
    tables_.upper = upper_pointers_.data();
    step_streams_.resize(streams_.size());
    finish(std::move(state), epsilon);
  }
  Tables(const Tables&) = delete;

  void forward(const Indices& indices, const Indices& offsets, const Floats<3>& out, const std::optional<ConstFloats<1>>& scales, bool mean,
               int64_t prefetch_distance, int prefetch_hint, int64_t bags_per_task, bool streaming_stores, int threads) const {
    require_rows("out", out);
    const Bags bags = checked(indices, offsets, out, "out", scales, mean, prefetch_distance, threads);
    require(prefetch_hint == 0 || prefetch_hint == 1, "prefetch_hint must be 0 (L1) or 1 (L2), got " + str(prefetch_hint));
    require(bags_per_task >= 1, "bags_per_task must be at least 1, got " + str(bags_per_task));
    require_disjoint({extent_of("out", out)}, {extent_of("indices", indices), extent_of("offsets", offsets), scales_extent(scales)});
    require_outside_tables(extent_of("out", out));
    nb::gil_scoped_release release;
    require_valid(bags, threads);
    kernels().embedding_forward(tables_, bags, {out.data(), stride_of(out, 0), stride_of(out, 1)},
                                {prefetch_distance, prefetch_hint, bags_per_task, streaming_stores}, threads);
  }

  void update(const Indices& indices, const Indices& offsets, const ConstFloats<3>& gradient, float learning_rate,
              const std::optional<ConstFloats<1>>& scales, bool mean, const StrategyName& strategy, int64_t prefetch_distance, int threads,
              uint64_t step) {
    const UpdateStrategy chosen = strategy_of(strategy);
    require(tables_.upper == nullptr || chosen != UpdateStrategy::kAtomic,
            std::string(streams_.empty() ? "tables split into two halves" : "tables of bf16") +
                " cannot be updated by strategy atomic, which exchanges one word; use race_free_range or bucketed");
    require(tables_.state == nullptr || (chosen != UpdateStrategy::kAtomic && chosen != UpdateStrategy::kUnfused),
            "row-wise Adagrad steps a row by the sum of its gradients, so one owner must see them all: strategy must be race_free_range, "
            "race_free_modulo or bucketed, got '" + strategy.word + "'");
    require_rows("gradient", gradient);
    const Bags bags = checked(indices, offsets, gradient, "gradient", scales, mean, prefetch_distance, threads);
    for (const Extent& extent : {extent_of("gradient", gradient), extent_of("indices", indices), extent_of("offsets", offsets), scales_extent(scales)})
      require_outside_tables(extent);
    nb::gil_scoped_release release;
    require_valid(bags, threads);
    const std::lock_guard<std::mutex> lock(mutex_);  // one workspace
    require(tables_.state == nullptr || bags.num_indices < int64_t{0x7fffffff},
            "row-wise Adagrad chains look-ups by 32-bit numbers: a batch must hold fewer than 2^31 - 1, got " + str(bags.num_indices));
    const size_t lookups = static_cast<size_t>(bags.num_indices), team = static_cast<size_t>(threads);
    if (chosen == UpdateStrategy::kBucketed) {
      if (entries_.size() < lookups) entries_.resize(lookups);
      if (scales && entry_scales_.size() < lookups) entry_scales_.resize(lookups);
      if (!streams_.empty() && tables_.state == nullptr && entry_lookups_.size() < lookups) entry_lookups_.resize(lookups);
      const size_t buckets = kBucketsPerThread * team, counts = (team + 2) * buckets + 1;
      if (counts_.size() < counts) counts_.resize(counts);
      begins_ = counts_.data() + team * buckets;
      num_buckets_ = buckets;
      std::fill_n(begins_, buckets + 1, 0);  // `reference` files nothing
    } else if (chosen == UpdateStrategy::kUnfused && gradient_rows_.size() < lookups * static_cast<size_t>(tables_.dim)) {
      gradient_rows_.resize(lookups * static_cast<size_t>(tables_.dim));
    }
    EmbeddingTables tables = tables_;
    if (!streams_.empty()) {
      for (size_t t = 0; t < streams_.size(); ++t) step_streams_[t] = mix(mix(streams_[t]) + step);
      tables.streams = step_streams_.data();
    }
    kernels().embedding_update(tables, bags, {gradient.data(), stride_of(gradient, 0), stride_of(gradient, 1)}, learning_rate, chosen,
                               prefetch_distance, {entries_.data(), entry_scales_.data(), entry_lookups_.data(), counts_.data(), gradient_rows_.data()}, threads);
  }

  void validate(const Indices& indices, const Indices& offsets, int64_t num_bags, int threads) const {
    const Bags bags = checked_bags(indices, offsets, num_bags, std::nullopt, false, 0, threads);
    nb::gil_scoped_release release;
    require_valid(bags, threads);
  }

  // Look-ups and bags of each task of a forward pass.
  std::vector<int64_t> task_sizes(const Indices& indices, const Indices& offsets, int64_t num_bags, int64_t bags_per_task) const {
    const Bags bags = checked_bags(indices, offsets, num_bags, std::nullopt, false, 0, 1);
    require(bags_per_task >= 1, "bags_per_task must be at least 1, got " + str(bags_per_task));
    require_valid(bags, 1);
    return bags.wide ? task_sizes_of<int64_t>(bags, bags_per_task) : task_sizes_of<int32_t>(bags, bags_per_task);
  }

  // Look-ups that each owner applies in an update.
  std::vector<int64_t> owner_sizes(const Indices& indices, const Indices& offsets, int64_t num_bags, const StrategyName& strategy,
                                   int threads, int64_t first_table) const {
    const UpdateStrategy chosen = strategy_of(strategy);
    require(chosen == UpdateStrategy::kRaceFreeRange || chosen == UpdateStrategy::kRaceFreeModulo || chosen == UpdateStrategy::kBucketed,
            "rows have owners by strategy race_free_range, race_free_modulo and bucketed, got '" + strategy.word + "'");
    require(first_table >= 0 && first_table <= int64_t{0xffffffff} - tables_.num_tables,
            "first_table must be at least 0 and the number of tables stay below 2^32, got " + str(first_table));
    const Bags bags = checked_bags(indices, offsets, num_bags, std::nullopt, false, 0, threads);
    nb::gil_scoped_release release;
    require_valid(bags, threads);
    return bags.wide ? owner_sizes_of<int64_t>(bags, chosen, threads, first_table) : owner_sizes_of<int32_t>(bags, chosen, threads, first_table);
  }

  // Look-ups that the last bucketed update filed into each bucket.
  std::vector<int64_t> bucket_sizes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<int64_t> sizes(num_buckets_);
    for (size_t b = 0; b < num_buckets_; ++b) sizes[b] = begins_[b + 1] - begins_[b];
    return sizes;
  }

  // Frees what the last strategies needed: up to a gradient row for every look-up.
  void release_workspace() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<BucketEntry>().swap(entries_);
    std::vector<float>().swap(entry_scales_);
    std::vector<uint32_t>().swap(entry_lookups_);
    std::vector<float>().swap(gradient_rows_);
    std::vector<int64_t>().swap(counts_);
    begins_ = nullptr;
    num_buckets_ = 0;
  }

  int64_t num_tables() const { return tables_.num_tables; }
  int64_t dim() const { return tables_.dim; }
  std::vector<int64_t> rows() const { return rows_; }

 private:
  template <class Index>
  std::vector<int64_t> task_sizes_of(const Bags& bags, int64_t bags_per_task) const {
    const Index* offsets = static_cast<const Index*>(bags.offsets);
    const int64_t num_bags = bags.num_bags * tables_.num_tables, num_tasks = ceil_div(num_bags, bags_per_task);
    std::vector<int64_t> sizes;
    for (int64_t task = 0; task < num_tasks; ++task) {
      const int64_t first = first_bag_of(offsets, num_bags, task, num_tasks), last = first_bag_of(offsets, num_bags, task + 1, num_tasks);
      sizes.push_back(offsets[last] - offsets[first] + last - first);
    }
    return sizes;
  }

  template <class Index>
  std::vector<int64_t> owner_sizes_of(const Bags& bags, UpdateStrategy strategy, int threads, int64_t first_table) const {
    const Index* offsets = static_cast<const Index*>(bags.offsets);
    const Index* indices = static_cast<const Index*>(bags.indices);
    const uint32_t owners = static_cast<uint32_t>(threads), buckets = kBucketsPerThread * owners;
    std::vector<int64_t> sizes(owners), filed(buckets), order(buckets);
    for (int64_t t = 0; t < tables_.num_tables; ++t) {
      const Index *begin = indices + offsets[t * bags.num_bags], *end = indices + offsets[(t + 1) * bags.num_bags];
      if (strategy == UpdateStrategy::kBucketed) {
        for (const Index* row = begin; row != end; ++row)
          ++filed[bucket_of(static_cast<uint32_t>(*row), static_cast<uint32_t>(first_table + t), buckets)];
        continue;
      }
      for (uint32_t me = 0; me < owners; ++me) {
        const OwnedRows owned = owned_rows(tables_.rows[t], first_table + t, me, owners);
        sizes[me] += std::count_if(begin, end, [&](Index row) {
          const uint64_t number = static_cast<uint64_t>(row);
          return strategy == UpdateStrategy::kRaceFreeModulo ? owns<true>(owned, number) : owns<false>(owned, number);
        });
      }
    }
    // Whoever is done claims the next bucket.
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return claimed_before(filed.data(), a, b); });
    for (const int64_t bucket : order) *std::min_element(sizes.begin(), sizes.end()) += filed[bucket];
    return sizes;
  }

  static Extent scales_extent(const std::optional<ConstFloats<1>>& scales) {
    return scales ? extent_of("per_sample_weights", *scales) : Extent{"per_sample_weights", nullptr, nullptr};
  }

  // Checks one array a table and takes its pointer; sets rows and dim.
  template <class Array, class Pointer>
  void take(const std::string& group, std::vector<Array>& arrays, std::vector<Pointer>& pointers) {
    require(!arrays.empty(), "at least one table is needed, got none");
    tables_.num_tables = static_cast<int64_t>(arrays.size());
    tables_.dim = static_cast<int64_t>(arrays[0].shape(1));
    rows_.clear();
    for (size_t t = 0; t < arrays.size(); ++t) {
      Array& table = arrays[t];
      const std::string name = group + "[" + std::to_string(t) + "]";
      require_contiguous(name.c_str(), table);
      const int64_t rows = static_cast<int64_t>(table.shape(0)), width = static_cast<int64_t>(table.shape(1));
      require(width == tables_.dim && width >= 1,
              name + " must have the width of " + group + "[0], " + str(tables_.dim) + ", and at least 1, got " + str(width));
      require(rows >= 1 && rows <= int64_t{0xffffffff}, name + " must have between 1 and 2^32 - 1 rows, got " + str(rows));
      hold(extent_of("a table", table));
      pointers.push_back(reinterpret_cast<Pointer>(table.data()));
      rows_.push_back(rows);
    }
    tables_.rows = rows_.data();
  }

  void finish(State state, double epsilon) {
    require(std::isfinite(epsilon) && static_cast<float>(epsilon) > 0, "epsilon must be positive in fp32, got " + std::to_string(epsilon));
    tables_.epsilon = static_cast<float>(epsilon);
    if (!state) return;
    states_ = std::move(*state);
    require(states_.size() == rows_.size(), "state must have one array a table, got " + str(static_cast<int64_t>(states_.size())));
    for (size_t t = 0; t < states_.size(); ++t) {
      require_contiguous("state", states_[t]);
      require_shape("state", states_[t], {rows_[t]});
      hold(extent_of("the state of a table", states_[t]));
      state_pointers_.push_back(states_[t].data());
    }
    tables_.state = state_pointers_.data();
  }

  void hold(const Extent& extent) {
    for (const Extent& other : extents_) require_disjoint({extent}, {{"another table", other.begin, other.end}});
    extents_.push_back(extent);
  }

  void require_outside_tables(const Extent& extent) const {
    for (const Extent& table : extents_) require_disjoint({table}, {extent});
  }

  template <class Array>
  Bags checked(const Indices& indices, const Indices& offsets, const Array& pooled, const char* name, const std::optional<ConstFloats<1>>& scales,
               bool mean, int64_t prefetch_distance, int threads) const {
    const int64_t samples = static_cast<int64_t>(pooled.shape(0));
    require_shape(name, pooled, {samples, tables_.num_tables, tables_.dim});
    return checked_bags(indices, offsets, samples, scales, mean, prefetch_distance, threads);
  }

  Bags checked_bags(const Indices& indices, const Indices& offsets, int64_t num_bags, const std::optional<ConstFloats<1>>& scales, bool mean,
                    int64_t prefetch_distance, int threads) const {
    require_threads(threads);
    const bool wide = indices.dtype() == nb::dtype<int64_t>();
    require(wide || indices.dtype() == nb::dtype<int32_t>(), "indices must be int32 or int64");
    require(offsets.dtype() == indices.dtype(), "offsets must have the dtype of indices");
    require_contiguous("indices", indices);
    require_contiguous("offsets", offsets);
    require(num_bags >= 0 && num_bags <= int64_t{0xffffffff} / tables_.num_tables,
            "num_bags must be at least 0 and tables x bags stay below 2^32, got " + str(num_bags) + " bags");
    require_shape("offsets", offsets, {tables_.num_tables * num_bags + 1});
    require(prefetch_distance >= 0 && prefetch_distance <= 1024, "prefetch_distance must be between 0 and 1024, got " + str(prefetch_distance));
    const int64_t lookups = static_cast<int64_t>(indices.shape(0));
    if (scales) {
      require_contiguous("per_sample_weights", *scales);
      require_shape("per_sample_weights", *scales, {lookups});
      require(!mean, "per_sample_weights go with sum pooling only; use mean=False");
    }
    return {indices.data(), offsets.data(), wide, lookups, num_bags, scales ? scales->data() : nullptr, mean};
  }

  void require_valid(const Bags& bags, int threads) const {
    const BagFault fault = kernels().embedding_validate(tables_, bags, threads);
    if (fault.kind == 1)
      throw nb::index_error(("index must lie in [0, " + str(fault.limit) + "), got " + str(fault.value) + " (table " + str(fault.table) +
                             ", position " + str(fault.position) + " of indices); hash or clip it into the table")
                                .c_str());
    if (fault.kind == 2)
      reject("offsets must rise from 0 to the number of indices, " + str(fault.limit) + ", got " + str(fault.value) + " (table " +
             str(fault.table) + ", position " + str(fault.position) + " of offsets)");
  }

  std::vector<Floats<2>> arrays_;
  std::vector<Halves> upper_, lower_;
  std::vector<Floats<1>> states_;
  std::vector<float*> pointers_, state_pointers_;
  std::vector<uint16_t*> upper_pointers_, lower_pointers_;
  std::vector<uint64_t> streams_, step_streams_;  // of each table; mixed with the step of the update under way
  std::vector<int64_t> rows_;
  std::vector<Extent> extents_;
  EmbeddingTables tables_{};
  std::mutex mutex_;
  std::vector<BucketEntry> entries_;
  std::vector<float> entry_scales_, gradient_rows_;
  std::vector<uint32_t> entry_lookups_;
  std::vector<int64_t> counts_;
  int64_t* begins_ = nullptr;  // in counts_: the first slot of each bucket of the last bucketed update, and the end of the last
  size_t num_buckets_ = 0;
};

}  // namespace

void bind_embedding(nb::module_& m) {
  nb::class_<Tables>(m, "EmbeddingTables",
                     "T contiguous tables [rows_t, E] as one native handle; keeps their memory alive.\n\n"
                     "Look-ups are table-major: bag b = t*N + n pools indices[offsets[b] : offsets[b + 1]]; indices [L] and offsets [T*N + 1] are both\n"
                     "int32 or both int64. Raises IndexError for an index outside its table and ValueError for offsets that decrease or leave 0..L,\n"
                     "before anything is written.")
      .def(nb::init<std::vector<Floats<2>>, State, double>(), "weights"_a.noconvert(), "state"_a.noconvert() = nb::none(),
           "epsilon"_a = kEpsilon,
           "fp32 tables. With `state`, fp32 [rows_t] each, updates are row-wise Adagrad: with G the sum of a row's gradients,\n"
           "state += mean(G^2), row -= learning_rate * G / (sqrt(state) + epsilon); else SGD.")
      .def_static(
          "split",
          [](std::vector<Halves> upper, std::vector<Halves> lower, State state, double epsilon) {
            return new Tables(std::move(upper), std::move(lower), std::move(state), epsilon);
          },
          "upper"_a.noconvert(), "lower"_a.noconvert(), "state"_a.noconvert() = nb::none(), "epsilon"_a = kEpsilon,
          nb::rv_policy::take_ownership,
          "Tables of fp32 weights kept as int16 bit patterns: upper[t] the upper 16 bits, a bf16 number that the forward pass reads;\n"
          "lower[t] the rest, which an update joins to it.")
      .def_static(
          "rounded",
          [](std::vector<Halves> upper, std::vector<uint64_t> streams, State state, double epsilon) {
            return new Tables(std::move(upper), std::move(streams), std::move(state), epsilon);
          },
          "upper"_a.noconvert(), "streams"_a, "state"_a.noconvert() = nb::none(), "epsilon"_a = kEpsilon, nb::rv_policy::take_ownership,
          "Tables of bf16, int16 bit patterns. An update steps in fp32 and rounds stochastically, by bits that are a hash of streams[t], the step,\n"
          "row and column, and with SGD the position of the look-up in the batch. A value that is bf16 is kept; NaN, infinities, and finite\n"
          "values as such too.")
      .def("forward", &Tables::forward, "indices"_a.noconvert(), "offsets"_a.noconvert(), "out"_a.noconvert(),
           "per_sample_weights"_a.noconvert().none(), "mean"_a, "prefetch_distance"_a, "prefetch_hint"_a, "bags_per_task"_a,
           "streaming_stores"_a, "threads"_a,
           "out [N, T, E] = pooled rows; an empty bag gives zeros. prefetch_distance in look-ups, prefetch_hint 0 (L1) or 1 (L2).")
      .def("update", &Tables::update, "indices"_a.noconvert(), "offsets"_a.noconvert(), "gradient"_a.noconvert(), "learning_rate"_a,
           "per_sample_weights"_a.noconvert().none(), "mean"_a, "strategy"_a, "prefetch_distance"_a, "threads"_a, "step"_a = 0,
           "Backward and SGD step: every looked-up row -= learning_rate * weight * gradient [N, T, E] of its bag. `step` numbers the updates of\n"
           "stochastically rounded tables: each draws other bits.")
      .def("validate", &Tables::validate, "indices"_a.noconvert(), "offsets"_a.noconvert(), "num_bags"_a, "threads"_a,
           "Only the checks of the look-ups, for N = num_bags.")
      .def("task_sizes", &Tables::task_sizes, "indices"_a.noconvert(), "offsets"_a.noconvert(), "num_bags"_a, "bags_per_task"_a,
           "Look-ups and bags of each task of a forward pass.")
      .def("owner_sizes", &Tables::owner_sizes, "indices"_a.noconvert(), "offsets"_a.noconvert(), "num_bags"_a, "strategy"_a, "threads"_a,
           "first_table"_a = 0,
           "Look-ups that each thread applies in an update by race_free_range, race_free_modulo or bucketed.\n\n"
           "The buckets of bucketed go, the largest first, to the thread with the fewest look-ups so far. Table t counts as number\n"
           "first_table + t of those updated together.")
      .def("bucket_sizes", &Tables::bucket_sizes,
           "Look-ups that the last update by bucketed filed into each of its 8 * threads buckets; none before an update or after\n"
           "release_workspace, and zeros by target `reference`, which has no buckets.")
      .def("release_workspace", &Tables::release_workspace, "Free what updates keep between calls.")
      .def_prop_ro("num_tables", &Tables::num_tables)
      .def_prop_ro("dim", &Tables::dim)
      .def_prop_ro("rows", &Tables::rows);
}

}  // namespace autotune
