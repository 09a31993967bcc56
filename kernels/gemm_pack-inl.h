// Operands of the blocked GEMM in the layout its tiles read, generic over the ISA. The contract is in gemm.h.
#pragma once

#include "gemm.h"
#include "gemm_tile-inl.h"
#include "isa/bf16.h"
#include "team.h"

namespace autotune {

template <class A, class B>
struct Same {
  static constexpr bool value = false;
};
template <class A>
struct Same<A, A> {
  static constexpr bool value = true;
};

template <class Isa>
struct GemmPacking {
  using V = typename Isa::V;
  static constexpr int W = Isa::kLanes;
  static constexpr bool kDots = requires(V v, typename Bf16<Isa>::U u) { Isa::dot_bf16(v, u, u); };

  // What the passes reduce over in bf16: pairs where the ISA multiplies them; else floats that were rounded, against pairs of weights in
  // the first two passes, against each other in the third.
  template <bool Dots, class Pair, class Other>
  struct Choice {
    using type = Pair;
  };
  template <class Pair, class Other>
  struct Choice<false, Pair, Other> {
    using type = Other;
  };
  using RowStep = typename Choice<kDots, PairStep<Isa>, WidenedStep<Isa>>::type;
  struct RoundedStep : Fp32Step<Isa> {};
  using SampleStep = typename Choice<kDots, PairStep<Isa>, RoundedStep>::type;

  // Elements from one rounded row to the next: whole cache lines, an odd number of them, so that rows do not share the sets of L1.
  static int64_t row_stride(int64_t cols) { return (ceil_div(ceil_div(cols, 2) * RowStep::kParts, 16) | 1) * 16; }

  // target[r * row_stride + i]: row first + r, rounded, zero beyond the last column.
  static void round_rows(const ConstMatrix& m, int64_t first, int64_t count, typename RowStep::A* target) {
    const int64_t stride = row_stride(m.cols);
    for (int64_t r = 0; r < count; ++r, target += stride) {
      const float* source = m.data + (first + r) * m.stride;
      int64_t c = 0;
      if constexpr (kDots) {
        for (; c + 32 <= m.cols; c += 32) Isa::store_pairs(target + c / 2, Isa::round_row(Isa::load(source + c), Isa::load(source + c + 16)));
        if (c < m.cols) {
          const int64_t left = m.cols - c;
          const V low = Isa::load_first(source + c, left);
          Isa::store_pairs(target + c / 2, Isa::round_row(low, left > 16 ? Isa::load_first(source + c + 16, left - 16) : V{}));
        }
      } else {
        for (; c + W <= m.cols; c += W) Isa::store(target + c, Bf16<Isa>::rounded_value(Isa::load(source + c)));
        for (; c < m.cols; ++c) target[c] = Bf16<OneLane<Isa>>::rounded_value(source[c]);
        if (c % 2 != 0) target[c] = 0;
      }
    }
  }

  // Samples first ... first + count as steps, in `panels` panels of `width` columns from `column` on: words[p * size + s * width + j], where a
  // word is a float, or the pair of samples 2s and 2s + 1, the second of an odd last one zero. Zero beyond the last column. Rows are read
  // whole, one after the other, as prefetchers like them; visit(row) sees each.
  template <class Step, class T, class Visit>
  static void samples(const ConstMatrix& m, int64_t first, int64_t count, int64_t column, int64_t panels, int64_t width, int64_t size, T* words,
                      const Visit& visit) {
    static_assert(sizeof(T) * (sizeof(T) == 2 ? 2 : 1) == 4, "words, or pairs of halves");
    for (int64_t r = 0; r < count; r += Step::kMembers) {
      const bool odd = r + 1 == count;
      const float* low = m.data + (first + r) * m.stride;
      const float* high = odd ? low : low + m.stride;
      visit(low);
      if (Step::kMembers == 2 && !odd) visit(high);
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t c = column + p * width, word = p * size + r / Step::kMembers * width;
        void* const target = words + word * (4 / static_cast<int64_t>(sizeof(T)));
        step<Step>(low + c, high + c, odd, min_of(width, m.cols - c), width, target);
      }
    }
  }

  // Packed panels of w [K, C] for the forward pass (over K) and for backward-data (over C).
  static void weights(const ConstMatrix& w, float* forward, int64_t forward_width, float* backward, int64_t backward_width, int threads) {
    const TeamClock clock(threads);
#pragma omp parallel num_threads(threads)
    {
      const TeamClock::Turn turn(clock);
      transpose_panels(w.rows, w.cols, w.cols, w.data, w.stride * 4, forward_width, forward);
#pragma omp for schedule(static) nowait
      for (int64_t k = 0; k < w.rows; k += kRows)
        samples<Fp32Step<Isa>>(w, k, min_of(kRows, w.rows - k), 0, ceil_div(w.cols, backward_width), backward_width, w.rows * backward_width,
                               backward + k * backward_width, [](const float*) {});
    }
  }

  // The same as pairs along each reduction.
  static void weights_bf16(const ConstHalves& w, uint16_t* forward, int64_t forward_width, uint16_t* backward, int64_t backward_width,
                           int threads) {
    const int64_t steps = ceil_div(w.rows, 2);
    const TeamClock clock(threads);
#pragma omp parallel num_threads(threads)
    {
      const TeamClock::Turn turn(clock);
      transpose_panels(w.rows, ceil_div(w.cols, 2), w.cols / 2, w.data, w.cols * 2, forward_width, forward);
#pragma omp for schedule(static) nowait
      for (int64_t s = 0; s < steps; ++s) {
        const uint16_t *low = w.data + 2 * s * w.cols, *high = low + w.cols;
        const bool odd = 2 * s + 1 == w.rows;
        for (int64_t c = 0; c < w.cols; c += backward_width) {
          const int64_t valid = min_of(backward_width, w.cols - c);
          uint16_t* target = backward + (c / backward_width * steps + s) * backward_width * 2;
          int64_t j = 0;
          for (; !odd && j + W <= valid; j += W) Bf16<Isa>::store_bits(target + 2 * j, Bf16<Isa>::interleave(low + c + j, high + c + j));
          for (; j < backward_width; ++j) {
            target[2 * j] = j < valid ? low[c + j] : 0;
            target[2 * j + 1] = j < valid && !odd ? high[c + j] : 0;
          }
        }
      }
    }
  }

 private:
  static constexpr int64_t kRows = 16;  // that a task of packing takes: their lines are read whole

  // One step of one panel.
  template <class Step>
  static inline void step(const float* low, const float* high, bool odd, int64_t valid, int64_t width, void* target) {
    int64_t j = 0;
    if constexpr (Step::kMembers == 1) {
      constexpr bool kRound = Same<Step, RoundedStep>::value;
      float* const words = static_cast<float*>(target);
      if constexpr (!kRound && W > 6) {
        if (width == 6 && valid >= 6) {  // a strip of rows, at once
          __builtin_memcpy(words, low, 6 * sizeof(float));
          return;
        }
      }
      for (; j + W <= valid; j += W) Isa::store(words + j, kRound ? Bf16<Isa>::rounded_value(Isa::load(low + j)) : Isa::load(low + j));
      for (; j < valid; ++j) words[j] = kRound ? Bf16<OneLane<Isa>>::rounded_value(low[j]) : low[j];
      for (; j < width; ++j) words[j] = 0;
    } else {
      uint32_t* const words = static_cast<uint32_t*>(target);
      for (; j + W <= valid; j += W) Isa::store_pairs(words + j, Isa::round_pairs(Isa::load(low + j), odd ? V{} : Isa::load(high + j)));
      for (; j < width; j += W) {
        const auto u = Isa::round_pairs(Isa::load_first(low + j, valid - j), odd ? V{} : Isa::load_first(high + j, valid - j));
        for (int64_t i = 0; i < min_of(W, width - j); ++i) words[j + i] = u[i];
      }
    }
  }

  // Words of 32 bits, `row_bytes` from row to row, as panels[(p * steps + s) * width + j] = word s of row p * width + j, zero beyond the last
  // row; inside a parallel region. `whole` of the steps are whole words; of one that is not only the lower half is there.
  template <class T>
  static void transpose_panels(int64_t rows, int64_t steps, int64_t whole, const T* data, int64_t row_bytes, int64_t width, T* panels) {
    using Words = Bf16<Isa>;
    using One = Bf16<OneLane<Isa>>;
    const char* const first = reinterpret_cast<const char*>(data);
    char* const target = reinterpret_cast<char*>(panels);
    const int64_t tasks = ceil_div(steps, W);
#pragma omp for schedule(static) nowait
    for (int64_t task = 0; task < ceil_div(rows, width) * tasks; ++task) {
      const int64_t row0 = task / tasks * width, begin = task % tasks * W, end = min_of(steps, begin + W);
      for (int64_t j = 0; j < width; j += W) {
        const char* const source = first + (row0 + j) * row_bytes + begin * 4;
        char* const words = target + ((row0 / width * steps + begin) * width + j) * 4;
        const int64_t valid = min_of(W, rows - row0 - j);
        if (begin + W <= whole) {
          typename Words::U block[W];
          for (int i = 0; i < W; ++i) block[i] = i < valid ? Words::load_bits(source + i * row_bytes) : typename Words::U{};
          Words::transpose(block);
          for (int i = 0; i < W; ++i) Words::store_bits(words + i * width * 4, block[i]);
          continue;
        }
        for (int64_t s = begin; s < end; ++s)
          for (int64_t i = 0; i < W; ++i) {
            const char* const p = source + i * row_bytes + (s - begin) * 4;
            uint32_t word = 0;
            if (i < valid) word = s < whole ? One::load_bits(p) : One::load_half(p);
            One::store_bits(words + ((s - begin) * width + i) * 4, word);
          }
      }
    }
  }
};

}  // namespace autotune
