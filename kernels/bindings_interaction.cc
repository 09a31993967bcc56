// The interaction: checks, then one call.
#include "bindings.h"

namespace autotune {
namespace {

template <class Array>
InteractionShape interaction_shape(const ConstFloats<3>& features, const char* name, const Array& out, bool diagonal, int64_t samples_per_task,
                                   int threads) {
  require_threads(threads);
  require(samples_per_task >= 1, "samples_per_task must be at least 1, got " + str(samples_per_task));
  require_rows("features", features);
  require_rows(name, out);
  const int64_t samples = static_cast<int64_t>(features.shape(0)), count = static_cast<int64_t>(features.shape(1));
  const int64_t dim = static_cast<int64_t>(features.shape(2));
  require(count >= 1 && dim >= 1, "features must hold at least one vector of at least one element");
  const InteractionShape shape{samples, count, dim, diagonal, stride_of(features, 0), stride_of(features, 1), 0, 0, stride_of(out, 0)};
  require_shape(name, out, {samples, dim + products_of(shape)});
  return shape;
}

void interaction_forward(const ConstFloats<3>& features, const Floats<2>& out, bool diagonal, int64_t samples_per_task, int threads) {
  const InteractionShape shape = interaction_shape(features, "out", out, diagonal, samples_per_task, threads);
  require_disjoint({extent_of("out", out)}, {extent_of("features", features)});
  nb::gil_scoped_release release;
  kernels().interaction_forward(features.data(), out.data(), shape, samples_per_task, threads);
}

void interaction_backward(const ConstFloats<3>& features, const ConstFloats<2>& d_out, const Floats<3>& d_features, bool diagonal,
                          int64_t samples_per_task, int threads) {
  InteractionShape shape = interaction_shape(features, "d_out", d_out, diagonal, samples_per_task, threads);
  require_rows("d_features", d_features);
  require_shape("d_features", d_features, {shape.samples, shape.features, shape.dim});
  shape.d_sample_stride = stride_of(d_features, 0);
  shape.d_feature_stride = stride_of(d_features, 1);
  require_disjoint({extent_of("d_features", d_features)}, {extent_of("features", features), extent_of("d_out", d_out)});
  nb::gil_scoped_release release;
  kernels().interaction_backward(features.data(), d_out.data(), d_features.data(), shape, samples_per_task, threads);
}

}  // namespace

void bind_interaction(nb::module_& m) {
  m.def("interaction_forward", &interaction_forward, "features"_a.noconvert(), "out"_a.noconvert(), "diagonal"_a, "samples_per_task"_a,
        "threads"_a,
        "out [N, E + P]: feature 0 of features [N, F, E], then the P dot products of pairs j < i, or with the diagonal j <= i, by rows of the\n"
        "lower triangle.");
  m.def("interaction_backward", &interaction_backward, "features"_a.noconvert(), "d_out"_a.noconvert(), "d_features"_a.noconvert(),
        "diagonal"_a, "samples_per_task"_a, "threads"_a, "d_features [N, F, E] from d_out [N, E + P]; written, not added to.");
}

}  // namespace autotune
