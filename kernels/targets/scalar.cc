// One float at a time, for the baseline of the architecture.
#include "instantiate.h"

namespace autotune {
namespace {
struct ScalarTag {};
}  // namespace

const KernelTable& scalar_table() {
  static constexpr KernelTable table = table_of<ScalarIsa<ScalarTag>>("scalar");
  return table;
}

}  // namespace autotune
