// bf16 beside the vectors of vector.h: a bf16 is the upper half of an fp32, and a weight in two halves is an exact fp32.
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

  static inline V join(const uint16_t* upper, const uint16_t* lower) { return value((widen(upper) << 16) | widen(lower)); }
  static inline void split(V v, uint16_t* upper, uint16_t* lower) {
    narrow(bits(v) >> 16, upper);
    narrow(bits(v), lower);
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
  static inline U widen(const uint16_t* p) {
    if constexpr (W == 1) return *p;
    else return __builtin_convertvector(*reinterpret_cast<const Halves*>(p), U);
  }
  static inline void narrow(U u, uint16_t* p) {
    if constexpr (W == 1) *p = static_cast<uint16_t>(u);
    else *reinterpret_cast<Halves*>(p) = __builtin_convertvector(u, Half);
  }
};

}  // namespace autotune
