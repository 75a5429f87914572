#include <mutex>
#include <utility>
#include <vector>

#include "codes.h"
#include "isa.h"
#include "share.h"

namespace ph {

Fitted fit(const Source& from, const Grid& grid, const float* weight, std::uint8_t* code, std::uint8_t* scale,
           std::uint8_t* offset) {
    const Kernels& kernels = ph::kernels();
    const int n_groups = grid.group ? groups_of(from.n_in, grid.group) : 1;
    const std::size_t wide = grid.scale == BY_ROW ? 4 : 2;
    const int n_panels = (from.n_out + PAGE - 1) / PAGE;
    std::mutex lock;
    Fitted worst{FITTED, 0.0f};
    const auto some = [&](int panel, float* scratch) {
        const int first = panel * PAGE, rest = from.n_out - first;
        Fit f;
        f.grid = grid;
        f.n_rows = rest < PAGE ? rest : PAGE;
        f.n_in = from.n_in;
        f.n_groups = n_groups;
        f.kind = from.kind;
        f.w = static_cast<const char*>(from.w) + first * from.row;
        f.row = from.row;
        f.column = from.column;
        f.weight = weight;
        f.scratch = scratch;
        f.code = code + std::size_t(first) * from.n_in;
        f.scale = scale + std::size_t(first) * n_groups * wide;
        f.offset = grid.offset ? offset + std::size_t(first) * n_groups * wide : nullptr;
        const Fitted got = kernels.fit(f);
        if (got.ending == FITTED) return;
        // a NaN says more than a magnitude
        const std::lock_guard<std::mutex> hold(lock);
        const bool says_more = worst.ending == FITTED || got.ending == NOT_FINITE;
        if (says_more || (worst.ending == TOO_LARGE && got.size > worst.size)) worst = got;
    };
    share(n_panels, (1 << 16) / from.n_in / PAGE + 1, [&] {
        std::vector<float> scratch(fit_scratch(grid, from.n_in));
        return [&some, scratch = std::move(scratch)](int panel) mutable { some(panel, scratch.data()); };
    });
    return worst;
}

}  // namespace ph
