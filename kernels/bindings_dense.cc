// Fully connected layers and the loss: checks, then one call.
#include "bindings.h"
#include "libxsmm.h"
#include "loss.h"

#include <type_traits>

namespace autotune {
namespace {

Activation activation_of(const ActivationName& activation) {
  const std::string& name = activation.word;
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "sigmoid") return Activation::kSigmoid;
  reject("activation must be none, relu or sigmoid, got '" + name + "'");
}

void require_width(const char* name, int64_t width) {
  require(width >= 16 && width <= kMaxPanel && width % 16 == 0, std::string(name) + " must be 16, 32, 48 or 64, got " + str(width));
}

GemmBlocking blocking_of(int64_t bn, int64_t bc, int64_t bk, bool columns_outer, int64_t thread_columns, int threads) {
  require_threads(threads);
  require(bn >= 1 && bn <= 65536, "bn must be between 1 and 65536, got " + str(bn));
  require(bc >= 1, "bc must be at least 1, got " + str(bc));
  require_width("bk", bk);
  require(thread_columns >= 1 && threads % thread_columns == 0,
          "thread_columns must divide the " + str(threads) + " threads, got " + str(thread_columns));
  return {bn, bc, bk, columns_outer, thread_columns};
}

// `members` values a step: 2 in bf16, where the last step of an odd reduction is half empty.
int64_t packed_size(int64_t reduction, int64_t columns, int64_t width, int64_t members) {
  return (columns + width - 1) / width * width * ((reduction + members - 1) / members) * members;
}

template <class T>
constexpr int64_t kMembers = sizeof(T) == 2 ? 2 : 1;

constexpr double kEpsilon = 1e-10;  // of Adagrad, as in torch.optim

// Halves of weights, as torch has them: int16, whatever they stand for.
template <int Dims>
using ShortInts = nb::ndarray<int16_t, nb::ndim<Dims>, nb::device::cpu>;
template <int Dims>
using ConstShortInts = nb::ndarray<const int16_t, nb::ndim<Dims>, nb::device::cpu>;

int64_t rows(const ConstFloats<2>& m) { return static_cast<int64_t>(m.shape(0)); }
int64_t cols(const ConstFloats<2>& m) { return static_cast<int64_t>(m.shape(1)); }
Matrix matrix(const Floats<2>& m) { return {m.data(), static_cast<int64_t>(m.shape(0)), static_cast<int64_t>(m.shape(1)), stride_of(m, 0)}; }
ConstMatrix matrix(const ConstFloats<2>& m) { return {m.data(), rows(m), cols(m), stride_of(m, 0)}; }
uint16_t* halves(const int16_t* p) { return reinterpret_cast<uint16_t*>(const_cast<int16_t*>(p)); }

// A layer needs something to reduce over and something to compute.
void require_layer(int64_t inputs, int64_t outputs) { require(inputs >= 1 && outputs >= 1, "a layer needs at least one input and one output"); }

template <class Weights, class Packed>
void check_packing(const Weights& weights, const Packed& forward, int64_t forward_width, const Packed& backward, int64_t backward_width, int threads) {
  require_threads(threads);
  require_width("forward_width", forward_width);
  require_width("backward_width", backward_width);
  require_contiguous("forward", forward);
  require_contiguous("backward", backward);
  const int64_t outputs = static_cast<int64_t>(weights.shape(0)), inputs = static_cast<int64_t>(weights.shape(1));
  constexpr int64_t members = kMembers<typename Packed::Scalar>;
  require_shape("forward", forward, {packed_size(inputs, outputs, forward_width, members)});
  require_shape("backward", backward, {packed_size(outputs, inputs, backward_width, members)});
  require_disjoint({extent_of("forward", forward), extent_of("backward", backward)}, {extent_of("weights", weights)});
}

void pack_weights(const ConstFloats<2>& weights, const Floats<1>& forward, int64_t forward_width, const Floats<1>& backward, int64_t backward_width,
                  int threads) {
  require_rows("weights", weights);
  check_packing(weights, forward, forward_width, backward, backward_width, threads);
  nb::gil_scoped_release release;
  kernels().gemm_pack_weights(matrix(weights), forward.data(), forward_width, backward.data(), backward_width, threads);
}

void pack_weights_bf16(const ConstShortInts<2>& weights, const ShortInts<1>& forward, int64_t forward_width, const ShortInts<1>& backward,
                       int64_t backward_width, int threads) {
  require_contiguous("weights", weights);
  check_packing(weights, forward, forward_width, backward, backward_width, threads);
  const ConstHalves upper{halves(weights.data()), static_cast<int64_t>(weights.shape(0)), static_cast<int64_t>(weights.shape(1))};
  nb::gil_scoped_release release;
  kernels().gemm_pack_weights_bf16(upper, halves(forward.data()), forward_width, halves(backward.data()), backward_width, threads);
}

// Steps of one piece of a reduction over samples: a piece of 64 x 64 of each operand fits L1.
constexpr int64_t kPiece = 64;

void require_libxsmm(bool bf16) {
  require(!bf16, "libxsmm serves fp32 alone; use the blocked implementation in bf16");
  if (!libxsmm_opened()) throw std::runtime_error("libxsmm must be opened before it is used; see autotune.ops.libxsmm");
}

// out = epilogue(a * packed), in the arithmetic of the packed copy's type. a_name ... out_name: what the pass calls them.
template <class Packed>
void multiply(const char* a_name, const ConstFloats<2>& a, const Packed& packed, const char* out_name, const Floats<2>& out,
              const Epilogue& epilogue, const Extent& of_epilogue, const GemmBlocking& blocking, int threads, bool libxsmm) {
  const int64_t columns = static_cast<int64_t>(out.shape(1));
  constexpr int64_t members = kMembers<std::remove_const_t<typename Packed::Scalar>>;
  require_rows(a_name, a);
  require_rows(out_name, out);
  require_shape(out_name, out, {rows(a), columns});
  require_contiguous("packed", packed);
  require_shape("packed", packed, {packed_size(cols(a), columns, blocking.bk, members)});
  require_layer(cols(a), columns);
  require_disjoint({extent_of(out_name, out)}, {extent_of(a_name, a), extent_of("packed", packed), of_epilogue});
  if (libxsmm) require_libxsmm(members == 2);
  nb::gil_scoped_release release;
  if constexpr (members == 1) {
    if (!libxsmm) return kernels().gemm_multiply(matrix(a), packed.data(), matrix(out), epilogue, blocking, threads);
    const SmmPlan plan = libxsmm_plan(rows(a), blocking.bn, blocking.bk, cols(a), blocking.bc, stride_of(a, 0), false);
    kernels().libxsmm_multiply(plan, matrix(a), packed.data(), matrix(out), epilogue, blocking, threads);
  } else {
    kernels().gemm_multiply_bf16(matrix(a), halves(packed.data()), matrix(out), epilogue, blocking, threads);
  }
}

template <class Packed>
void linear_forward(const ConstFloats<2>& x, const Packed& packed, const std::optional<ConstFloats<1>>& bias, const Floats<2>& y,
                    const ActivationName& activation, int64_t bn, int64_t bc, int64_t bk, bool columns_outer, int64_t thread_columns, int threads, bool libxsmm) {
  const GemmBlocking blocking = blocking_of(bn, bc, bk, columns_outer, thread_columns, threads);
  Epilogue epilogue;
  epilogue.activation = activation_of(activation);
  Extent extent{"bias", nullptr, nullptr};
  if (bias) {
    require_contiguous("bias", *bias);
    require_shape("bias", *bias, {static_cast<int64_t>(y.shape(1))});
    epilogue.bias = bias->data();
    extent = extent_of("bias", *bias);
  }
  multiply("x", x, packed, "y", y, epilogue, extent, blocking, threads, libxsmm);
}

template <class Packed>
void linear_backward_data(const ConstFloats<2>& dy, const Packed& packed, const std::optional<ConstFloats<2>>& mask, const Floats<2>& dx,
                          int64_t bn, int64_t bc, int64_t bk, bool columns_outer, int64_t thread_columns, int threads, bool libxsmm) {
  const GemmBlocking blocking = blocking_of(bn, bc, bk, columns_outer, thread_columns, threads);
  Epilogue epilogue;
  Extent extent{"mask", nullptr, nullptr};
  if (mask) {
    require_rows("mask", *mask);
    require_shape("mask", *mask, {rows(dy), static_cast<int64_t>(dx.shape(1))});
    epilogue.mask = mask->data();
    epilogue.mask_stride = stride_of(*mask, 0);
    extent = extent_of("mask", *mask);
  }
  multiply("dy", dy, packed, "dx", dx, epilogue, extent, blocking, threads, libxsmm);
}

// Everything a step of the optimizer writes, checked against the shape of the weights.
class Step {
 public:
  Step(int64_t outputs, int64_t inputs, float learning_rate, float epsilon) : outputs_(outputs), inputs_(inputs) {
    require(epsilon > 0 && epsilon <= 3e38f, "epsilon must be positive and finite, got " + std::to_string(epsilon));
    update_.learning_rate = learning_rate;
    update_.epsilon = epsilon;
  }

  void weights(const Floats<2>& weights) {
    require_rows("weights", weights);
    hold("weights", weights, {outputs_, inputs_});
    update_.weights = weights.data();
    update_.stride = stride_of(weights, 0);
  }

  void halves_of_weights(const ShortInts<2>& upper, const ShortInts<2>& lower) {
    require_contiguous("upper", upper);
    require_contiguous("lower", lower);
    hold("upper", upper, {outputs_, inputs_});
    hold("lower", lower, {outputs_, inputs_});
    update_.upper = halves(upper.data());
    update_.lower = halves(lower.data());
  }

  void bias(const Floats<1>& bias) {
    require_contiguous("bias", bias);
    hold("bias", bias, {outputs_});
    update_.bias = bias.data();
  }

  void states(const std::optional<Floats<2>>& state, const std::optional<Floats<1>>& bias_state) {
    require(state.has_value() == bias_state.has_value(), "weights and bias step alike; give both states or neither");
    if (!state) return;
    require_contiguous("state", *state);
    require_contiguous("bias_state", *bias_state);
    hold("state", *state, {outputs_, inputs_});
    hold("bias_state", *bias_state, {outputs_});
    update_.state = state->data();
    update_.bias_state = bias_state->data();
  }

  // What is written may overlap neither itself nor what is read.
  void require_apart(std::initializer_list<Extent> others, std::initializer_list<Extent> inputs) const {
    std::vector<Extent> outputs(written_);
    outputs.insert(outputs.end(), others);
    for (size_t i = 0; i < outputs.size(); ++i) {
      require_disjoint({outputs[i]}, inputs);
      for (size_t j = i + 1; j < outputs.size(); ++j) require_disjoint({outputs[i], outputs[j]}, {});
    }
  }

  const Update& update() const { return update_; }

 private:
  template <class Array>
  void hold(const char* name, const Array& array, std::initializer_list<int64_t> shape) {
    require_shape(name, array, shape);
    written_.push_back(extent_of(name, array));
  }

  int64_t outputs_, inputs_;
  Update update_;
  std::vector<Extent> written_;
};

// Without a step: gradients only. With one, d_weights and d_bias are scratch.
void backward_weights(const ConstFloats<2>& dy, const ConstFloats<2>& x, const Floats<2>& d_weights, const Floats<1>& d_bias, const Step& step,
                      bool fused, bool bf16, const GemmBlocking& blocking, int threads, bool libxsmm) {
  require_rows("dy", dy);
  require_rows("x", x);
  require_rows("d_weights", d_weights);
  require_contiguous("d_bias", d_bias);
  require_shape("x", x, {rows(dy), cols(x)});
  require_shape("d_weights", d_weights, {cols(dy), cols(x)});
  require_shape("d_bias", d_bias, {cols(dy)});
  require_layer(cols(x), cols(dy));
  step.require_apart({extent_of("d_weights", d_weights), extent_of("d_bias", d_bias)}, {extent_of("dy", dy), extent_of("x", x)});
  if (libxsmm) require_libxsmm(bf16);
  const Update* const update = fused ? &step.update() : nullptr;
  nb::gil_scoped_release release;
  if (!libxsmm)
    return kernels().gemm_multiply_transposed(matrix(dy), matrix(x), matrix(d_weights), d_bias.data(), update, blocking, bf16, threads);
  const int64_t samples = rows(dy), width = blocking.bn < cols(dy) ? blocking.bn : cols(dy);  // of the packed dy
  const int64_t chunk = blocking.bc < samples ? blocking.bc : samples;
  const SmmPlan whole = libxsmm_plan(width, width, blocking.bk, chunk, kPiece, width, true);
  const SmmPlan last = chunk > 0 ? libxsmm_plan(width, width, blocking.bk, samples % chunk, kPiece, width, true) : whole;
  kernels().libxsmm_multiply_transposed(whole, last, matrix(dy), matrix(x), matrix(d_weights), d_bias.data(), update, blocking, threads);
}

void linear_backward_weights(const ConstFloats<2>& dy, const ConstFloats<2>& x, const Floats<2>& d_weights, const Floats<1>& d_bias,
                             const std::optional<Floats<2>>& weights, const std::optional<Floats<1>>& bias, float learning_rate, int64_t bn,
                             int64_t bc, int64_t bk, bool columns_outer, int64_t thread_columns, int threads, bool libxsmm,
                             const std::optional<Floats<2>>& state, const std::optional<Floats<1>>& bias_state, float epsilon) {
  const GemmBlocking blocking = blocking_of(bn, bc, bk, columns_outer, thread_columns, threads);
  require(weights.has_value() == bias.has_value(), "weights and bias are updated together; give both or neither");
  require(weights.has_value() || !state, "a state belongs to weights; give both or neither");
  Step step(cols(dy), cols(x), learning_rate, epsilon);
  if (weights) {
    step.weights(*weights);
    step.bias(*bias);
  }
  step.states(state, bias_state);
  backward_weights(dy, x, d_weights, d_bias, step, weights.has_value(), false, blocking, threads, libxsmm);
}

void linear_backward_weights_bf16(const ConstFloats<2>& dy, const ConstFloats<2>& x, const Floats<2>& d_weights, const Floats<1>& d_bias,
                                  const std::optional<ShortInts<2>>& upper, const std::optional<ShortInts<2>>& lower,
                                  const std::optional<Floats<1>>& bias, float learning_rate, int64_t bn, int64_t bc, int64_t bk,
                                  bool columns_outer, int64_t thread_columns, int threads, bool libxsmm,
                                  const std::optional<Floats<2>>& state,
                                  const std::optional<Floats<1>>& bias_state, float epsilon) {
  const GemmBlocking blocking = blocking_of(bn, bc, bk, columns_outer, thread_columns, threads);
  require(upper.has_value() == lower.has_value() && upper.has_value() == bias.has_value(),
          "both halves of the weights and the bias are updated together; give all or none");
  require(upper.has_value() || !state, "a state belongs to weights; give both or neither");
  Step step(cols(dy), cols(x), learning_rate, epsilon);
  if (upper) {
    step.halves_of_weights(*upper, *lower);
    step.bias(*bias);
  }
  step.states(state, bias_state);
  backward_weights(dy, x, d_weights, d_bias, step, upper.has_value(), true, blocking, threads, libxsmm);
}

void descend(const ConstFloats<2>& d_weights, const ConstFloats<1>& d_bias, const Step& step, int threads) {
  require_threads(threads);
  require_rows("d_weights", d_weights);
  require_contiguous("d_bias", d_bias);
  require_shape("d_bias", d_bias, {rows(d_weights)});
  step.require_apart({}, {extent_of("d_weights", d_weights), extent_of("d_bias", d_bias)});
  nb::gil_scoped_release release;
  kernels().descend(step.update(), matrix(d_weights), d_bias.data(), threads);
}

void linear_descend(const ConstFloats<2>& d_weights, const ConstFloats<1>& d_bias, const Floats<2>& weights, const Floats<1>& bias,
                    const std::optional<Floats<2>>& state, const std::optional<Floats<1>>& bias_state, float learning_rate, float epsilon,
                    int threads) {
  Step step(rows(d_weights), cols(d_weights), learning_rate, epsilon);
  step.weights(weights);
  step.bias(bias);
  step.states(state, bias_state);
  descend(d_weights, d_bias, step, threads);
}

void linear_descend_bf16(const ConstFloats<2>& d_weights, const ConstFloats<1>& d_bias, const ShortInts<2>& upper, const ShortInts<2>& lower,
                         const Floats<1>& bias, const std::optional<Floats<2>>& state, const std::optional<Floats<1>>& bias_state,
                         float learning_rate, float epsilon, int threads) {
  Step step(rows(d_weights), cols(d_weights), learning_rate, epsilon);
  step.halves_of_weights(upper, lower);
  step.bias(bias);
  step.states(state, bias_state);
  descend(d_weights, d_bias, step, threads);
}

double cross_entropy(const ConstFloats<2>& probabilities, const ConstFloats<1>& labels, const Floats<2>& d_logits, float scale, int threads) {
  require_threads(threads);
  require_contiguous("labels", labels);
  const int64_t samples = static_cast<int64_t>(labels.shape(0));
  require(samples >= 1, "a mean needs at least one sample");
  require_shape("probabilities", probabilities, {samples, 1});
  require_shape("d_logits", d_logits, {samples, 1});
  require_disjoint({extent_of("d_logits", d_logits)}, {extent_of("probabilities", probabilities), extent_of("labels", labels)});
  const Clicks clicks{probabilities.data(), stride_of(probabilities, 0), labels.data(), samples};
  nb::gil_scoped_release release;
  return binary_cross_entropy(clicks, scale, d_logits.data(), stride_of(d_logits, 0), threads);
}

}  // namespace

void bind_dense(nb::module_& m) {
  m.def("libxsmm_open", &libxsmm_open, "name"_a,
        "Opens libxsmm by path or name, once a process. Returns why it cannot serve; empty when it can.");
  m.def("libxsmm_opened", &libxsmm_opened,
        "Whether ``libxsmm=True`` works: the passes of a layer then run libxsmm's kernels instead of ours.");
  m.def("pack_weights", &pack_weights, "weights"_a.noconvert(), "forward"_a.noconvert(), "forward_width"_a, "backward"_a.noconvert(),
        "backward_width"_a, "threads"_a,
        "weights [K, C] as zero-padded panels: forward [ceil(K/fw) * C * fw] over K, backward [ceil(C/bw) * K * bw] over C.");
  m.def("pack_weights_bf16", &pack_weights_bf16, "upper"_a.noconvert(), "forward"_a.noconvert(), "forward_width"_a, "backward"_a.noconvert(),
        "backward_width"_a, "threads"_a,
        "The same of bf16, int16 [K, C], in pairs: forward [ceil(K/fw) * ceil(C/2) * fw * 2], backward [ceil(C/bw) * ceil(K/2) * bw * 2].");
  const auto multiplications = [&m](const char* forward, auto forward_of, const char* forward_doc, const char* backward, auto backward_of,
                                    const char* backward_doc) {
    m.def(forward, forward_of, "x"_a.noconvert(), "packed"_a.noconvert(), "bias"_a.noconvert().none(), "y"_a.noconvert(), "activation"_a, "bn"_a,
          "bc"_a, "bk"_a, "columns_outer"_a, "thread_columns"_a, "threads"_a, "libxsmm"_a = false, forward_doc);
    m.def(backward, backward_of, "dy"_a.noconvert(), "packed"_a.noconvert(), "mask"_a.noconvert().none(), "dx"_a.noconvert(), "bn"_a, "bc"_a,
          "bk"_a, "columns_outer"_a, "thread_columns"_a, "threads"_a, "libxsmm"_a = false, backward_doc);
  };
  multiplications("linear_forward", &linear_forward<ConstFloats<1>>,
                  "y [N, K] = activation(x [N, C] w^T + bias [K]); packed: the forward panels, of width bk.", "linear_backward_data",
                  &linear_backward_data<ConstFloats<1>>,
                  "dx [N, C] = dy [N, K] w, zero where mask [N, C] <= 0; packed: the backward panels, of width bk.");
  multiplications("linear_forward_bf16", &linear_forward<ConstShortInts<1>>, "The same with x rounded to bf16, and packed in pairs, int16.",
                  "linear_backward_data_bf16", &linear_backward_data<ConstShortInts<1>>,
                  "The same with dy rounded to bf16, and packed in pairs, int16.");
  m.def("linear_backward_weights", &linear_backward_weights, "dy"_a.noconvert(), "x"_a.noconvert(), "d_weights"_a.noconvert(),
        "d_bias"_a.noconvert(), "weights"_a.noconvert().none(), "bias"_a.noconvert().none(), "learning_rate"_a, "bn"_a, "bc"_a, "bk"_a,
        "columns_outer"_a, "thread_columns"_a, "threads"_a, "libxsmm"_a = false, "state"_a.noconvert() = nb::none(),
        "bias_state"_a.noconvert() = nb::none(), "epsilon"_a = kEpsilon,
        "d_weights [K, C] = dy^T x, d_bias [K] = sum of dy; or, with weights and bias, a step along both, d_weights and d_bias being scratch.\n\n"
        "SGD; or with state [K, C] and bias_state [K] Adagrad: s += g^2, w -= learning_rate * g / (sqrt(s) + epsilon). A learning rate of 0\n"
        "changes nothing, the states included.");
  m.def("linear_backward_weights_bf16", &linear_backward_weights_bf16, "dy"_a.noconvert(), "x"_a.noconvert(), "d_weights"_a.noconvert(),
        "d_bias"_a.noconvert(), "upper"_a.noconvert().none(), "lower"_a.noconvert().none(), "bias"_a.noconvert().none(), "learning_rate"_a,
        "bn"_a, "bc"_a, "bk"_a, "columns_outer"_a, "thread_columns"_a, "threads"_a, "libxsmm"_a = false, "state"_a.noconvert() = nb::none(),
        "bias_state"_a.noconvert() = nb::none(), "epsilon"_a = kEpsilon,
        "The same with dy and x rounded to bf16 for d_weights, and weights as the upper and lower halves of fp32, int16 [K, C].");
  m.def("linear_descend", &linear_descend, "d_weights"_a.noconvert(), "d_bias"_a.noconvert(), "weights"_a.noconvert(), "bias"_a.noconvert(),
        "state"_a.noconvert().none(), "bias_state"_a.noconvert().none(), "learning_rate"_a, "epsilon"_a, "threads"_a,
        "The step that `linear_backward_weights` takes, along gradients that it wrote.");
  m.def("linear_descend_bf16", &linear_descend_bf16, "d_weights"_a.noconvert(), "d_bias"_a.noconvert(), "upper"_a.noconvert(),
        "lower"_a.noconvert(), "bias"_a.noconvert(), "state"_a.noconvert().none(), "bias_state"_a.noconvert().none(), "learning_rate"_a,
        "epsilon"_a, "threads"_a,
        "The same on halves of weights, int16 [K, C].");
  m.def("binary_cross_entropy", &cross_entropy, "probabilities"_a.noconvert(), "labels"_a.noconvert(), "d_logits"_a.noconvert(), "scale"_a,
        "threads"_a,
        "Mean of -(y log p + (1-y) log(1-p)) * scale over probabilities [N, 1] and labels [N], logarithms no lower than -100;\n"
        "d_logits [N, 1] = (p - y) / N * scale, written.");
}

}  // namespace autotune
