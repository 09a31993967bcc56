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
    // Steps the rows of list[0 .. size) in turn; add(k) leaves in `sum` what row k steps by and returns its mean square.
    const auto step_all = [&](const uint32_t* list, int64_t size, const auto& add) {
      const auto prefetch = [&](int64_t k) {
        const int64_t row = entries[list[k]].row;
        rows.prefetch_for_write(row * dim, dim);
        prefetch_bytes_for_write(state + row, 4);
      };
      for (int64_t k = 0; k < min_of(distance, size); ++k) prefetch(k);
      for (int64_t k = 0; k < size; ++k) {
        if (distance > 0 && k + distance < size) prefetch(k + distance);
        const int64_t row = entries[list[k]].row;
        state[row] += add(k);
        add_to_row<Isa>(rows, row, 0, sum, -learning_rate / (__builtin_sqrtf(state[row]) + tables.epsilon), dim);
      }
    };
    const Parts parts = parted(entries, count);
    // Look-ups of one bag follow each other and share a gradient.
    const float* from = nullptr;
    float factor = 0, square = 0;
    step_all(parts.single, parts.num_single, [&](int64_t k) {
      const float* const next = source(parts.single[k]);
      const float next_factor = weight(parts.single[k]);
      if (next == from && next_factor == factor) return square;
      from = next;
      factor = next_factor;
      return square = scaled(sum, from, factor, dim);
    });
    const Chains chains = chain(entries, count, parts);
    step_all(chains.heads, chains.num_heads, [&](int64_t h) {
      uint32_t i = chains.heads[h];
      scaled(sum, source(i), weight(i), dim);
      while ((i = chains.next[i]) != kNone) add_scaled(sum, source(i), weight(i), dim);
      return mean_square(sum, dim);
    });
  }

 private:
  static constexpr uint32_t kNone = ~uint32_t{0};

  // Numbers of look-ups in their order. single: of rows that no other look-up meets; shared: the others, and a few that only seem to.
  struct Parts {
    uint32_t* single;
    uint32_t* shared;
    int64_t num_single;
    int64_t num_shared;
    uint32_t* unused;  // scratch for `chain`
  };
  // Look-ups of equal rows, linked in their order; heads: the first of each row, in the order of the first look-ups.
  struct Chains {
    uint32_t* heads;
    uint32_t* next;  // by look-up
    int64_t num_heads;
  };
  struct Slot {
    uint32_t row;
    uint32_t tail;  // kNone: empty
  };

  // The power of two at or above `least`.
  static inline int bits_for(int64_t least) {
    int bits = 5;
    while ((int64_t{1} << bits) < least) ++bits;
    return bits;
  }
  static inline int64_t slot_of(uint32_t row, int bits) { return static_cast<int64_t>(row * 0x9e3779b1u >> (32 - bits)); }

  // Uniform look-ups seldom meet: a filter of two bits (met, met again) for each of eight slots a look-up leaves few to be chained, and
  // fits L2 where the chains' hash would not.
  template <class Entry>
  static Parts parted(const Entry* entries, int64_t count) {
    const int bits = bits_for(8 * count);
    const int64_t words = int64_t{1} << (bits - 5), chained = int64_t{1} << bits_for(2 * count);
    char* const scratch = static_cast<char*>(
        thread_scratch(kScratchRight, words * sizeof(uint64_t) + 4 * count * sizeof(uint32_t) + chained * sizeof(Slot)));
    uint64_t* const met = reinterpret_cast<uint64_t*>(scratch);
    uint32_t* const numbers = reinterpret_cast<uint32_t*>(met + words);
    Parts parts = {numbers, numbers + count, 0, 0, numbers + 2 * count};
    __builtin_memset(met, 0, words * sizeof(uint64_t));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t slot = slot_of(entries[i].row, bits);
      const int shift = static_cast<int>(slot & 31) * 2;
      met[slot >> 5] |= (met[slot >> 5] >> shift & 1) << (shift + 1) | uint64_t{1} << shift;
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t slot = slot_of(entries[i].row, bits), again = met[slot >> 5] >> ((slot & 31) * 2 + 1) & 1;
      parts.single[parts.num_single] = parts.shared[parts.num_shared] = static_cast<uint32_t>(i);
      parts.num_single += 1 - again;
      parts.num_shared += again;
    }
    return parts;
  }

  // Open addressing, at most half full; its lines are asked for a few entries ahead.
  template <class Entry>
  static Chains chain(const Entry* entries, int64_t count, const Parts& parts) {
    const int bits = bits_for(2 * parts.num_shared);
    const int64_t size = int64_t{1} << bits;
    Chains chains = {parts.unused, parts.unused + count, 0};
    Slot* const slots = reinterpret_cast<Slot*>(chains.next + count);
    __builtin_memset(slots, 0xff, size * sizeof(Slot));
    constexpr int64_t kAhead = 8;
    for (int64_t k = 0; k < parts.num_shared; ++k) {
      if (k + kAhead < parts.num_shared) __builtin_prefetch(slots + slot_of(entries[parts.shared[k + kAhead]].row, bits), 1, 3);
      const uint32_t self = parts.shared[k], row = entries[self].row;
      int64_t at = slot_of(row, bits);
      while (slots[at].tail != kNone && slots[at].row != row) at = (at + 1) & (size - 1);
      if (slots[at].tail == kNone)
        chains.heads[chains.num_heads++] = self;
      else
        chains.next[slots[at].tail] = self;
      slots[at] = {row, self};
      chains.next[self] = kNone;
    }
    return chains;
  }

  // Writes weight * source and returns the mean of its squares.
  static inline float scaled(float* sum, const float* source, float weight, int64_t dim) {
    int64_t e = 0;
    for (; e + W <= dim; e += W) Isa::store(sum + e, Isa::set(weight) * Isa::load(source + e));
    for (; e < dim; ++e) sum[e] = weight * source[e];
    return mean_square(sum, dim);
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
