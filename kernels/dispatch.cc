#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "active.h"

namespace autotune {
namespace {

std::atomic<const KernelTable*> active = nullptr;  // kernels run without the GIL

const KernelTable& best() { return *runnable_targets().back(); }

}  // namespace

std::vector<const KernelTable*> runnable_targets() {
  std::vector<const KernelTable*> tables = {&reference_table(), &scalar_table()};
#if defined(AUTOTUNE_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    tables.push_back(&wide_avx2_table());
    tables.push_back(&avx2_table());
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    tables.push_back(&avx512_table());
    if (__builtin_cpu_supports("avx512bf16")) tables.push_back(&avx512_bf16_table());
  }
#endif
  return tables;
}

void set_target(const std::string& name) {
  std::string names;
  for (const KernelTable* table : runnable_targets()) {
    if (name == table->name) {
      active = table;
      return;
    }
    names += std::string(names.empty() ? "" : ", ") + table->name;
  }
  throw std::invalid_argument("kernel target must be one that this CPU runs (" + names + "), got '" + name +
                              "'; unset AUTOTUNE_TARGET to let CPUID choose");
}

const KernelTable& kernels() {
  if (active == nullptr) {
    const char* wanted = std::getenv("AUTOTUNE_TARGET");
    if (wanted != nullptr && *wanted != '\0')
      set_target(wanted);
    else
      active = &best();
  }
  return *active;
}

}  // namespace autotune
