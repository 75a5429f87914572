// What the parts of the Python module have in common.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace nb = nanobind;

template <typename T, int N>
using Flat = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Ints = Flat<std::int32_t, 1>;
using Floats = Flat<float, 1>;
using Doubles = Flat<double, 1>;

inline void need(bool ok, const char* what) {
    if (!ok) throw nb::value_error(what);
}
inline void need(bool ok, const std::string& what) { need(ok, what.c_str()); }

// An array that owns its values.
template <typename T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> array_of(std::vector<T> values) {
    auto held = std::make_unique<std::vector<T>>(std::move(values));
    T* const at = held->data();
    const std::size_t n = held->size();
    nb::capsule owner(held.get(), [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    static_cast<void>(held.release());
    return nb::ndarray<nb::numpy, T, nb::ndim<1>>(at, {n}, owner);
}

void bind_drafts(nb::module_& m);
