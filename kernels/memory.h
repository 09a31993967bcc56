// Memory that outlives a call: pages for tables and activations, and scratch that each thread keeps. Compiled once, for the baseline ISA.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace autotune {

// Slots of a thread's scratch; two in use at once must differ.
enum ScratchSlot { kScratchPool = 0, kScratchLeft = 1, kScratchRight = 2, kScratchCount = 3 };

// At least `bytes` of this thread's scratch, aligned to 64 bytes, valid until the same slot is asked for more. Never null: aborts the
// process when memory is exhausted, since no exception may leave a parallel region.
void* thread_scratch(ScratchSlot slot, size_t bytes);

// Zero pages, aligned to 2 MiB; huge: ask for transparent huge pages, else forbid them. Null when memory is exhausted.
void* map_pages(size_t bytes, bool huge);
void unmap_pages(void* pages, size_t bytes);

// data[i] = low + (high - low) * u, u uniform in [0, 1) from (seed, first + i) alone: the same at any team size, and a part of an array
// the same as in the whole. Touches each page first by the thread that owns its slice.
void fill_uniform(float* data, int64_t count, float low, float high, uint64_t seed, int threads, uint64_t first = 0);
void fill_zero(float* data, int64_t count, int threads);

}  // namespace autotune
