// Embedding bags of all tables in one call: pooled look-ups, and their backward fused with the update.
//
// Shapes. T tables of one width E, table t of rows[t] x E weights, rows contiguous; N bags per table; L look-ups.
//   indices [L], table-major: bag b = t*N + n pools indices[offsets[b] .. offsets[b+1]), offsets [T*N + 1], non-decreasing from 0 to L.
//   pooled / gradient: element (n, t, e) at n*sample_stride + t*table_stride + e, in floats.
// Storage. fp32: weights[t] is the first element. Split: upper[t] and lower[t] hold bits 31..16 and 15..0 of every fp32 weight; the upper
//   half alone is its bf16 truncation, which the forward pass reads; an update joins both, steps in fp32 and splits again, losing nothing.
//   Stochastic: upper[t] alone is a bf16 weight; an update widens it, steps in fp32 and rounds by chance (rounding.h), SGD at every look-up,
//   Adagrad once a row. streams[t] is what the bits of this table and step are drawn from.
// Update. SGD: row -= learning_rate * g for every look-up in turn. Row-wise Adagrad, where `state` is given: with G the sum of a row's
//   gradients over the batch, state[row] += mean(G^2), row -= learning_rate * G / (sqrt(state[row]) + epsilon).
// Alignment: none required. Aliasing: no array overlaps another. Accumulation: fp32, in the order of the look-ups.
// Threading: one OpenMP team of `threads`. Callers validate first (`embedding_validate`); kernels trust their input.
#pragma once

#include <stdint.h>

namespace autotune {

struct EmbeddingTables {
  int64_t num_tables;
  int64_t dim;
  const int64_t* rows;
  float* const* weights;    // fp32 storage, else null
  uint16_t* const* upper;   // split and stochastic storage, else null
  uint16_t* const* lower;   // split storage, else null
  const uint64_t* streams;  // stochastic storage in an update, else null
  float* const* state;      // [rows] of each table for row-wise Adagrad; null: SGD
  float epsilon;
};

struct Bags {
  const void* indices;
  const void* offsets;
  bool wide;                  // indices and offsets are int64; else int32
  int64_t num_indices;        // L
  int64_t num_bags;           // N, per table
  const float* scales;        // [L] per-sample weights, or null
  bool mean;                  // divide each bag by its length; never together with scales
};

struct Pooled {
  float* data;
  int64_t sample_stride;
  int64_t table_stride;
};

struct PooledGradient {
  const float* data;
  int64_t sample_stride;
  int64_t table_stride;
};

struct ForwardOptions {
  int64_t prefetch_distance;  // rows ahead; 0: none
  int prefetch_hint;          // 0: L1, 1: L2
  int64_t bags_per_task;      // on average: tasks are equal in look-ups and bags together
  bool streaming_stores;
};

// Row-wise Adagrad takes the first three; 16-bit storage all but kAtomic.
enum class UpdateStrategy : int { kRaceFreeRange = 0, kRaceFreeModulo = 1, kBucketed = 2, kAtomic = 3, kUnfused = 4 };

// One look-up filed under the bucket of its row.
struct BucketEntry {
  uint32_t row;
  uint32_t bag;
};

// Memory that outlives calls. entries [L], entry_scales [L] and entry_lookups [L] (stochastic SGD) for bucketed, counts [(threads + 2) * buckets + 1] for bucketed,
// gradient_rows [L*E] for unfused; null where the strategy does not use it.
struct UpdateWorkspace {
  BucketEntry* entries;
  float* entry_scales;
  uint32_t* entry_lookups;
  int64_t* counts;
  float* gradient_rows;
};

// What is wrong with an input, if anything: kind 0 nothing, 1 an index outside its table, 2 offsets that do not rise from 0 to L.
struct BagFault {
  int kind;
  int64_t table;
  int64_t position;  // in indices (kind 1) or in offsets (kind 2)
  int64_t value;
  int64_t limit;
};

}  // namespace autotune
