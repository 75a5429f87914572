// Python bindings of the native extension; _native.pyi gives their types.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "isa.h"

namespace nb = nanobind;

namespace {

using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

float dot(const Vector& a, const Vector& b) {
    if (a.shape(0) != b.shape(0)) throw nb::value_error("dot: the lengths differ");
    return ph::kernels().dot(a.data(), b.data(), a.shape(0));
}

// The user's errors are pronghorn.errors; that module is imported only when one is raised.
void translate_isa_error(const std::exception_ptr& error, void*) {
    try {
        std::rethrow_exception(error);
    } catch (const ph::IsaError& e) {
        const nb::object type = nb::module_::import_("pronghorn.errors").attr("UnsupportedError");
        PyErr_SetString(type.ptr(), e.what());
    }
}

}  // namespace

NB_MODULE(_native, m) {
    nb::register_exception_translator(translate_isa_error);
    m.def("isas", &ph::supported_isas);
    m.def("isa", &ph::isa);
    m.def("dot", &dot, nb::arg("a").noconvert(), nb::arg("b").noconvert());
}
