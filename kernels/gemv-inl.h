// Matrix-vector products, generic over the ISA: the passes of a layer with one output. The contract is in gemm.h.
//
// Sums run over the reduction in its order, as those of the tiles do, whatever the blocking and the team: so both give the same bits as long
// as a tile's reduction is not parted (bc >= R). Vectors are over what is not reduced, and the matrix is read once, in whole lines; the
// tiles, whose vectors are over output columns, would fill one lane of each.
// With `Rounded` what the passes round to bf16 is rounded, and multiplied in fp32.
#pragma once

#include "gemm_tile-inl.h"
#include "isa/bf16.h"

namespace autotune {

template <class Isa, bool Rounded>
struct GemvKernels {
  using V = typename Isa::V;
  using Bits = Bf16<Isa>;
  using One = OneLane<Isa>;
  static constexpr int W = Isa::kLanes;

  // out[n, 0] = epilogue(sum_c a[n, c] w[c]) of rows begin ... end. Kept in registers are the sums of kRows rows, whose values at W columns
  // are transposed into vectors over rows. Two vectors of rows hide the latency of one's multiply-adds.
  static void dot_rows(const ConstMatrix& a, const float* w, const Matrix& out, const Epilogue& epilogue, int64_t begin, int64_t end) {
    typename GemmTiles<Isa, Fp32Step<Isa>>::Part part{};
    part.out = &out;
    part.epilogue = &epilogue;
    part.fresh = part.done = true;
    for (int64_t first = begin; first < end; first += kRows) {
      const float* row[kRows];
      for (int64_t i = 0; i < kRows; ++i) row[i] = a.data + min_of(first + i, end - 1) * a.stride;
      V sum[kGroups];
#pragma GCC unroll 8
      for (int g = 0; g < kGroups; ++g) sum[g] = Isa::set(0);
      int64_t c = 0;
      for (; c + W <= a.cols; c += W) {
#pragma GCC unroll 8
        for (int g = 0; g < kGroups; ++g) {
          typename Bits::U block[W];
#pragma GCC unroll 16
          for (int i = 0; i < W; ++i) {
            __builtin_prefetch(row[g * W + i] + c + kAhead, 0, 3);
            block[i] = Bits::load_bits(row[g * W + i] + c);
          }
          Bits::transpose(block);
#pragma GCC unroll 16
          for (int i = 0; i < W; ++i) sum[g] = sum[g] + read(Bits::value(block[i])) * Isa::set(w[c + i]);
        }
      }
      float values[W];
      for (; c < a.cols; ++c)
        for (int g = 0; g < kGroups; ++g) {
          for (int i = 0; i < W; ++i) values[i] = row[g * W + i][c];
          sum[g] = sum[g] + read(Isa::load(values)) * Isa::set(w[c]);
        }
      float sums[kRows];
      for (int g = 0; g < kGroups; ++g) Isa::store(sums + g * W, sum[g]);
      for (int64_t i = 0; i < min_of(kRows, end - first); ++i) GemmTiles<Isa, Fp32Step<Isa>>::template finish<One>(part, first + i, 0, sums[i]);
    }
  }

  // out[n, c] = a[n, 0] w[c], zero where there is a mask that is not positive, of rows begin ... end.
  static void outer(const ConstMatrix& a, const float* w, const Matrix& out, const Epilogue& epilogue, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float left = read_one(a.data[n * a.stride]);
      float* const row = out.data + n * out.stride;
      if (epilogue.mask == nullptr)
        outer_row(left, w, out.cols, row, [](auto product, int64_t) { return product; });
      else
        outer_row(left, w, out.cols, row, [mask = epilogue.mask + n * epilogue.mask_stride](auto product, int64_t c) {
          if constexpr (sizeof(product) == sizeof(V)) return Isa::where_positive(Isa::load(mask + c), product);
          else return One::where_positive(mask[c], product);
        });
    }
  }

  // sums[c - begin] = sum_n dy[n, 0] x[n, c] of columns begin ... end. Four rows at a time pass through the sums, which stay in L1.
  static void weighted_sum(const ConstMatrix& dy, const ConstMatrix& x, int64_t begin, int64_t end, float* sums) {
    for (int64_t c = begin; c < end; ++c) sums[c - begin] = 0;
    int64_t n = 0;
    for (; n + 4 <= dy.rows; n += 4) add_rows<4>(dy, x, n, begin, end, sums);
    for (; n < dy.rows; ++n) add_rows<1>(dy, x, n, begin, end, sums);
  }

 private:
  static constexpr int kGroups = W == 1 ? 8 : 2;
  static constexpr int64_t kRows = kGroups * W;
  static constexpr int64_t kAhead = 64;  // floats of a row that are fetched ahead

  static inline V read(V v) {
    if constexpr (Rounded) return Bits::rounded_value(v);
    else return v;
  }
  static inline float read_one(float v) {
    if constexpr (Rounded) return Bf16<One>::rounded_value(v);
    else return v;
  }

  // From zero, as a tile's sum: a product of -0 becomes 0.
  template <class Keep>
  static inline void outer_row(float left, const float* w, int64_t columns, float* out, const Keep& keep) {
    int64_t c = 0;
    for (; c + W <= columns; c += W) Isa::store(out + c, keep(Isa::set(0) + Isa::set(left) * Isa::load(w + c), c));
    for (; c < columns; ++c) out[c] = keep(0.0f + left * w[c], c);
  }

  template <int Rows>
  static void add_rows(const ConstMatrix& dy, const ConstMatrix& x, int64_t n, int64_t begin, int64_t end, float* sums) {
    float left[Rows];
    const float* row[Rows];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      left[r] = read_one(dy.data[(n + r) * dy.stride]);
      row[r] = x.data + (n + r) * x.stride + begin;
    }
    const int64_t count = end - begin, ahead = Rows * x.stride;
    int64_t c = 0;
    for (; c + W <= count; c += W) {
      V sum = Isa::load(sums + c);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) {
        __builtin_prefetch(row[r] + ahead + c, 0, 3);
        sum = sum + Isa::set(left[r]) * read(Isa::load(row[r] + c));
      }
      Isa::store(sums + c, sum);
    }
    for (; c < count; ++c)
      for (int r = 0; r < Rows; ++r) sums[c] = sums[c] + left[r] * read_one(row[r][c]);
  }
};

}  // namespace autotune
