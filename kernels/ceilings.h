// The loops that measure what a machine reaches at best: arithmetic, sequential and random bandwidth, fork and join.
//
// Each runs one OpenMP team of `threads` over its slice of the arrays; callers time it. Random rows come as an index array, one slice a
// thread; for scatter the slices must name disjoint rows, or threads race.
#pragma once

#include <stdint.h>

namespace autotune {

enum class StreamKind : int { kRead = 0, kCopy = 1, kTriad = 2, kCopyNonTemporal = 3, kUpdate = 4 };

}  // namespace autotune
