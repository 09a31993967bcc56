// Fills a table with the kernels of one ISA. Included by each target file, and by nothing else.
#pragma once

#include "../ceilings-inl.h"
#include "../dispatch.h"
#include "../embedding_bag-inl.h"
#include "../embedding_update-inl.h"
#include "../gemm-inl.h"
#include "../interaction-inl.h"
#include "../libxsmm-inl.h"

namespace autotune {

template <class Isa>
static constexpr KernelTable table_of(const char* name) {
  return {name,
          Isa::kLanes,
          EmbeddingKernels<Isa>::validate_any,
          EmbeddingKernels<Isa>::forward,
          EmbeddingUpdateKernels<Isa>::update,
          GemmKernels<Isa>::multiply,
          GemmKernels<Isa>::multiply_bf16,
          GemmKernels<Isa>::multiply_transposed,
          GemmPacking<Isa>::weights,
          GemmPacking<Isa>::weights_bf16,
          OptimizerKernels<Isa>::descend,
          InteractionKernels<Isa>::forward,
          InteractionKernels<Isa>::backward,
          CeilingKernels<Isa>::fma,
          CeilingKernels<Isa>::stream,
          CeilingKernels<Isa>::gather,
          CeilingKernels<Isa>::scatter,
          LibxsmmKernels<Isa>::multiply,
          LibxsmmKernels<Isa>::multiply_transposed};
}

}  // namespace autotune
