// Row-wise Adagrad on one owner's look-ups of one table, generic over ISA and storage. The contract is in embedding_bag.h.
#pragma once

#include "embedding_rows-inl.h"
#include "memory.h"

namespace autotune {

template <class Isa, class Rows>
struct AdagradStep {
  using V = typename Isa::V;
  static constexpr int W = Isa::kLanes;

  // One step of every row among entries[0 .. count), each by the sum of its look-ups in their order. `entry.row` names the row;
  // source(i) and weight(i) give a look-up's gradient row and its factor. Uses this thread's scratch: no allocation once it has grown.
  template <class Entry, class Source, class Weight>
  static void step_table(const EmbeddingTables& tables, int64_t t, const Entry* entries, int64_t count, float learning_rate,
                         int64_t distance, const Source& source, const Weight& weight) {
    if (count == 0) return;
    const int64_t dim = tables.dim;
    const Rows rows(tables, t);
    float* const state = tables.state[t];
    float* const sum = static_cast<float*>(thread_scratch(kScratchPool, dim * sizeof(float)));
    const Chains chains = chain(entries, count);
    const auto prefetch = [&](int64_t h) {
      const int64_t row = entries[chains.heads[h]].row;
      rows.prefetch_for_write(row * dim, dim);
      prefetch_bytes_for_write(state + row, 4);
    };
    for (int64_t h = 0; h < min_of(distance, chains.num_heads); ++h) prefetch(h);
    for (int64_t h = 0; h < chains.num_heads; ++h) {
      if (distance > 0 && h + distance < chains.num_heads) prefetch(h + distance);
      uint32_t i = chains.heads[h];
      const int64_t row = entries[i].row;
      scaled(sum, source(i), weight(i), dim);
      while ((i = chains.next[i]) != kNone) add_scaled(sum, source(i), weight(i), dim);
      state[row] += mean_square(sum, dim);
      add_to_row<Isa>(rows, row * dim, sum, -learning_rate / (__builtin_sqrtf(state[row]) + tables.epsilon), dim);
    }
  }

 private:
  static constexpr uint32_t kNone = ~uint32_t{0};

  // Look-ups of equal rows, linked in their order; heads: the first of each row, in the order of the first look-ups.
  struct Chains {
    uint32_t* heads;
    uint32_t* next;
    int64_t num_heads;
  };
  struct Slot {
    uint32_t row;
    uint32_t tail;  // kNone: empty
  };

  template <class Entry>
  static Chains chain(const Entry* entries, int64_t count) {
    // Open addressing, at most half full; its lines are asked for a few entries ahead.
    int bits = 4;
    while ((int64_t{1} << bits) < 2 * count) ++bits;
    const int64_t size = int64_t{1} << bits;
    char* const scratch = static_cast<char*>(thread_scratch(kScratchRight, size * (sizeof(Slot) + sizeof(uint32_t))));
    Slot* const slots = reinterpret_cast<Slot*>(scratch);
    Chains chains = {reinterpret_cast<uint32_t*>(slots + size), reinterpret_cast<uint32_t*>(slots + size) + size / 2, 0};
    __builtin_memset(slots, 0xff, size * sizeof(Slot));
    const auto slot_of = [bits](uint32_t row) { return static_cast<int64_t>(row * 0x9e3779b1u >> (32 - bits)); };
    constexpr int64_t kAhead = 8;
    for (int64_t i = 0; i < count; ++i) {
      if (i + kAhead < count) __builtin_prefetch(slots + slot_of(entries[i + kAhead].row), 1, 3);
      const uint32_t row = entries[i].row, self = static_cast<uint32_t>(i);
      int64_t at = slot_of(row);
      while (slots[at].tail != kNone && slots[at].row != row) at = (at + 1) & (size - 1);
      if (slots[at].tail == kNone)
        chains.heads[chains.num_heads++] = self;
      else
        chains.next[slots[at].tail] = self;
      slots[at] = {row, self};
      chains.next[i] = kNone;
    }
    return chains;
  }

  static inline void scaled(float* sum, const float* source, float weight, int64_t dim) {
    int64_t e = 0;
    for (; e + W <= dim; e += W) Isa::store(sum + e, Isa::set(weight) * Isa::load(source + e));
    for (; e < dim; ++e) sum[e] = weight * source[e];
  }

  static inline void add_scaled(float* sum, const float* source, float weight, int64_t dim) {
    int64_t e = 0;
    for (; e + W <= dim; e += W) Isa::store(sum + e, Isa::load(sum + e) + Isa::set(weight) * Isa::load(source + e));
    for (; e < dim; ++e) sum[e] += weight * source[e];
  }

  static inline float mean_square(const float* sum, int64_t dim) {
    V squares = Isa::set(0);
    int64_t e = 0;
    for (; e + W <= dim; e += W) squares += Isa::load(sum + e) * Isa::load(sum + e);
    // By halves: a row's step waits for this sum, and one addition after the other takes four times as long.
    float spill[W];
    Isa::store(spill, squares);
    for (int half = W / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) spill[l] += spill[l + half];
    float total = spill[0];
    for (; e < dim; ++e) total += sum[e] * sum[e];
    return total / static_cast<float>(dim);
  }
};

}  // namespace autotune
