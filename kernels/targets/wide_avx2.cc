// The 16-lane kernels lowered to pairs of AVX2 instructions: tests the wide code where AVX-512 is missing. Never chosen by itself.
#include "instantiate.h"

namespace autotune {
namespace {
struct WideAvx2Tag {};
}  // namespace

const KernelTable& wide_avx2_table() {
  static constexpr KernelTable table = table_of<VectorIsa<16, 32, WideAvx2Tag>>("wide_avx2");
  return table;
}

}  // namespace autotune
