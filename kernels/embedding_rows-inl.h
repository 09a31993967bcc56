// Rows of one embedding table as the kernels see them: fp32, or split into upper and lower 16 bits. The contract is in embedding_bag.h.
#pragma once

#include "embedding_bag.h"
#include "isa/vector.h"

namespace autotune {

// fp32. Positions are in weights: row * dim + column.
template <class Isa>
struct FloatRows {
  using V = typename Isa::V;
  float* weights;

  static constexpr int64_t kReadBytes = 4;  // of a weight in the forward pass
  FloatRows(const EmbeddingTables& tables, int64_t t) : weights(tables.weights[t]) {}

  V read(int64_t at) const { return Isa::load(weights + at); }
  float read_one(int64_t at) const { return weights[at]; }
  V load(int64_t at) const { return Isa::load(weights + at); }
  float load_one(int64_t at) const { return weights[at]; }
  void store(int64_t at, V value) const { Isa::store(weights + at, value); }
  void store_one(int64_t at, float value) const { weights[at] = value; }
  template <int Hint>
  void prefetch(int64_t at, int64_t dim) const {
    prefetch_bytes<Hint>(weights + at, dim * 4);
  }
  void prefetch_for_write(int64_t at, int64_t dim) const { prefetch_bytes_for_write(weights + at, dim * 4); }
};

// Split: `read` sees the bf16 upper half alone, `load` the whole fp32 weight.
template <class Isa>
struct SplitRows {
  using V = typename Isa::V;
  uint16_t* upper;
  uint16_t* lower;

  static constexpr int64_t kReadBytes = 2;
  SplitRows(const EmbeddingTables& tables, int64_t t) : upper(tables.upper[t]), lower(tables.lower[t]) {}

  V read(int64_t at) const { return Isa::load_bf16(upper + at); }
  float read_one(int64_t at) const { return join_one(upper[at], 0); }
  V load(int64_t at) const { return Isa::join(upper + at, lower + at); }
  float load_one(int64_t at) const { return join_one(upper[at], lower[at]); }
  void store(int64_t at, V value) const { Isa::split(value, upper + at, lower + at); }
  void store_one(int64_t at, float value) const { split_one(value, upper + at, lower + at); }
  template <int Hint>
  void prefetch(int64_t at, int64_t dim) const {
    prefetch_bytes<Hint>(upper + at, dim * 2);
  }
  void prefetch_for_write(int64_t at, int64_t dim) const {
    prefetch_bytes_for_write(upper + at, dim * 2);
    prefetch_bytes_for_write(lower + at, dim * 2);
  }
};

// row += scale * addend, over dim weights from position `at` on. The same fused multiply-add in either storage, so the same bits.
template <class Isa, class Rows>
static inline void add_to_row(const Rows& rows, int64_t at, const float* addend, float scale, int64_t dim) {
  constexpr int W = Isa::kLanes;
  const typename Isa::V s = Isa::set(scale);
  int64_t e = 0;
  for (; e + W <= dim; e += W) rows.store(at + e, rows.load(at + e) + s * Isa::load(addend + e));
  for (; e < dim; ++e) rows.store_one(at + e, rows.load_one(at + e) + scale * addend[e]);
}

}  // namespace autotune
