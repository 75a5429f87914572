#include "matrix.h"

#include <cstring>

namespace ph {
namespace {

// One panel, written in order: sixteen rows are read side by side.
template <typename T>
void fill(const Source& s, const Mat& m, int panel, char* out) {
    const int pair = s.kind == F32 ? 1 : 2, first = panel * PAGE;
    const int n = s.n_out - first < PAGE ? s.n_out - first : PAGE;
    const char* from = static_cast<const char*>(s.w) + first * s.row;
    T* to = reinterpret_cast<T*>(out + panel * m.panel);
    for (int i = 0; i < s.n_in; ++i) {
        T* step = to + std::size_t(i / pair) * PAGE * pair + i % pair;
        const char* column = from + i * s.column;
        for (int o = 0; o < n; ++o) std::memcpy(step + o * pair, column + o * s.row, sizeof(T));
    }
}

}  // namespace

PackedMatrix prepare(const Source& s) {
    PackedMatrix out;
    Mat& m = out.mat;
    m.kind = s.kind;
    m.n_out = s.n_out;
    m.n_in = s.n_in;
    m.n_panels = (s.n_out + PAGE - 1) / PAGE;
    m.n_steps = s.kind == F32 ? s.n_in : (s.n_in + 1) / 2;
    m.panel = std::size_t(m.n_steps) * (s.kind == I8 ? 32 : 64);
    if (m.panel >= 4096) m.panel += 5 * 64;  // for the reason that row_stride gives
    out.w = lasting(m.panel * m.n_panels);
    m.w = out.w.get();
    if (s.kind == I8) {
        out.scale = zeroed(sizeof(float) * PAGE * m.n_panels);
        std::memcpy(out.scale.get(), s.scale, sizeof(float) * s.n_out);
        m.scale = static_cast<const float*>(out.scale.get());
    }
    return out;
}

void pack(const Source& s, const PackedMatrix& to, int panel) {
    char* out = static_cast<char*>(to.w.get());
    switch (s.kind) {
        case F32: return fill<float>(s, to.mat, panel, out);
        case BF16: return fill<std::uint16_t>(s, to.mat, panel, out);
        case I8: return fill<std::int8_t>(s, to.mat, panel, out);
    }
}

}  // namespace ph
