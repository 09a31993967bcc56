// Blocked batch-reduce GEMM, generic over the ISA. The contract is in gemm.h.
#pragma once

#include <omp.h>

#include "gemm.h"
#include "isa/vector.h"
#include "memory.h"

namespace autotune {

// exp from libm, out of line in baseline code.
float sigmoid_of(float x);

template <class Isa>
struct GemmKernels {
  using V = typename Isa::V;
  static constexpr int W = Isa::kLanes;

  // Rows of a microtile of NV vectors: as many as leave NV registers for a row of the panel and one for the broadcast. 12 rows bound the
  // code size; beyond them the panel is read often enough from L1 that nothing is gained.
  static constexpr int max_rows(int vectors) {
    const int fit = (Isa::kRegisters - vectors - 1) / vectors;
    return fit > 12 ? 12 : fit;
  }

  // out[rows, cols] = epilogue(a * panels), a row-major.
  static void multiply(const ConstMatrix& a, const float* panels, const Matrix& out, const Epilogue& epilogue, const GemmBlocking& blocking,
                       int threads) {
#pragma omp parallel num_threads(threads)
    for_grid(threads, blocking.thread_columns, [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
      const Range blocks = split(ceil_div(out.rows, blocking.bn), row, rows);
      const Range strips = split(ceil_div(out.cols, blocking.bk), column, columns);
      const auto task = [&](int64_t block, int64_t panel) {
        const int64_t first = block * blocking.bn;
        tile<false>(a.data + first * a.stride, a.stride, panels + panel * a.cols * blocking.bk, a.cols, out, epilogue, first,
             min_of(out.rows, first + blocking.bn) - first, panel, blocking.bk, blocking.bc, true, true);
      };
      walk(blocks, strips, blocking.columns_outer, task);
    });
  }

  // dw[k, c] (+ bias gradient) from dy[n, k] and x[n, c]. Both are copied, bc samples at a time, into packed scratch of the thread, which
  // is read once for every bk (dy) or bn (x) columns of the other.
  static void multiply_transposed(const ConstMatrix& dy, const ConstMatrix& x, const Matrix& dw, float* bias_gradient,
                                  const Epilogue& epilogue, float* bias, GemmBlocking blocking, int threads) {
    const int64_t samples = dy.rows;
    blocking.bn = min_of(blocking.bn, dw.rows);  // scratch is bn wide
#pragma omp parallel num_threads(threads)
    for_grid(threads, blocking.thread_columns, [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
      const Range blocks = split(ceil_div(dw.rows, blocking.bn), row, rows);
      const Range strips = split(ceil_div(dw.cols, blocking.bk), column, columns);
      if (blocks.begin == blocks.end || strips.begin == strips.end) return;
      const int64_t chunk = min_of(max_of(samples, 1), blocking.bc);
      const int64_t k_begin = blocks.begin * blocking.bn, k_end = min_of(dw.rows, blocks.end * blocking.bn);
      float* const left = static_cast<float*>(thread_scratch(kScratchLeft, (blocks.end - blocks.begin) * blocking.bn * chunk * sizeof(float)));
      float* const right = static_cast<float*>(thread_scratch(kScratchRight, (strips.end - strips.begin) * blocking.bk * chunk * sizeof(float)));
      const bool owns_bias = strips.begin == 0 && bias_gradient != nullptr;
      for (int64_t n = 0; n == 0 || n < samples; n += chunk) {
        const int64_t count = min_of(chunk, samples - n);
        if (owns_bias) sum_columns(dy, n, count, k_begin, k_end, bias_gradient, n == 0);
        for (int64_t b = blocks.begin; b < blocks.end; ++b) pack(dy, n, count, b * blocking.bn, blocking.bn, left + (b - blocks.begin) * blocking.bn * chunk);
        for (int64_t s = strips.begin; s < strips.end; ++s) pack(x, n, count, s * blocking.bk, blocking.bk, right + (s - strips.begin) * blocking.bk * chunk);
        walk(blocks, strips, blocking.columns_outer, [&](int64_t block, int64_t panel) {
          const int64_t first = block * blocking.bn;
          tile<true>(left + (block - blocks.begin) * blocking.bn * chunk, blocking.bn, right + (panel - strips.begin) * blocking.bk * chunk, count, dw,
               epilogue, first, min_of(dw.rows, first + blocking.bn) - first, panel, blocking.bk, max_of(count, 1), n == 0, n + count >= samples);
        });
      }
      if (owns_bias && bias != nullptr)
        for (int64_t k = k_begin; k < k_end; ++k) bias[k] -= epilogue.learning_rate * bias_gradient[k];
    });
  }

  // Packed panels of w [K, C] for the forward pass (over K) and for backward-data (over C).
  static void pack_weights(const ConstMatrix& w, float* forward, int64_t forward_width, float* backward, int64_t backward_width, int threads) {
    const int64_t forward_panels = ceil_div(w.rows, forward_width), backward_panels = ceil_div(w.cols, backward_width);
#pragma omp parallel num_threads(threads)
    {
      // A task transposes 64 steps of a panel: tiles of 64 x width stay in L1.
      const int64_t steps = ceil_div(w.cols, 64);
#pragma omp for schedule(static) nowait
      for (int64_t task = 0; task < forward_panels * steps; ++task) {
        const int64_t k0 = task / steps * forward_width, valid = min_of(forward_width, w.rows - k0);
        const int64_t c0 = task % steps * 64, c1 = min_of(w.cols, c0 + 64);
        for (int64_t c = c0; c < c1; ++c) {
          float* target = forward + (k0 / forward_width * w.cols + c) * forward_width;
          for (int64_t j = 0; j < valid; ++j) target[j] = w.data[(k0 + j) * w.stride + c];
          for (int64_t j = valid; j < forward_width; ++j) target[j] = 0;
        }
      }
#pragma omp for schedule(static)
      for (int64_t p = 0; p < backward_panels; ++p)
        pack(w, 0, w.rows, p * backward_width, backward_width, backward + p * w.rows * backward_width);
    }
  }

  struct Range {
    int64_t begin, end;
  };

  static Range split(int64_t count, int64_t part, int64_t parts) { return {count * part / parts, count * (part + 1) / parts}; }

  // Calls body(row, rows, column, columns) for every cell of the thread grid; a team smaller than asked for covers all cells too.
  template <class Body>
  static void for_grid(int64_t threads, int64_t columns, const Body& body) {
    const int64_t rows = threads / columns;
    for (int64_t cell = omp_get_thread_num(); cell < rows * columns; cell += omp_get_num_threads()) body(cell / columns, rows, cell % columns, columns);
  }

  template <class Task>
  static void walk(const Range& blocks, const Range& strips, bool columns_outer, const Task& task) {
    if (columns_outer) {
      for (int64_t s = strips.begin; s < strips.end; ++s)
        for (int64_t b = blocks.begin; b < blocks.end; ++b) task(b, s);
    } else {
      for (int64_t b = blocks.begin; b < blocks.end; ++b)
        for (int64_t s = strips.begin; s < strips.end; ++s) task(b, s);
    }
  }

  // target[r * width + j] = m[first + r, column + j], zero beyond the last column.
  static void pack(const ConstMatrix& m, int64_t first, int64_t count, int64_t column, int64_t width, float* target) {
    const int64_t valid = min_of(width, m.cols - column);
    for (int64_t r = 0; r < count; ++r, target += width) {
      const float* source = m.data + (first + r) * m.stride + column;
      int64_t j = 0;
      for (; j + W <= valid; j += W) Isa::store(target + j, Isa::load(source + j));
      for (; j < valid; ++j) target[j] = source[j];
      for (; j < width; ++j) target[j] = 0;
    }
  }

  static void sum_columns(const ConstMatrix& m, int64_t first, int64_t count, int64_t begin, int64_t end, float* sums, bool fresh) {
    if (fresh)
      for (int64_t k = begin; k < end; ++k) sums[k] = 0;
    for (int64_t r = first; r < first + count; ++r) {
      const float* row = m.data + r * m.stride;
      int64_t k = begin;
      for (; k + W <= end; k += W) Isa::store(sums + k, Isa::load(sums + k) + Isa::load(row + k));
      for (; k < end; ++k) sums[k] += row[k];
    }
  }

  // One block of rows by one panel. Transposed: a is packed as [reduction][a_stride], rows side by side; else rows of stride a_stride.
  // first_pass / last_pass: the tile starts from zero / the epilogue is due after these steps.
  template <bool Transposed>
  static void tile(const float* a, int64_t a_stride, const float* panel, int64_t reduction, const Matrix& out, const Epilogue& epilogue,
                   int64_t row0, int64_t rows, int64_t panel_index, int64_t width, int64_t bc, bool first_pass, bool last_pass) {
    const int64_t column0 = panel_index * width;
    for (int64_t r = 0; r == 0 || r < reduction; r += bc) {
      const int64_t steps = min_of(bc, reduction - r);
      const bool fresh = first_pass && r == 0, done = last_pass && r + steps >= reduction;
      const float* a_part = Transposed ? a + r * a_stride : a + r;
      // The widest group of vectors that divides what is left of the panel.
      for (int64_t j = 0; j < width && column0 + j < out.cols;) {
        const int64_t left = (width - j) / W;
        const float* b = panel + r * width + j;
        const Part part{a_part, a_stride, b, width, steps, &out, &epilogue, row0, column0 + j, fresh, done};
        if constexpr (Isa::kRegisters >= 32) {
          if (left % 4 == 0) { rows_of<Transposed, 4>(part, rows); j += 4 * W; continue; }
          if (left % 3 == 0) { rows_of<Transposed, 3>(part, rows); j += 3 * W; continue; }
        }
        if (left % 2 == 0) { rows_of<Transposed, 2>(part, rows); j += 2 * W; }
        else { rows_of<Transposed, 1>(part, rows); j += W; }
      }
    }
  }

  struct Part {
    const float* a;
    int64_t a_stride;
    const float* b;
    int64_t b_stride;
    int64_t steps;
    const Matrix* out;
    const Epilogue* epilogue;
    int64_t row, column;
    bool fresh, done;
  };

  // Splits rows into microtiles of nearly equal height: 64 rows at 12 become 6 of 10 and 11 rather than 5 of 12 and one of 4.
  template <bool Transposed, int NV>
  static void rows_of(const Part& part, int64_t rows) {
    constexpr int kMax = max_rows(NV);
    const int64_t tiles = ceil_div(rows, kMax);
    int64_t row = 0;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t height = (rows - row + tiles - i - 1) / (tiles - i);
      dispatch<Transposed, NV, kMax>(part, row, height);
      row += height;
    }
  }

  template <bool Transposed, int NV, int MR>
  static void dispatch(const Part& part, int64_t row, int64_t height) {
    if (height == MR) return micro<Transposed, NV, MR>(part, row);
    if constexpr (MR > 1) dispatch<Transposed, NV, MR - 1>(part, row, height);
  }

  // MR rows by NV vectors in registers; each step broadcasts one value a row and multiplies it with a row of the panel.
  template <bool Transposed, int NV, int MR>
  __attribute__((noinline)) static void micro(const Part& part, int64_t row) {
    V sum[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[i][v] = Isa::set(0);
    const float* b = part.b;
    const int64_t b_stride = part.b_stride, a_stride = part.a_stride;
    if constexpr (Transposed) {
      const float* a = part.a + row;
      for (int64_t s = part.steps; s > 0; --s, a += a_stride, b += b_stride) {
        V right[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) right[v] = Isa::load(b + v * W);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
          const V left = Isa::set(a[i]);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) sum[i][v] += left * right[v];
        }
      }
    } else {
      // Three rows a pointer (offsets 0, 1 and 2 strides are addressing modes), so that 12 rows need 4 registers.
      constexpr int kGroups = (MR + 2) / 3;
      const float* a[kGroups];
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) a[g] = part.a + (row + 3 * g) * a_stride;
      for (int64_t s = part.steps; s > 0; --s, b += b_stride) {
        V right[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) right[v] = Isa::load(b + v * W);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
          const V left = Isa::set(a[i / 3][(i % 3) * a_stride]);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) sum[i][v] += left * right[v];
        }
#pragma GCC unroll 4
        for (int g = 0; g < kGroups; ++g) ++a[g];
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

  template <int NV>
  __attribute__((noinline)) static void finish_tile(const Part& part, int64_t row, int rows, const float* tile) {
    const bool whole = part.column + NV * W <= part.out->cols;
    for (int i = 0; i < rows; ++i, tile += NV * W) {
      float* out = part.out->data + (part.row + row + i) * part.out->stride + part.column;
      if (whole) {
        for (int v = 0; v < NV; ++v) finish(part, row + i, v * W, out + v * W, Isa::load(tile + v * W));
      } else {
        for (int64_t j = 0; part.column + j < part.out->cols; ++j) finish_one(part, row + i, j, out + j, tile[j]);
      }
    }
  }

  static inline void finish(const Part& part, int64_t row, int64_t j, float* out, V value) {
    const Epilogue& e = *part.epilogue;
    if (!part.fresh) value += Isa::load(out);
    if (part.done) {
      if (e.bias != nullptr) value += Isa::load(e.bias + part.column + j);
      if (e.mask != nullptr) value = Isa::where_positive(Isa::load(e.mask + (part.row + row) * e.mask_stride + part.column + j), value);
      if (e.activation == Activation::kRelu) value = Isa::relu(value);
      if (e.weights != nullptr) {
        float* w = e.weights + (part.row + row) * e.weights_stride + part.column + j;
        Isa::store(w, Isa::load(w) - Isa::set(e.learning_rate) * value);
        return;
      }
    }
    Isa::store(out, value);
    if (part.done && e.activation == Activation::kSigmoid)
      for (int i = 0; i < W; ++i) out[i] = sigmoid_of(out[i]);
  }

  static inline void finish_one(const Part& part, int64_t row, int64_t j, float* out, float value) {
    const Epilogue& e = *part.epilogue;
    if (!part.fresh) value += *out;
    if (part.done) {
      if (e.bias != nullptr) value += e.bias[part.column + j];
      if (e.mask != nullptr && e.mask[(part.row + row) * e.mask_stride + part.column + j] <= 0) value = 0;
      if (e.activation == Activation::kRelu) value = value < 0 ? 0 : value;
      if (e.weights != nullptr) {
        e.weights[(part.row + row) * e.weights_stride + part.column + j] -= e.learning_rate * value;
        return;
      }
      if (e.activation == Activation::kSigmoid) value = sigmoid_of(value);
    }
    *out = value;
  }
};

}  // namespace autotune
