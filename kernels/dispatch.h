// One table of entry points a target; CPUID picks the widest that runs here.
#pragma once

#include <stdint.h>

#include "ceilings.h"
#include "embedding_bag.h"
#include "gemm.h"
#include "interaction.h"
#include "libxsmm.h"

namespace autotune {

struct KernelTable {
  const char* name;
  int lanes;
  BagFault (*embedding_validate)(const EmbeddingTables&, const Bags&, int threads);
  void (*embedding_forward)(const EmbeddingTables&, const Bags&, const Pooled&, const ForwardOptions&, int threads);
  void (*embedding_update)(const EmbeddingTables&, const Bags&, const PooledGradient&, float learning_rate, UpdateStrategy,
                           int64_t prefetch_distance, const UpdateWorkspace&, int threads);
  void (*gemm_multiply)(const ConstMatrix& a, const float* panels, const Matrix& out, const Epilogue&, const GemmBlocking&, int threads);
  void (*gemm_multiply_bf16)(const ConstMatrix& a, const uint16_t* panels, const Matrix& out, const Epilogue&, GemmBlocking, int threads);
  void (*gemm_multiply_transposed)(const ConstMatrix& dy, const ConstMatrix& x, const Matrix& dw, float* bias_gradient, const Update*,
                                   const GemmBlocking&, bool bf16, int threads);
  void (*gemm_pack_weights)(const ConstMatrix& w, float* forward, int64_t forward_width, float* backward, int64_t backward_width, int threads);
  void (*gemm_pack_weights_bf16)(const ConstHalves& w, uint16_t* forward, int64_t forward_width, uint16_t* backward, int64_t backward_width,
                                 int threads);
  void (*descend)(const Update&, const ConstMatrix& dw, const float* bias_gradient, int threads);
  void (*interaction_forward)(const float* features, float* out, const InteractionShape&, int64_t samples_per_task, int threads);
  void (*interaction_backward)(const float* features, const float* d_out, float* d_features, const InteractionShape&,
                               int64_t samples_per_task, int threads);
  double (*ceiling_fma)(int64_t iterations, int threads, float* sink);
  void (*ceiling_stream)(StreamKind, float* a, const float* b, const float* c, int64_t count, int threads, float* sink);
  void (*ceiling_gather)(const float* table, int64_t dim, const int64_t* rows, int64_t count, int64_t distance, int threads, float* sink);
  void (*ceiling_scatter)(float* table, int64_t dim, const int64_t* rows, int64_t count, int64_t distance, int threads);
  void (*libxsmm_multiply)(const SmmPlan&, const ConstMatrix& a, const float* panels, const Matrix& out, const Epilogue&, const GemmBlocking&,
                           int threads);
  void (*libxsmm_multiply_transposed)(const SmmPlan& whole, const SmmPlan& last, const ConstMatrix& dy, const ConstMatrix& x, const Matrix& dw,
                                      float* bias_gradient, const Update*, GemmBlocking, int threads);
};

// The obvious loops with sums in double: what every other target is compared with.
const KernelTable& reference_table();
const KernelTable& scalar_table();
#if defined(AUTOTUNE_X86)
const KernelTable& avx2_table();
const KernelTable& avx512_table();
const KernelTable& avx512_bf16_table();
const KernelTable& wide_avx2_table();
#endif

}  // namespace autotune
