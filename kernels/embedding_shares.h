// Who does what in an embedding operator: equal shares of the forward pass, and the owner of a row in an update. Pure arithmetic, shared by
// the kernels and by what counts their work.
#pragma once

#include <stdint.h>

namespace autotune {

// The first bag before which at least `task` of `num_tasks` equal shares of all look-ups and bags lie. A bag counts as one: its output
// row is traffic as a look-up's row is.
template <class Index>
static inline int64_t first_bag_of(const Index* offsets, int64_t num_bags, int64_t task, int64_t num_tasks) {
  const int64_t total = offsets[num_bags] + num_bags;
  const int64_t wanted = total / num_tasks * task + static_cast<int64_t>(static_cast<__int128>(total % num_tasks) * task / num_tasks);
  int64_t low = 0, high = num_bags;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (offsets[middle] + middle < wanted)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Buckets a thread, claimed largest first: the last to finish is late by a small bucket, whatever the skew, as long as no single row is
// more than a thread's share. More of them would let filing write more lines than L1 holds, 8 * 64 threads * 64 B being 32 KiB.
constexpr int64_t kBucketsPerThread = 8;

// Which bucket a row belongs to: a multiplicative hash, so that hot rows side by side do not meet in one.
static inline uint32_t bucket_of(uint32_t row, uint32_t table, uint32_t buckets) {
  const uint32_t mixed = (row + table * 0x9e3779b1u) * 0x85ebca77u;
  return static_cast<uint32_t>((static_cast<uint64_t>(mixed ^ (mixed >> 15)) * buckets) >> 32);
}

// Buckets are claimed in this order: the largest first.
static inline bool claimed_before(const int64_t* sizes, int64_t a, int64_t b) {
  return sizes[a] > sizes[b] || (sizes[a] == sizes[b] && a < b);
}

// By range and by modulo, the part of table t that thread `me` owns. It rotates from table to table: where hot rows lie side by side, or
// a table has fewer rows than there are owners, no owner has those of every table.
static inline uint32_t part_of(int64_t t, uint32_t me, uint32_t owners) {
  return static_cast<uint32_t>((static_cast<uint64_t>(t) + me) % owners);
}

// The first row of a part by range.
static inline uint64_t part_begin(int64_t rows, uint64_t part, uint32_t owners) { return static_cast<uint64_t>(rows) * part / owners; }

// value % divisor for 32-bit values by two multiplications (Lemire, Kaser, Kurz 2019); inverse = 2^64 / divisor rounded up.
static inline uint32_t fast_modulo(uint32_t value, uint64_t inverse, uint32_t divisor) {
  const uint64_t low = inverse * value;
  return static_cast<uint32_t>((static_cast<unsigned __int128>(low) * divisor) >> 64);
}

// The rows of a table of `rows` rows that one thread owns by range and by modulo.
struct OwnedRows {
  uint64_t low, span, inverse;
  uint32_t part, owners;
};

static inline OwnedRows owned_rows(int64_t rows, int64_t t, uint32_t me, uint32_t owners) {
  const uint32_t part = part_of(t, me, owners);
  const uint64_t low = part_begin(rows, part, owners);
  return {low, part_begin(rows, uint64_t{part} + 1, owners) - low, ~uint64_t{0} / owners + 1, part, owners};
}

template <bool Modulo>
static inline bool owns(const OwnedRows& owned, uint64_t row) {
  if constexpr (Modulo) return owned.owners == 1 || fast_modulo(static_cast<uint32_t>(row), owned.inverse, owned.owners) == owned.part;
  return row - owned.low < owned.span;
}

}  // namespace autotune
