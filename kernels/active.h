// Which target runs: the widest that CPUID allows, or the one named by AUTOTUNE_TARGET, or by `set_target`.
#pragma once

#include <string>
#include <vector>

#include "dispatch.h"

namespace autotune {

// In rising order of preference; `reference` first, never chosen by itself.
std::vector<const KernelTable*> runnable_targets();

// Throws std::invalid_argument when no target of that name runs here.
void set_target(const std::string& name);

const KernelTable& kernels();

}  // namespace autotune
