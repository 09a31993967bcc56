// Embedding bags: checks and pooled look-ups, generic over the ISA. The contract is in embedding_bag.h.
#pragma once

#include <omp.h>

#include "embedding_bag.h"
#include "isa/vector.h"
#include "memory.h"

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
    for (int64_t i = 0; i < num_offsets; ++i) {
      // The first is 0 and the last is L: a look-up outside every bag would be dropped in silence.
      const int64_t low = i + 1 == num_offsets ? bags.num_indices : i == 0 ? 0 : static_cast<int64_t>(offsets[i - 1]);
      const int64_t high = i == 0 ? 0 : bags.num_indices;
      const int64_t value = static_cast<int64_t>(offsets[i]);
      if (value < low || value > high) return {2, bags.num_bags ? (i ? i - 1 : 0) / bags.num_bags : 0, i, value, bags.num_indices};
    }
    bool bad = false;
#pragma omp parallel num_threads(threads) reduction(|| : bad)
    {
      const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
      for (int64_t t = 0; t < tables.num_tables; ++t) {
        const int64_t begin = offsets[t * bags.num_bags], end = offsets[(t + 1) * bags.num_bags];
        const int64_t first = begin + (end - begin) * me / team, last = begin + (end - begin) * (me + 1) / team;
        if (any_outside(indices + first, last - first, tables.rows[t])) bad = true;
      }
    }
    if (!bad) return {0, 0, 0, 0, 0};
    for (int64_t t = 0; t < tables.num_tables; ++t)
      for (int64_t j = offsets[t * bags.num_bags]; j < static_cast<int64_t>(offsets[(t + 1) * bags.num_bags]); ++j)
        if (indices[j] < 0 || static_cast<int64_t>(indices[j]) >= tables.rows[t]) return {1, t, j, static_cast<int64_t>(indices[j]), tables.rows[t]};
    return {0, 0, 0, 0, 0};
  }

  static BagFault validate_any(const EmbeddingTables& tables, const Bags& bags, int threads) {
    return bags.wide ? validate<int64_t>(tables, bags, threads) : validate<int32_t>(tables, bags, threads);
  }

  // ---- forward ----------------------------------------------------------------------------------------------------------------------

  static void forward(const EmbeddingTables& tables, const Bags& bags, const Pooled& out, const ForwardOptions& options, int threads) {
    if (bags.wide)
      options.prefetch_hint == 0 ? run_forward<int64_t, 0>(tables, bags, out, options, threads)
                                 : run_forward<int64_t, 1>(tables, bags, out, options, threads);
    else
      options.prefetch_hint == 0 ? run_forward<int32_t, 0>(tables, bags, out, options, threads)
                                 : run_forward<int32_t, 1>(tables, bags, out, options, threads);
  }

  // row += scale * addend, over dim floats.
  static inline void add_scaled(float* row, const float* addend, float scale, int64_t dim) {
    const V s = Isa::set(scale);
    int64_t e = 0;
    for (; e + W <= dim; e += W) Isa::store(row + e, Isa::load(row + e) + s * Isa::load(addend + e));
    for (; e < dim; ++e) row[e] += scale * addend[e];
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

  template <class Index, int Hint>
  static void run_forward(const EmbeddingTables& tables, const Bags& bags, const Pooled& out, const ForwardOptions& options, int threads) {
    const int64_t tasks_per_table = ceil_div(bags.num_bags, options.bags_per_task);
    const int64_t num_tasks = tasks_per_table * tables.num_tables;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 1)
      for (int64_t task = 0; task < num_tasks; ++task) {
        const int64_t t = task / tasks_per_table;
        const int64_t first = (task % tasks_per_table) * options.bags_per_task;
        const int64_t last = min_of(bags.num_bags, first + options.bags_per_task);
        pool_task<Index, Hint>(tables, bags, out, options, t, first, last);
      }
      if (options.streaming_stores) store_fence();
    }
  }

  template <class Index, int Hint>
  static void pool_task(const EmbeddingTables& tables, const Bags& bags, const Pooled& out, const ForwardOptions& options, int64_t t,
                        int64_t first, int64_t last) {
    // A row that fills 1, 2, 4, 8 or 16 registers is summed in registers; 16 need the larger register file.
    const int64_t dim = tables.dim;
    if (dim == 1 * W) return pool<Index, Hint, 1>(tables, bags, out, options, t, first, last);
    if (dim == 2 * W) return pool<Index, Hint, 2>(tables, bags, out, options, t, first, last);
    if (dim == 4 * W) return pool<Index, Hint, 4>(tables, bags, out, options, t, first, last);
    if (dim == 8 * W) return pool<Index, Hint, 8>(tables, bags, out, options, t, first, last);
    if constexpr (Isa::kRegisters >= 32)
      if (dim == 16 * W) return pool<Index, Hint, 16>(tables, bags, out, options, t, first, last);
    pool<Index, Hint, 0>(tables, bags, out, options, t, first, last);
  }

  // Registers: vectors of a row held in registers; 0: any width, summed in scratch that stays in L1.
  template <class Index, int Hint, int Registers>
  static void pool(const EmbeddingTables& tables, const Bags& bags, const Pooled& out, const ForwardOptions& options, int64_t t,
                   int64_t first, int64_t last) {
    const int64_t dim = tables.dim;
    const float* weights = tables.weights[t];
    const Index* indices = static_cast<const Index*>(bags.indices);
    const Index* offsets = static_cast<const Index*>(bags.offsets) + t * bags.num_bags;
    const int64_t table_end = offsets[bags.num_bags];
    const int64_t distance = options.prefetch_distance;
    float* const scratch = Registers ? nullptr : static_cast<float*>(thread_scratch(kScratchPool, dim * sizeof(float)));
    // A bag writes its output once; rows come in by prefetch, `distance` look-ups ahead across bag boundaries.
    for (int64_t i = offsets[first]; i < min_of(offsets[first] + distance, table_end); ++i)
      prefetch_row<Hint>(weights + static_cast<int64_t>(indices[i]) * dim, dim);
    for (int64_t n = first; n < last; ++n) {
      const int64_t begin = offsets[n], end = offsets[n + 1];
      float* const target = out.data + n * out.sample_stride + t * out.table_stride;
      const float scale = bags.mean && end > begin ? 1.0f / static_cast<float>(end - begin) : 1.0f;
      if constexpr (Registers > 0) {
        V sum[Registers];
        for (int v = 0; v < Registers; ++v) sum[v] = Isa::set(0);
        for (int64_t j = begin; j < end; ++j) {
          if (distance > 0 && j + distance < table_end)
            prefetch_row<Hint>(weights + static_cast<int64_t>(indices[j + distance]) * dim, dim);
          const float* row = weights + static_cast<int64_t>(indices[j]) * dim;
          if (bags.scales != nullptr) {
            const V s = Isa::set(bags.scales[j]);
            for (int v = 0; v < Registers; ++v) sum[v] += s * Isa::load(row + v * W);
          } else {
            for (int v = 0; v < Registers; ++v) sum[v] += Isa::load(row + v * W);
          }
        }
        const V s = Isa::set(scale);
        for (int v = 0; v < Registers; ++v)
          options.streaming_stores ? Isa::stream(target + v * W, sum[v] * s) : Isa::store(target + v * W, sum[v] * s);
      } else {
        for (int64_t e = 0; e < dim; ++e) scratch[e] = 0;
        for (int64_t j = begin; j < end; ++j) {
          if (distance > 0 && j + distance < table_end)
            prefetch_row<Hint>(weights + static_cast<int64_t>(indices[j + distance]) * dim, dim);
          add_scaled(scratch, weights + static_cast<int64_t>(indices[j]) * dim, bags.scales != nullptr ? bags.scales[j] : 1.0f, dim);
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
