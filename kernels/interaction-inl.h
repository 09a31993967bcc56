// Dot interaction, generic over the ISA. The contract is in interaction.h.
#pragma once

#include "gemm_tile-inl.h"
#include "interaction.h"
#include "team.h"

namespace autotune {

template <class Isa>
struct InteractionKernels {
  using V = typename Isa::V;
  using Gemm = GemmTiles<Isa, Fp32Step<Isa>>;
  static constexpr int W = Isa::kLanes;
  // A tile of the forward pass: rows of the triangle by vectors, each of kGroup columns. Four vectors are 4 % slower than six.
  static constexpr int kGroup = W < 4 ? 1 : W / 4, kRows = 4, kVectors = Isa::kRegisters >= 32 ? 6 : 3;
  // The next sample is brought into L1 where it leaves room there for this one, else into L2: F 27, E 128 in L1 took 1.4 times as long.
  static constexpr int64_t kNearFloats = 1024;

  static void forward(const float* features, float* out, const InteractionShape& shape, int64_t samples_per_task, int threads) {
    const int64_t tasks = ceil_div(shape.samples, samples_per_task);
    over_tasks(tasks, threads, [&](int64_t task) {
      const int64_t padded = ceil_div(shape.dim, W) * W;
      float* const groups = static_cast<float*>(thread_scratch(kScratchLeft, ceil_div(shape.features, kGroup) * kGroup * padded * sizeof(float)));
      float* const copy = copy_of(shape, padded);
      for (int64_t n = task * samples_per_task; n < min_of(shape.samples, (task + 1) * samples_per_task); ++n) {
        const float* const sample = features + n * shape.sample_stride;
        const Rows rows = rows_of(sample, shape, copy, padded);
        copy_row(out + n * shape.out_stride, sample, shape.dim);
        forward_sample(rows, out + n * shape.out_stride + shape.dim, shape, padded, groups, sample + (n + 1 < shape.samples ? shape.sample_stride : 0));
      }
    });
  }

  static void backward(const float* features, const float* d_out, float* d_features, const InteractionShape& shape, int64_t samples_per_task,
                       int threads) {
    const int64_t tasks = ceil_div(shape.samples, samples_per_task);
    over_tasks(tasks, threads, [&](int64_t task) {
      // G + G^T, a full symmetric matrix; and the features padded to whole vectors, where dim is not.
      float* const square = static_cast<float*>(thread_scratch(kScratchLeft, shape.features * shape.features * sizeof(float)));
      const int64_t padded = ceil_div(shape.dim, W) * W;
      const int64_t steps = ceil_div(padded, 2 * W) * ceil_div(shape.features, Gemm::max_rows(2)) * shape.features;
      const int64_t lines_per_step = ceil_div(shape.features * shape.dim, 16 * steps);
      float* const copy = copy_of(shape, padded);
      for (int64_t n = task * samples_per_task; n < min_of(shape.samples, (task + 1) * samples_per_task); ++n) {
        const int64_t next = min_of(n + 1, shape.samples - 1);
        prefetch_row<1>(d_out + next * shape.out_stride, shape.dim + products_of(shape));
        Ahead ahead{features + next * shape.sample_stride, d_features + next * shape.d_sample_stride, lines_per_step};
        backward_sample(features + n * shape.sample_stride, d_out + n * shape.out_stride, d_features + n * shape.d_sample_stride, shape, square,
                        copy, padded, ahead);
      }
    });
  }

 private:
  template <class Body>
  static void over_tasks(int64_t tasks, int threads, const Body& body) {
    const TeamClock clock(threads);
#pragma omp parallel num_threads(threads)
    {
      const TeamClock::Turn turn(clock);
#pragma omp for schedule(static) nowait
      for (int64_t task = 0; task < tasks; ++task) body(task);
    }
  }

  static void prefetch_next(const float* row, const InteractionShape& shape) {
    if (shape.features * shape.dim <= kNearFloats) prefetch_row<0>(row, shape.dim);
    else prefetch_row<1>(row, shape.dim);
  }

  // A sample's features in whole vectors: where they lie, or copied and padded with zeros where dim is no multiple of W.
  struct Rows {
    const float* data;
    int64_t stride;
  };

  static float* copy_of(const InteractionShape& shape, int64_t padded) {
    return padded == shape.dim ? nullptr : static_cast<float*>(thread_scratch(kScratchRight, shape.features * padded * sizeof(float)));
  }

  static Rows rows_of(const float* features, const InteractionShape& shape, float* copy, int64_t padded) {
    if (copy == nullptr) return {features, shape.feature_stride};
    for (int64_t f = 0; f < shape.features; ++f) {
      copy_row(copy + f * padded, features + f * shape.feature_stride, shape.dim);
      for (int64_t e = shape.dim; e < padded; ++e) copy[f * padded + e] = 0;
    }
    return {copy, padded};
  }

  // Columns of the triangle are packed in groups of W / 4, four elements of each side by side: multiplied by four elements of a row, over
  // and over, a vector serves W / 4 dot products, each of which has but four lanes to sum (F 33, E 64: 1.3 times as fast as vectors along
  // the dimension, with W lanes to sum). `next`: the sample after it, brought near meanwhile, since rows of some hundred bytes are too
  // short for the hardware's streams.
  static void forward_sample(const Rows& x, float* triangle, const InteractionShape& shape, int64_t padded, float* groups, const float* next) {
    const int64_t end = shape.features + shape.diagonal;  // of the lengths of the triangle's rows, 1, 2, ...
    if constexpr (W == 1) {
      for (int64_t length = 1; length < end; ++length) {
        const float* const row = x.data + (length - shape.diagonal) * x.stride;
        for (int64_t j = 0; j < length; ++j) {
          float sum = 0;
          for (int64_t e = 0; e < shape.dim; ++e) sum += row[e] * x.data[j * x.stride + e];
          *triangle++ = sum;
        }
      }
    } else {
      prefetch_next(next, shape);
      for (int64_t length = 1, packed = 0; length < end; length += kRows) {
        const int64_t rows = min_of(kRows, end - length), needed = ceil_div(length + rows - 1, kGroup), parts = ceil_div(needed, kVectors);
        const int64_t row = length - shape.diagonal;
        for (int64_t r = row; r < row + rows; ++r) prefetch_next(next + r * shape.feature_stride, shape);
        for (; packed < needed; ++packed) pack_group(x, shape.features, packed, padded, groups + packed * kGroup * padded);
        // The part with the rows' ends first: what it writes past the end of a row is the beginning of the next one, which is written afterwards.
        for (int64_t part = parts; part-- > 0;) {
          const int64_t first = needed * part / parts;
          const Tile tile{x.data + row * x.stride, groups + first * kGroup * padded, x.stride, kGroup * padded, ceil_div(shape.dim, 4), length,
                          triangle + row_begin(length) + first * kGroup, triangle + products_of(shape)};
          dispatch<kRows, kVectors>(tile, rows, needed * (part + 1) / parts - first);
        }
      }
    }
  }

  // target[(e / 4 * kGroup + f) * 4 + e % 4]: element e of the group's feature f; one past the last repeats it.
  static void pack_group(const Rows& x, int64_t count, int64_t group, int64_t padded, float* target) {
    const float* rows[kGroup];
    for (int f = 0; f < kGroup; ++f) rows[f] = x.data + min_of(group * kGroup + f, count - 1) * x.stride;
    for (int64_t e = 0; e < padded; e += W, target += kGroup * W) {
      V v[kGroup];
#pragma GCC unroll 4
      for (int f = 0; f < kGroup; ++f) v[f] = Isa::load(rows[f] + e);
      Isa::transpose_fours(v);
#pragma GCC unroll 4
      for (int f = 0; f < kGroup; ++f) Isa::store(target + f * W, v[f]);
    }
  }

  struct Tile {
    const float *left, *groups;  // the first row, and the first group of columns
    int64_t stride, group_size, steps, length;  // length: of the first row
    float *target, *end;  // the first row of the tile in the triangle; the end of the triangle
  };

  template <int R, int Q>
  static inline void dispatch(const Tile& tile, int64_t rows, int64_t vectors) {
    if constexpr (R > 1)
      if (rows < R) return dispatch<R - 1, Q>(tile, rows, vectors);
    if constexpr (Q > 1)
      if (vectors < Q) return dispatch<R, Q - 1>(tile, rows, vectors);
    dots<R, Q>(tile);
  }

  template <int R, int Q>
  __attribute__((noinline)) static void dots(const Tile& tile) {
    V sum[R][Q];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int q = 0; q < Q; ++q) sum[r][q] = V{};
    const float *left[R], *right[Q];
    left[0] = tile.left;
    for (int r = 1; r < R; ++r) left[r] = left[r - 1] + tile.stride;
    right[0] = tile.groups;
    for (int q = 1; q < Q; ++q) right[q] = right[q - 1] + tile.group_size;
    for (int64_t s = 0; s < tile.steps; ++s) {
      V v[Q];
#pragma GCC unroll 8
      for (int q = 0; q < Q; ++q) v[q] = Isa::load(right[q] + s * W);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const V four = Isa::repeat_four(left[r] + s * 4);
#pragma GCC unroll 8
        for (int q = 0; q < Q; ++q) sum[r][q] += four * v[q];
      }
    }
    float* target = tile.target;
#pragma GCC unroll 4
    for (int r = 0; r < R; target += tile.length + r, ++r) {
#pragma GCC unroll 2
      for (int q = 0; q < Q; q += 4) {
        constexpr int kFull = 4 * kGroup;
        const int columns = (Q - q < 4 ? Q - q : 4) * kGroup;
        V four[4];
        for (int i = 0; i < 4; ++i) four[i] = q + i < Q ? sum[r][q + i < Q ? q + i : 0] : V{};
        const V v = Isa::sums_of_fours(four);
        float* const at = target + q * kGroup;
        if (at + columns <= tile.end) [[likely]] {
          if (columns == kFull) Isa::store(at, v);
          else __builtin_memcpy(at, &v, columns * sizeof(float));
        } else {
          float last[W];
          Isa::store(last, v);
          for (int64_t c = 0; c < tile.end - at; ++c) at[c] = last[c];
        }
      }
    }
  }

  // The next sample's features and gradients, brought in a few lines at a step: as many at once would fill the miss buffers and stall.
  // A prefetch never faults, so samples with gaps between their rows only gain less.
  struct Ahead {
    const float* read;
    float* write;
    int64_t lines;

    inline void step() {
      for (int64_t i = 0; i < lines; ++i, read += 16, write += 16) {
        __builtin_prefetch(read, 0, 2);
        __builtin_prefetch(write, 1, 3);
      }
    }
  };

  // d_features = square * features, NV vectors of columns and up to max_rows rows at a time in registers.
  static void backward_sample(const float* features, const float* d_out, float* d_features, const InteractionShape& shape, float* square,
                              float* copy, int64_t padded, Ahead& ahead) {
    const int64_t count = shape.features, dim = shape.dim;
    const float* triangle = d_out + dim;
    for (int64_t i = 0; i < count; ++i) {
      const float* const row = triangle + row_begin(i + shape.diagonal);
      copy_row(square + i * count, row, i);
      square[i * count + i] = shape.diagonal ? 2 * row[i] : 0;
      for (int64_t j = 0; j < i; ++j) square[j * count + i] = row[j];
    }
    const Rows rows = rows_of(features, shape, copy, padded);
    int64_t e = 0;
    for (; e + 2 * W <= padded; e += 2 * W)
      columns<2>(square, count, rows.data + e, rows.stride, d_features + e, shape.d_feature_stride, dim - e, ahead);
    for (; e < padded; e += W) columns<1>(square, count, rows.data + e, rows.stride, d_features + e, shape.d_feature_stride, dim - e, ahead);
    add_row(d_features, d_out, dim);
  }

  // `valid`: columns that exist; fewer than NV * W at the right edge.
  template <int NV>
  static void columns(const float* square, int64_t count, const float* right, int64_t right_stride, float* out, int64_t out_stride,
                      int64_t valid, Ahead& ahead) {
    constexpr int kMax = Gemm::max_rows(NV);
    const int64_t groups = ceil_div(count, kMax);
    for (int64_t g = 0, row = 0; g < groups; ++g) {
      const int64_t height = (count - row + groups - g - 1) / (groups - g);
      height_of<NV, kMax>(square + row, count, right, right_stride, out + row * out_stride, out_stride, valid, height, ahead);
      row += height;
    }
  }

  template <int NV, int MR>
  static void height_of(const float* square, int64_t count, const float* right, int64_t right_stride, float* out, int64_t out_stride,
                        int64_t valid, int64_t height, Ahead& ahead) {
    if (height == MR) return product<NV, MR>(square, count, right, right_stride, out, out_stride, valid, ahead);
    if constexpr (MR > 1) height_of<NV, MR - 1>(square, count, right, right_stride, out, out_stride, valid, height, ahead);
  }

  // The square is symmetric, so a step's MR factors lie side by side in one of its rows.
  template <int NV, int MR>
  __attribute__((noinline)) static void product(const float* square, int64_t count, const float* right, int64_t right_stride, float* out,
                                                int64_t out_stride, int64_t valid, Ahead& ahead) {
    V sum[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[i][v] = Isa::set(0);
    for (int64_t j = 0; j < count; ++j, square += count, right += right_stride) {
      ahead.step();
      V r[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) r[v] = Isa::load(right + v * W);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const V factor = Isa::set(square[i]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[i][v] += factor * r[v];
      }
    }
    if (valid >= NV * W) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) Isa::store(out + i * out_stride + v * W, sum[i][v]);
      return;
    }
    alignas(64) float edge[MR * NV * W];
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) Isa::store(edge + (i * NV + v) * W, sum[i][v]);
    for (int i = 0; i < MR; ++i)
      for (int64_t e = 0; e < valid; ++e) out[i * out_stride + e] = edge[i * NV * W + e];
  }

  static inline void add_row(float* target, const float* source, int64_t dim) {
    int64_t e = 0;
    for (; e + W <= dim; e += W) Isa::store(target + e, Isa::load(target + e) + Isa::load(source + e));
    for (; e < dim; ++e) target[e] += source[e];
  }

  static inline void copy_row(float* target, const float* source, int64_t dim) {
    int64_t e = 0;
    for (; e + W <= dim; e += W) Isa::store(target + e, Isa::load(source + e));
    for (; e < dim; ++e) target[e] = source[e];
  }
};

}  // namespace autotune
