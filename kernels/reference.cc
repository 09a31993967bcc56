// The obvious loops, with sums in double and no threads: what every other target is compared with. Never optimised.
#include <bit>
#include <cmath>
#include <vector>

#include "dispatch.h"
#include "isa/vector.h"
#include "rounding.h"

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

// Weight `i` of table t: what the forward pass reads, or the whole.
double weight_at(const EmbeddingTables& tables, int64_t t, int64_t i, bool whole) {
  if (tables.upper == nullptr) return tables.weights[t][i];
  return join_one(tables.upper[t][i], whole && tables.lower != nullptr ? tables.lower[t][i] : uint16_t{0});
}

void embedding_forward(const EmbeddingTables& tables, const Bags& bags, const Pooled& out, const ForwardOptions&, int) {
  for (int64_t t = 0; t < tables.num_tables; ++t)
    for (int64_t n = 0; n < bags.num_bags; ++n)
      for (int64_t e = 0; e < tables.dim; ++e) {
        const int64_t bag = t * bags.num_bags + n;
        double sum = 0;
        for (int64_t j = at(bags, bags.offsets, bag); j < at(bags, bags.offsets, bag + 1); ++j)
          sum += weight_of(bags, bag, j) * weight_at(tables, t, at(bags, bags.indices, j) * tables.dim + e, false);
        out.data[n * out.sample_stride + t * out.table_stride + e] = static_cast<float>(sum);
      }
}

void store_rounded(const EmbeddingTables& tables, int64_t t, int64_t row, int64_t column, uint32_t lookup, float value) {
  const uint32_t random = random_bits(static_cast<uint32_t>(column), draw_of(tables.streams[t], row, lookup));
  tables.upper[t][row * tables.dim + column] = static_cast<uint16_t>(rounded_bits(std::bit_cast<uint32_t>(value), random) >> 16);
}

// SGD on stochastic storage, which rounds at every look-up: their order matters.
void descend_rounded(const EmbeddingTables& tables, const Bags& bags, const PooledGradient& gradient, float learning_rate) {
  for (int64_t bag = 0; bag < tables.num_tables * bags.num_bags; ++bag) {
    const int64_t t = bag / bags.num_bags, n = bag % bags.num_bags;
    for (int64_t j = at(bags, bags.offsets, bag); j < at(bags, bags.offsets, bag + 1); ++j) {
      const int64_t row = at(bags, bags.indices, j);
      for (int64_t e = 0; e < tables.dim; ++e) {
        const double step = learning_rate * weight_of(bags, bag, j) * gradient.data[n * gradient.sample_stride + t * gradient.table_stride + e];
        const double weight = weight_at(tables, t, row * tables.dim + e, true);
        store_rounded(tables, t, row, e, static_cast<uint32_t>(j), static_cast<float>(weight - step));
      }
    }
  }
}

void embedding_update(const EmbeddingTables& tables, const Bags& bags, const PooledGradient& gradient, float learning_rate, UpdateStrategy,
                      int64_t, const UpdateWorkspace&, int) {
  if (tables.streams != nullptr && tables.state == nullptr) return descend_rounded(tables, bags, gradient, learning_rate);
  for (int64_t t = 0; t < tables.num_tables; ++t) {
    // Each touched row's gradients are summed in double first, so that the order of look-ups leaves no trace.
    std::vector<double> sums(static_cast<size_t>(tables.rows[t] * tables.dim), 0.0);
    std::vector<bool> touched(static_cast<size_t>(tables.rows[t]));
    for (int64_t n = 0; n < bags.num_bags; ++n) {
      const int64_t bag = t * bags.num_bags + n;
      for (int64_t j = at(bags, bags.offsets, bag); j < at(bags, bags.offsets, bag + 1); ++j) {
        const int64_t row = at(bags, bags.indices, j);
        touched[static_cast<size_t>(row)] = true;
        for (int64_t e = 0; e < tables.dim; ++e)
          sums[static_cast<size_t>(row * tables.dim + e)] +=
              weight_of(bags, bag, j) * gradient.data[n * gradient.sample_stride + t * gradient.table_stride + e];
      }
    }
    for (int64_t row = 0; row < tables.rows[t]; ++row) {
      if (!touched[static_cast<size_t>(row)]) continue;
      const double* sum = sums.data() + row * tables.dim;
      double rate = learning_rate;
      if (tables.state != nullptr) {
        double squares = 0;
        for (int64_t e = 0; e < tables.dim; ++e) squares += sum[e] * sum[e];
        const double state = tables.state[t][row] + squares / static_cast<double>(tables.dim);
        tables.state[t][row] = static_cast<float>(state);
        rate /= std::sqrt(state) + tables.epsilon;
      }
      for (int64_t e = 0; e < tables.dim; ++e) {
        const int64_t i = row * tables.dim + e;
        const float stepped = static_cast<float>(weight_at(tables, t, i, true) - rate * sum[e]);
        if (tables.upper == nullptr)
          tables.weights[t][i] = stepped;
        else if (tables.streams != nullptr)
          store_rounded(tables, t, row, e, 0, stepped);
        else
          split_one(stepped, tables.upper[t] + i, tables.lower[t] + i);
      }
    }
  }
}

float widened(uint16_t upper) { return std::bit_cast<float>(uint32_t{upper} << 16); }

float rounded(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return x;
  return std::bit_cast<float>((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000);
}

double stepped(double w, float* state, const Update& update, double gradient) {
  if (state == nullptr) return w - update.learning_rate * gradient;
  const double sum = *state + gradient * gradient;
  if (update.learning_rate != 0) *state = static_cast<float>(sum);
  return w - update.learning_rate * gradient / (std::sqrt(sum) + update.epsilon);
}

void step(const Update& update, int64_t row, int64_t column, int64_t cols, double gradient) {
  const int64_t i = row * cols + column;
  float* const state = update.state == nullptr ? nullptr : update.state + i;
  if (update.upper == nullptr) {
    float& weight = update.weights[row * update.stride + column];
    weight = static_cast<float>(stepped(weight, state, update, gradient));
  } else {
    const float weight = std::bit_cast<float>(uint32_t{update.upper[i]} << 16 | update.lower[i]);
    const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(stepped(weight, state, update, gradient)));
    update.upper[i] = static_cast<uint16_t>(bits >> 16);
    update.lower[i] = static_cast<uint16_t>(bits);
  }
}

void step_bias(const Update& update, int64_t k, double gradient) {
  update.bias[k] = static_cast<float>(stepped(update.bias[k], update.bias_state == nullptr ? nullptr : update.bias_state + k, update, gradient));
}

void descend(const Update& update, const ConstMatrix& dw, const float* bias_gradient, int) {
  for (int64_t k = 0; k < dw.rows; ++k) {
    for (int64_t c = 0; c < dw.cols; ++c) step(update, k, c, dw.cols, dw.data[k * dw.stride + c]);
    step_bias(update, k, bias_gradient[k]);
  }
}

void finish(const Matrix& out, const Epilogue& epilogue, int64_t row, int64_t column, double value) {
  if (epilogue.bias != nullptr) value += epilogue.bias[column];
  if (epilogue.mask != nullptr && epilogue.mask[row * epilogue.mask_stride + column] <= 0) value = 0;
  if (epilogue.activation == Activation::kRelu) value = value < 0 ? 0 : value;
  if (epilogue.activation == Activation::kSigmoid) value = 1.0 / (1.0 + std::exp(-value));
  if (epilogue.update != nullptr) return step(*epilogue.update, row, column, out.cols, value);
  out.data[row * out.stride + column] = static_cast<float>(value);
}

// left(row, r) and right(column, r), summed over r.
template <class Left, class Right>
void multiply(int64_t reduction, const Matrix& out, const Epilogue& epilogue, const Left& left, const Right& right) {
  for (int64_t row = 0; row < out.rows; ++row)
    for (int64_t column = 0; column < out.cols; ++column) {
      double sum = 0;
      for (int64_t r = 0; r < reduction; ++r) sum += double{left(row, r)} * right(column, r);
      finish(out, epilogue, row, column, sum);
    }
}

void gemm_multiply(const ConstMatrix& a, const float* panels, const Matrix& out, const Epilogue& epilogue, const GemmBlocking& blocking, int) {
  const int64_t bk = blocking.bk;
  multiply(
      a.cols, out, epilogue, [&](int64_t row, int64_t r) { return a.data[row * a.stride + r]; },
      [&](int64_t column, int64_t r) { return panels[(column / bk * a.cols + r) * bk + column % bk]; });
}

void gemm_multiply_bf16(const ConstMatrix& a, const uint16_t* panels, const Matrix& out, const Epilogue& epilogue, GemmBlocking blocking, int) {
  const int64_t bk = blocking.bk, pairs = (a.cols + 1) / 2;
  multiply(
      a.cols, out, epilogue, [&](int64_t row, int64_t r) { return rounded(a.data[row * a.stride + r]); },
      [&](int64_t column, int64_t r) { return widened(panels[((column / bk * pairs + r / 2) * bk + column % bk) * 2 + r % 2]); });
}

void gemm_multiply_transposed(const ConstMatrix& dy, const ConstMatrix& x, const Matrix& dw, float* bias_gradient, const Update* update,
                              const GemmBlocking&, bool bf16, int) {
  Epilogue epilogue;
  epilogue.update = update;
  const auto of = [&](float value) { return bf16 ? rounded(value) : value; };
  multiply(
      dy.rows, dw, epilogue, [&](int64_t k, int64_t n) { return of(dy.data[n * dy.stride + k]); },
      [&](int64_t c, int64_t n) { return of(x.data[n * x.stride + c]); });
  for (int64_t k = 0; bias_gradient != nullptr && k < dw.rows; ++k) {
    double sum = 0;
    for (int64_t n = 0; n < dy.rows; ++n) sum += dy.data[n * dy.stride + k];
    bias_gradient[k] = static_cast<float>(sum);
    if (update != nullptr) step_bias(*update, k, sum);
  }
}

// panels[(p * steps + s) * width * members + j * members + i] = w(p * width + j, s * members + i), zero outside w.
template <class T, class At>
void pack(int64_t columns, int64_t reduction, int64_t width, int64_t members, T* panels, const At& w) {
  const int64_t steps = (reduction + members - 1) / members;
  for (int64_t p = 0; p * width < columns; ++p)
    for (int64_t s = 0; s < steps; ++s)
      for (int64_t j = 0; j < width; ++j)
        for (int64_t i = 0; i < members; ++i) {
          const int64_t column = p * width + j, r = s * members + i;
          *panels++ = column < columns && r < reduction ? w(column, r) : T{};
        }
}

void gemm_pack_weights(const ConstMatrix& w, float* forward, int64_t forward_width, float* backward, int64_t backward_width, int) {
  pack(w.rows, w.cols, forward_width, 1, forward, [&](int64_t k, int64_t c) { return w.data[k * w.stride + c]; });
  pack(w.cols, w.rows, backward_width, 1, backward, [&](int64_t c, int64_t k) { return w.data[k * w.stride + c]; });
}

void gemm_pack_weights_bf16(const ConstHalves& w, uint16_t* forward, int64_t forward_width, uint16_t* backward, int64_t backward_width, int) {
  pack(w.rows, w.cols, forward_width, 2, forward, [&](int64_t k, int64_t c) { return w.data[k * w.cols + c]; });
  pack(w.cols, w.rows, backward_width, 2, backward, [&](int64_t c, int64_t k) { return w.data[k * w.cols + c]; });
}

void interaction_forward(const float* features, float* out, const InteractionShape& shape, int64_t, int) {
  for (int64_t n = 0; n < shape.samples; ++n) {
    const float* sample = features + n * shape.sample_stride;
    float* target = out + n * shape.out_stride;
    for (int64_t e = 0; e < shape.dim; ++e) *target++ = sample[e];
    for (int64_t i = 0; i < shape.features; ++i)
      for (int64_t j = 0; j < i + shape.diagonal; ++j) {
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
          if (i == j && !shape.diagonal) continue;
          const int64_t high = i > j ? i : j, low = i > j ? j : i;
          const double product = gradient[shape.dim + row_begin(high + shape.diagonal) + low];
          sum += (i == j ? 2 : 1) * product * sample[j * shape.feature_stride + e];
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
                                 float* bias_gradient, const Update* update, GemmBlocking blocking, int threads) {
  gemm_multiply_transposed(dy, x, dw, bias_gradient, update, blocking, false, threads);
}

}  // namespace

const KernelTable& reference_table() {
  static const KernelTable table = {"reference",
                                    1,
                                    validate,
                                    embedding_forward,
                                    embedding_update,
                                    gemm_multiply,
                                    gemm_multiply_bf16,
                                    gemm_multiply_transposed,
                                    gemm_pack_weights,
                                    gemm_pack_weights_bf16,
                                    descend,
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
