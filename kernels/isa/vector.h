// Vectors of W floats as compiler vectors: one spelling of every kernel, lowered by the target's flags.
//
// A 16-lane kernel compiled with -mavx2 becomes pairs of 8-lane instructions, so wide code can be tested on narrow machines.
// Nothing here may call the standard library: an inline function of it, compiled with wide flags, could be the copy the linker keeps.
#pragma once

#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace autotune {

static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
// a >= 0, b > 0; no sum of the two, which overflows when a caller asks for one huge task.
static inline int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// Lane numbers for a shuffle of N lanes. (Of its own: inside a dependent class the compiler would see a plain int.)
template <int N>
struct IntVector {
  typedef int type __attribute__((vector_size(N * 4)));
};
template <int N>
struct BitVectors {
  typedef uint32_t Words __attribute__((vector_size(N * 4)));
  typedef uint16_t Halves __attribute__((vector_size(N * 2)));
  typedef uint16_t UnalignedHalves __attribute__((vector_size(N * 2), aligned(2), may_alias));
};

static inline float join_one(uint16_t upper, uint16_t lower) {
  const uint32_t bits = uint32_t{upper} << 16 | lower;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

static inline void split_one(float value, uint16_t* upper, uint16_t* lower) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  *upper = static_cast<uint16_t>(bits >> 16);
  *lower = static_cast<uint16_t>(bits);
}

// Lanes: floats per vector. Registers: architectural vector registers, which bound a microtile. Tag keeps the instantiations of two
// targets apart in the linker's eyes.
template <int Lanes, int Registers, class Tag>
struct VectorIsa {
  static constexpr int kLanes = Lanes;
  static constexpr int kRegisters = Registers;
  typedef float V __attribute__((vector_size(Lanes * 4)));
  typedef float Unaligned __attribute__((vector_size(Lanes * 4), aligned(4), may_alias));

  static inline V load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static inline void store(float* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }
  // A float's upper 16 bits are a bf16 number, truncated; its lower 16 bits are what that leaves out.
  static inline V load_bf16(const uint16_t* upper) { return reinterpret_cast<V>(widen(upper) << 16); }
  static inline V join(const uint16_t* upper, const uint16_t* lower) { return reinterpret_cast<V>(widen(upper) << 16 | widen(lower)); }
  static inline void split(V v, uint16_t* upper, uint16_t* lower) {
    const Words bits = reinterpret_cast<Words>(v);
    narrow(bits >> 16, upper);
    narrow(bits, lower);
  }
  static inline void store_bf16(V v, uint16_t* upper) { narrow(reinterpret_cast<Words>(v) >> 16, upper); }
  // x - 0 is x to the bit, -0 included, so this folds to a broadcast; 0 + x would not.
  static inline V set(float x) { return x - V{}; }
  // The four floats at p, over and over.
  static inline V repeat_four(const float* p) {
#if defined(__AVX512F__)
    if constexpr (Lanes == 16) return reinterpret_cast<V>(_mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(p)));
#endif
#if defined(__AVX__)
    if constexpr (Lanes == 8) return reinterpret_cast<V>(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p)));
#endif
    float four[Lanes];
    for (int l = 0; l < Lanes; ++l) four[l] = p[l % 4];
    return load(four);
  }
  // NaN stays NaN, as in the framework.
  static inline V relu(V v) { return v < 0.0f ? V{} : v; }
  static inline V where_positive(V condition, V v) { return condition <= 0.0f ? V{} : v; }

  // Lanes / 4 vectors, rows of blocks of four floats, are transposed: block b of v[i] becomes block i of v[b].
  static inline void transpose_fours(V* v) {
    if constexpr (Lanes == 16) {
      const V low = halves(v[0], v[1], false), lower = halves(v[2], v[3], false), high = halves(v[0], v[1], true), higher = halves(v[2], v[3], true);
      v[0] = every_second(low, lower, 0);
      v[1] = every_second(low, lower, 1);
      v[2] = every_second(high, higher, 0);
      v[3] = every_second(high, higher, 1);
    } else {
      const V first = v[0];
      v[0] = halves(first, v[1], false);
      v[1] = halves(first, v[1], true);
    }
  }
  // Four vectors of blocks of four: lane q * Lanes / 4 + b of the result is the sum of block b of v[q].
  static inline V sums_of_fours(const V* v) {
    typename IntVector<Lanes>::type low, high, rows;
    for (int l = 0; l < Lanes; ++l) {
      low[l] = l / 4 * 4 + l % 4 / 2 + l % 2 * Lanes;
      high[l] = low[l] + 2;
      rows[l] = l % (Lanes / 4) * 4 + l / (Lanes / 4);
    }
    const V first = __builtin_shuffle(v[0], v[1], low) + __builtin_shuffle(v[0], v[1], high);
    const V second = __builtin_shuffle(v[2], v[3], low) + __builtin_shuffle(v[2], v[3], high);
    for (int l = 0; l < Lanes; ++l) {
      low[l] = l / 4 * 4 + l % 2 + l % 4 / 2 * Lanes;
      high[l] = low[l] + 2;
    }
    return __builtin_shuffle(__builtin_shuffle(first, second, low) + __builtin_shuffle(first, second, high), rows);
  }
  // Past the caches where the ISA has such a store and p is aligned to the vector; an ordinary store elsewhere.
  static inline void stream(float* p, V v) {
#if defined(__AVX__)
    if ((reinterpret_cast<uintptr_t>(p) & (Lanes * 4 - 1)) == 0) {
#if defined(__AVX512F__)
      if constexpr (Lanes == 16) {
        _mm512_stream_ps(p, reinterpret_cast<__m512>(v));
        return;
      }
#endif
      typedef float Half __attribute__((vector_size(32), may_alias));
      const Half* h = reinterpret_cast<const Half*>(&v);
      for (int i = 0; i < Lanes / 8; ++i) _mm256_stream_ps(p + 8 * i, reinterpret_cast<__m256>(h[i]));
      return;
    }
#endif
    store(p, v);
  }

 private:
  using Words = typename BitVectors<Lanes>::Words;
  using Halves = typename BitVectors<Lanes>::Halves;
  using UnalignedHalves = typename BitVectors<Lanes>::UnalignedHalves;

  static inline Words widen(const uint16_t* p) {
    // One instruction where the ISA has it: the compiler makes four of the general form. (Masks of ones: the plain forms warn.)
#if defined(__AVX512F__)
    if constexpr (Lanes == 16)
      return reinterpret_cast<Words>(_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#endif
#if defined(__AVX2__)
    if constexpr (Lanes == 8) return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#endif
    const Halves halves = *reinterpret_cast<const UnalignedHalves*>(p);
    return __builtin_convertvector(halves, Words);
  }
  // The lower 16 bits of each.
  static inline void narrow(Words bits, uint16_t* p) {
#if defined(__AVX512F__)
    if constexpr (Lanes == 16) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(0xffff, reinterpret_cast<__m512i>(bits)));
      return;
    }
#endif
    *reinterpret_cast<UnalignedHalves*>(p) = __builtin_convertvector(bits, Halves);
  }

  // Of two vectors: both lower or both upper halves; every second block of four, from the first or the second on.
  static inline V halves(V x, V y, bool upper) {
    typename IntVector<Lanes>::type from;
    for (int l = 0; l < Lanes; ++l) from[l] = l % (Lanes / 2) + (upper ? Lanes / 2 : 0) + (l < Lanes / 2 ? 0 : Lanes);
    return __builtin_shuffle(x, y, from);
  }
  static inline V every_second(V x, V y, int first) {
    typename IntVector<Lanes>::type from;
    for (int l = 0; l < Lanes; ++l) from[l] = (l / 4 * 2 + first) * 4 + l % 4;
    return __builtin_shuffle(x, y, from);
  }
};

// One float at a time: the portable target, and the baseline the wide ones are compared with.
template <class Tag>
struct ScalarIsa {
  static constexpr int kLanes = 1;
  static constexpr int kRegisters = 16;
  typedef float V;
  static inline V load(const float* p) { return *p; }
  static inline void store(float* p, V v) { *p = v; }
  static inline V load_bf16(const uint16_t* upper) { return join_one(*upper, 0); }
  static inline V join(const uint16_t* upper, const uint16_t* lower) { return join_one(*upper, *lower); }
  static inline void split(V v, uint16_t* upper, uint16_t* lower) { split_one(v, upper, lower); }
  static inline void store_bf16(V v, uint16_t* upper) { *upper = static_cast<uint16_t>(__builtin_bit_cast(uint32_t, v) >> 16); }
  static inline V set(float x) { return x; }
  static inline V relu(V v) { return v < 0.0f ? 0.0f : v; }
  static inline V where_positive(V condition, V v) { return condition <= 0.0f ? 0.0f : v; }
  static inline void stream(float* p, V v) { *p = v; }
};

// Orders streaming stores before whatever follows.
static inline void store_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// hint 0: into L1, 1: into L2. The argument of the builtin must be a constant.
template <int Hint>
static inline void prefetch_bytes(const void* first, int64_t bytes) {
  const char* p = static_cast<const char*>(first);
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(p + b, 0, Hint == 0 ? 3 : 2);
}

static inline void prefetch_bytes_for_write(const void* first, int64_t bytes) {
  const char* p = static_cast<const char*>(first);
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(p + b, 1, 3);
}

template <int Hint>
static inline void prefetch_row(const float* row, int64_t floats) {
  prefetch_bytes<Hint>(row, floats * 4);
}

static inline void prefetch_row_for_write(const float* row, int64_t floats) { prefetch_bytes_for_write(row, floats * 4); }

}  // namespace autotune
