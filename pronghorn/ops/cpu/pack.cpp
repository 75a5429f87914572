#include <cstring>

#include "codes.h"
#include "share.h"

namespace ph {
namespace {

// Bits `low` and on of the codes of 8 steps, `bits` of them each, as `bits` vectors of 64 bytes: step s lies in
// vector s % bits, the further up the later it comes. Words, since no code crosses a byte.
void together(const std::uint32_t (&steps)[8][16], int low, int bits, std::uint8_t* out) {
    const std::uint32_t mask = 0x01010101u * ((1u << bits) - 1);
    for (int v = 0; v < bits; ++v) {
        std::uint32_t all[16] = {};
        for (int s = v; s < 8; s += bits) {
            const int up = s / bits * bits;
            for (int o = 0; o < 16; ++o) all[o] |= (steps[s][o] >> low & mask) << up;
        }
        std::memcpy(out + v * 64, all, 64);
    }
}

// A unit of 32 inputs from input k on, of n_rows rows.
void unit(const Codes& c, int row, int n_rows, int k, std::uint8_t* out) {
    std::uint32_t steps[8][16] = {};
    const int n = c.n_in - k < UNIT ? c.n_in - k : UNIT;
    const std::uint8_t* from = c.code + std::size_t(row) * c.n_in + k;
    for (int o = 0; o < n_rows; ++o, from += c.n_in) {
        std::uint32_t words[8] = {};
        if (n == UNIT) {
            std::memcpy(words, from, UNIT);
        } else {
            std::memcpy(words, from, std::size_t(n));
        }
        for (int s = 0; s < 8; ++s) steps[s][o] = words[s];
    }
    const int bits = c.grid.bits, low = bits == 8 ? 8 : bits >= 4 ? 4 : 2;
    if (bits == 8) {
        std::memcpy(out, steps, sizeof steps);
        return;
    }
    together(steps, 0, low, out);
    if (bits > low) together(steps, low, bits - low, out + low * 64);
}

// n factors from the `first` of each row on, turned: those of 16 rows follow each other.
std::uint8_t* factors(const std::uint8_t* from, int row, int n_rows, int of, int first, int n, int size,
                      std::uint8_t* out) {
    for (int o = 0; o < n_rows; ++o) {
        const std::uint8_t* f = from + (std::size_t(row + o) * of + first) * size;
        for (int i = 0; i < n; ++i) std::memcpy(out + (i * PAGE + o) * size, f + i * size, std::size_t(size));
    }
    return out + std::size_t(n) * PAGE * size;
}

void panel_of(const Codes& c, int row, std::uint8_t* out) {
    const Grid& g = c.grid;
    const int n_rows = c.n_out - row < PAGE ? c.n_out - row : PAGE;
    const int n_groups = groups_of(c.n_in, g.group), n_supers = (c.n_in + SUPER - 1) / SUPER;
    for (int k = 0; k < c.n_in; k += SUPER) {
        const int some = c.n_in - k < SUPER ? c.n_in - k : SUPER, n = groups_of(some, g.group);
        if (n) {
            const int first = k / g.group, wide = g.scale == BY_TWO ? 1 : 2;
            std::uint8_t* at = factors(c.scale, row, n_rows, n_groups, first, n, wide, out);
            if (g.offset) {
                at = factors(c.offset, row, n_rows, n_groups, first, n, g.offset == OF_VALUE ? wide : 1, at);
            }
            if (g.scale == BY_TWO) at = factors(c.over, row, n_rows, n_supers, k / SUPER, 1, 2, at);
            if (g.offset == OF_TWO) factors(c.under, row, n_rows, n_supers, k / SUPER, 1, 2, at);
        }
        out += before_codes(g, n);
        for (int i = 0; i < some; i += UNIT, out += std::size_t(64) * g.bits) unit(c, row, n_rows, k + i, out);
    }
}

}  // namespace

void pack(const Codes& c, std::uint8_t* panels, std::size_t panel) {
    const int n_panels = (c.n_out + PAGE - 1) / PAGE;
    const auto some = [&](int i) { panel_of(c, i * PAGE, panels + i * panel); };
    share(n_panels, (1 << 18) / c.n_in / PAGE + 1, [&] { return some; });
}

}  // namespace ph
