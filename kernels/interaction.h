// Dot interaction: all pairwise dot products of a sample's feature vectors, behind a copy of the dense one.
//
//   features [N, F, E]: feature f of sample n at n*sample_stride + f*feature_stride; feature 0 is the dense vector.
//   out [N, E + P]: out[n, :E] = features[n, 0]; then the lower triangle by rows, <features[n, i], features[n, j]> for 0 <= j < i < F, or
//   with the diagonal (1, else 0) for 0 <= j <= i < F: P = (F + diagonal)(F + diagonal - 1)/2 products, the row of l of them (feature
//   l - diagonal) from l(l-1)/2 on. `out_stride` floats from sample to sample; columns past the end are not touched.
//   backward: d_features [N, F, E] = (G + G^T) features, G the triangle of d_out; plus d_out[:, :E] on feature 0. Written, not added.
//
// Alignment: none required. Aliasing: outputs overlap no input. Accumulation: fp32. Threading: one team; tasks of `samples_per_task`.
#pragma once

#include <stdint.h>

namespace autotune {

struct InteractionShape {
  int64_t samples, features, dim, diagonal;
  int64_t sample_stride, feature_stride;      // of features
  int64_t d_sample_stride, d_feature_stride;  // of d_features (backward)
  int64_t out_stride;                         // of out and d_out
};

// Where the row of `length` products begins in the triangle.
static inline int64_t row_begin(int64_t length) { return length * (length - 1) / 2; }
// P.
static inline int64_t products_of(const InteractionShape& shape) { return row_begin(shape.features + shape.diagonal); }

}  // namespace autotune
