// Weights as the kernels read them: packed once, at load.
#pragma once

#include <cstddef>

#include "kernels.h"
#include "memory.h"

namespace ph {

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
