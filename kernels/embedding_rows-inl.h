// Rows of one embedding table as the kernels see them: fp32, split into upper and lower 16 bits, or bf16
// rounded by chance. The contract is in embedding_bag.h.
#pragma once

#include "embedding_bag.h"
#include "isa/bf16.h"
#include "isa/vector.h"
#include "rounding.h"

namespace autotune {

// Storage that keeps what is stored, and so draws nothing.
template <class Isa>
struct ExactRows {
  struct Nothing {};
  Nothing draw(int64_t, uint32_t) const { return {}; }
};

// fp32. Positions are in weights: row * dim + column.
template <class Isa>
struct FloatRows : ExactRows<Isa> {
  using V = typename Isa::V;
  using Nothing = typename ExactRows<Isa>::Nothing;
  float* weights;

  static constexpr int64_t kReadBytes = 4;  // of a weight in the forward pass
  FloatRows(const EmbeddingTables& tables, int64_t t) : weights(tables.weights[t]) {}

  V read(int64_t at) const { return Isa::load(weights + at); }
  float read_one(int64_t at) const { return weights[at]; }
  V load(int64_t at) const { return Isa::load(weights + at); }
  float load_one(int64_t at) const { return weights[at]; }
  void store(int64_t at, V value, Nothing, int64_t) const { Isa::store(weights + at, value); }
  void store_one(int64_t at, float value, Nothing, int64_t) const { weights[at] = value; }
  template <int Hint>
  void prefetch(int64_t at, int64_t dim) const {
    prefetch_bytes<Hint>(weights + at, dim * 4);
  }
  void prefetch_for_write(int64_t at, int64_t dim) const { prefetch_bytes_for_write(weights + at, dim * 4); }
};

// What the forward pass reads of 16-bit storage: bf16.
template <class Isa>
struct UpperRows {
  using V = typename Isa::V;
  uint16_t* upper;

  static constexpr int64_t kReadBytes = 2;
  UpperRows(const EmbeddingTables& tables, int64_t t) : upper(tables.upper[t]) {}

  V read(int64_t at) const { return Isa::load_bf16(upper + at); }
  float read_one(int64_t at) const { return join_one(upper[at], 0); }
  template <int Hint>
  void prefetch(int64_t at, int64_t dim) const {
    prefetch_bytes<Hint>(upper + at, dim * 2);
  }
};

// Split: `load` joins the whole fp32 weight.
template <class Isa>
struct SplitRows : UpperRows<Isa>, ExactRows<Isa> {
  using V = typename Isa::V;
  using Nothing = typename ExactRows<Isa>::Nothing;
  using UpperRows<Isa>::upper;
  uint16_t* lower;

  SplitRows(const EmbeddingTables& tables, int64_t t) : UpperRows<Isa>(tables, t), lower(tables.lower[t]) {}

  V load(int64_t at) const { return Isa::join(upper + at, lower + at); }
  float load_one(int64_t at) const { return join_one(upper[at], lower[at]); }
  void store(int64_t at, V value, Nothing, int64_t) const { Isa::split(value, upper + at, lower + at); }
  void store_one(int64_t at, float value, Nothing, int64_t) const { split_one(value, upper + at, lower + at); }
  void prefetch_for_write(int64_t at, int64_t dim) const {
    prefetch_bytes_for_write(upper + at, dim * 2);
    prefetch_bytes_for_write(lower + at, dim * 2);
  }
};

// Stochastic: bf16 is all there is; `store` rounds by the bits drawn for a row at a look-up.
template <class Isa>
struct RoundedRows : UpperRows<Isa> {
  using V = typename Isa::V;
  using B = Bf16<Isa>;
  using UpperRows<Isa>::upper;
  uint64_t stream;

  RoundedRows(const EmbeddingTables& tables, int64_t t) : UpperRows<Isa>(tables, t), stream(tables.streams[t]) {}

  Draw draw(int64_t row, uint32_t lookup) const { return draw_of(stream, row, lookup); }
  V load(int64_t at) const { return this->read(at); }
  float load_one(int64_t at) const { return this->read_one(at); }
  void store(int64_t at, V value, Draw draw, int64_t column) const {
    const typename B::U random = random_bits(B::count_from(static_cast<uint32_t>(column)), draw);
    Isa::store_bf16(B::value(rounded_bits(B::bits(value), random)), upper + at);
  }
  void store_one(int64_t at, float value, Draw draw, int64_t column) const {
    const uint32_t random = random_bits(static_cast<uint32_t>(column), draw);
    upper[at] = static_cast<uint16_t>(rounded_bits(__builtin_bit_cast(uint32_t, value), random) >> 16);
  }
  void prefetch_for_write(int64_t at, int64_t dim) const { prefetch_bytes_for_write(upper + at, dim * 2); }
};

// row += scale * addend, over its dim weights. The same fused multiply-add in any storage, so the same bits before they are stored.
template <class Isa, class Rows>
static inline void add_to_row(const Rows& rows, int64_t row, uint32_t lookup, const float* addend, float scale, int64_t dim) {
  constexpr int W = Isa::kLanes;
  const typename Isa::V s = Isa::set(scale);
  const int64_t at = row * dim;
  const auto draw = rows.draw(row, lookup);
  int64_t e = 0;
  for (; e + W <= dim; e += W) rows.store(at + e, rows.load(at + e) + s * Isa::load(addend + e), draw, e);
  for (; e < dim; ++e) rows.store_one(at + e, rows.load_one(at + e) + scale * addend[e], draw, e);
}

}  // namespace autotune
