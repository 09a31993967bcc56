// What the bindings share: array types and the checks made before any kernel sees a pointer.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <initializer_list>
#include <optional>
#include <string>

#include "active.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace autotune {
// A word of a few, which type checkers then know; taken as any string, and checked where it is read.
template <class Choice>
struct Word {
  std::string word;
};
}  // namespace autotune

template <class Choice>
struct nanobind::detail::type_caster<autotune::Word<Choice>> {
  NB_TYPE_CASTER(autotune::Word<Choice>, Choice::name)
  bool from_python(handle source, uint32_t flags, cleanup_list* cleanup) noexcept {
    make_caster<std::string> text;
    if (!text.from_python(source, flags, cleanup)) return false;
    value.word = std::move(text.value);
    return true;
  }
};

namespace autotune {

// A tensor as a DLPack capsule by torch's own function in C; null for anything else.
inline nb::object capsule_of(nb::handle source) {
  static const nb::object* torch = nullptr;  // never freed: it outlives the interpreter's modules
  if (torch == nullptr) {
    if (!nb::cast<nb::dict>(nb::module_::import_("sys").attr("modules")).contains("torch")) return {};
    torch = new nb::object[2]{nb::module_::import_("torch").attr("Tensor"), nb::module_::import_("torch.utils.dlpack").attr("to_dlpack")};
  }
  if (!source.type().is(torch[0])) return {};
  return torch[1](source);
}

}  // namespace autotune

// Arrays that come in. The method of a tensor that nanobind would call is Python, and takes 3.5 us of an argument's 4; this takes 0.5 in all.
template <class T, class Shape>
struct nanobind::detail::type_caster<nb::ndarray<T, Shape, nb::device::cpu>> {
  using Any = make_caster<nb::ndarray<nb::device::cpu, T, Shape>>;  // the same type in another order, which nanobind's own caster takes
  using Array = nb::ndarray<T, Shape, nb::device::cpu>;
  NB_TYPE_CASTER(Array, Any::Name)
  bool from_python(handle source, uint32_t flags, cleanup_list* cleanup) noexcept {
    Any caster;
    try {
      const object capsule = autotune::capsule_of(source);
      if (!caster.from_python(capsule.is_valid() ? handle(capsule) : source, flags, cleanup)) return false;
    } catch (const python_error&) {  // a tensor without memory
      return false;
    }
    value = Array(caster.value);
    return true;
  }
};

namespace autotune {

template <int Dims>
using Floats = nb::ndarray<float, nb::ndim<Dims>, nb::device::cpu>;
template <int Dims>
using ConstFloats = nb::ndarray<const float, nb::ndim<Dims>, nb::device::cpu>;
using Indices = nb::ndarray<nb::ro, nb::ndim<1>, nb::device::cpu>;

struct Strategies {
  static constexpr auto name =
      nb::detail::const_name("typing.Literal['race_free_range', 'race_free_modulo', 'bucketed', 'atomic', 'unfused']");
};
struct Activations {
  static constexpr auto name = nb::detail::const_name("typing.Literal['none', 'relu', 'sigmoid']");
};
struct Streams {
  static constexpr auto name = nb::detail::const_name("typing.Literal['read', 'copy', 'triad', 'copy_nt', 'update']");
};
using StrategyName = Word<Strategies>;
using ActivationName = Word<Activations>;
using StreamName = Word<Streams>;

// The bytes an array spans, for overlap checks.
struct Extent {
  const char* name;
  const char* begin;
  const char* end;
};

[[noreturn]] inline void reject(const std::string& message) { throw nb::value_error(message.c_str()); }

inline void require(bool holds, const std::string& rule) {
  if (!holds) reject(rule);
}

inline std::string str(int64_t value) { return std::to_string(value); }

inline void require_threads(int threads) {
  require(threads >= 1 && threads <= 4096, "threads must be between 1 and 4096, got " + str(threads));
}

// Outputs may overlap nothing else.
inline void require_disjoint(std::initializer_list<Extent> outputs, std::initializer_list<Extent> inputs) {
  const auto overlap = [](const Extent& a, const Extent& b) { return a.begin < b.end && b.begin < a.end; };
  for (const Extent* out = outputs.begin(); out != outputs.end(); ++out) {
    for (const Extent& in : inputs)
      if (overlap(*out, in)) reject(std::string(out->name) + " must not overlap " + in.name + "; give it memory of its own");
    for (const Extent* other = out + 1; other != outputs.end(); ++other)
      if (overlap(*out, *other)) reject(std::string(out->name) + " must not overlap " + other->name + "; give it memory of its own");
  }
}

template <class Array>
Extent extent_of(const char* name, const Array& array) {
  const char* begin = reinterpret_cast<const char*>(array.data());
  int64_t last = 1;
  for (size_t d = 0; d < array.ndim(); ++d) {
    if (array.shape(d) == 0) return {name, begin, begin};
    last += (static_cast<int64_t>(array.shape(d)) - 1) * array.stride(d);
  }
  return {name, begin, begin + last * static_cast<int64_t>(array.dtype().bits / 8)};
}

// Rows must be contiguous in the last dimension and must not run into each other.
template <class Array>
void require_rows(const char* name, const Array& array) {
  int64_t inner = 1;
  for (size_t d = array.ndim(); d-- > 0;) {
    const int64_t size = static_cast<int64_t>(array.shape(d));
    if (size <= 1) continue;
    const bool last = d + 1 == array.ndim();
    if (last ? array.stride(d) != 1 : array.stride(d) < inner)
      reject(std::string(name) + " must have a contiguous last dimension and rows that do not overlap, got stride " + str(array.stride(d)) +
             " in dimension " + str(static_cast<int64_t>(d)) + "; call .contiguous() first");
    inner = (size - 1) * array.stride(d) + inner;
  }
}

// Stride of dimension d; where the dimension has one element the stride means nothing, and the span of the inner ones stands in.
template <class Array>
int64_t stride_of(const Array& array, size_t d) {
  if (array.shape(d) > 1) return array.stride(d);
  return d + 1 < array.ndim() ? static_cast<int64_t>(array.shape(d + 1)) * (d + 2 < array.ndim() ? stride_of(array, d + 1) : 1) : 1;
}

template <class Array>
void require_contiguous(const char* name, const Array& array) {
  int64_t expected = 1;
  for (size_t d = array.ndim(); d-- > 0;) {
    if (array.shape(d) > 1 && array.stride(d) != expected) reject(std::string(name) + " must be contiguous; call .contiguous() first");
    expected *= static_cast<int64_t>(array.shape(d));
  }
}

template <class Array>
void require_shape(const char* name, const Array& array, std::initializer_list<int64_t> shape) {
  size_t d = 0;
  for (const int64_t size : shape) {
    if (static_cast<int64_t>(array.shape(d)) != size)
      reject(std::string(name) + " must have size " + str(size) + " in dimension " + str(static_cast<int64_t>(d)) + ", got " +
             str(static_cast<int64_t>(array.shape(d))));
    ++d;
  }
}

void bind_embedding(nb::module_& m);
void bind_dense(nb::module_& m);
void bind_interaction(nb::module_& m);

}  // namespace autotune
