// The third GEMM: libxsmm's batch-reduce kernels, generated for one shape at run time, in the place of the microkernels of gemm.h.
//
// The library is opened at run time and never linked; without it everything else works. Shapes, strides, layouts, alignment, aliasing,
// accumulation and threading are those of gemm.h: libxsmm is column-major, and a row-major output tile [rows][bk] is its C (m = bk, n =
// rows), a panel [reduction][bk] its A (lda = bk) and rows of activations its B (ldb = their stride), so no operand is laid out anew.
// A tile is computed in scratch of the thread, padded to whole panels, and goes through the epilogue of gemm.h from there.
// Source: the batch-reduce interface of libxsmm 1.17; how it serves layers: arXiv 2005.04680, section III.B.
#pragma once

#include <stdint.h>

#include <string>

#include "gemm.h"

namespace autotune {

// c[m x n] (+)= the sum over `count` pairs of a[m x k] b[k x n], a and b a fixed number of bytes apart from pair to pair.
using SmmKernel = void (*)(const float* a, const float* b, float* c, const unsigned long long* count);

// The kernels of one task shape: [0] for whole blocks of rows, [1] for the rows left over.
struct SmmPlan {
  unsigned long long count = 0;  // pieces of the reduction
  int64_t piece = 0, rest = 0;   // steps of a piece, and what is left behind them
  SmmKernel pieces[2] = {nullptr, nullptr};
  SmmKernel remainder[2] = {nullptr, nullptr};
  int64_t step = 0;  // floats from one reduction step to the next in b
};

// Opens the library by path or name, once a process. Returns why it cannot serve; empty when it can.
std::string libxsmm_open(const std::string& name);
bool libxsmm_opened();

// Kernels for blocks of bn rows of a reduction, `bc` steps a piece. transposed: b holds steps side by side, [reduction][stride], else rows.
// Generated at the first call for a shape and kept by the library. Throws std::runtime_error when it cannot generate one.
SmmPlan libxsmm_plan(int64_t rows, int64_t bn, int64_t bk, int64_t reduction, int64_t bc, int64_t stride, bool transposed);

}  // namespace autotune
