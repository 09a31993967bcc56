// Opens libxsmm and asks it for kernels. The contract is in libxsmm.h. Compiled once, for the baseline ISA.
#include "libxsmm.h"

#include <dlfcn.h>

#include <mutex>
#include <stdexcept>

namespace autotune {
namespace {

// The library counts in int, or in long long where it was built so (ILP64). Values are positive and fit both: arguments go in registers
// of 64 bits, and of a 64-bit value behind a pointer an int is the lower half.
using Count = int64_t;
using Dispatch = SmmKernel (*)(Count m, Count n, Count k, Count stride_a, Count stride_b, const Count* lda, const Count* ldb, const Count* ldc,
                               const float* alpha, const float* beta, const int* flags, const int* prefetch);
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the halves of a Count");

constexpr int kTransposeB = 2;        // LIBXSMM_GEMM_FLAG_TRANS_B
constexpr int kNoPrefetch = 0;        // LIBXSMM_PREFETCH_NONE: with it a kernel touches its operands alone
constexpr int64_t kLongestPiece = 4096;
constexpr int64_t kLargest = int64_t{1} << 29;  // floats: bytes still count in 32 bits

std::mutex opening;
Dispatch dispatch = nullptr;

SmmKernel kernel(int64_t m, int64_t n, int64_t k, int64_t ldb, bool transposed, bool add) {
  const Count lda = m, ldc = m, b = ldb;
  const float alpha = 1, beta = add ? 1.0f : 0.0f;
  const int flags = transposed ? kTransposeB : 0;
  return dispatch(m, n, k, k * lda * 4, (transposed ? k * ldb : k) * 4, &lda, &b, &ldc, &alpha, &beta, &flags, &kNoPrefetch);
}

}  // namespace

std::string libxsmm_open(const std::string& name) {
  const std::lock_guard<std::mutex> lock(opening);
  if (dispatch != nullptr) return "";
  // Lazily: its fallbacks may name a BLAS that nobody links; the kernels do not. Never closed: the kernels live in it.
  void* const library = dlopen(name.c_str(), RTLD_LAZY | RTLD_LOCAL);
  if (library == nullptr) return dlerror();
  const auto init = reinterpret_cast<void (*)()>(dlsym(library, "libxsmm_init"));
  const auto found = reinterpret_cast<Dispatch>(dlsym(library, "libxsmm_smmdispatch_reducebatch_strd"));
  if (init == nullptr || found == nullptr) {
    dlclose(library);
    return name + " has no libxsmm_smmdispatch_reducebatch_strd, the batch-reduce interface of libxsmm 1.14 to 1.17";
  }
  init();
  dispatch = found;
  if (kernel(16, 4, 16, 16, false, false) != nullptr && kernel(16, 4, 16, 16, true, true) != nullptr) return "";
  dispatch = nullptr;
  return name + " generates no fp32 batch-reduce kernel on this CPU";
}

bool libxsmm_opened() { return dispatch != nullptr; }

SmmPlan libxsmm_plan(int64_t rows, int64_t bn, int64_t bk, int64_t reduction, int64_t bc, int64_t stride, bool transposed) {
  SmmPlan plan;
  if (reduction <= 0 || rows <= 0) return plan;
  plan.piece = bc < reduction ? bc : reduction;
  if (plan.piece > kLongestPiece) plan.piece = kLongestPiece;
  plan.count = static_cast<unsigned long long>(reduction / plan.piece);
  plan.rest = reduction % plan.piece;
  plan.step = transposed ? stride : 1;
  // A kernel reaches 30 rows from one pointer, and its generator counts those bytes in int.
  constexpr int64_t kRowsAtOnce = 32;
  if (stride > kLargest / (2 * (transposed ? plan.piece : kRowsAtOnce)) || reduction > kLargest)
    throw std::runtime_error("libxsmm counts in 32 bits: rows " + std::to_string(stride) + " floats apart are too long; use the blocked implementation");
  const int64_t heights[2] = {bn < rows ? bn : rows, bn < rows ? rows % bn : 0};
  for (int i = 0; i < 2; ++i) {
    if (heights[i] == 0) continue;
    plan.pieces[i] = kernel(bk, heights[i], plan.piece, stride, transposed, false);
    if (plan.rest > 0) plan.remainder[i] = kernel(bk, heights[i], plan.rest, stride, transposed, true);
    if (plan.pieces[i] == nullptr || (plan.rest > 0 && plan.remainder[i] == nullptr))
      throw std::runtime_error("libxsmm generates no kernel of " + std::to_string(bk) + " x " + std::to_string(heights[i]) + " x " +
                               std::to_string(plan.piece) + "; use the blocked implementation");
  }
  return plan;
}

}  // namespace autotune
