// The kernels of avx512 with native dot products of bf16; compiled with -mavx512bf16 on top of its flags.
#include "../isa/avx512_bf16.h"
#include "instantiate.h"

namespace autotune {
namespace {
struct Avx512Bf16Tag {};
}  // namespace

const KernelTable& avx512_bf16_table() {
  static constexpr KernelTable table = table_of<Avx512Bf16Isa<Avx512Bf16Tag>>("avx512_bf16");
  return table;
}

}  // namespace autotune
