// From weights to codes, and from codes to the panels that kernels read; both at load.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "matrix.h"

namespace ph {

// A matrix on a grid, see ops/codes.py: code (n_out, n_in), the others (n_out, n_groups) or, `over` and
// `under`, (n_out, ceil(n_in / SUPER)), as bytes.
struct Codes {
    Grid grid;
    int n_out, n_in;
    const std::uint8_t* code;
    const std::uint8_t* scale;
    const std::uint8_t* offset;
    const std::uint8_t* over;
    const std::uint8_t* under;
};

// Fills panels that lie `panel` bytes apart, zeros so far, as ops/panels.py lays them out.
void pack(const Codes& codes, std::uint8_t* panels, std::size_t panel);

// The codes of least squared error, see quantize/fit.py: fills code, scale and offset. weight: null, or
// (n_in,).
Fitted fit(const Source& from, const Grid& grid, const float* weight, std::uint8_t* code, std::uint8_t* scale,
           std::uint8_t* offset);

}  // namespace ph
