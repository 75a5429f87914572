// What every instruction set offers: one table of function pointers per set, and the same table type.
//
// To add a kernel: declare a pointer here, write it in a kernels*.cpp inside namespace ph::PH_ISA
// (those files are compiled once per set), and name it in that file's table. Code that runs
// kernels calls through `ph::kernels()` of isa.h, never through a set's namespace.
#pragma once

#include <cstddef>

namespace ph {

struct Kernels {
    // Inner product of n floats; the order of additions is fixed per set and independent of n's use.
    float (*dot)(const float* a, const float* b, std::size_t n);
};

#if defined(__x86_64__)
#define PH_FOR_EACH_ISA(X) X(baseline) X(avx2) X(avx512)
#elif defined(__aarch64__)
#define PH_FOR_EACH_ISA(X) X(baseline) X(dotprod)
#else
#error "Pronghorn has no kernels for this architecture"
#endif

#define PH_DECLARE_TABLE(name) \
    namespace name {           \
    extern const Kernels table; \
    }
PH_FOR_EACH_ISA(PH_DECLARE_TABLE)
#undef PH_DECLARE_TABLE

}  // namespace ph
