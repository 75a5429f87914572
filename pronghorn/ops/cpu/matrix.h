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
    bool stays;          // the panels outlive the matrix, as those of a mapped file do
    bool in_place() const { return stays && reinterpret_cast<std::uintptr_t>(w) % 64 == 0; }
};

struct PackedMatrix {
    Mat mat{};
    Bytes w, scale;
};

// Room for a matrix, and one of its panels put there.
PackedMatrix prepare(const Source& source);
void pack(const Source& source, const PackedMatrix& to, int panel);

// Codes are read where they lie if they stay there, on a cache line's boundary: else they are copied.
PackedMatrix take(const CodesSource& source);

}  // namespace ph
