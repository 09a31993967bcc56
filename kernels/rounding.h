// Stochastic rounding of fp32 to bf16, with random bits that are a hash of where and when they are drawn: no state, and the same bits on every
// target and at any team size. Plain integers, or vectors of them.
//
// With f the part of a value between its two bf16 neighbours, the one farther from zero is taken with probability f, in steps of 2^-16: the mean of
// many roundings is the value. A value that is bf16 stays; so do infinities, and NaN stays NaN. Beyond the largest finite bf16, where the neighbour is
// infinity, the lower bits are cut off: no finite value becomes infinite.
#pragma once

#include <stdint.h>

namespace autotune {

// splitmix64: a bijective mix of a counter.
static inline uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// What the columns of one row draw from, at one look-up of one step.
struct Draw {
  uint32_t first;
  uint32_t second;
};

// stream: a table's, mixed with the step. lookup: its position in the batch, modulo 2^32.
static inline Draw draw_of(uint64_t stream, int64_t row, uint32_t lookup) {
  const uint64_t key = mix(stream + (static_cast<uint64_t>(row) << 32 | lookup));
  return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
}

// 16 random bits for each column: the upper half of a product, on which all bits below have an influence.
template <class U>
static inline U random_bits(U column, Draw draw) {
  U h = column * 0x9e3779b1u + draw.first;
  h = (h ^ (h >> 16)) * 0x7feb352du;
  h = (h ^ (h >> 15) ^ draw.second) * 0x846ca68bu;
  return h >> 16;
}

// The upper half of the result is the rounded value of the fp32 pattern `bits`, which arithmetic gave: its NaN are quiet, by a bit of that half.
template <class U>
static inline U rounded_bits(U bits, U random) {
  const U magnitude = bits & 0x7fffffffu;
  const U below = 0u - ((magnitude - 0x7f7f0000u) >> 31);  // all ones below the largest finite bf16: the difference is negative
  return bits + (random & below);
}

}  // namespace autotune
