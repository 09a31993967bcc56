// Fully connected layers and the interaction: checks, then one call.
#include "bindings.h"
#include "libxsmm.h"

namespace autotune {
namespace {

Activation activation_of(const std::string& name) {
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

int64_t packed_size(int64_t reduction, int64_t columns, int64_t width) { return (columns + width - 1) / width * width * reduction; }

int64_t rows(const ConstFloats<2>& m) { return static_cast<int64_t>(m.shape(0)); }
int64_t cols(const ConstFloats<2>& m) { return static_cast<int64_t>(m.shape(1)); }
Matrix matrix(const Floats<2>& m) { return {m.data(), static_cast<int64_t>(m.shape(0)), static_cast<int64_t>(m.shape(1)), stride_of(m, 0)}; }
ConstMatrix matrix(const ConstFloats<2>& m) { return {m.data(), rows(m), cols(m), stride_of(m, 0)}; }

void pack_weights(const ConstFloats<2>& weights, const Floats<1>& forward, int64_t forward_width, const Floats<1>& backward, int64_t backward_width,
                  int threads) {
  require_threads(threads);
  require_width("forward_width", forward_width);
  require_width("backward_width", backward_width);
  require_rows("weights", weights);
  require_contiguous("forward", forward);
  require_contiguous("backward", backward);
  require_shape("forward", forward, {packed_size(cols(weights), rows(weights), forward_width)});
  require_shape("backward", backward, {packed_size(rows(weights), cols(weights), backward_width)});
  require_disjoint({extent_of("forward", forward), extent_of("backward", backward)}, {extent_of("weights", weights)});
  nb::gil_scoped_release release;
  kernels().gemm_pack_weights(matrix(weights), forward.data(), forward_width, backward.data(), backward_width, threads);
}

void require_libxsmm() {
  if (!libxsmm_opened()) throw std::runtime_error("libxsmm must be opened before it is used; see autotune.ops.libxsmm");
}

void multiply(const ConstMatrix& a, const float* packed, const Matrix& out, const Epilogue& epilogue, const GemmBlocking& blocking, int threads,
              bool libxsmm) {
  if (libxsmm) require_libxsmm();
  nb::gil_scoped_release release;
  if (!libxsmm) return kernels().gemm_multiply(a, packed, out, epilogue, blocking, threads);
  const SmmPlan plan = libxsmm_plan(out.rows, blocking.bn, blocking.bk, a.cols, blocking.bc, a.stride, false);
  kernels().libxsmm_multiply(plan, a, packed, out, epilogue, blocking, threads);
}

// Steps of one piece of a reduction over samples: a piece of 64 x 64 of each operand fits L1.
constexpr int64_t kPiece = 64;

void multiply_transposed(const ConstMatrix& dy, const ConstMatrix& x, const Matrix& dw, float* db, const Epilogue& epilogue, float* bias,
                         const GemmBlocking& blocking, int threads, bool libxsmm) {
  if (libxsmm) require_libxsmm();
  nb::gil_scoped_release release;
  if (!libxsmm) return kernels().gemm_multiply_transposed(dy, x, dw, db, epilogue, bias, blocking, threads);
  const int64_t bn = blocking.bn < dw.rows ? blocking.bn : dw.rows;  // also the width of the packed dy
  const int64_t chunk = blocking.bc < dy.rows ? blocking.bc : dy.rows;
  const SmmPlan whole = libxsmm_plan(bn, bn, blocking.bk, chunk, kPiece, bn, true);
  const SmmPlan last = chunk > 0 ? libxsmm_plan(bn, bn, blocking.bk, dy.rows % chunk, kPiece, bn, true) : whole;
  kernels().libxsmm_multiply_transposed(whole, last, dy, x, dw, db, epilogue, bias, blocking, threads);
}

void linear_forward(const ConstFloats<2>& x, const ConstFloats<1>& packed, const std::optional<ConstFloats<1>>& bias, const Floats<2>& y,
                    const std::string& activation, int64_t bn, int64_t bc, int64_t bk, bool columns_outer, int64_t thread_columns, int threads, bool libxsmm) {
  const GemmBlocking blocking = blocking_of(bn, bc, bk, columns_outer, thread_columns, threads);
  const int64_t outputs = static_cast<int64_t>(y.shape(1));
  require_rows("x", x);
  require_rows("y", y);
  require_shape("y", y, {rows(x), outputs});
  require_contiguous("packed", packed);
  require_shape("packed", packed, {packed_size(cols(x), outputs, bk)});
  require(cols(x) >= 1 && outputs >= 1, "a layer needs at least one input and one output");
  Epilogue epilogue;
  epilogue.activation = activation_of(activation);
  Extent bias_extent{"bias", nullptr, nullptr};
  if (bias) {
    require_contiguous("bias", *bias);
    require_shape("bias", *bias, {outputs});
    epilogue.bias = bias->data();
    bias_extent = extent_of("bias", *bias);
  }
  require_disjoint({extent_of("y", y)}, {extent_of("x", x), extent_of("packed", packed), bias_extent});
  multiply(matrix(x), packed.data(), matrix(y), epilogue, blocking, threads, libxsmm);
}

void linear_backward_data(const ConstFloats<2>& dy, const ConstFloats<1>& packed, const std::optional<ConstFloats<2>>& mask, const Floats<2>& dx,
                          int64_t bn, int64_t bc, int64_t bk, bool columns_outer, int64_t thread_columns, int threads, bool libxsmm) {
  const GemmBlocking blocking = blocking_of(bn, bc, bk, columns_outer, thread_columns, threads);
  const int64_t inputs = static_cast<int64_t>(dx.shape(1));
  require_rows("dy", dy);
  require_rows("dx", dx);
  require_shape("dx", dx, {rows(dy), inputs});
  require_contiguous("packed", packed);
  require_shape("packed", packed, {packed_size(cols(dy), inputs, bk)});
  require(cols(dy) >= 1 && inputs >= 1, "a layer needs at least one input and one output");
  Epilogue epilogue;
  Extent mask_extent{"mask", nullptr, nullptr};
  if (mask) {
    require_rows("mask", *mask);
    require_shape("mask", *mask, {rows(dy), inputs});
    epilogue.mask = mask->data();
    epilogue.mask_stride = stride_of(*mask, 0);
    mask_extent = extent_of("mask", *mask);
  }
  require_disjoint({extent_of("dx", dx)}, {extent_of("dy", dy), extent_of("packed", packed), mask_extent});
  multiply(matrix(dy), packed.data(), matrix(dx), epilogue, blocking, threads, libxsmm);
}

// With weights: the fused SGD step; then d_weights and d_bias are scratch.
void linear_backward_weights(const ConstFloats<2>& dy, const ConstFloats<2>& x, const Floats<2>& d_weights, const Floats<1>& d_bias,
                             const std::optional<Floats<2>>& weights, const std::optional<Floats<1>>& bias, float learning_rate, int64_t bn,
                             int64_t bc, int64_t bk, bool columns_outer, int64_t thread_columns, int threads, bool libxsmm) {
  const GemmBlocking blocking = blocking_of(bn, bc, bk, columns_outer, thread_columns, threads);
  require_rows("dy", dy);
  require_rows("x", x);
  require_rows("d_weights", d_weights);
  require_contiguous("d_bias", d_bias);
  require_shape("x", x, {rows(dy), cols(x)});
  require_shape("d_weights", d_weights, {cols(dy), cols(x)});
  require_shape("d_bias", d_bias, {cols(dy)});
  require(cols(x) >= 1 && cols(dy) >= 1, "a layer needs at least one input and one output");
  require(weights.has_value() == bias.has_value(), "weights and bias are updated together; give both or neither");
  Epilogue epilogue;
  epilogue.learning_rate = learning_rate;
  const Extent inputs[] = {extent_of("dy", dy), extent_of("x", x)};
  require_disjoint({extent_of("d_weights", d_weights), extent_of("d_bias", d_bias)}, {inputs[0], inputs[1]});
  if (weights) {
    require_rows("weights", *weights);
    require_shape("weights", *weights, {cols(dy), cols(x)});
    require_contiguous("bias", *bias);
    require_shape("bias", *bias, {cols(dy)});
    require_disjoint({extent_of("weights", *weights), extent_of("bias", *bias), extent_of("d_weights", d_weights), extent_of("d_bias", d_bias)},
                     {inputs[0], inputs[1]});
    epilogue.weights = weights->data();
    epilogue.weights_stride = stride_of(*weights, 0);
  }
  multiply_transposed(matrix(dy), matrix(x), matrix(d_weights), d_bias.data(), epilogue, bias ? bias->data() : nullptr, blocking, threads, libxsmm);
}

template <class Array>
InteractionShape interaction_shape(const ConstFloats<3>& features, const char* name, const Array& out, int64_t samples_per_task, int threads) {
  require_threads(threads);
  require(samples_per_task >= 1, "samples_per_task must be at least 1, got " + str(samples_per_task));
  require_rows("features", features);
  require_rows(name, out);
  const int64_t samples = static_cast<int64_t>(features.shape(0)), count = static_cast<int64_t>(features.shape(1));
  const int64_t dim = static_cast<int64_t>(features.shape(2));
  require(count >= 1 && dim >= 1, "features must hold at least one vector of at least one element");
  require_shape(name, out, {samples, dim + count * (count - 1) / 2});
  return {samples, count, dim, stride_of(features, 0), stride_of(features, 1), 0, 0, stride_of(out, 0)};
}

void interaction_forward(const ConstFloats<3>& features, const Floats<2>& out, int64_t samples_per_task, int threads) {
  const InteractionShape shape = interaction_shape(features, "out", out, samples_per_task, threads);
  require_disjoint({extent_of("out", out)}, {extent_of("features", features)});
  nb::gil_scoped_release release;
  kernels().interaction_forward(features.data(), out.data(), shape, samples_per_task, threads);
}

void interaction_backward(const ConstFloats<3>& features, const ConstFloats<2>& d_out, const Floats<3>& d_features, int64_t samples_per_task,
                          int threads) {
  InteractionShape shape = interaction_shape(features, "d_out", d_out, samples_per_task, threads);
  require_rows("d_features", d_features);
  require_shape("d_features", d_features, {shape.samples, shape.features, shape.dim});
  shape.d_sample_stride = stride_of(d_features, 0);
  shape.d_feature_stride = stride_of(d_features, 1);
  require_disjoint({extent_of("d_features", d_features)}, {extent_of("features", features), extent_of("d_out", d_out)});
  nb::gil_scoped_release release;
  kernels().interaction_backward(features.data(), d_out.data(), d_features.data(), shape, samples_per_task, threads);
}

}  // namespace

void bind_dense(nb::module_& m) {
  m.def("libxsmm_open", &libxsmm_open, "name"_a);
  m.def("libxsmm_opened", &libxsmm_opened);
  m.def("pack_weights", &pack_weights, "weights"_a.noconvert(), "forward"_a.noconvert(), "forward_width"_a, "backward"_a.noconvert(),
        "backward_width"_a, "threads"_a);
  m.def("linear_forward", &linear_forward, "x"_a.noconvert(), "packed"_a.noconvert(), "bias"_a.noconvert().none(), "y"_a.noconvert(),
        "activation"_a, "bn"_a, "bc"_a, "bk"_a, "columns_outer"_a, "thread_columns"_a, "threads"_a, "libxsmm"_a = false);
  m.def("linear_backward_data", &linear_backward_data, "dy"_a.noconvert(), "packed"_a.noconvert(), "mask"_a.noconvert().none(),
        "dx"_a.noconvert(), "bn"_a, "bc"_a, "bk"_a, "columns_outer"_a, "thread_columns"_a, "threads"_a, "libxsmm"_a = false);
  m.def("linear_backward_weights", &linear_backward_weights, "dy"_a.noconvert(), "x"_a.noconvert(), "d_weights"_a.noconvert(),
        "d_bias"_a.noconvert(), "weights"_a.noconvert().none(), "bias"_a.noconvert().none(), "learning_rate"_a, "bn"_a, "bc"_a, "bk"_a,
        "columns_outer"_a, "thread_columns"_a, "threads"_a, "libxsmm"_a = false);
  m.def("interaction_forward", &interaction_forward, "features"_a.noconvert(), "out"_a.noconvert(), "samples_per_task"_a, "threads"_a);
  m.def("interaction_backward", &interaction_backward, "features"_a.noconvert(), "d_out"_a.noconvert(), "d_features"_a.noconvert(),
        "samples_per_task"_a, "threads"_a);
}

}  // namespace autotune
