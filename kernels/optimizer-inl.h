// Steps of a layer's weights, generic over the ISA. The contract is Update in gemm.h.
#pragma once

#include <omp.h>

#include "gemm.h"
#include "isa/vector.h"
#include "team.h"

namespace autotune {

// The same kernels one float at a time, for what is left of a row; a type of this target's own.
template <class Isa>
using OneLane = ScalarIsa<Isa>;

template <class Isa>
struct OptimizerKernels {
  using V = typename Isa::V;
  static constexpr int W = Isa::kLanes;

  // W weights of one row, from (row, column) on.
  static inline void step(const Update& u, int64_t row, int64_t column, int64_t cols, V gradient) {
    float* const state = u.state == nullptr ? nullptr : u.state + row * cols + column;
    if (u.upper != nullptr) {
      uint16_t *upper = u.upper + row * cols + column, *lower = u.lower + row * cols + column;
      Isa::split(stepped(u, Isa::join(upper, lower), state, gradient), upper, lower);
    } else {
      float* const w = u.weights + row * u.stride + column;
      Isa::store(w, stepped(u, Isa::load(w), state, gradient));
    }
  }

  static inline void step_bias(const Update& u, int64_t k, V gradient) {
    Isa::store(u.bias + k, stepped(u, Isa::load(u.bias + k), u.bias_state == nullptr ? nullptr : u.bias_state + k, gradient));
  }

  // All weights along gradients that were written out.
  static void descend(const Update& u, const ConstMatrix& dw, const float* bias_gradient, int threads) {
    using One = OptimizerKernels<OneLane<Isa>>;
    const TeamClock clock(threads);
#pragma omp parallel num_threads(threads)
    {
      const TeamClock::Turn turn(clock);
#pragma omp for schedule(static) nowait
      for (int64_t k = 0; k < dw.rows; ++k) {
        const float* row = dw.data + k * dw.stride;
        int64_t c = 0;
        for (; c + W <= dw.cols; c += W) step(u, k, c, dw.cols, Isa::load(row + c));
        for (; c < dw.cols; ++c) One::step(u, k, c, dw.cols, row[c]);
        One::step_bias(u, k, bias_gradient[k]);
      }
    }
  }

 private:
  static inline V stepped(const Update& u, V w, float* state, V gradient) {
    if (state == nullptr) return w - Isa::set(u.learning_rate) * gradient;
    const V before = Isa::load(state), sum = before + gradient * gradient;
    Isa::store(state, u.learning_rate == 0 ? before : sum);
    return w - Isa::set(u.learning_rate) * gradient / (root(sum) + Isa::set(u.epsilon));
  }

  static inline V root(V v) {
    if constexpr (W == 1) {
      return __builtin_sqrtf(v);
    } else {
      V result;
      for (int l = 0; l < W; ++l) result[l] = __builtin_sqrtf(v[l]);
      return result;
    }
  }
};

}  // namespace autotune
