// Embedding bags: checks and pooled look-ups, generic over the ISA. The contract is in embedding_bag.h.
#pragma once

#include <omp.h>

#include "embedding_rows-inl.h"
#include "embedding_shares.h"
#include "memory.h"
#include "team.h"

namespace autotune {

template <class Isa>
struct EmbeddingKernels {
  using V = typename Isa::V;
  static constexpr int W = Isa::kLanes;

  // ---- validation -------------------------------------------------------------------------------------------------------------------

  template <class Index>
  static BagFault validate(const EmbeddingTables& tables, const Bags& bags, int threads) {
    const Index* offsets = static_cast<const Index*>(bags.offsets);
    const Index* indices = static_cast<const Index*>(bags.indices);
    const int64_t num_offsets = tables.num_tables * bags.num_bags + 1;
    bool bad_offsets = false, bad_indices = false;
    const TeamClock clock(threads);
#pragma omp parallel num_threads(threads)
    {
      TeamClock::Turn turn(clock);
      const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
      bool bad = false;
      for (int64_t i = num_offsets * me / team; i < num_offsets * (me + 1) / team; ++i)
        bad |= bad_offset(offsets, i, num_offsets, bags.num_indices);
      if (bad) {
#pragma omp atomic write
        bad_offsets = true;
      }
      turn.barrier();
      // Offsets that leave the indices would lead the next loop out of them.
      if (!bad_offsets) {
        const int64_t first = bags.num_indices * me / team, last = bags.num_indices * (me + 1) / team;
        bad = false;
        for (int64_t t = 0; t < tables.num_tables; ++t) {
          const int64_t begin = max_of(first, offsets[t * bags.num_bags]), end = min_of(last, offsets[(t + 1) * bags.num_bags]);
          if (begin < end && any_outside(indices + begin, end - begin, tables.rows[t])) bad = true;
        }
        if (bad) {
#pragma omp atomic write
          bad_indices = true;
        }
      }
    }
    if (bad_offsets)
      for (int64_t i = 0; i < num_offsets; ++i)
        if (bad_offset(offsets, i, num_offsets, bags.num_indices))
          return {2, bags.num_bags ? (i ? i - 1 : 0) / bags.num_bags : 0, i, static_cast<int64_t>(offsets[i]), bags.num_indices};
    if (bad_indices)
      for (int64_t t = 0; t < tables.num_tables; ++t)
        for (int64_t j = offsets[t * bags.num_bags]; j < static_cast<int64_t>(offsets[(t + 1) * bags.num_bags]); ++j)
          if (indices[j] < 0 || static_cast<int64_t>(indices[j]) >= tables.rows[t])
            return {1, t, j, static_cast<int64_t>(indices[j]), tables.rows[t]};
    return {0, 0, 0, 0, 0};
  }

  static BagFault validate_any(const EmbeddingTables& tables, const Bags& bags, int threads) {
    return bags.wide ? validate<int64_t>(tables, bags, threads) : validate<int32_t>(tables, bags, threads);
  }

  // ---- forward ----------------------------------------------------------------------------------------------------------------------

  static void forward(const EmbeddingTables& tables, const Bags& bags, const Pooled& out, const ForwardOptions& options, int threads) {
    if (tables.upper != nullptr)
      forward_of<UpperRows<Isa>>(tables, bags, out, options, threads);
    else
      forward_of<FloatRows<Isa>>(tables, bags, out, options, threads);
  }

 private:
  template <class Index>
  static bool any_outside(const Index* indices, int64_t count, int64_t rows) {
    // One pass without branches, so that it vectorises: a negative index is a large unsigned one.
    using U = decltype(unsigned_of(Index{}));
    const uint64_t limit = static_cast<uint64_t>(rows);
    const U top = sizeof(Index) == 4 && limit > 0xffffffffu ? ~U{0} : static_cast<U>(limit - 1);
    U largest = 0;
    for (int64_t i = 0; i < count; ++i) {
      const U value = static_cast<U>(indices[i]);
      largest = value > largest ? value : largest;
    }
    return count > 0 && (largest > top || (sizeof(Index) == 4 && largest > 0x7fffffffu));
  }
  static uint32_t unsigned_of(int32_t);
  static uint64_t unsigned_of(int64_t);

  template <class Index>
  static bool bad_offset(const Index* offsets, int64_t i, int64_t num_offsets, int64_t num_indices) {
    // The first is 0 and the last is L: a look-up outside every bag would be dropped in silence.
    const int64_t low = i + 1 == num_offsets ? num_indices : i == 0 ? 0 : static_cast<int64_t>(offsets[i - 1]);
    const int64_t high = i == 0 ? 0 : num_indices;
    return offsets[i] < low || offsets[i] > high;
  }

  template <class Rows>
  static void forward_of(const EmbeddingTables& tables, const Bags& bags, const Pooled& out, const ForwardOptions& options, int threads) {
    if (bags.wide)
      options.prefetch_hint == 0 ? run_forward<Rows, int64_t, 0>(tables, bags, out, options, threads)
                                 : run_forward<Rows, int64_t, 1>(tables, bags, out, options, threads);
    else
      options.prefetch_hint == 0 ? run_forward<Rows, int32_t, 0>(tables, bags, out, options, threads)
                                 : run_forward<Rows, int32_t, 1>(tables, bags, out, options, threads);
  }

  template <class Rows, class Index, int Hint>
  static void run_forward(const EmbeddingTables& tables, const Bags& bags, const Pooled& out, const ForwardOptions& options, int threads) {
    const Index* offsets = static_cast<const Index*>(bags.offsets);
    const int64_t num_bags = bags.num_bags * tables.num_tables;
    const int64_t num_tasks = ceil_div(num_bags, options.bags_per_task);
    const TeamClock clock(threads);
#pragma omp parallel num_threads(threads)
    {
      const TeamClock::Turn turn(clock);
#pragma omp for schedule(dynamic, 1) nowait
      for (int64_t task = 0; task < num_tasks; ++task) {
        const int64_t last = first_bag_of(offsets, num_bags, task + 1, num_tasks);
        for (int64_t bag = first_bag_of(offsets, num_bags, task, num_tasks); bag < last;) {
          const int64_t t = bag / bags.num_bags, stop = min_of(last, (t + 1) * bags.num_bags);
          pool_task<Rows, Index, Hint>(tables, bags, out, options, t, bag - t * bags.num_bags, stop - t * bags.num_bags);
          bag = stop;
        }
      }
      if (options.streaming_stores) store_fence();
    }
  }

  template <class Rows, class Index, int Hint>
  static void pool_task(const EmbeddingTables& tables, const Bags& bags, const Pooled& out, const ForwardOptions& options, int64_t t,
                        int64_t first, int64_t last) {
    // A row that fills 1, 2, 4, 8 or 16 registers is summed in registers; 16 need the larger register file.
    const int64_t dim = tables.dim;
    if (dim == 1 * W) return pool<Rows, Index, Hint, 1>(tables, bags, out, options, t, first, last);
    if (dim == 2 * W) return pool<Rows, Index, Hint, 2>(tables, bags, out, options, t, first, last);
    if (dim == 4 * W) return pool<Rows, Index, Hint, 4>(tables, bags, out, options, t, first, last);
    if (dim == 8 * W) return pool<Rows, Index, Hint, 8>(tables, bags, out, options, t, first, last);
    if constexpr (Isa::kRegisters >= 32)
      if (dim == 16 * W) return pool<Rows, Index, Hint, 16>(tables, bags, out, options, t, first, last);
    pool<Rows, Index, Hint, 0>(tables, bags, out, options, t, first, last);
  }

  // Registers: vectors of a row held in registers; 0: any width, summed in scratch that stays in L1.
  template <class Rows, class Index, int Hint, int Registers>
  static void pool(const EmbeddingTables& tables, const Bags& bags, const Pooled& out, const ForwardOptions& options, int64_t t,
                   int64_t first, int64_t last) {
    const int64_t dim = tables.dim;
    const Rows rows(tables, t);
    const Index* indices = static_cast<const Index*>(bags.indices);
    const Index* offsets = static_cast<const Index*>(bags.offsets) + t * bags.num_bags;
    const int64_t task_end = offsets[last];  // rows beyond it may be another thread's
    const int64_t distance = options.prefetch_distance;
    float* const scratch = Registers ? nullptr : static_cast<float*>(thread_scratch(kScratchPool, dim * sizeof(float)));
    // A bag writes its output once; rows come in by prefetch, `distance` look-ups ahead across bag boundaries.
    for (int64_t i = offsets[first]; i < min_of(offsets[first] + distance, task_end); ++i)
      rows.template prefetch<Hint>(static_cast<int64_t>(indices[i]) * dim, dim);
    for (int64_t n = first; n < last; ++n) {
      const int64_t begin = offsets[n], end = offsets[n + 1];
      float* const target = out.data + n * out.sample_stride + t * out.table_stride;
      const float scale = bags.mean && end > begin ? 1.0f / static_cast<float>(end - begin) : 1.0f;
      if constexpr (Registers > 0) {
        V sum[Registers];
        for (int v = 0; v < Registers; ++v) sum[v] = Isa::set(0);
        for (int64_t j = begin; j < end; ++j) {
          if (distance > 0 && j + distance < task_end)
            rows.template prefetch<Hint>(static_cast<int64_t>(indices[j + distance]) * dim, dim);
          const int64_t row = static_cast<int64_t>(indices[j]) * dim;
          if (bags.scales != nullptr) {
            const V s = Isa::set(bags.scales[j]);
            for (int v = 0; v < Registers; ++v) sum[v] += s * rows.read(row + v * W);
          } else {
            for (int v = 0; v < Registers; ++v) sum[v] += rows.read(row + v * W);
          }
        }
        const V s = Isa::set(scale);
        for (int v = 0; v < Registers; ++v)
          options.streaming_stores ? Isa::stream(target + v * W, sum[v] * s) : Isa::store(target + v * W, sum[v] * s);
      } else {
        for (int64_t e = 0; e < dim; ++e) scratch[e] = 0;
        for (int64_t j = begin; j < end; ++j) {
          if (distance > 0 && j + distance < task_end)
            rows.template prefetch<Hint>(static_cast<int64_t>(indices[j + distance]) * dim, dim);
          const int64_t row = static_cast<int64_t>(indices[j]) * dim;
          const float weight = bags.scales != nullptr ? bags.scales[j] : 1.0f;
          int64_t e = 0;
          for (; e + W <= dim; e += W) Isa::store(scratch + e, Isa::load(scratch + e) + Isa::set(weight) * rows.read(row + e));
          for (; e < dim; ++e) scratch[e] += weight * rows.read_one(row + e);
        }
        int64_t e = 0;
        for (; e + W <= dim; e += W) {
          const V value = Isa::load(scratch + e) * Isa::set(scale);
          options.streaming_stores ? Isa::stream(target + e, value) : Isa::store(target + e, value);
        }
        for (; e < dim; ++e) target[e] = scratch[e] * scale;
      }
    }
  }
};

}  // namespace autotune
