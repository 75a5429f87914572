#include "matrix.h"

#include <cstring>
#include <new>

namespace ph {
namespace {

template <typename T>
void pack_panels(const Source& s, const Mat& m, T* out) {
    const int pair = s.kind == F32 ? 1 : 2;
    const std::size_t panel = m.panel / sizeof(T);
    for (int o = 0; o < s.n_out; ++o) {
        const char* row = static_cast<const char*>(s.w) + o * s.row;
        T* to = out + o / 16 * panel + std::size_t(o % 16) * pair;
        for (int i = 0; i < s.n_in; ++i) {
            std::memcpy(to + std::size_t(i / pair) * 16 * pair + i % pair, row + i * s.column,
                        sizeof(T));
        }
    }
}

}  // namespace

Bytes zeroed(std::size_t n) {
    const std::size_t whole = (n + 63) / 64 * 64;
    void* p = std::aligned_alloc(64, whole ? whole : 64);
    if (!p) throw std::bad_alloc();
    std::memset(p, 0, whole ? whole : 64);
    return Bytes(p);
}

PackedMatrix pack(const Source& s) {
    PackedMatrix out;
    Mat& m = out.mat;
    m.kind = s.kind;
    m.n_out = s.n_out;
    m.n_in = s.n_in;
    m.n_panels = (s.n_out + 15) / 16;
    m.n_steps = s.kind == F32 ? s.n_in : (s.n_in + 1) / 2;
    m.panel = std::size_t(m.n_steps) * (s.kind == I8 ? 32 : 64);
    if (m.panel >= 4096) m.panel += 5 * 64;  // for the reason that row_stride gives
    out.w = zeroed(m.panel * m.n_panels);
    m.w = out.w.get();
    switch (s.kind) {
        case F32: pack_panels(s, m, static_cast<float*>(out.w.get())); break;
        case BF16: pack_panels(s, m, static_cast<std::uint16_t*>(out.w.get())); break;
        case I8: pack_panels(s, m, static_cast<std::int8_t*>(out.w.get())); break;
    }
    if (s.kind == I8) {
        out.scale = zeroed(sizeof(float) * 16 * m.n_panels);
        std::memcpy(out.scale.get(), s.scale, sizeof(float) * s.n_out);
        m.scale = static_cast<const float*>(out.scale.get());
    }
    return out;
}

}  // namespace ph
