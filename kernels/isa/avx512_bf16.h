// The vectors of AVX-512 with dot products of bf16 pairs: for files compiled with -mavx512bf16.
#pragma once

#include "bf16.h"

namespace autotune {

template <class Tag>
struct Avx512Bf16Isa : VectorIsa<16, 32, Tag> {
  using Base = VectorIsa<16, 32, Tag>;
  using V = typename Base::V;
  using U = typename Lanes<uint32_t, 16>::type;

  // sum + low * low + high * high in each lane, fp32; denormals count as zero.
  static inline V dot_bf16(V sum, U left, U right) {
    return reinterpret_cast<V>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(left), reinterpret_cast<__m512bh>(right)));
  }

  // 32 values in a row as bf16, rounded to nearest even.
  static inline U round_row(V first, V second) {
    return reinterpret_cast<U>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first)));
  }
  // Lane l holds the pair (low[l], high[l]).
  static inline U round_pairs(V low, V high) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3,
                                           18, 2, 17, 1, 16, 0);
    return reinterpret_cast<U>(_mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(round_row(low, high))));
  }
  // The first `count` floats (at most 16, none if negative), zero beyond them; nothing beyond them is read.
  static inline V load_first(const float* p, int64_t count) {
    const __mmask16 mask = count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
    return reinterpret_cast<V>(_mm512_maskz_loadu_ps(mask, p));
  }
  static inline void store_pairs(uint32_t* p, U u) { _mm512_storeu_si512(p, reinterpret_cast<__m512i>(u)); }
  static inline U load_pairs(const uint16_t* p) { return reinterpret_cast<U>(_mm512_loadu_si512(p)); }
  static inline U set_pair(uint32_t pair) { return pair | U{}; }
};

}  // namespace autotune
