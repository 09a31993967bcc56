// The obvious loops, with sums in double and no threads: what every other target is compared with. Never optimised.
#include <cmath>
#include <vector>

#include "dispatch.h"

namespace autotune {

float sigmoid_of(float x) { return 1.0f / (1.0f + std::exp(-x)); }

namespace {

int64_t at(const Bags& bags, const void* array, int64_t i) {
  return bags.wide ? static_cast<const int64_t*>(array)[i] : static_cast<const int32_t*>(array)[i];
}

BagFault validate(const EmbeddingTables& tables, const Bags& bags, int) {
  const int64_t last = tables.num_tables * bags.num_bags;
  int64_t low = 0;
  for (int64_t i = 0; i <= last; ++i) {
    const int64_t value = at(bags, bags.offsets, i);
    if (value < low || value > bags.num_indices || (i == 0 && value != 0) || (i == last && value != bags.num_indices)) return {2, bags.num_bags ? (i ? i - 1 : 0) / bags.num_bags : 0, i, value, bags.num_indices};
    low = value;
  }
  for (int64_t t = 0; t < tables.num_tables; ++t)
    for (int64_t j = at(bags, bags.offsets, t * bags.num_bags); j < at(bags, bags.offsets, (t + 1) * bags.num_bags); ++j) {
      const int64_t row = at(bags, bags.indices, j);
      if (row < 0 || row >= tables.rows[t]) return {1, t, j, row, tables.rows[t]};
    }
  return {0, 0, 0, 0, 0};
}

double weight_of(const Bags& bags, int64_t bag, int64_t lookup) {
  if (bags.scales != nullptr) return bags.scales[lookup];
  if (bags.mean) return 1.0 / static_cast<double>(at(bags, bags.offsets, bag + 1) - at(bags, bags.offsets, bag));
  return 1.0;
}

void embedding_forward(const EmbeddingTables& tables, const Bags& bags, const Pooled& out, const ForwardOptions&, int) {
  for (int64_t t = 0; t < tables.num_tables; ++t)
    for (int64_t n = 0; n < bags.num_bags; ++n)
      for (int64_t e = 0; e < tables.dim; ++e) {
        const int64_t bag = t * bags.num_bags + n;
        double sum = 0;
        for (int64_t j = at(bags, bags.offsets, bag); j < at(bags, bags.offsets, bag + 1); ++j)
          sum += weight_of(bags, bag, j) * tables.weights[t][at(bags, bags.indices, j) * tables.dim + e];
        out.data[n * out.sample_stride + t * out.table_stride + e] = static_cast<float>(sum);
      }
}

void embedding_update(const EmbeddingTables& tables, const Bags& bags, const PooledGradient& gradient, float learning_rate, UpdateStrategy,
                      int64_t, const UpdateWorkspace&, int) {
  for (int64_t t = 0; t < tables.num_tables; ++t) {
    // Each touched row's steps are summed in double first, so that the order of look-ups leaves no trace.
    std::vector<double> steps(static_cast<size_t>(tables.rows[t] * tables.dim), 0.0);
    for (int64_t n = 0; n < bags.num_bags; ++n) {
      const int64_t bag = t * bags.num_bags + n;
      for (int64_t j = at(bags, bags.offsets, bag); j < at(bags, bags.offsets, bag + 1); ++j)
        for (int64_t e = 0; e < tables.dim; ++e)
          steps[static_cast<size_t>(at(bags, bags.indices, j) * tables.dim + e)] +=
              weight_of(bags, bag, j) * gradient.data[n * gradient.sample_stride + t * gradient.table_stride + e];
    }
    for (int64_t i = 0; i < tables.rows[t] * tables.dim; ++i)
      tables.weights[t][i] = static_cast<float>(tables.weights[t][i] - learning_rate * steps[static_cast<size_t>(i)]);
  }
}

void finish(const Matrix& out, const Epilogue& epilogue, int64_t row, int64_t column, double value) {
  if (epilogue.bias != nullptr) value += epilogue.bias[column];
  if (epilogue.mask != nullptr && epilogue.mask[row * epilogue.mask_stride + column] <= 0) value = 0;
  if (epilogue.activation == Activation::kRelu) value = value < 0 ? 0 : value;
  if (epilogue.activation == Activation::kSigmoid) value = 1.0 / (1.0 + std::exp(-value));
  if (epilogue.weights != nullptr) {
    float& weight = epilogue.weights[row * epilogue.weights_stride + column];
    weight = static_cast<float>(weight - epilogue.learning_rate * value);
  } else {
    out.data[row * out.stride + column] = static_cast<float>(value);
  }
}

void gemm_multiply(const ConstMatrix& a, const float* panels, const Matrix& out, const Epilogue& epilogue, const GemmBlocking& blocking, int) {
  for (int64_t row = 0; row < out.rows; ++row)
    for (int64_t column = 0; column < out.cols; ++column) {
      double sum = 0;
      for (int64_t r = 0; r < a.cols; ++r)
        sum += double{a.data[row * a.stride + r]} * panels[(column / blocking.bk * a.cols + r) * blocking.bk + column % blocking.bk];
      finish(out, epilogue, row, column, sum);
    }
}

void gemm_multiply_transposed(const ConstMatrix& dy, const ConstMatrix& x, const Matrix& dw, float* bias_gradient, const Epilogue& epilogue,
                              float* bias, GemmBlocking, int) {
  for (int64_t k = 0; k < dw.rows; ++k) {
    for (int64_t c = 0; c < dw.cols; ++c) {
      double sum = 0;
      for (int64_t n = 0; n < dy.rows; ++n) sum += double{dy.data[n * dy.stride + k]} * x.data[n * x.stride + c];
      finish(dw, epilogue, k, c, sum);
    }
    if (bias_gradient == nullptr) continue;
    double sum = 0;
    for (int64_t n = 0; n < dy.rows; ++n) sum += dy.data[n * dy.stride + k];
    bias_gradient[k] = static_cast<float>(sum);
    if (bias != nullptr) bias[k] = static_cast<float>(bias[k] - epilogue.learning_rate * sum);
  }
}

void gemm_pack_weights(const ConstMatrix& w, float* forward, int64_t forward_width, float* backward, int64_t backward_width, int) {
  for (int64_t p = 0; p * forward_width < w.rows; ++p)
    for (int64_t c = 0; c < w.cols; ++c)
      for (int64_t j = 0; j < forward_width; ++j) {
        const int64_t k = p * forward_width + j;
        forward[(p * w.cols + c) * forward_width + j] = k < w.rows ? w.data[k * w.stride + c] : 0;
      }
  for (int64_t p = 0; p * backward_width < w.cols; ++p)
    for (int64_t k = 0; k < w.rows; ++k)
      for (int64_t j = 0; j < backward_width; ++j) {
        const int64_t c = p * backward_width + j;
        backward[(p * w.rows + k) * backward_width + j] = c < w.cols ? w.data[k * w.stride + c] : 0;
      }
}

void interaction_forward(const float* features, float* out, const InteractionShape& shape, int64_t, int) {
  for (int64_t n = 0; n < shape.samples; ++n) {
    const float* sample = features + n * shape.sample_stride;
    float* target = out + n * shape.out_stride;
    for (int64_t e = 0; e < shape.dim; ++e) *target++ = sample[e];
    for (int64_t i = 0; i < shape.features; ++i)
      for (int64_t j = 0; j < i; ++j) {
        double sum = 0;
        for (int64_t e = 0; e < shape.dim; ++e) sum += double{sample[i * shape.feature_stride + e]} * sample[j * shape.feature_stride + e];
        *target++ = static_cast<float>(sum);
      }
  }
}

void interaction_backward(const float* features, const float* d_out, float* d_features, const InteractionShape& shape, int64_t, int) {
  for (int64_t n = 0; n < shape.samples; ++n) {
    const float* sample = features + n * shape.sample_stride;
    const float* gradient = d_out + n * shape.out_stride;
    for (int64_t i = 0; i < shape.features; ++i)
      for (int64_t e = 0; e < shape.dim; ++e) {
        double sum = i == 0 ? gradient[e] : 0.0;
        for (int64_t j = 0; j < shape.features; ++j) {
          if (i == j) continue;
          const int64_t high = i > j ? i : j, low = i > j ? j : i;
          sum += double{gradient[shape.dim + high * (high - 1) / 2 + low]} * sample[j * shape.feature_stride + e];
        }
        d_features[n * shape.d_sample_stride + i * shape.d_feature_stride + e] = static_cast<float>(sum);
      }
  }
}

// No library here: the loops above.
void libxsmm_multiply(const SmmPlan&, const ConstMatrix& a, const float* panels, const Matrix& out, const Epilogue& epilogue,
                      const GemmBlocking& blocking, int threads) {
  gemm_multiply(a, panels, out, epilogue, blocking, threads);
}

void libxsmm_multiply_transposed(const SmmPlan&, const SmmPlan&, const ConstMatrix& dy, const ConstMatrix& x, const Matrix& dw,
                                 float* bias_gradient, const Epilogue& epilogue, float* bias, GemmBlocking blocking, int threads) {
  gemm_multiply_transposed(dy, x, dw, bias_gradient, epilogue, bias, blocking, threads);
}

}  // namespace

const KernelTable& reference_table() {
  static const KernelTable table = {"reference",
                                    1,
                                    validate,
                                    embedding_forward,
                                    embedding_update,
                                    gemm_multiply,
                                    gemm_multiply_transposed,
                                    gemm_pack_weights,
                                    interaction_forward,
                                    interaction_backward,
                                    scalar_table().ceiling_fma,
                                    scalar_table().ceiling_stream,
                                    scalar_table().ceiling_gather,
                                    scalar_table().ceiling_scatter,
                                    libxsmm_multiply,
                                    libxsmm_multiply_transposed};
  return table;
}

}  // namespace autotune
