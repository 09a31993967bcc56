// 16 lanes, 32 registers; compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl.
#include "instantiate.h"

namespace autotune {
namespace {
struct Avx512Tag {};
}  // namespace

const KernelTable& avx512_table() {
  static constexpr KernelTable table = table_of<VectorIsa<16, 32, Avx512Tag>>("avx512");
  return table;
}

}  // namespace autotune
