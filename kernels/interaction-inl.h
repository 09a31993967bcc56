// Dot interaction, generic over the ISA. The contract is in interaction.h.
#pragma once

#include "gemm_tile-inl.h"
#include "interaction.h"

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
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t task = 0; task < tasks; ++task)
      for (int64_t n = task * samples_per_task; n < min_of(shape.samples, (task + 1) * samples_per_task); ++n)
        forward_sample(features + n * shape.sample_stride, out + n * shape.out_stride, shape);
  }

  static void backward(const float* features, const float* d_out, float* d_features, const InteractionShape& shape, int64_t samples_per_task,
                       int threads) {
    const int64_t tasks = ceil_div(shape.samples, samples_per_task);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t task = 0; task < tasks; ++task) {
      // The triangle as a full symmetric matrix with a zero diagonal; and the features padded to whole vectors, where dim is not.
      float* const square = static_cast<float*>(thread_scratch(kScratchLeft, shape.features * shape.features * sizeof(float)));
      const int64_t padded = ceil_div(shape.dim, W) * W;
      float* const copy = padded == shape.dim ? nullptr : static_cast<float*>(thread_scratch(kScratchRight, shape.features * padded * sizeof(float)));
      for (int64_t n = task * samples_per_task; n < min_of(shape.samples, (task + 1) * samples_per_task); ++n)
        backward_sample(features + n * shape.sample_stride, d_out + n * shape.out_stride, d_features + n * shape.d_sample_stride, shape, square,
                        copy, padded);
    }
  }

 private:
  static void forward_sample(const float* features, float* out, const InteractionShape& shape) {
    const int64_t dim = shape.dim, stride = shape.feature_stride;
    copy_row(out, features, dim);
    float* const triangle = out + dim;
    for (int64_t i = 1; i < shape.features; i += kTileRows)
      for (int64_t j = 0; j < min_of(shape.features, i + kTileRows) - 1; j += kTileCols) {
        // Rows past the last feature repeat it; their results are not stored.
        const float* left[kTileRows];
        const float* right[kTileCols];
        for (int r = 0; r < kTileRows; ++r) left[r] = features + min_of(i + r, shape.features - 1) * stride;
        for (int c = 0; c < kTileCols; ++c) right[c] = features + min_of(j + c, shape.features - 1) * stride;
        float dots[W];
        dot_tile(left, right, dim, dots);
        for (int r = 0; r < kTileRows && i + r < shape.features; ++r)
          for (int c = 0; c < kTileCols && j + c < i + r; ++c) triangle[(i + r) * (i + r - 1) / 2 + j + c] = dots[r * kTileCols + c];
      }
  }

  static inline void dot_tile(const float* const* left, const float* const* right, int64_t dim, float* dots) {
    V sum[W];
#pragma GCC unroll 16
    for (int k = 0; k < W; ++k) sum[k] = Isa::set(0);
    int64_t e = 0;
    for (; e + W <= dim; e += W) {
      V r[kTileCols];
#pragma GCC unroll 8
      for (int c = 0; c < kTileCols; ++c) r[c] = Isa::load(right[c] + e);
#pragma GCC unroll 4
      for (int k = 0; k < kTileRows; ++k) {
        const V l = Isa::load(left[k] + e);
#pragma GCC unroll 8
        for (int c = 0; c < kTileCols; ++c) sum[k * kTileCols + c] += l * r[c];
      }
    }
    Isa::store(dots, Isa::sums(sum));
    for (; e < dim; ++e)
      for (int k = 0; k < kTileRows; ++k)
        for (int c = 0; c < kTileCols; ++c) dots[k * kTileCols + c] += left[k][e] * right[c][e];
  }

  static void backward_sample(const float* features, const float* d_out, float* d_features, const InteractionShape& shape, float* square,
                              float* copy, int64_t padded) {
    const int64_t count = shape.features, dim = shape.dim;
    const float* triangle = d_out + dim;
    for (int64_t i = 0; i < count; ++i) {
      square[i * count + i] = 0;
      for (int64_t j = 0; j < i; ++j) square[i * count + j] = square[j * count + i] = triangle[i * (i - 1) / 2 + j];
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
    const Matrix out{d_features, count, dim, shape.d_feature_stride};
    const Epilogue epilogue;
    for (int64_t e = 0; e < padded;) {
      const typename Gemm::Part part{square, count, right + e, right_stride, count, &out, &epilogue, 0, e, true, true};
      if (padded - e >= 2 * W) {
        Gemm::template rows_of<false, 2>(part, count);
        e += 2 * W;
      } else {
        Gemm::template rows_of<false, 1>(part, count);
        e += W;
      }
    }
    for (int64_t e = 0; e < dim; ++e) d_features[e] += d_out[e];
  }

  static inline void copy_row(float* target, const float* source, int64_t dim) {
    int64_t e = 0;
    for (; e + W <= dim; e += W) Isa::store(target + e, Isa::load(source + e));
    for (; e < dim; ++e) target[e] = source[e];
  }
};

}  // namespace autotune
