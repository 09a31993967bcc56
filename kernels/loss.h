// Binary cross entropy of N click probabilities with its gradient before the sigmoid.
//   loss = scale * mean_n -(y log p + (1-y) log(1-p)), logarithms no lower than -100, as in the framework; a NaN stays one
//   d_logits[n] = (p[n] - y[n]) / N * scale
// Strides in floats; any alignment; d_logits may not overlap the inputs. Accumulation: double, in blocks of 256 samples that are added in
// their order, so that the sum is the same at any team size. Threading: one OpenMP team of at most `threads`, none for one block.
// Compiled once, for the baseline ISA: what it takes are logarithms.
#pragma once

#include <stdint.h>

namespace autotune {

struct Clicks {
  const float* probabilities;
  int64_t stride;
  const float* labels;  // contiguous
  int64_t samples;
};

double binary_cross_entropy(const Clicks&, float scale, float* d_logits, int64_t d_stride, int threads);

}  // namespace autotune
