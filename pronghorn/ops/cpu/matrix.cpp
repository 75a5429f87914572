#include "matrix.h"

#include <cstring>

namespace ph {
namespace {

// One panel, written in order: sixteen rows are read side by side.
template <typename T>
void fill(const Source& s, const Mat& m, int panel, char* out) {
    const int pair = s.kind == IN_BF16 ? 2 : 1, first = panel * PAGE;
    const int n = s.n_out - first < PAGE ? s.n_out - first : PAGE;
    const char* from = static_cast<const char*>(s.w) + first * s.row;
    T* to = reinterpret_cast<T*>(out + panel * m.panel);
    for (int i = 0; i < s.n_in; ++i) {
        T* step = to + std::size_t(i / pair) * PAGE * pair + i % pair;
        const char* column = from + i * s.column;
        for (int o = 0; o < n; ++o) std::memcpy(step + o * pair, column + o * s.row, sizeof(T));
    }
}

// One factor per output, filled up to whole panels.
void scales(PackedMatrix& m, const float* scale, float by) {
    m.scale = zeroed(sizeof(float) * PAGE * m.mat.n_panels);
    float* to = static_cast<float*>(m.scale.get());
    for (int i = 0; i < m.mat.n_out; ++i) to[i] = scale[i] * by;
    m.mat.scale = to;
}

}  // namespace

PackedMatrix prepare(const Source& s) {
    PackedMatrix out;
    Mat& m = out.mat;
    m.kind = s.kind;
    m.n_out = s.n_out;
    m.n_in = s.n_in;
    m.n_panels = (s.n_out + PAGE - 1) / PAGE;
    m.n_steps = s.kind == IN_BF16 ? (s.n_in + 1) / 2 : s.n_in;
    m.panel = std::size_t(m.n_steps) * (s.kind == IN_F16 ? 32 : s.kind == IN_F8 ? 16 : 64);
    m.panel = (m.panel + 63) / 64 * 64;
    if (m.panel >= 4096) m.panel += 5 * 64;  // for the reason that row_stride gives
    out.w = lasting(m.panel * m.n_panels);
    m.w = out.w.get();
    if (s.kind == IN_F8) {
        scales(out, s.scale, 256.0f);  // see veighth
    }
    return out;
}

PackedMatrix take(const CodesSource& s) {
    PackedMatrix out;
    Mat& m = out.mat;
    m.kind = IN_CODES;
    m.grid = s.grid;
    m.n_out = s.n_out;
    m.n_in = s.n_in;
    m.n_panels = (s.n_out + PAGE - 1) / PAGE;
    m.n_steps = (s.n_in + UNIT - 1) / UNIT;
    m.panel = s.panel;
    m.w = s.w;
    if (!s.in_place()) {
        out.w = lasting(m.panel * m.n_panels);
        std::memcpy(out.w.get(), s.w, m.panel * m.n_panels);
        m.w = out.w.get();
    }
    if (s.scale) scales(out, s.scale, 1.0f);
    return out;
}

void pack(const Source& s, const PackedMatrix& to, int panel) {
    char* out = static_cast<char*>(to.w.get());
    switch (s.kind) {
        case IN_F32: return fill<float>(s, to.mat, panel, out);
        case IN_BF16: return fill<std::uint16_t>(s, to.mat, panel, out);
        case IN_F16: return fill<std::uint16_t>(s, to.mat, panel, out);
        case IN_F8: return fill<std::uint8_t>(s, to.mat, panel, out);
        case IN_CODES: return;  // come packed
    }
}

}  // namespace ph
