// Ceilings loops, generic over the ISA. The contract is in ceilings.h.
#pragma once

#include <omp.h>

#include "ceilings.h"
#include "isa/vector.h"

namespace autotune {

template <class Isa>
struct CeilingKernels {
  using V = typename Isa::V;
  static constexpr int W = Isa::kLanes;
  // Independent chains: latency (4-5 cycles) x FMAs a cycle (2) is 10; 12 cover it and leave registers for the operands.
  static constexpr int kChains = 12;

  // `iterations` rounds of kChains vector FMAs a thread; returns the flops of the whole team. `sink` keeps the result alive.
  static double fma(int64_t iterations, int threads, float* sink) {
    double flops = 0;
#pragma omp parallel num_threads(threads) reduction(+ : flops)
    {
      V sum[kChains];
      for (int c = 0; c < kChains; ++c) sum[c] = Isa::set(static_cast<float>(c));
      V a = Isa::set(0.999f), b = Isa::set(0.001f);
      for (int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
        for (int c = 0; c < kChains; ++c) sum[c] = sum[c] * a + b;
      }
      V total = sum[0];
      for (int c = 1; c < kChains; ++c) total += sum[c];
      float spill[W];
      Isa::store(spill, total);
      flops += 2.0 * kChains * W * static_cast<double>(iterations);
      if (spill[0] == 12345.678f) *sink = spill[0];
    }
    return flops;
  }

  // Over `count` floats, a multiple of 16, of each array.
  static void stream(StreamKind kind, float* a, const float* b, const float* c, int64_t count, int threads, float* sink) {
#pragma omp parallel num_threads(threads)
    {
      const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
      const int64_t first = count / 16 * me / team * 16, last = count / 16 * (me + 1) / team * 16;
      const V scale = Isa::set(0.5f);
      switch (kind) {
        case StreamKind::kRead: {
          // Four chains, so that the additions' latency does not rule.
          V sum[4] = {Isa::set(0), Isa::set(0), Isa::set(0), Isa::set(0)};
          int64_t i = first;
          for (; i + 4 * W <= last; i += 4 * W)
            for (int u = 0; u < 4; ++u) sum[u] += Isa::load(b + i + u * W);
          for (; i + W <= last; i += W) sum[0] += Isa::load(b + i);
          float spill[W];
          Isa::store(spill, sum[0] + sum[1] + sum[2] + sum[3]);
          if (spill[0] == 12345.678f) *sink = spill[0];
          break;
        }
        case StreamKind::kCopy:
          for (int64_t i = first; i + W <= last; i += W) Isa::store(a + i, Isa::load(b + i));
          break;
        case StreamKind::kTriad:
          for (int64_t i = first; i + W <= last; i += W) Isa::store(a + i, Isa::load(b + i) + scale * Isa::load(c + i));
          break;
        case StreamKind::kCopyNonTemporal:
          for (int64_t i = first; i + W <= last; i += W) Isa::stream(a + i, Isa::load(b + i));
          store_fence();
          break;
        case StreamKind::kUpdate:
          for (int64_t i = first; i + W <= last; i += W) Isa::store(a + i, Isa::load(a + i) * scale);
          break;
      }
    }
  }

  // Sums rows[i] over each thread's slice of the list; row r begins at table + r*dim.
  static void gather(const float* table, int64_t dim, const int64_t* rows, int64_t count, int64_t distance, int threads, float* sink) {
#pragma omp parallel num_threads(threads)
    {
      const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
      const int64_t last = count * (me + 1) / team;
      V sum[4] = {Isa::set(0), Isa::set(0), Isa::set(0), Isa::set(0)};
      float tail = 0;
      for (int64_t i = count * me / team; i < last; ++i) {
        if (distance > 0 && i + distance < last) prefetch_row<0>(table + rows[i + distance] * dim, dim);
        const float* row = table + rows[i] * dim;
        int64_t e = 0;
        for (; e + 4 * W <= dim; e += 4 * W)
          for (int u = 0; u < 4; ++u) sum[u] += Isa::load(row + e + u * W);
        for (; e + W <= dim; e += W) sum[0] += Isa::load(row + e);
        for (; e < dim; ++e) tail += row[e];
      }
      float spill[W];
      Isa::store(spill, sum[0] + sum[1] + sum[2] + sum[3]);
      if (spill[0] + tail == 12345.678f) *sink = tail;
    }
  }

  // Scales every listed row in place.
  static void scatter(float* table, int64_t dim, const int64_t* rows, int64_t count, int64_t distance, int threads) {
#pragma omp parallel num_threads(threads)
    {
      const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
      const int64_t last = count * (me + 1) / team;
      const V scale = Isa::set(0.999f);
      for (int64_t i = count * me / team; i < last; ++i) {
        if (distance > 0 && i + distance < last) prefetch_row_for_write(table + rows[i + distance] * dim, dim);
        float* row = table + rows[i] * dim;
        int64_t e = 0;
        for (; e + W <= dim; e += W) Isa::store(row + e, Isa::load(row + e) * scale);
        for (; e < dim; ++e) row[e] *= 0.999f;
      }
    }
  }
};

}  // namespace autotune
