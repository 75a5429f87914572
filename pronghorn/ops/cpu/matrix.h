// Weights as the kernels read them: packed once, at load.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

#include "kernels.h"

namespace ph {

struct FreeBytes {
    void operator()(void* p) const { std::free(p); }
};
using Bytes = std::unique_ptr<void, FreeBytes>;

// n zeroed bytes on a cache line's boundary. Throws std::bad_alloc.
Bytes zeroed(std::size_t n);

// A matrix (n_out, n_in) as it comes: elements of `kind` at the given strides, in bytes.
struct Source {
    Kind kind;
    int n_out, n_in;
    const void* w;
    std::ptrdiff_t row, column;
    const float* scale;  // (n_out,) for I8, else null
};

struct PackedMatrix {
    Mat mat{};
    Bytes w, scale;
};

// Room for a matrix, and one of its panels put there.
PackedMatrix prepare(const Source& source);
void pack(const Source& source, const PackedMatrix& to, int panel);

}  // namespace ph
