// 8 lanes, 16 registers; compiled with -mavx2 -mfma.
#include "instantiate.h"

namespace autotune {
namespace {
struct Avx2Tag {};
}  // namespace

const KernelTable& avx2_table() {
  static constexpr KernelTable table = table_of<VectorIsa<8, 16, Avx2Tag>>("avx2");
  return table;
}

}  // namespace autotune
