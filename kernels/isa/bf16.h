// bf16 beside the vectors of vector.h: rounding to it, pairs of it along a reduction, and their transposes.
#pragma once

#include "vector.h"

namespace autotune {

// N numbers of type T as one value; one of them is plain.
template <class T, int N>
struct Lanes {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T>
struct Lanes<T, 1> {
  typedef T type;
};

template <class Isa>
struct Bf16 {
  using V = typename Isa::V;
  static constexpr int W = Isa::kLanes;
  using U = typename Lanes<uint32_t, W>::type;
  using Half = typename Lanes<uint16_t, W>::type;
  typedef U Pairs __attribute__((aligned(2), may_alias));
  typedef Half Halves __attribute__((aligned(2), may_alias));

  static inline U bits(V v) { return __builtin_bit_cast(U, v); }
  static inline V value(U bits) { return __builtin_bit_cast(V, bits); }

  // first, first + 1, ...
  static inline U count_from(uint32_t first) {
    if constexpr (W == 1) {
      return first;
    } else {
      U numbers;
      for (int l = 0; l < W; ++l) numbers[l] = static_cast<uint32_t>(l);
      return numbers + first;
    }
  }

  // Pairs (low[l], high[l]).
  static inline U interleave(const uint16_t* low, const uint16_t* high) { return widen(low) | (widen(high) << 16); }
  static inline U load_bits(const void* p) { return *static_cast<const Pairs*>(p); }
  static inline void store_bits(void* p, U u) { *static_cast<Pairs*>(p) = u; }
  static inline U load_half(const void* p) { return widen(static_cast<const uint16_t*>(p)); }

  // Lane j of rows[i] becomes lane i of rows[j]: W rows.
  static inline void transpose(U* rows) {
    if constexpr (W > 1) exchange<W / 2>(rows);
  }

  // The upper half of the result is v rounded to nearest even; NaN stays NaN, infinity stays, the largest floats become infinite.
  static inline U rounded(V v) {
    const U u = bits(v);
    const U even = u + 0x7fffu + ((u >> 16) & 1u);
    return v != v ? u | 0x00400000u : even;
  }
  static inline V rounded_value(V v) { return value(rounded(v) & 0xffff0000u); }

  // Of W pairs (low, high) in memory: the first or the second members.
  template <int Part>
  static inline V member(const uint16_t* pairs) {
    const U u = *reinterpret_cast<const Pairs*>(pairs);
    return value(Part == 0 ? u << 16 : u & 0xffff0000u);
  }

 private:
  // Rows i and i + Half trade the lanes whose number and i differ in the bit Half; then the halves likewise.
  template <int Half>
  static inline void exchange(U* rows) {
    typename IntVector<W>::type low, high;
    for (int l = 0; l < W; ++l) {
      low[l] = (l & Half) == 0 ? l : W + l - Half;
      high[l] = (l & Half) == 0 ? l + Half : W + l;
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
      if ((i & Half) == 0) {
        const U a = rows[i], b = rows[i + Half];
        rows[i] = __builtin_shuffle(a, b, low);
        rows[i + Half] = __builtin_shuffle(a, b, high);
      }
    if constexpr (Half > 1) exchange<Half / 2>(rows);
  }

  static inline U widen(const uint16_t* p) {
    if constexpr (W == 1) return *p;
    else return __builtin_convertvector(*reinterpret_cast<const Halves*>(p), U);
  }
};

}  // namespace autotune
