// Operands of the blocked GEMM in the layout its tiles read, generic over the ISA. The contract is in gemm.h.
#pragma once

#include "gemm.h"
#include "gemm_tile-inl.h"
#include "isa/bf16.h"

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

  // Steps of samples first ... first + count: target[s * width + j], or pairs of samples 2s and 2s + 1, the second of an odd last one zero.
  // Zero beyond the last column.
  template <class Step, class T>
  static void samples(const ConstMatrix& m, int64_t first, int64_t count, int64_t column, int64_t width, T* target) {
    const int64_t valid = min_of(width, m.cols - column);
    if constexpr (Step::kMembers == 1) {
      constexpr bool kRound = Same<Step, RoundedStep>::value;
      for (int64_t r = 0; r < count; ++r, target += width) {
        const float* source = m.data + (first + r) * m.stride + column;
        int64_t j = 0;
        for (; j + W <= valid; j += W) Isa::store(target + j, kRound ? Bf16<Isa>::rounded_value(Isa::load(source + j)) : Isa::load(source + j));
        for (; j < valid; ++j) target[j] = kRound ? Bf16<OneLane<Isa>>::rounded_value(source[j]) : source[j];
        for (; j < width; ++j) target[j] = 0;
      }
    } else {
      // Rows of the left side are uint32_t, those of the right pairs of uint16_t: the same bytes.
      uint32_t* pairs = reinterpret_cast<uint32_t*>(target);
      for (int64_t r = 0; r < count; r += 2, pairs += width) {
        const float* low = m.data + (first + r) * m.stride + column;
        const bool odd = r + 1 == count;
        const float* high = low + (odd ? 0 : m.stride);
        int64_t j = 0;
        for (; j + W <= valid; j += W) Isa::store_pairs(pairs + j, Isa::round_pairs(Isa::load(low + j), odd ? V{} : Isa::load(high + j)));
        for (; j < width; j += W) {
          const int64_t left = valid - j;
          const auto u = Isa::round_pairs(Isa::load_first(low + j, left), odd ? V{} : Isa::load_first(high + j, left));
          if (j + W <= width) Isa::store_pairs(pairs + j, u);
          else
            for (int64_t i = 0; j + i < width; ++i) pairs[j + i] = u[i];
        }
      }
    }
  }

  // Packed panels of w [K, C] for the forward pass (over K) and for backward-data (over C).
  static void weights(const ConstMatrix& w, float* forward, int64_t forward_width, float* backward, int64_t backward_width, int threads) {
#pragma omp parallel num_threads(threads)
    {
      transpose_panels(w.rows, w.cols, forward_width, [&](int64_t k, int64_t c) { return w.data[k * w.stride + c]; }, forward);
#pragma omp for schedule(static)
      for (int64_t p = 0; p < ceil_div(w.cols, backward_width); ++p)
        samples<Fp32Step<Isa>>(w, 0, w.rows, p * backward_width, backward_width, backward + p * w.rows * backward_width);
    }
  }

  // The same as pairs along each reduction.
  static void weights_bf16(const ConstHalves& w, uint16_t* forward, int64_t forward_width, uint16_t* backward, int64_t backward_width,
                           int threads) {
    const int64_t pairs_of_rows = ceil_div(w.rows, 2);
#pragma omp parallel num_threads(threads)
    {
      const auto pair_at = [&](int64_t k, int64_t c) {
        const uint16_t* p = w.data + k * w.cols + 2 * c;
        return Pair{2 * c + 1 < w.cols ? reinterpret_cast<const Pair*>(p)->bits : *p};
      };
      transpose_panels(w.rows, ceil_div(w.cols, 2), forward_width, pair_at, reinterpret_cast<Pair*>(forward));
#pragma omp for schedule(static)
      for (int64_t p = 0; p < ceil_div(w.cols, backward_width); ++p) {
        const int64_t c0 = p * backward_width, valid = min_of(backward_width, w.cols - c0);
        Pair* target = reinterpret_cast<Pair*>(backward) + p * pairs_of_rows * backward_width;
        for (int64_t k = 0; k < w.rows; k += 2, target += backward_width) {
          const uint16_t *low = w.data + k * w.cols + c0, *high = low + w.cols;
          const bool odd = k + 1 == w.rows;
          for (int64_t j = 0; j < valid; ++j) target[j].bits = low[j] | (odd ? 0u : uint32_t{high[j]} << 16);
          for (int64_t j = valid; j < backward_width; ++j) target[j].bits = 0;
        }
      }
    }
  }

 private:
  // Two bf16 in memory that is aligned for one. (A class of its own: an attribute of a plain uint32_t is lost on its way through a template.)
  struct __attribute__((packed, aligned(2), may_alias)) Pair {
    uint32_t bits;
  };

  // panels[(p * steps + s) * width + j] = at(p * width + j, s), zero beyond the last row; inside a parallel region. A task transposes 64
  // steps of a panel: tiles of 64 x width stay in L1.
  template <class T, class At>
  static void transpose_panels(int64_t rows, int64_t steps, int64_t width, const At& at, T* panels) {
    const int64_t tasks = ceil_div(steps, 64);
#pragma omp for schedule(static) nowait
    for (int64_t task = 0; task < ceil_div(rows, width) * tasks; ++task) {
      const int64_t row0 = task / tasks * width, valid = min_of(width, rows - row0);
      const int64_t begin = task % tasks * 64, end = min_of(steps, begin + 64);
      for (int64_t s = begin; s < end; ++s) {
        T* target = panels + (row0 / width * steps + s) * width;
        for (int64_t j = 0; j < valid; ++j) target[j] = at(row0 + j, s);
        for (int64_t j = valid; j < width; ++j) target[j] = T{};
      }
    }
  }
};

}  // namespace autotune
