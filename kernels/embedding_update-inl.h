// Embedding bags: backward fused with the SGD update, generic over the ISA. The contract is in embedding_bag.h.
#pragma once

#include <omp.h>

#include "embedding_bag-inl.h"

namespace autotune {

template <class Isa>
struct EmbeddingUpdateKernels {
  static void update(const EmbeddingTables& tables, const Bags& bags, const PooledGradient& gradient, float learning_rate,
                     UpdateStrategy strategy, int64_t prefetch_distance, const UpdateWorkspace& workspace, int threads) {
    if (bags.wide)
      run_update<int64_t>(tables, bags, gradient, learning_rate, strategy, prefetch_distance, workspace, threads);
    else
      run_update<int32_t>(tables, bags, gradient, learning_rate, strategy, prefetch_distance, workspace, threads);
  }

 private:
  static inline void add_scaled(float* row, const float* addend, float scale, int64_t dim) {
    EmbeddingKernels<Isa>::add_scaled(row, addend, scale, dim);
  }

  // -learning_rate, times the look-up's weight or one over its bag's length.
  template <class Index>
  static inline float step_of(const Bags& bags, const Index* offsets, int64_t bag, int64_t lookup, float learning_rate) {
    if (bags.scales != nullptr) return -learning_rate * bags.scales[lookup];
    if (bags.mean) return -learning_rate / static_cast<float>(offsets[bag + 1] - offsets[bag]);
    return -learning_rate;
  }

  template <class Index>
  static void run_update(const EmbeddingTables& tables, const Bags& bags, const PooledGradient& gradient, float learning_rate,
                         UpdateStrategy strategy, int64_t distance, const UpdateWorkspace& workspace, int threads) {
    switch (strategy) {
      case UpdateStrategy::kRaceFreeRange:
        return update_race_free<Index, false>(tables, bags, gradient, learning_rate, distance, threads);
      case UpdateStrategy::kRaceFreeModulo:
        return update_race_free<Index, true>(tables, bags, gradient, learning_rate, distance, threads);
      case UpdateStrategy::kBucketed:
        return update_bucketed<Index>(tables, bags, gradient, learning_rate, distance, workspace, threads);
      case UpdateStrategy::kAtomic:
        return update_atomic<Index>(tables, bags, gradient, learning_rate, threads);
      case UpdateStrategy::kUnfused:
        return update_unfused<Index>(tables, bags, gradient, learning_rate, distance, workspace, threads);
    }
  }

  // value % divisor for 32-bit values by two multiplications (Lemire, Kaser, Kurz 2019); inverse = 2^64 / divisor rounded up.
  static inline uint32_t fast_modulo(uint32_t value, uint64_t inverse, uint32_t divisor) {
    const uint64_t low = inverse * value;
    return static_cast<uint32_t>((static_cast<unsigned __int128>(low) * divisor) >> 64);
  }

  // Which of `owners` threads a row belongs to: a multiplicative hash, so that hot rows side by side do not meet at one owner.
  static inline uint32_t owner_of(uint32_t row, uint32_t table, uint32_t owners) {
    const uint32_t mixed = (row + table * 0x9e3779b1u) * 0x85ebca77u;
    return static_cast<uint32_t>((static_cast<uint64_t>(mixed ^ (mixed >> 15)) * owners) >> 32);
  }

  struct Pending {
    uint32_t row;
    uint32_t bag;  // t*N + n
    int64_t lookup;
  };
  static constexpr int64_t kPending = 1024;  // 16 KiB: half of the smallest L1

  // Every thread scans all indices and keeps those it owns; a row has one writer, which sees its look-ups in order.
  template <class Index, bool Modulo>
  static void update_race_free(const EmbeddingTables& tables, const Bags& bags, const PooledGradient& gradient, float learning_rate,
                               int64_t distance, int threads) {
#pragma omp parallel num_threads(threads)
    scan_owned<Index, Modulo>(tables, bags, [&](const Pending* pending, int64_t count, int64_t t) {
      const Index* offsets = static_cast<const Index*>(bags.offsets);
      float* weights = tables.weights[t];
      for (int64_t i = 0; i < min_of(distance, count); ++i) prefetch_row_for_write(weights + int64_t{pending[i].row} * tables.dim, tables.dim);
      for (int64_t i = 0; i < count; ++i) {
        if (distance > 0 && i + distance < count)
          prefetch_row_for_write(weights + int64_t{pending[i + distance].row} * tables.dim, tables.dim);
        const int64_t n = pending[i].bag - t * bags.num_bags;
        add_scaled(weights + int64_t{pending[i].row} * tables.dim, gradient.data + n * gradient.sample_stride + t * gradient.table_stride,
                   step_of(bags, offsets, pending[i].bag, pending[i].lookup, learning_rate), tables.dim);
      }
    });
  }

  // Collects, branch-free, the look-ups this thread owns and hands them to `apply` in batches, in order. Runs inside a parallel region.
  template <class Index, bool Modulo, class Apply>
  static void scan_owned(const EmbeddingTables& tables, const Bags& bags, const Apply& apply) {
    const uint32_t team = static_cast<uint32_t>(omp_get_num_threads()), me = static_cast<uint32_t>(omp_get_thread_num());
    const uint64_t inverse = ~uint64_t{0} / team + 1;
    const Index* indices = static_cast<const Index*>(bags.indices);
    const Index* offsets = static_cast<const Index*>(bags.offsets);
    Pending pending[kPending];
    for (int64_t t = 0; t < tables.num_tables; ++t) {
      const uint64_t low = static_cast<uint64_t>(tables.rows[t]) * me / team;
      const uint64_t span = static_cast<uint64_t>(tables.rows[t]) * (me + 1) / team - low;
      int64_t count = 0;
      for (int64_t n = 0; n < bags.num_bags; ++n) {
        const int64_t bag = t * bags.num_bags + n;
        const int64_t end = offsets[bag + 1];
        for (int64_t j = offsets[bag]; j < end;) {
          const int64_t stop = min_of(end, j + (kPending - count));
          for (; j < stop; ++j) {
            const uint64_t row = static_cast<uint64_t>(indices[j]);
            pending[count] = {static_cast<uint32_t>(row), static_cast<uint32_t>(bag), j};
            if constexpr (Modulo)
              count += team == 1 || fast_modulo(static_cast<uint32_t>(row), inverse, team) == me;
            else
              count += row - low < span;
          }
          if (count == kPending) {
            apply(pending, count, t);
            count = 0;
          }
        }
      }
      apply(pending, count, t);
    }
  }

  // Look-ups are filed by owner once (count, place, apply): the total work does not grow with the team.
  template <class Index>
  static void update_bucketed(const EmbeddingTables& tables, const Bags& bags, const PooledGradient& gradient, float learning_rate,
                              int64_t distance, const UpdateWorkspace& workspace, int threads) {
    const Index* indices = static_cast<const Index*>(bags.indices);
    const Index* offsets = static_cast<const Index*>(bags.offsets);
    const int64_t num_bags = tables.num_tables * bags.num_bags;
#pragma omp parallel num_threads(threads)
    {
      const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
      const int64_t begin = offsets[0], total = offsets[num_bags] - begin;
      const int64_t first = begin + total * me / team, last = begin + total * (me + 1) / team;
      int64_t* counts = workspace.counts + me * team;
      for (int64_t o = 0; o < team; ++o) counts[o] = 0;
      for_slice<Index>(bags, num_bags, first, last, [&](int64_t j, int64_t, int64_t t) {
        ++counts[owner_of(static_cast<uint32_t>(indices[j]), static_cast<uint32_t>(t), static_cast<uint32_t>(team))];
      });
#pragma omp barrier
      // Slots by owner, then by the thread that files: so an owner meets its look-ups in their order whatever the team.
      int64_t* const next = static_cast<int64_t*>(thread_scratch(kScratchPool, team * sizeof(int64_t)));
      int64_t slot = 0, mine_begin = 0, mine_end = 0;
      for (int64_t o = 0; o < team; ++o) {
        if (o == me) mine_begin = slot;
        for (int64_t p = 0; p < team; ++p) {
          if (p == me) next[o] = slot;
          slot += workspace.counts[p * team + o];
        }
        if (o == me) mine_end = slot;
      }
      for_slice<Index>(bags, num_bags, first, last, [&](int64_t j, int64_t bag, int64_t t) {
        const uint32_t row = static_cast<uint32_t>(indices[j]);
        const int64_t at = next[owner_of(row, static_cast<uint32_t>(t), static_cast<uint32_t>(team))]++;
        workspace.entries[at] = {row, static_cast<uint32_t>(bag)};
        if (bags.scales != nullptr) workspace.entry_scales[at] = bags.scales[j];
      });
#pragma omp barrier
      apply_bucket<Index>(tables, bags, gradient, learning_rate, distance, workspace, mine_begin, mine_end);
    }
  }

  // Calls visit(look-up, bag, table) for look-ups first..last in order.
  template <class Index, class Visit>
  static inline void for_slice(const Bags& bags, int64_t num_bags, int64_t first, int64_t last, const Visit& visit) {
    if (first >= last) return;
    const Index* offsets = static_cast<const Index*>(bags.offsets);
    int64_t low = 0, high = num_bags;  // the last bag that begins at or before `first`
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      (offsets[middle] <= first ? low : high) = middle;
    }
    int64_t t = low / bags.num_bags;
    for (int64_t bag = low, j = first; j < last; ++bag) {
      if (bag == (t + 1) * bags.num_bags) ++t;
      const int64_t stop = min_of(last, offsets[bag + 1]);
      for (; j < stop; ++j) visit(j, bag, t);
    }
  }

  template <class Index>
  static void apply_bucket(const EmbeddingTables& tables, const Bags& bags, const PooledGradient& gradient, float learning_rate,
                           int64_t distance, const UpdateWorkspace& workspace, int64_t begin, int64_t end) {
    const Index* offsets = static_cast<const Index*>(bags.offsets);
    const int64_t dim = tables.dim;
    const BucketEntry* entries = workspace.entries;
    // Entries come table by table; `ahead` is the table of the entry being prefetched.
    int64_t t = 0, ahead = 0;
    int64_t i_ahead = begin;
    const auto prefetch_next = [&] {
      const BucketEntry& entry = entries[i_ahead++];
      while (int64_t{entry.bag} >= (ahead + 1) * bags.num_bags) ++ahead;
      prefetch_row_for_write(tables.weights[ahead] + int64_t{entry.row} * dim, dim);
    };
    if (distance > 0)
      while (i_ahead < min_of(end, begin + distance)) prefetch_next();
    for (int64_t i = begin; i < end; ++i) {
      if (distance > 0 && i_ahead < end) prefetch_next();
      const int64_t bag = entries[i].bag;
      while (bag >= (t + 1) * bags.num_bags) ++t;
      const int64_t n = bag - t * bags.num_bags;
      const float step = bags.scales != nullptr ? -learning_rate * workspace.entry_scales[i] : step_of(bags, offsets, bag, 0, learning_rate);
      add_scaled(tables.weights[t] + int64_t{entries[i].row} * dim, gradient.data + n * gradient.sample_stride + t * gradient.table_stride,
                 step, dim);
    }
  }

  // Anybody writes any row, one element at a time by compare-and-exchange: the order, and so the rounding, is not fixed.
  template <class Index>
  static void update_atomic(const EmbeddingTables& tables, const Bags& bags, const PooledGradient& gradient, float learning_rate,
                            int threads) {
    const Index* indices = static_cast<const Index*>(bags.indices);
    const Index* offsets = static_cast<const Index*>(bags.offsets);
    const int64_t num_bags = tables.num_tables * bags.num_bags;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t bag = 0; bag < num_bags; ++bag) {
      const int64_t t = bag / bags.num_bags, n = bag % bags.num_bags;
      const float* source = gradient.data + n * gradient.sample_stride + t * gradient.table_stride;
      for (int64_t j = offsets[bag]; j < static_cast<int64_t>(offsets[bag + 1]); ++j) {
        float* row = tables.weights[t] + static_cast<int64_t>(indices[j]) * tables.dim;
        const float step = step_of(bags, offsets, bag, j, learning_rate);
        for (int64_t e = 0; e < tables.dim; ++e) atomic_add(row + e, step * source[e]);
      }
    }
  }

  static inline void atomic_add(float* target, float value) {
    typedef uint32_t Bits __attribute__((may_alias));
    Bits* bits = reinterpret_cast<Bits*>(target);
    uint32_t seen = __atomic_load_n(bits, __ATOMIC_RELAXED), wanted;
    do {
      float sum;
      __builtin_memcpy(&sum, &seen, 4);
      sum += value;
      __builtin_memcpy(&wanted, &sum, 4);
    } while (!__atomic_compare_exchange_n(bits, &seen, wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  }

  // The gradient of every look-up is written out as a row of its own, then applied by the owners: what a framework does, as a baseline.
  template <class Index>
  static void update_unfused(const EmbeddingTables& tables, const Bags& bags, const PooledGradient& gradient, float learning_rate,
                             int64_t distance, const UpdateWorkspace& workspace, int threads) {
    const Index* offsets = static_cast<const Index*>(bags.offsets);
    const int64_t num_bags = tables.num_tables * bags.num_bags, dim = tables.dim;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
      for (int64_t bag = 0; bag < num_bags; ++bag) {
        const int64_t t = bag / bags.num_bags, n = bag % bags.num_bags;
        const float* source = gradient.data + n * gradient.sample_stride + t * gradient.table_stride;
        for (int64_t j = offsets[bag]; j < static_cast<int64_t>(offsets[bag + 1]); ++j) {
          float* row = workspace.gradient_rows + j * dim;
          const float step = step_of(bags, offsets, bag, j, learning_rate);
          for (int64_t e = 0; e < dim; ++e) row[e] = step * source[e];
        }
      }
      scan_owned<Index, false>(tables, bags, [&](const Pending* pending, int64_t count, int64_t t) {
        for (int64_t i = 0; i < count; ++i) {
          if (distance > 0 && i + distance < count)
            prefetch_row_for_write(tables.weights[t] + int64_t{pending[i + distance].row} * dim, dim);
          add_scaled(tables.weights[t] + int64_t{pending[i].row} * dim, workspace.gradient_rows + pending[i].lookup * dim, 1.0f, dim);
        }
      });
    }
  }
};

}  // namespace autotune
