// Dot interaction, generic over the ISA. The contract is in interaction.h.
#pragma once

#include "gemm_tile-inl.h"
#include "interaction.h"
#include "team.h"

namespace autotune {

template <class Isa>
struct InteractionKernels {
  using V = typename Isa::V;
  using Gemm = GemmTiles<Isa, Fp32Step<Isa>>;
  static constexpr int W = Isa::kLanes;
  // A tile makes exactly W dot products, so that one round of `sums` finishes it: 4x4 of 16 lanes, 2x4 of 8, 1x1 of one.
  static constexpr int kTileRows = W == 16 ? 4 : W == 8 ? 2 : 1;
  static constexpr int kTileCols = W / kTileRows;

  static void forward(const float* features, float* out, const InteractionShape& shape, int64_t samples_per_task, int threads) {
    const int64_t tasks = ceil_div(shape.samples, samples_per_task);
    over_tasks(tasks, threads, [&](int64_t task) {
      for (int64_t n = task * samples_per_task; n < min_of(shape.samples, (task + 1) * samples_per_task); ++n) {
        const int64_t next = min_of(n + 1, shape.samples - 1);
        forward_sample(features + n * shape.sample_stride, out + n * shape.out_stride, shape, features + next * shape.sample_stride);
      }
    });
  }

  static void backward(const float* features, const float* d_out, float* d_features, const InteractionShape& shape, int64_t samples_per_task,
                       int threads) {
    const int64_t tasks = ceil_div(shape.samples, samples_per_task);
    over_tasks(tasks, threads, [&](int64_t task) {
      // The triangle as a full symmetric matrix with a zero diagonal; and the features padded to whole vectors, where dim is not.
      float* const square = static_cast<float*>(thread_scratch(kScratchLeft, shape.features * shape.features * sizeof(float)));
      const int64_t padded = ceil_div(shape.dim, W) * W;
      const int64_t steps = ceil_div(padded, 2 * W) * ceil_div(shape.features, Gemm::max_rows(2)) * shape.features;
      const int64_t lines_per_step = ceil_div(shape.features * shape.dim, 16 * steps);
      float* const copy = padded == shape.dim ? nullptr : static_cast<float*>(thread_scratch(kScratchRight, shape.features * padded * sizeof(float)));
      for (int64_t n = task * samples_per_task; n < min_of(shape.samples, (task + 1) * samples_per_task); ++n) {
        const int64_t next = min_of(n + 1, shape.samples - 1);
        prefetch_row<1>(d_out + next * shape.out_stride, shape.dim + shape.features * (shape.features - 1) / 2);
        Ahead ahead{features + next * shape.sample_stride, d_features + next * shape.d_sample_stride, lines_per_step};
        backward_sample(features + n * shape.sample_stride, d_out + n * shape.out_stride, d_features + n * shape.d_sample_stride, shape, square,
                        copy, padded, ahead);
      }
    });
  }

 private:
  template <class Body>
  static void over_tasks(int64_t tasks, int threads, const Body& body) {
    const TeamClock clock(threads);
#pragma omp parallel num_threads(threads)
    {
      const TeamClock::Turn turn(clock);
#pragma omp for schedule(static) nowait
      for (int64_t task = 0; task < tasks; ++task) body(task);
    }
  }

  // `next`: the sample after it, brought into L2 meanwhile, since rows of some hundred bytes are too short for the hardware's streams.
  static void forward_sample(const float* features, float* out, const InteractionShape& shape, const float* next) {
    copy_row(out, features, shape.dim);
    float* const triangle = out + shape.dim;
    prefetch_row<1>(next, shape.dim);
    int64_t i = 1;
    for (; i + kTileRows <= shape.features; i += kTileRows) {
      for (int64_t r = i; r < i + kTileRows; ++r) prefetch_row<1>(next + r * shape.feature_stride, shape.dim);
      row_block<kTileRows, kTileCols>(features, triangle, shape, i);
    }
    for (int64_t r = i; r < shape.features; ++r) prefetch_row<1>(next + r * shape.feature_stride, shape.dim);
    // What is left of a block of four rows: two rows waste less as a wide tile of two.
    if constexpr (kTileRows == 4)
      if (i + 2 <= shape.features) {
        row_block<2, W / 2>(features, triangle, shape, i);
        i += 2;
      }
    for (; i < shape.features; ++i) row_block<1, W>(features, triangle, shape, i);
  }

  // Rows i .. i+Rows of the triangle. The tile that the diagonal cuts goes first: what it writes past the end of a row is the beginning of
  // the next one, which is written afterwards. So no store has a branch, and the next tile's products begin while this one's are summed.
  template <int Rows, int Cols>
  static void row_block(const float* features, float* triangle, const InteractionShape& shape, int64_t i) {
    const float* left[Rows];
    float* rows[Rows];
    for (int r = 0; r < Rows; ++r) {
      left[r] = features + (i + r) * shape.feature_stride;
      rows[r] = triangle + (i + r) * (i + r - 1) / 2;
    }
    const int64_t whole = i / Cols * Cols;  // columns in tiles that the diagonal leaves whole
    // With Rows == Cols the last row of the cut tile is complete and every other one spills within the block; else look at each element.
    for (int64_t j = whole; j < i + Rows - 1; j += Cols)
      tile<Rows, Cols, !(Rows == Cols)>(left, features, shape, rows, i, j);
    for (int64_t j = 0; j < whole; j += Cols) tile<Rows, Cols, false>(left, features, shape, rows, i, j);
  }

  template <int Rows, int Cols, bool Cut>
  static inline void tile(const float* const* left, const float* features, const InteractionShape& shape, float* const* rows, int64_t i, int64_t j) {
    // Columns past the last feature repeat it; a cut tile does not store them.
    const float* right[Cols];
    for (int c = 0; c < Cols; ++c) right[c] = features + (Cut ? min_of(j + c, shape.features - 1) : j + c) * shape.feature_stride;
    float dots[W];
    dot_tile<Rows, Cols>(left, right, shape.dim, dots);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
      for (int c = 0; c < Cols; ++c)
        if (!Cut || j + c < i + r) rows[r][j + c] = dots[r * Cols + c];
  }

  template <int Rows, int Cols>
  static inline void dot_tile(const float* const* left, const float* const* right, int64_t dim, float* dots) {
    V sum[W];
#pragma GCC unroll 16
    for (int k = 0; k < W; ++k) sum[k] = Isa::set(0);
    int64_t e = 0;
    for (; e + W <= dim; e += W) {
      V r[Cols];
#pragma GCC unroll 16
      for (int c = 0; c < Cols; ++c) r[c] = Isa::load(right[c] + e);
#pragma GCC unroll 4
      for (int k = 0; k < Rows; ++k) {
        const V l = Isa::load(left[k] + e);
#pragma GCC unroll 16
        for (int c = 0; c < Cols; ++c) sum[k * Cols + c] += l * r[c];
      }
    }
    Isa::store(dots, Isa::sums(sum));
    for (; e < dim; ++e)
      for (int k = 0; k < Rows; ++k)
        for (int c = 0; c < Cols; ++c) dots[k * Cols + c] += left[k][e] * right[c][e];
  }

  // The next sample's features and gradients, brought in a few lines at a step: as many at once would fill the miss buffers and stall.
  // A prefetch never faults, so samples with gaps between their rows only gain less.
  struct Ahead {
    const float* read;
    float* write;
    int64_t lines;

    inline void step() {
      for (int64_t i = 0; i < lines; ++i, read += 16, write += 16) {
        __builtin_prefetch(read, 0, 2);
        __builtin_prefetch(write, 1, 3);
      }
    }
  };

  // d_features = square * features, NV vectors of columns and up to max_rows rows at a time in registers.
  static void backward_sample(const float* features, const float* d_out, float* d_features, const InteractionShape& shape, float* square,
                              float* copy, int64_t padded, Ahead& ahead) {
    const int64_t count = shape.features, dim = shape.dim;
    const float* triangle = d_out + dim;
    for (int64_t i = 0; i < count; ++i) {
      copy_row(square + i * count, triangle + i * (i - 1) / 2, i);
      square[i * count + i] = 0;
      for (int64_t j = 0; j < i; ++j) square[j * count + i] = triangle[i * (i - 1) / 2 + j];
    }
    const float* right = features;
    int64_t right_stride = shape.feature_stride;
    if (copy != nullptr) {
      for (int64_t f = 0; f < count; ++f) {
        copy_row(copy + f * padded, features + f * shape.feature_stride, dim);
        for (int64_t e = dim; e < padded; ++e) copy[f * padded + e] = 0;
      }
      right = copy;
      right_stride = padded;
    }
    int64_t e = 0;
    for (; e + 2 * W <= padded; e += 2 * W)
      columns<2>(square, count, right + e, right_stride, d_features + e, shape.d_feature_stride, dim - e, ahead);
    for (; e < padded; e += W) columns<1>(square, count, right + e, right_stride, d_features + e, shape.d_feature_stride, dim - e, ahead);
    add_row(d_features, d_out, dim);
  }

  // `valid`: columns that exist; fewer than NV * W at the right edge.
  template <int NV>
  static void columns(const float* square, int64_t count, const float* right, int64_t right_stride, float* out, int64_t out_stride,
                      int64_t valid, Ahead& ahead) {
    constexpr int kMax = Gemm::max_rows(NV);
    const int64_t groups = ceil_div(count, kMax);
    for (int64_t g = 0, row = 0; g < groups; ++g) {
      const int64_t height = (count - row + groups - g - 1) / (groups - g);
      height_of<NV, kMax>(square + row, count, right, right_stride, out + row * out_stride, out_stride, valid, height, ahead);
      row += height;
    }
  }

  template <int NV, int MR>
  static void height_of(const float* square, int64_t count, const float* right, int64_t right_stride, float* out, int64_t out_stride,
                        int64_t valid, int64_t height, Ahead& ahead) {
    if (height == MR) return product<NV, MR>(square, count, right, right_stride, out, out_stride, valid, ahead);
    if constexpr (MR > 1) height_of<NV, MR - 1>(square, count, right, right_stride, out, out_stride, valid, height, ahead);
  }

  // The square is symmetric, so a step's MR factors lie side by side in one of its rows.
  template <int NV, int MR>
  __attribute__((noinline)) static void product(const float* square, int64_t count, const float* right, int64_t right_stride, float* out,
                                                int64_t out_stride, int64_t valid, Ahead& ahead) {
    V sum[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[i][v] = Isa::set(0);
    for (int64_t j = 0; j < count; ++j, square += count, right += right_stride) {
      ahead.step();
      V r[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) r[v] = Isa::load(right + v * W);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const V factor = Isa::set(square[i]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[i][v] += factor * r[v];
      }
    }
    if (valid >= NV * W) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) Isa::store(out + i * out_stride + v * W, sum[i][v]);
      return;
    }
    alignas(64) float edge[MR * NV * W];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) Isa::store(edge + (i * NV + v) * W, sum[i][v]);
    for (int i = 0; i < MR; ++i)
      for (int64_t e = 0; e < valid; ++e) out[i * out_stride + e] = edge[i * NV * W + e];
  }

  static inline void add_row(float* target, const float* source, int64_t dim) {
    int64_t e = 0;
    for (; e + W <= dim; e += W) Isa::store(target + e, Isa::load(target + e) + Isa::load(source + e));
    for (; e < dim; ++e) target[e] += source[e];
  }

  static inline void copy_row(float* target, const float* source, int64_t dim) {
    int64_t e = 0;
    for (; e + W <= dim; e += W) Isa::store(target + e, Isa::load(source + e));
    for (; e < dim; ++e) target[e] = source[e];
  }
};

}  // namespace autotune
