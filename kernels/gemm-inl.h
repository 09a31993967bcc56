// Blocked batch-reduce GEMM, generic over the ISA: how tiles are walked and their operands laid out. The contract is in gemm.h.
#pragma once

#include <omp.h>

#include "gemm.h"
#include "gemm_pack-inl.h"
#include "gemm_tile-inl.h"
#include "gemv-inl.h"
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
    if (is_vector(a, out, epilogue)) return multiply_vector<false>(a, out, epilogue, threads, [&](int64_t c) { return panels[c * (out.cols == 1 ? blocking.bk : 1)]; });
    on_grid(threads, blocking.thread_columns, [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
      const Range blocks = split(ceil_div(out.rows, blocking.bn), row, rows);
      const Range strips = split(ceil_div(out.cols, blocking.bk), column, columns);
      walk(blocks, strips, blocking.columns_outer, [&](int64_t block, int64_t panel) {
        const int64_t first = block * blocking.bn;
        GemmTiles<Isa, Fp32Step<Isa>>::template tile<false>(
            a.data + first * a.stride, a.stride, panels + panel * a.cols * blocking.bk, blocking.bk, a.cols, out, epilogue, first,
            min_of(out.rows, first + blocking.bn) - first, panel, blocking.bk, blocking.bc, true, true);
      });
    });
  }

  // The same with panels of bf16 pairs. A row block is rounded into scratch before its first panel; where panels are walked in the outer
  // loop, all blocks of the thread are.
  static void multiply_bf16(const ConstMatrix& a, const uint16_t* panels, const Matrix& out, const Epilogue& epilogue, GemmBlocking blocking,
                            int threads) {
    if (is_vector(a, out, epilogue))
      return multiply_vector<true>(a, out, epilogue, threads, [&](int64_t c) {
        return join_one(panels[out.cols == 1 ? c / 2 * blocking.bk * 2 + c % 2 : c * 2], 0);
      });
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
        GemmTiles<Isa, Step>::template tile<false>(rounded(block), stride, panels + panel * pairs * blocking.bk * 2, blocking.bk * 2, pairs, out, epilogue,
                                                   first, height, panel, blocking.bk, ceil_div(blocking.bc, 2), true, true);
      });
    });
  }

  // dw[k, c] (+ bias gradient) from dy[n, k] and x[n, c].
  static void multiply_transposed(const ConstMatrix& dy, const ConstMatrix& x, const Matrix& dw, float* bias_gradient, const Update* update,
                                  const GemmBlocking& blocking, bool bf16, int threads) {
    if (dy.cols == 1)
      bf16 ? vector_transposed<true>(dy, x, dw, bias_gradient, update, threads) : vector_transposed<false>(dy, x, dw, bias_gradient, update, threads);
    else if (bf16)
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

  // The task that walk takes after this one; false, and the first one, after the last.
  static bool advance(const Range& blocks, const Range& strips, bool columns_outer, int64_t& block, int64_t& panel) {
    int64_t &inner = columns_outer ? block : panel, &outer = columns_outer ? panel : block;
    const Range &within = columns_outer ? blocks : strips, &around = columns_outer ? strips : blocks;
    if (++inner < within.end) return true;
    inner = within.begin;
    if (++outer < around.end) return true;
    outer = around.begin;
    return false;
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
  // Whether one of the operands is a vector, as in a layer with one output.
  static bool is_vector(const ConstMatrix& a, const Matrix& out, const Epilogue& e) {
    return out.cols == 1 || (a.cols == 1 && e.bias == nullptr && e.activation == Activation::kNone);
  }

  // weight(i): element i of the vector that the panels hold.
  template <bool Bf16, class Weight>
  static void multiply_vector(const ConstMatrix& a, const Matrix& out, const Epilogue& epilogue, int threads, const Weight& weight) {
    using Gemv = GemvKernels<Isa, Bf16>;
    on_grid(threads, 1, [&](int64_t row, int64_t rows, int64_t, int64_t) {
      const Range part = split(out.rows, row, rows);
      if (part.begin == part.end) return;
      const int64_t count = max_of(a.cols, out.cols);
      float* const w = static_cast<float*>(thread_scratch(kScratchRight, count * sizeof(float)));
      for (int64_t i = 0; i < count; ++i) w[i] = weight(i);
      (out.cols == 1 ? Gemv::dot_rows : Gemv::outer)(a, w, out, epilogue, part.begin, part.end);
    });
  }

  // Threads share the columns, by whole cache lines: each adds over all samples in their order.
  template <bool Bf16>
  static void vector_transposed(const ConstMatrix& dy, const ConstMatrix& x, const Matrix& dw, float* bias_gradient, const Update* update, int threads) {
    Epilogue epilogue;
    epilogue.update = update;
    on_grid(threads, 1, [&](int64_t row, int64_t rows, int64_t, int64_t) {
      const Range lines = split(ceil_div(x.cols, 16), row, rows);
      if (lines.begin == lines.end) return;
      const int64_t begin = lines.begin * 16, end = min_of(x.cols, lines.end * 16);
      float* const sums = static_cast<float*>(thread_scratch(kScratchLeft, (end - begin) * sizeof(float)));
      GemvKernels<Isa, Bf16>::weighted_sum(dy, x, begin, end, sums);
      using Tiles = GemmTiles<Isa, Fp32Step<Isa>>;
      typename Tiles::Part part{};
      part.out = &dw;
      part.epilogue = &epilogue;
      part.fresh = part.done = true;
      for (part.column = begin; part.column < end; part.column += 16) Tiles::template finish_tile<16 / W>(part, 0, 1, sums + part.column - begin);
      if (begin != 0 || bias_gradient == nullptr) return;
      *bias_gradient = 0;
      for (int64_t n = 0; n < dy.rows; ++n) *bias_gradient += dy.data[n * dy.stride];
      if (update != nullptr) step_bias(*update, bias_gradient, 0, 1);
    });
  }

  // sums[j] += the sum of column j over `count` rows, in their order. Fetches them into L2 for the tile that reads them next: as a pass
  // over whole rows before all tiles it took 22 % of the time at 2048 x 100 x 1024.
  static void add_columns(const float* rows, int64_t stride, int64_t count, int64_t columns, float* sums) {
    int64_t j = 0;
    for (; j + 4 * W <= columns; j += 4 * W) add_vectors<4>(rows + j, stride, count, sums + j);
    for (; j + W <= columns; j += W) add_vectors<1>(rows + j, stride, count, sums + j);
    for (; j < columns; ++j)
      for (int64_t r = 0; r < count; ++r) sums[j] += rows[r * stride + j];
  }

  template <int NV>
  static void add_vectors(const float* row, int64_t stride, int64_t count, float* sums) {
    constexpr int64_t kAhead = 16;  // rows; 32 are as good
    V sum[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sum[v] = Isa::load(sums + v * W);
    for (int64_t r = 0; r < count; ++r, row += stride) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        __builtin_prefetch(row + kAhead * stride + v * W, 0, 2);
        sum[v] += Isa::load(row + v * W);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) Isa::store(sums + v * W, sum[v]);
  }

  // In fp32 both operands are read where they lie: of rows of dy values are broadcast, of rows of x whole panels are vectors; what the next
  // two tiles read is fetched meanwhile. Copied, bc samples at a time, into packed scratch of the thread are the last columns of x that
  // fill no panel, an x whose rows begin within cache lines, and a dy or x whose rows fall into few sets of the caches. All in bf16 are, and
  // all where registers are few.
  // On 2 cores with AVX-512 (Zen 4) this took 5 to 6 % off at 2048 x 1024 x 1024, 28 % at 2048 x 512 x 64.
  template <class Step>
  static void transposed(const ConstMatrix& dy, const ConstMatrix& x, const Matrix& dw, float* bias_gradient, const Update* update,
                         GemmBlocking blocking, int threads) {
    using A = typename Step::A;
    using B = typename Step::B;
    using Tiles = GemmTiles<Isa, Step>;
    constexpr int64_t kSamples = Step::kMembers;  // in a step
    const int64_t samples = dy.rows;
    Epilogue epilogue;
    epilogue.update = update;
    blocking.bn = min_of(blocking.bn, dw.rows);  // scratch is bn wide
    const int64_t strip = Tiles::strip(blocking.bn);
    blocking.bn = ceil_div(blocking.bn, strip) * strip;
    constexpr bool kInPlace = Tiles::kFetches && Same<Step, Fp32Step<Isa>>::value;
    const bool dy_in_place = kInPlace && dy.stride % 256 != 0;
    const bool x_in_place = kInPlace && x.stride % 256 != 0 && x.stride % 16 == 0 && reinterpret_cast<uintptr_t>(x.data) % 64 == 0;
    const int64_t whole = x_in_place ? x.cols / blocking.bk : 0;  // panels of x in place
    on_grid(threads, blocking.thread_columns, [&](int64_t row, int64_t rows, int64_t column, int64_t columns) {
      const Range blocks = split(ceil_div(dw.rows, blocking.bn), row, rows);
      const Range strips = split(ceil_div(dw.cols, blocking.bk), column, columns);
      if (blocks.begin == blocks.end || strips.begin == strips.end) return;
      const int64_t longest = ceil_div(min_of(max_of(samples, 1), blocking.bc), kSamples);  // steps in scratch
      const int64_t packed = min_of(strips.end, max_of(strips.begin, whole));  // the first panel that is not in place
      const int64_t k_begin = blocks.begin * blocking.bn, k_end = min_of(dw.rows, blocks.end * blocking.bn);
      const int64_t left_size = (blocks.end - blocks.begin) * blocking.bn * longest, right_size = blocking.bk * longest * Step::kMembers;
      A* const left = static_cast<A*>(thread_scratch(kScratchLeft, dy_in_place ? 1 : left_size * sizeof(A)));
      B* const right = static_cast<B*>(thread_scratch(kScratchRight, max_of(1, (strips.end - packed) * right_size * sizeof(B))));
      const bool owns_bias = strips.begin == 0 && bias_gradient != nullptr;
      if (owns_bias)
        for (int64_t k = k_begin; k < k_end; ++k) bias_gradient[k] = 0;
      for (int64_t n = 0; n == 0 || n < samples; n += longest * kSamples) {
        const int64_t count = min_of(longest * kSamples, samples - n), steps = ceil_div(count, kSamples);
        if (!dy_in_place)
          Pack::template samples<Step>(dy, n, count, k_begin, ceil_div(k_end - k_begin, strip), strip, strip * steps, left, [&](const float* sample) {
            if (owns_bias) add(sample, k_begin, k_end, bias_gradient);
          });
        if (packed < strips.end)
          Pack::template samples<Step>(x, n, count, packed * blocking.bk, strips.end - packed, blocking.bk, blocking.bk * longest, right,
                                       [](const float*) {});
        const auto dy_at = [&](int64_t sample, int64_t block) { return dy.data + sample * dy.stride + block * blocking.bn; };
        const auto x_at = [&](int64_t sample, int64_t panel) { return x.data + sample * x.stride + panel * blocking.bk; };
        walk(blocks, strips, blocking.columns_outer, [&](int64_t block, int64_t panel) {
          const int64_t first = block * blocking.bn, height = min_of(dw.rows, first + blocking.bn) - first;
          if (dy_in_place && owns_bias && panel == 0) add_columns(dy_at(n, block), dy.stride, count, height, bias_gradient + first);
          // What the next two tiles read in place and the one before each does not.
          typename Tiles::Ahead ahead;
          int64_t next_block = block, next_panel = panel, next_n = n;
          for (int i = 0; i < 2; ++i) {
            const int64_t block_before = next_block, panel_before = next_panel;
            const bool turns = !advance(blocks, strips, blocking.columns_outer, next_block, next_panel);
            if (turns && (next_n += count) >= samples) break;
            if (next_panel < packed && (turns || next_panel != panel_before)) ahead.add(x_at(next_n, next_panel), x.stride, blocking.bk);
            if (dy_in_place && (turns || next_block != block_before)) ahead.add(dy_at(next_n, next_block), dy.stride, blocking.bn);
          }
          const bool here = panel < packed;
          Tiles::template tile<true>(
              dy_in_place ? reinterpret_cast<const A*>(dy_at(n, block)) : left + (block - blocks.begin) * blocking.bn * steps, dy_in_place ? dy.stride : strip,
              here ? reinterpret_cast<const B*>(x_at(n, panel)) : right + (panel - packed) * right_size,
              here ? x.stride : blocking.bk * Step::kMembers, steps, dw, epilogue, first, height, panel, blocking.bk, max_of(steps, 1), n == 0,
              n + count >= samples, &ahead);
        });
      }
      if (owns_bias && update != nullptr) step_bias(*update, bias_gradient, k_begin, k_end);
    });
  }
};

}  // namespace autotune
