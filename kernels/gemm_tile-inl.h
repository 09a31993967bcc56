// Tiles of the blocked GEMM, generic over the ISA and over what a step of the reduction is. The contract is in gemm.h.
#pragma once

#include "gemm.h"
#include "isa/bf16.h"
#include "optimizer-inl.h"

namespace autotune {

// exp from libm, out of line in baseline code.
float sigmoid_of(float x);

// A step of the reduction: A is what is broadcast, kParts of them a row; B is the panel's type, kMembers of them a column.
template <class Isa>
struct Fp32Step {
  using A = float;
  using B = float;
  using Operand = typename Isa::V;
  static constexpr int kParts = 1, kMembers = 1;
  template <int>
  static inline Operand right(const B* b) { return Isa::load(b); }
  static inline Operand left(A a) { return Isa::set(a); }
  static inline typename Isa::V add(typename Isa::V sum, Operand left, Operand right) { return sum + left * right; }
};

// Pairs of bf16 without an instruction for them: the panel's are widened, the rows' are floats that were rounded already.
template <class Isa>
struct WidenedStep {
  using A = float;
  using B = uint16_t;
  using Operand = typename Isa::V;
  static constexpr int kParts = 2, kMembers = 2;
  template <int Part>
  static inline Operand right(const B* b) { return Bf16<Isa>::template member<Part>(b); }
  static inline Operand left(A a) { return Isa::set(a); }
  static inline typename Isa::V add(typename Isa::V sum, Operand left, Operand right) { return sum + left * right; }
};

template <class Isa>
struct PairStep {
  using A = uint32_t;
  using B = uint16_t;
  using Operand = typename Bf16<Isa>::U;
  static constexpr int kParts = 1, kMembers = 2;
  template <int>
  static inline Operand right(const B* b) { return Isa::load_pairs(b); }
  static inline Operand left(A a) { return Isa::set_pair(a); }
  static inline typename Isa::V add(typename Isa::V sum, Operand left, Operand right) { return Isa::dot_bf16(sum, left, right); }
};

template <class Isa, class Step>
struct GemmTiles {
  using V = typename Isa::V;
  using A = typename Step::A;
  using B = typename Step::B;
  using Operand = typename Step::Operand;
  static constexpr int W = Isa::kLanes;
  // Steps that an operand of a transposed tile is fetched ahead into L1: 8, 12 and 20 are within 1 %; none costs 2 %.
  static constexpr int64_t kAhead = 12;
  // Whether operands of transposed tiles may lie in rows of a matrix, fetched ahead. With 16 registers a step is a fourth as long, and a
  // fetch in each costs more than it saves: there operands are packed. Measured on 2 cores (Zen 3, AVX2) at 2048 x 1024 x 1024, against
  // torch's product: 1.40 times as long in place, 1.23 packed with fetches, 1.05 packed without.
  static constexpr bool kFetches = Isa::kRegisters >= 32;
  // Rows of a block that are packed side by side: all of them, or where operands are always packed those of one microtile, so that it reads
  // whole lines of L1. Of torch's product at 2048 x 1024 x 1024 backward-weights takes 1.03 times as long, and 1.14 from blocks side by side
  // (2 cores, Zen 3).
  static constexpr int64_t strip(int64_t rows) { return kFetches ? rows : max_rows(2); }

  // Rows of a microtile of NV vectors: as many as leave NV registers for a row of the panel and one for the broadcast. 12 rows bound the
  // code size; beyond them the panel is read often enough from L1 that nothing is gained.
  static constexpr int max_rows(int vectors) {
    const int fit = (Isa::kRegisters - vectors - 1) / vectors;
    return fit > 12 ? 12 : fit;
  }

  // What a microtile fetches into L2 for a later one, a line at each step: a column of lines in the rows of an operand, `stride` floats
  // from row to row.
  struct Line {
    const float* first;
    int64_t stride;
  };
  struct Ahead {
    Line lines[4 * kMaxPanel / 16];  // of both operands of two tiles
    int count = 0, taken = 0;

    // The first kMaxPanel floats of every row.
    void add(const float* first, int64_t stride, int64_t floats) {
      for (int64_t i = 0; i < min_of(floats, kMaxPanel); i += 16) lines[count++] = {first + i, stride};
    }
  };

  struct Part {
    const A* a;
    int64_t a_stride;
    const B* b;
    int64_t b_stride;
    int64_t steps;
    const Matrix* out;
    const Epilogue* epilogue;
    int64_t row, column;
    bool fresh, done;
    bool prefetch = false;  // the output is far: fetch its lines while the reduction runs
    Line ahead = {nullptr, 0};  // without: this one's own rows
  };

  // Splits rows into microtiles of nearly equal height: 64 rows at 12 become 6 of 10 and 11 rather than 5 of 12 and one of 4. Strips are
  // microtiles of their own.
  template <bool Transposed, int NV>
  static void rows_of(Part part, int64_t rows, Ahead* ahead) {
    constexpr bool kStrips = Transposed && !kFetches;
    constexpr int kMax = kStrips ? max_rows(2) : max_rows(NV);
    const int64_t tiles = ceil_div(rows, kMax);
    int64_t row = 0;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t height = kStrips ? min_of(kMax, rows - row) : (rows - row + tiles - i - 1) / (tiles - i);
      part.ahead = ahead != nullptr && ahead->taken < ahead->count ? ahead->lines[ahead->taken++] : Line{nullptr, 0};
      dispatch<Transposed, NV, kMax>(part, row, height);
      row += height;
    }
  }

  // One block of rows by one panel. Transposed: a is packed as [reduction][a_stride], rows side by side, one strip after the other; else rows
  // of stride a_stride.
  // b_stride: from one step of the panel to the next, in values. reduction and bc in steps. first_pass / last_pass: the tile starts from zero / the epilogue is due after these steps.
  template <bool Transposed>
  static void tile(const A* a, int64_t a_stride, const B* panel, int64_t b_stride, int64_t reduction, const Matrix& out, const Epilogue& epilogue,
                   int64_t row0, int64_t rows, int64_t panel_index, int64_t width, int64_t bc, bool first_pass, bool last_pass,
                   Ahead* ahead = nullptr) {
    const int64_t column0 = panel_index * width;
    for (int64_t r = 0; r == 0 || r < reduction; r += bc) {
      const int64_t steps = min_of(bc, reduction - r);
      const bool fresh = first_pass && r == 0, done = last_pass && r + steps >= reduction;
      const A* a_part = Transposed ? a + r * a_stride : a + r * Step::kParts;
      // The widest group of vectors that divides what is left of the panel's columns: nothing is computed beyond the last vector of them.
      const int64_t valid = min_of(width, out.cols - column0);
      for (int64_t j = 0; j < valid;) {
        const int64_t left = ceil_div(valid - j, W);
        const B* b = panel + r * b_stride + j * Step::kMembers;
        const Part part{a_part, a_stride, b, b_stride, steps, &out, &epilogue, row0, column0 + j, fresh, done, true};
        if constexpr (Isa::kRegisters >= 32) {
          if (left % 4 == 0) { rows_of<Transposed, 4>(part, rows, ahead); j += 4 * W; continue; }
          if (left % 3 == 0) { rows_of<Transposed, 3>(part, rows, ahead); j += 3 * W; continue; }
        }
        if (left % 2 == 0) { rows_of<Transposed, 2>(part, rows, ahead); j += 2 * W; }
        else { rows_of<Transposed, 1>(part, rows, ahead); j += W; }
      }
    }
  }

  // The epilogue of rows by NV vectors whose sums are in tile, from row `row` of the part on.
  template <int NV>
  __attribute__((noinline)) static void finish_tile(const Part& part, int64_t row, int rows, const float* tile) {
    const int64_t valid = min_of(NV * W, part.out->cols - part.column);
    for (int64_t r = part.row + row; r < part.row + row + rows; ++r, tile += NV * W) {
      int64_t j = 0;
      for (; j + W <= valid; j += W) finish<Isa>(part, r, part.column + j, Isa::load(tile + j));
      for (; j < valid; ++j) finish<OneLane<Isa>>(part, r, part.column + j, tile[j]);
    }
  }

  // L's vector of the output at (row, column), from its sum.
  template <class L>
  static inline void finish(const Part& part, int64_t row, int64_t column, typename L::V value) {
    const Epilogue& e = *part.epilogue;
    float* const out = part.out->data + row * part.out->stride + column;
    if (!part.fresh) value += L::load(out);
    if (part.done) {
      if (e.bias != nullptr) value += L::load(e.bias + column);
      if (e.mask != nullptr) value = L::where_positive(L::load(e.mask + row * e.mask_stride + column), value);
      if (e.activation == Activation::kRelu) value = L::relu(value);
      if (e.update != nullptr) return OptimizerKernels<L>::step(*e.update, row, column, part.out->cols, value);
    }
    L::store(out, value);
    if (part.done && e.activation == Activation::kSigmoid)
      for (int i = 0; i < L::kLanes; ++i) out[i] = sigmoid_of(out[i]);
  }

 private:
  template <bool Transposed, int NV, int MR>
  static void dispatch(const Part& part, int64_t row, int64_t height) {
    if (height == MR) return micro<Transposed, NV, MR>(part, row);
    if constexpr (MR > 1) dispatch<Transposed, NV, MR - 1>(part, row, height);
  }

  // One part of a step, the same for every row: each broadcasts one value and multiplies it with a row of the panel.
  template <int Index, int NV, int MR, class Left>
  static inline __attribute__((always_inline)) void accumulate(V (&sum)[MR][NV], const B* b, const Left& left_of) {
    Operand right[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) right[v] = Step::template right<Index>(b + v * W * Step::kMembers);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const Operand left = Step::left(left_of(i));
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[i][v] = Step::add(sum[i][v], left, right[v]);
    }
  }

  // Everything that the epilogue of a tile will touch. With this and rows packed in their order, backward-weights at 2048 x 1024 x 1024 on
  // 2 cores with AVX-512 went from 0.89 to 0.92 of the forward pass.
  template <int NV>
  __attribute__((noinline)) static void prefetch_tile(const Part& part, int64_t row, int rows) {
    const Epilogue& e = *part.epilogue;
    const auto fetch = [&](const void* data, int64_t stride, int64_t size) {
      const char* p = static_cast<const char*>(data) + ((part.row + row) * stride + part.column) * size;
      for (int i = 0; i < rows; ++i, p += stride * size)
        for (int64_t b = 0; b < NV * W * size; b += 64) __builtin_prefetch(p + b, 1, 3);
    };
    if (!part.done || e.update == nullptr) fetch(part.out->data, part.out->stride, 4);
    if (!part.done) return;
    if (e.mask != nullptr) fetch(e.mask, e.mask_stride, 4);
    if (e.update == nullptr) return;
    if (!part.fresh) fetch(part.out->data, part.out->stride, 4);
    const Update& u = *e.update;
    if (u.state != nullptr) fetch(u.state, part.out->cols, 4);
    if (u.upper == nullptr) return fetch(u.weights, u.stride, 4);
    fetch(u.upper, part.out->cols, 2);
    fetch(u.lower, part.out->cols, 2);
  }

  // MR rows by NV vectors in registers.
  template <bool Transposed, int NV, int MR>
  __attribute__((noinline)) static void micro(const Part& part, int64_t row) {
    if (part.prefetch) prefetch_tile<NV>(part, row, MR);
    V sum[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[i][v] = Isa::set(0);
    const B* b = part.b;
    const int64_t b_stride = part.b_stride, a_stride = part.a_stride;
    if constexpr (Transposed) {
      static_assert(Step::kParts == 1, "rows side by side hold one value a step");
      const A* a = part.a + (kFetches ? row : row * part.steps);
      if constexpr (kFetches) {
        // Rows of a matrix lie too far apart for the hardware's prefetchers. A prefetch never faults, so it may run past the last row.
        const bool next = part.ahead.first != nullptr;
        const char* line = next ? reinterpret_cast<const char*>(part.ahead.first) : reinterpret_cast<const char*>(a + kAhead * a_stride);
        const int64_t line_stride = next ? part.ahead.stride * 4 : a_stride * static_cast<int64_t>(sizeof(A));
        const int64_t b_ahead = kAhead * b_stride;
        for (int64_t s = part.steps; s > 0; --s, a += a_stride, b += b_stride, line += line_stride) {
          __builtin_prefetch(line, 0, 2);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) __builtin_prefetch(b + b_ahead + v * W * Step::kMembers, 0, 3);
          accumulate<0, NV, MR>(sum, b, [&](int i) __attribute__((always_inline)) { return a[i]; });
        }
      } else {
        for (int64_t s = part.steps; s > 0; --s, a += a_stride, b += b_stride)
          accumulate<0, NV, MR>(sum, b, [&](int i) __attribute__((always_inline)) { return a[i]; });
      }
    } else {
      // Three rows a pointer (offsets 0, 1 and 2 strides are addressing modes), so that 12 rows need 4 registers.
      constexpr int kGroups = (MR + 2) / 3;
      const A* a[kGroups];
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) a[g] = part.a + (row + 3 * g) * a_stride;
      for (int64_t s = part.steps; s > 0; --s, b += b_stride) {
        accumulate<0, NV, MR>(sum, b, [&](int i) __attribute__((always_inline)) { return a[i / 3][(i % 3) * a_stride]; });
        if constexpr (Step::kParts == 2)
          accumulate<1, NV, MR>(sum, b, [&](int i) __attribute__((always_inline)) { return a[i / 3][(i % 3) * a_stride + 1]; });
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g) a[g] += Step::kParts;
      }
    }
    // Through the stack, so that the epilogue's branches cost the loop above no registers; it stays in L1.
    alignas(64) float tile[MR * NV * W];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) Isa::store(tile + (i * NV + v) * W, sum[i][v]);
    finish_tile<NV>(part, row, MR, tile);
  }
};

}  // namespace autotune
