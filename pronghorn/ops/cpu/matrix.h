// Weights as the kernels read them: packed once, at load.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "memory.h"

namespace ph {

// A matrix (n_out, n_in) as it comes: elements of `kind` at the given strides, in bytes.
struct Source {
    Weights kind;
    int n_out, n_in;
    const void* w;
    std::ptrdiff_t row, column;
    const float* scale;  // (n_out,) for E4M3, else null
};

// A matrix of codes: panels as ops/panels.py lays them out, `panel` bytes apart.
struct CodesSource {
    Grid grid;
    int n_out, n_in;
    const void* w;
    std::size_t panel;
    const float* scale;  // (n_out,) where one serves a row, else null
    bool in_place() const { return reinterpret_cast<std::uintptr_t>(w) % 64 == 0; }
};

struct PackedMatrix {
    Mat mat{};
    Bytes w, scale;
    int order = -1;  // of its inputs, where it is not theirs
};

// Room for a matrix, and one of its panels put there.
PackedMatrix prepare(const Source& source);
void pack(const Source& source, const PackedMatrix& to, int panel);

// Codes on a cache line's boundary are read where they lie, and must stay there; others are copied.
PackedMatrix take(const CodesSource& source);

}  // namespace ph
