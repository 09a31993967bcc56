// The loops around libxsmm's kernels, generic over the ISA of packing and epilogue. The contract is in libxsmm.h.
#pragma once

#include "gemm-inl.h"
#include "libxsmm.h"

namespace autotune {

template <class Isa>
struct LibxsmmKernels {
  using Gemm = GemmKernels<Isa>;
  using Tiles = GemmTiles<Isa, Fp32Step<Isa>>;
  using Range = typename Gemm::Range;

  // As GemmKernels::multiply. plan: of all rows of a, not transposed.
  static void multiply(const SmmPlan& plan, const ConstMatrix& a, const float* panels, const Matrix& out, const Epilogue& epilogue,
                       const GemmBlocking& blocking, int threads) {
    const int64_t bn = min_of(blocking.bn, max_of(out.rows, 1)), bk = blocking.bk;
    Gemm::on_grid(threads, blocking.thread_columns, [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
      const Range blocks = Gemm::split(ceil_div(out.rows, bn), row, rows);
      const Range strips = Gemm::split(ceil_div(out.cols, bk), column, columns);
      float* const tile = static_cast<float*>(thread_scratch(kScratchPool, bn * bk * sizeof(float)));
      Gemm::walk(blocks, strips, blocking.columns_outer, [&](int64_t block, int64_t panel) {
        const int64_t first = block * bn, count = min_of(out.rows, first + bn) - first;
        reduce(plan, count < bn, panels + panel * a.cols * bk, bk, a.data + first * a.stride, tile, bn * bk);
        finish(out, epilogue, first, count, panel, bk, tile, true, true);
      });
    });
  }

  // As GemmKernels::multiply_transposed, with the same packed scratch, which is padded: every task is a whole one.
  // whole, last: plans of bn rows over bc samples, and over those of the last, shorter pass.
  static void multiply_transposed(const SmmPlan& whole, const SmmPlan& last, const ConstMatrix& dy, const ConstMatrix& x, const Matrix& dw,
                                  float* bias_gradient, const Update* update, GemmBlocking blocking, int threads) {
    Epilogue epilogue;
    epilogue.update = update;
    const int64_t samples = dy.rows, bk = blocking.bk, bn = min_of(blocking.bn, dw.rows);
    const int64_t chunk = min_of(max_of(samples, 1), blocking.bc);
    Gemm::on_grid(threads, blocking.thread_columns, [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
      const Range blocks = Gemm::split(ceil_div(dw.rows, bn), row, rows);
      const Range strips = Gemm::split(ceil_div(dw.cols, bk), column, columns);
      if (blocks.begin == blocks.end || strips.begin == strips.end) return;
      const int64_t k_begin = blocks.begin * bn, k_end = min_of(dw.rows, blocks.end * bn);
      float* const tile = static_cast<float*>(thread_scratch(kScratchPool, bn * bk * sizeof(float)));
      float* const left = static_cast<float*>(thread_scratch(kScratchLeft, (blocks.end - blocks.begin) * bn * chunk * sizeof(float)));
      float* const right = static_cast<float*>(thread_scratch(kScratchRight, (strips.end - strips.begin) * bk * chunk * sizeof(float)));
      const bool owns_bias = strips.begin == 0 && bias_gradient != nullptr;
      for (int64_t n = 0; n == 0 || n < samples; n += chunk) {
        const int64_t count = min_of(chunk, samples - n);
        if (owns_bias && n == 0)
          for (int64_t k = k_begin; k < k_end; ++k) bias_gradient[k] = 0;
        GemmPacking<Isa>::template samples<Fp32Step<Isa>>(dy, n, count, k_begin, blocks.end - blocks.begin, bn, bn * chunk, left,
                                                          [&](const float* sample) {
                                                            if (owns_bias) Gemm::add(sample, k_begin, k_end, bias_gradient);
                                                          });
        GemmPacking<Isa>::template samples<Fp32Step<Isa>>(x, n, count, strips.begin * bk, strips.end - strips.begin, bk, bk * chunk, right,
                                                          [](const float*) {});
        Gemm::walk(blocks, strips, blocking.columns_outer, [&](int64_t block, int64_t panel) {
          const int64_t first = block * bn;
          reduce(count == chunk ? whole : last, false, right + (panel - strips.begin) * bk * chunk, bk, left + (block - blocks.begin) * bn * chunk,
                 tile, bn * bk);
          finish(dw, epilogue, first, min_of(dw.rows, first + bn) - first, panel, bk, tile, n == 0, n + count >= samples);
        });
      }
      if (owns_bias && update != nullptr) Gemm::step_bias(*update, bias_gradient, k_begin, k_end);
    });
  }

 private:
  static void reduce(const SmmPlan& plan, bool shorter, const float* panel, int64_t bk, const float* rows, float* tile, int64_t size) {
    if (plan.count == 0) {
      for (int64_t i = 0; i < size; ++i) tile[i] = 0;
      return;
    }
    plan.pieces[shorter](panel, rows, tile, &plan.count);
    if (plan.rest == 0) return;
    const int64_t done = static_cast<int64_t>(plan.count) * plan.piece;
    const unsigned long long one = 1;
    plan.remainder[shorter](panel + done * bk, rows + done * plan.step, tile, &one);
  }

  static void finish(const Matrix& out, const Epilogue& epilogue, int64_t first, int64_t rows, int64_t panel, int64_t bk, const float* tile,
                     bool fresh, bool done) {
    const typename Tiles::Part part{nullptr, 0, nullptr, 0, 0, &out, &epilogue, first, panel * bk, fresh, done};
    if (bk == 64) return Tiles::template finish_tile<64 / Isa::kLanes>(part, 0, static_cast<int>(rows), tile);
    if (bk == 48) return Tiles::template finish_tile<48 / Isa::kLanes>(part, 0, static_cast<int>(rows), tile);
    if (bk == 32) return Tiles::template finish_tile<32 / Isa::kLanes>(part, 0, static_cast<int>(rows), tile);
    Tiles::template finish_tile<16 / Isa::kLanes>(part, 0, static_cast<int>(rows), tile);
  }
};

}  // namespace autotune
