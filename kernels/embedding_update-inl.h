// Embedding bags: backward fused with the update, generic over ISA and storage. The contract is in embedding_bag.h.
#pragma once

#include <omp.h>

#include "embedding_adagrad-inl.h"
#include "embedding_rows-inl.h"
#include "embedding_shares.h"
#include "team.h"
#include "memory.h"

namespace autotune {

template <class Isa, class Rows>
struct EmbeddingUpdateOf {
  static void update(const EmbeddingTables& tables, const Bags& bags, const PooledGradient& gradient, float learning_rate,
                     UpdateStrategy strategy, int64_t distance, const UpdateWorkspace& workspace, int threads) {
    if (bags.wide)
      run_update<int64_t>(tables, bags, gradient, learning_rate, strategy, distance, workspace, threads);
    else
      run_update<int32_t>(tables, bags, gradient, learning_rate, strategy, distance, workspace, threads);
  }

 private:
  // -learning_rate, times the look-up's weight or one over its bag's length.
  template <class Index>
  static inline float step_of(const Bags& bags, const Index* offsets, int64_t bag, int64_t lookup, float learning_rate) {
    if (bags.scales != nullptr) return -learning_rate * bags.scales[lookup];
    if (bags.mean) return -learning_rate / static_cast<float>(offsets[bag + 1] - offsets[bag]);
    return -learning_rate;
  }

  // The gradient of the pooled vector of bag t*N + n.
  static inline const float* source_of(const Bags& bags, const PooledGradient& gradient, int64_t bag, int64_t t) {
    return gradient.data + (bag - t * bags.num_bags) * gradient.sample_stride + t * gradient.table_stride;
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
        // Halves are not one word to exchange: the binding refuses 16-bit storage.
        if constexpr (Rows::kReadBytes == 4) update_atomic<Index>(tables, bags, gradient, learning_rate, threads);
        return;
      case UpdateStrategy::kUnfused:
        return update_unfused<Index>(tables, bags, gradient, learning_rate, distance, workspace, threads);
    }
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
    const Index* offsets = static_cast<const Index*>(bags.offsets);
    const TeamClock clock(threads);
#pragma omp parallel num_threads(threads)
    if (const TeamClock::Turn turn(clock); tables.state != nullptr) {
      // Room for all look-ups of a table: a row steps by their sum.
      int64_t room = 1;
      for (int64_t t = 0; t < tables.num_tables; ++t)
        room = max_of(room, int64_t{offsets[(t + 1) * bags.num_bags]} - offsets[t * bags.num_bags] + 1);
      Pending* const pending = static_cast<Pending*>(thread_scratch(kScratchLeft, room * sizeof(Pending)));
      scan_owned<Index, Modulo>(tables, bags, pending, room, [&](int64_t count, int64_t t) {
        AdagradStep<Isa, Rows>::step_table(
            tables, t, pending, count, learning_rate, distance, [&](int64_t i) { return source_of(bags, gradient, pending[i].bag, t); },
            [&](int64_t i) { return step_of(bags, offsets, pending[i].bag, pending[i].lookup, -1.0f); });
      });
    } else {
      Pending pending[kPending];
      scan_owned<Index, Modulo>(tables, bags, pending, kPending, [&](int64_t count, int64_t t) {
        const Rows rows(tables, t);
        for (int64_t i = 0; i < min_of(distance, count); ++i) rows.prefetch_for_write(int64_t{pending[i].row} * tables.dim, tables.dim);
        for (int64_t i = 0; i < count; ++i) {
          if (distance > 0 && i + distance < count) rows.prefetch_for_write(int64_t{pending[i + distance].row} * tables.dim, tables.dim);
          add_to_row<Isa>(rows, pending[i].row, static_cast<uint32_t>(pending[i].lookup), source_of(bags, gradient, pending[i].bag, t),
                          step_of(bags, offsets, pending[i].bag, pending[i].lookup, learning_rate), tables.dim);
        }
      });
    }
  }

  // Collects, branch-free, the look-ups this thread owns into pending[0 .. room) and calls apply(count, table) when it is full and at
  // the end of each table. Runs inside a parallel region.
  template <class Index, bool Modulo, class Apply>
  static void scan_owned(const EmbeddingTables& tables, const Bags& bags, Pending* pending, int64_t room, const Apply& apply) {
    const uint32_t team = static_cast<uint32_t>(omp_get_num_threads()), me = static_cast<uint32_t>(omp_get_thread_num());
    const Index* indices = static_cast<const Index*>(bags.indices);
    const Index* offsets = static_cast<const Index*>(bags.offsets);
    for (int64_t t = 0; t < tables.num_tables; ++t) {
      const OwnedRows owned = owned_rows(tables.rows[t], t, me, team);
      int64_t count = 0;
      for (int64_t n = 0; n < bags.num_bags; ++n) {
        const int64_t bag = t * bags.num_bags + n;
        const int64_t end = offsets[bag + 1];
        for (int64_t j = offsets[bag]; j < end;) {
          const int64_t stop = min_of(end, j + (room - count));
          for (; j < stop; ++j) {
            const uint64_t row = static_cast<uint64_t>(indices[j]);
            pending[count] = {static_cast<uint32_t>(row), static_cast<uint32_t>(bag), j};
            count += owns<Modulo>(owned, row);
          }
          if (count == room) {
            apply(count, t);
            count = 0;
          }
        }
      }
      apply(count, t);
    }
  }

  // Look-ups are filed by bucket once (count, place, apply): the total work does not grow with the team. A bucket has one owner.
  template <class Index>
  static void update_bucketed(const EmbeddingTables& tables, const Bags& bags, const PooledGradient& gradient, float learning_rate,
                              int64_t distance, const UpdateWorkspace& workspace, int threads) {
    const Index* indices = static_cast<const Index*>(bags.indices);
    const Index* offsets = static_cast<const Index*>(bags.offsets);
    const int64_t num_bags = tables.num_tables * bags.num_bags, buckets = kBucketsPerThread * threads;
    int64_t* const begins = workspace.counts + threads * buckets;  // of each bucket, and the end of the last
    int64_t* const order = begins + buckets + 1;                   // buckets, the largest first
    const TeamClock clock(threads);
#pragma omp parallel num_threads(threads)
    {
      TeamClock::Turn turn(clock);
      const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
      const int64_t total = offsets[num_bags];
      const int64_t first = total * me / team, last = total * (me + 1) / team;
      const int64_t low = buckets * me / team, high = buckets * (me + 1) / team;
      int64_t* const counts = workspace.counts + me * buckets;
      for (int64_t b = 0; b < buckets; ++b) counts[b] = 0;
      for_slice<Index>(bags, num_bags, first, last, [&](int64_t j, int64_t, int64_t t) {
        ++counts[bucket_of(static_cast<uint32_t>(indices[j]), static_cast<uint32_t>(t), static_cast<uint32_t>(buckets))];
      });
      turn.barrier();
      // Slots by bucket, then by the thread that files: so a bucket holds its look-ups in their order whatever the team. Each thread sums
      // the columns of some buckets, then all sizes: its work grows with the team, not with the square of it.
      for (int64_t b = low; b < high; ++b) {
        int64_t filed = 0;
        for (int64_t p = 0; p < team; ++p) {
          const int64_t of_thread = workspace.counts[p * buckets + b];
          workspace.counts[p * buckets + b] = filed;
          filed += of_thread;
        }
        order[b] = filed;
      }
      turn.barrier();
      int64_t* const sizes = static_cast<int64_t*>(thread_scratch(kScratchPool, buckets * sizeof(int64_t)));
      for (int64_t b = 0, slot = 0; b < buckets; ++b) {
        sizes[b] = order[b];
        counts[b] += slot;
        if (b >= low && b < high) begins[b] = slot;
        slot += sizes[b];
      }
      if (me == 0) begins[buckets] = total;
      for_slice<Index>(bags, num_bags, first, last, [&](int64_t j, int64_t bag, int64_t t) {
        const uint32_t row = static_cast<uint32_t>(indices[j]);
        const int64_t at = counts[bucket_of(row, static_cast<uint32_t>(t), static_cast<uint32_t>(buckets))]++;
        workspace.entries[at] = {row, static_cast<uint32_t>(bag)};
        if (bags.scales != nullptr) workspace.entry_scales[at] = bags.scales[j];
        if (workspace.entry_lookups != nullptr) workspace.entry_lookups[at] = static_cast<uint32_t>(j);
      });
      turn.barrier();
      for (int64_t b = low; b < high; ++b) {
        int64_t before = 0;
        for (int64_t c = 0; c < buckets; ++c) before += claimed_before(sizes, c, b);
        order[before] = b;
      }
      turn.barrier();
#pragma omp for schedule(dynamic, 1) nowait
      for (int64_t i = 0; i < buckets; ++i)
        apply_bucket<Index>(tables, bags, gradient, learning_rate, distance, workspace, begins[order[i]], begins[order[i] + 1]);
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
    const auto step_at = [&](int64_t i, float rate) {
      return bags.scales != nullptr ? -rate * workspace.entry_scales[i] : step_of(bags, offsets, entries[i].bag, 0, rate);
    };
    // Entries come table by table; `ahead` is the table of the entry being prefetched.
    int64_t t = 0, ahead = 0;
    if (tables.state != nullptr) {
      for (int64_t i = begin; i < end; ++t) {
        int64_t stop = i;
        while (stop < end && int64_t{entries[stop].bag} < (t + 1) * bags.num_bags) ++stop;
        AdagradStep<Isa, Rows>::step_table(
            tables, t, entries + i, stop - i, learning_rate, distance,
            [&](int64_t k) { return source_of(bags, gradient, entries[i + k].bag, t); },
            [&](int64_t k) { return step_at(i + k, -1.0f); });
        i = stop;
      }
      return;
    }
    int64_t i_ahead = begin;
    const auto prefetch_next = [&] {
      const BucketEntry& entry = entries[i_ahead++];
      while (int64_t{entry.bag} >= (ahead + 1) * bags.num_bags) ++ahead;
      Rows(tables, ahead).prefetch_for_write(int64_t{entry.row} * dim, dim);
    };
    if (distance > 0)
      while (i_ahead < min_of(end, begin + distance)) prefetch_next();
    for (int64_t i = begin; i < end; ++i) {
      if (distance > 0 && i_ahead < end) prefetch_next();
      while (int64_t{entries[i].bag} >= (t + 1) * bags.num_bags) ++t;
      const uint32_t lookup = workspace.entry_lookups != nullptr ? workspace.entry_lookups[i] : 0;
      add_to_row<Isa>(Rows(tables, t), entries[i].row, lookup, source_of(bags, gradient, entries[i].bag, t), step_at(i, learning_rate), dim);
    }
  }

  // Anybody writes any row, one element at a time by compare-and-exchange: the order, and so the rounding, is not fixed.
  template <class Index>
  static void update_atomic(const EmbeddingTables& tables, const Bags& bags, const PooledGradient& gradient, float learning_rate,
                            int threads) {
    const Index* indices = static_cast<const Index*>(bags.indices);
    const Index* offsets = static_cast<const Index*>(bags.offsets);
    const int64_t num_bags = tables.num_tables * bags.num_bags;
    const TeamClock clock(threads);
#pragma omp parallel num_threads(threads)
    {
      const TeamClock::Turn turn(clock);
#pragma omp for schedule(static) nowait
      for (int64_t bag = 0; bag < num_bags; ++bag) {
        const int64_t t = bag / bags.num_bags;
        const float* source = source_of(bags, gradient, bag, t);
        for (int64_t j = offsets[bag]; j < static_cast<int64_t>(offsets[bag + 1]); ++j) {
          float* row = tables.weights[t] + static_cast<int64_t>(indices[j]) * tables.dim;
          const float step = step_of(bags, offsets, bag, j, learning_rate);
          for (int64_t e = 0; e < tables.dim; ++e) atomic_add(row + e, step * source[e]);
        }
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
    const TeamClock clock(threads);
#pragma omp parallel num_threads(threads)
    {
      TeamClock::Turn turn(clock);
#pragma omp for schedule(static) nowait
      for (int64_t bag = 0; bag < num_bags; ++bag) {
        const int64_t t = bag / bags.num_bags;
        const float* source = source_of(bags, gradient, bag, t);
        for (int64_t j = offsets[bag]; j < static_cast<int64_t>(offsets[bag + 1]); ++j) {
          float* row = workspace.gradient_rows + j * dim;
          const float step = step_of(bags, offsets, bag, j, learning_rate);
          for (int64_t e = 0; e < dim; ++e) row[e] = step * source[e];
        }
      }
      turn.barrier();
      Pending pending[kPending];
      scan_owned<Index, false>(tables, bags, pending, kPending, [&](int64_t count, int64_t t) {
        const Rows rows(tables, t);
        for (int64_t i = 0; i < count; ++i) {
          if (distance > 0 && i + distance < count) rows.prefetch_for_write(int64_t{pending[i + distance].row} * dim, dim);
          add_to_row<Isa>(rows, pending[i].row, static_cast<uint32_t>(pending[i].lookup),
                          workspace.gradient_rows + pending[i].lookup * dim, 1.0f, dim);
        }
      });
    }
  }
};

template <class Isa>
struct EmbeddingUpdateKernels {
  static void update(const EmbeddingTables& tables, const Bags& bags, const PooledGradient& gradient, float learning_rate,
                     UpdateStrategy strategy, int64_t distance, const UpdateWorkspace& workspace, int threads) {
    if (tables.streams != nullptr)
      EmbeddingUpdateOf<Isa, RoundedRows<Isa>>::update(tables, bags, gradient, learning_rate, strategy, distance, workspace, threads);
    else if (tables.upper != nullptr)
      EmbeddingUpdateOf<Isa, SplitRows<Isa>>::update(tables, bags, gradient, learning_rate, strategy, distance, workspace, threads);
    else
      EmbeddingUpdateOf<Isa, FloatRows<Isa>>::update(tables, bags, gradient, learning_rate, strategy, distance, workspace, threads);
  }
};

}  // namespace autotune
