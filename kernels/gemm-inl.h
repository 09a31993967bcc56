// Blocked batch-reduce GEMM, generic over the ISA: how tiles are walked and their operands laid out. The contract is in gemm.h.
#pragma once

#include <omp.h>

#include "gemm.h"
#include "gemm_pack-inl.h"
#include "gemm_tile-inl.h"
#include "memory.h"
#include "team.h"

namespace autotune {

template <class Isa>
struct GemmKernels {
  using Pack = GemmPacking<Isa>;
  using V = typename Isa::V;
  static constexpr int W = Isa::kLanes;

  // out[rows, cols] = epilogue(a * panels), a row-major.
  static void multiply(const ConstMatrix& a, const float* panels, const Matrix& out, const Epilogue& epilogue, const GemmBlocking& blocking,
                       int threads) {
    on_grid(threads, blocking.thread_columns, [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
      const Range blocks = split(ceil_div(out.rows, blocking.bn), row, rows);
      const Range strips = split(ceil_div(out.cols, blocking.bk), column, columns);
      walk(blocks, strips, blocking.columns_outer, [&](int64_t block, int64_t panel) {
        const int64_t first = block * blocking.bn;
        GemmTiles<Isa, Fp32Step<Isa>>::template tile<false>(
            a.data + first * a.stride, a.stride, panels + panel * a.cols * blocking.bk, a.cols, out, epilogue, first,
            min_of(out.rows, first + blocking.bn) - first, panel, blocking.bk, blocking.bc, true, true);
      });
    });
  }

  // The same with panels of bf16 pairs. A row block is rounded into scratch before its first panel; where panels are walked in the outer
  // loop, all blocks of the thread are.
  static void multiply_bf16(const ConstMatrix& a, const uint16_t* panels, const Matrix& out, const Epilogue& epilogue, GemmBlocking blocking,
                            int threads) {
    using Step = typename Pack::RowStep;
    using A = typename Step::A;
    const int64_t pairs = ceil_div(a.cols, 2), stride = Pack::row_stride(a.cols);
    blocking.bn = min_of(blocking.bn, max_of(out.rows, 1));  // scratch is bn high
    on_grid(threads, blocking.thread_columns, [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
      const Range blocks = split(ceil_div(out.rows, blocking.bn), row, rows);
      const Range strips = split(ceil_div(out.cols, blocking.bk), column, columns);
      if (blocks.begin == blocks.end || strips.begin == strips.end) return;
      const int64_t held = blocking.columns_outer ? blocks.end - blocks.begin : 1;
      A* const scratch = static_cast<A*>(thread_scratch(kScratchLeft, held * blocking.bn * stride * sizeof(A)));
      const auto rounded = [&](int64_t block) { return scratch + (blocking.columns_outer ? block - blocks.begin : 0) * blocking.bn * stride; };
      walk(blocks, strips, blocking.columns_outer, [&](int64_t block, int64_t panel) {
        const int64_t first = block * blocking.bn, height = min_of(out.rows, first + blocking.bn) - first;
        if (panel == strips.begin) Pack::round_rows(a, first, height, rounded(block));
        GemmTiles<Isa, Step>::template tile<false>(rounded(block), stride, panels + panel * pairs * blocking.bk * 2, pairs, out, epilogue, first,
                                                   height, panel, blocking.bk, ceil_div(blocking.bc, 2), true, true);
      });
    });
  }

  // dw[k, c] (+ bias gradient) from dy[n, k] and x[n, c].
  static void multiply_transposed(const ConstMatrix& dy, const ConstMatrix& x, const Matrix& dw, float* bias_gradient, const Update* update,
                                  const GemmBlocking& blocking, bool bf16, int threads) {
    if (bf16)
      transposed<typename Pack::SampleStep>(dy, x, dw, bias_gradient, update, blocking, threads);
    else
      transposed<Fp32Step<Isa>>(dy, x, dw, bias_gradient, update, blocking, threads);
  }

  // Shared with libxsmm-inl.h from here on.
  struct Range {
    int64_t begin, end;
  };

  static Range split(int64_t count, int64_t part, int64_t parts) { return {count * part / parts, count * (part + 1) / parts}; }

  // Forks a team that calls body(row, rows, column, columns) for every cell of the thread grid; one smaller than asked for covers all too.
  template <class Body>
  static void on_grid(int threads, int64_t columns, const Body& body) {
    const int64_t rows = threads / columns;
    const TeamClock clock(threads);
#pragma omp parallel num_threads(threads)
    {
      const TeamClock::Turn turn(clock);
      for (int64_t cell = omp_get_thread_num(); cell < rows * columns; cell += omp_get_num_threads()) body(cell / columns, rows, cell % columns, columns);
    }
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

  static void add(const float* row, int64_t begin, int64_t end, float* sums) {
    int64_t k = begin;
    for (; k + W <= end; k += W) Isa::store(sums + k, Isa::load(sums + k) + Isa::load(row + k));
    for (; k < end; ++k) sums[k] += row[k];
  }

  static void step_bias(const Update& update, const float* gradient, int64_t begin, int64_t end) {
    int64_t k = begin;
    for (; k + W <= end; k += W) OptimizerKernels<Isa>::step_bias(update, k, Isa::load(gradient + k));
    for (; k < end; ++k) OptimizerKernels<OneLane<Isa>>::step_bias(update, k, gradient[k]);
  }

 private:
  // Operands are copied, bc samples at a time, into packed scratch of the thread, which is read once for every bk (dy) or bn (x) columns of
  // the other. In fp32 dy is read where it lies, unless its rows fall into one set of the caches: on 2 cores with AVX-512 that took 7 % off
  // at 2048 x 512 x 512, 13 % at 2048 x 100 x 1024 and 1 % at 2048 x 1024 x 1024.
  template <class Step>
  static void transposed(const ConstMatrix& dy, const ConstMatrix& x, const Matrix& dw, float* bias_gradient, const Update* update,
                         GemmBlocking blocking, int threads) {
    using A = typename Step::A;
    using B = typename Step::B;
    constexpr int64_t kSamples = Step::kMembers;  // in a step
    const int64_t samples = dy.rows;
    Epilogue epilogue;
    epilogue.update = update;
    blocking.bn = min_of(blocking.bn, dw.rows);  // scratch is bn wide
    const bool in_place = Same<Step, Fp32Step<Isa>>::value && dy.stride % 256 != 0;
    on_grid(threads, blocking.thread_columns, [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
      const Range blocks = split(ceil_div(dw.rows, blocking.bn), row, rows);
      const Range strips = split(ceil_div(dw.cols, blocking.bk), column, columns);
      if (blocks.begin == blocks.end || strips.begin == strips.end) return;
      const int64_t longest = ceil_div(min_of(max_of(samples, 1), blocking.bc), kSamples);  // steps in scratch
      const int64_t k_begin = blocks.begin * blocking.bn, k_end = min_of(dw.rows, blocks.end * blocking.bn);
      const int64_t left_size = blocking.bn * longest, right_size = blocking.bk * longest * Step::kMembers;
      A* const left = static_cast<A*>(thread_scratch(kScratchLeft, in_place ? 1 : (blocks.end - blocks.begin) * left_size * sizeof(A)));
      B* const right = static_cast<B*>(thread_scratch(kScratchRight, (strips.end - strips.begin) * right_size * sizeof(B)));
      const bool owns_bias = strips.begin == 0 && bias_gradient != nullptr;
      for (int64_t n = 0; n == 0 || n < samples; n += longest * kSamples) {
        const int64_t count = min_of(longest * kSamples, samples - n), steps = ceil_div(count, kSamples);
        if (owns_bias && n == 0)
          for (int64_t k = k_begin; k < k_end; ++k) bias_gradient[k] = 0;
        const auto add_bias = [&](const float* sample) {
          if (owns_bias) add(sample, k_begin, k_end, bias_gradient);
        };
        if (in_place)
          for (int64_t r = n; r < n + count; ++r) add_bias(dy.data + r * dy.stride);
        else
          Pack::template samples<Step>(dy, n, count, k_begin, blocks.end - blocks.begin, blocking.bn, blocking.bn * longest, left, add_bias);
        Pack::template samples<Step>(x, n, count, strips.begin * blocking.bk, strips.end - strips.begin, blocking.bk, blocking.bk * longest, right,
                                     [](const float*) {});
        walk(blocks, strips, blocking.columns_outer, [&](int64_t block, int64_t panel) {
          const int64_t first = block * blocking.bn;
          const A* const rows_of_dw = in_place ? reinterpret_cast<const A*>(dy.data + n * dy.stride + first) : left + (block - blocks.begin) * left_size;
          GemmTiles<Isa, Step>::template tile<true>(
              rows_of_dw, in_place ? dy.stride : blocking.bn, right + (panel - strips.begin) * right_size, steps, dw, epilogue, first,
              min_of(dw.rows, first + blocking.bn) - first, panel, blocking.bk, max_of(steps, 1), n == 0, n + count >= samples);
        });
      }
      if (owns_bias && update != nullptr) step_bias(*update, bias_gradient, k_begin, k_end);
    });
  }
};

}  // namespace autotune
