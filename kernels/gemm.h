// Blocked batch-reduce GEMM for fully connected layers: N samples, C inputs, K outputs.
//
// dw is scratch when the update is fused and the reduction needs more than one pass (bc < N); it is not touched when it needs one.
// Activations are plain row-major matrices with a leading dimension (>= columns), so that a layer reads what the one before wrote and no
// call repacks them. Weights are kept packed for each pass, as panels of `width` output columns: panel p holds, for every step r of the
// reduction, the `width` values of columns p*width ..., zero beyond the last column: packed[(p * R + r) * width + j].
//   forward          y[n,k]  = act(sum_c x[n,c] w[k,c] + bias[k])     panels over K, R = C
//   backward_data    dx[n,c] = (sum_k dy[n,k] w[k,c]) * (x[n,c] > 0)  panels over C, R = K; the mask is optional
//   backward_weights dw[k,c] = sum_n dy[n,k] x[n,c], db[k] = sum_n dy[n,k]; or a step of the optimizer along both, fused
// A task computes `bn` rows by one panel; microtiles of MR rows by NV vectors stay in registers while the reduction runs over `bc` steps
// at a time (batch-reduce: all of it when bc >= R).
//
// In bf16 a step of the reduction is a pair: packed[(p * ceil(R/2) + r) * width + j][2], the second of an odd R's last pair zero. Weights are
// the upper halves of fp32; activations and gradients are fp32 in memory and rounded to nearest even into scratch of the thread: rows as
// pairs along the reduction, once a row block, for the first two passes; pairs of samples for the third. An odd bc counts as the next even
// one. The bias and its gradient stay fp32.
//
// Alignment: none required, 64 bytes best. Aliasing: outputs overlap no input. Accumulation: fp32.
// Threading: one OpenMP team of `threads`, laid out as (threads / thread_columns) x thread_columns over rows and panels.
#pragma once

#include <stdint.h>

namespace autotune {

struct GemmBlocking {
  int64_t bn;              // rows of output per task
  int64_t bc;              // reduction steps at a time
  int64_t bk;              // panel width: a multiple of 16, at most 64
  bool columns_outer;      // walk panels in the outer loop, row blocks in the inner
  int64_t thread_columns;  // divides threads
};

enum class Activation : int { kNone = 0, kRelu = 1, kSigmoid = 2 };

constexpr int64_t kMaxPanel = 64;

// A layer's weights [K, C] and how they step along a gradient g:
//   SGD      w -= rate * g
//   Adagrad  s += g^2; w -= rate * g / (sqrt(s) + epsilon)      where there is a state
// Weights are fp32, or two contiguous halves of fp32 that the step joins, changes and splits again. With rate 0 nothing changes, the state
// included, but all of it is read and written: so a step can be timed on live weights.
struct Update {
  float* weights = nullptr;
  int64_t stride = 0;         // of weights, in floats
  uint16_t* upper = nullptr;  // contiguous; instead of weights
  uint16_t* lower = nullptr;
  float* state = nullptr;     // contiguous
  float* bias = nullptr;
  float* bias_state = nullptr;
  float learning_rate = 0;
  float epsilon = 0;
};

// What happens to an output tile when its reduction is complete.
struct Epilogue {
  const float* bias = nullptr;  // per output column
  Activation activation = Activation::kNone;
  const float* mask = nullptr;  // keep where mask > 0; same shape as the output
  int64_t mask_stride = 0;
  const Update* update = nullptr;  // step along the tile instead of storing it
};

struct Matrix {
  float* data;
  int64_t rows, cols, stride;
};

struct ConstMatrix {
  const float* data;
  int64_t rows, cols, stride;
};

struct ConstHalves {
  const uint16_t* data;  // contiguous
  int64_t rows, cols;
};

}  // namespace autotune
