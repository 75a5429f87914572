// Kernels, compiled once per instruction set with -DPH_ISA=<set> and that set's flags.
//
// The linker keeps one copy of every inline function or template instance shared between objects,
// and it may keep the copy made with AVX-512: on an older machine that is an illegal instruction
// far from here. So nothing in this file may instantiate the standard library: plain loops, C
// headers and intrinsics only, and every helper lives in an unnamed namespace.
#include "kernels.h"
#include "vec_int.h"

namespace ph::PH_ISA {
namespace {

float dot(const float* a, const float* b, std::size_t n) {
    std::size_t i = 0;
#if defined(__AVX512F__)
    __m512 acc = _mm512_setzero_ps();
    for (; i + 16 <= n; i += 16) {
        acc = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), acc);
    }
    float sum = _mm512_reduce_add_ps(acc);
#elif defined(__AVX2__)
    __m256 acc = _mm256_setzero_ps();
    for (; i + 8 <= n; i += 8) {
        acc = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), acc);
    }
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(acc), _mm256_extractf128_ps(acc, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    float sum = _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
#elif defined(__aarch64__)
    float32x4_t acc = vdupq_n_f32(0.0f);
    for (; i + 4 <= n; i += 4) {
        acc = vfmaq_f32(acc, vld1q_f32(a + i), vld1q_f32(b + i));
    }
    float sum = vaddvq_f32(acc);
#else
    __m128 acc = _mm_setzero_ps();
    for (; i + 4 <= n; i += 4) {
        acc = _mm_add_ps(acc, _mm_mul_ps(_mm_loadu_ps(a + i), _mm_loadu_ps(b + i)));
    }
    acc = _mm_add_ps(acc, _mm_movehl_ps(acc, acc));
    float sum = _mm_cvtss_f32(_mm_add_ss(acc, _mm_shuffle_ps(acc, acc, 1)));
#endif
    for (; i < n; ++i) {
        sum += a[i] * b[i];
    }
    return sum;
}


// Whole vectors of 16, then the rest through a buffer: the same arithmetic for every value.
template <typename F>
PH_INLINE void each(int n, F f) {
    int i = 0;
    for (; i + 16 <= n; i += 16) f(i, 16);
    if (i < n) f(i, n - i);
}
PH_INLINE V get(const float* p, int n) { return n == 16 ? vld(p) : vld_part(p, n); }
PH_INLINE void put(float* p, const V& a, int n) { n == 16 ? vst(p, a) : vst_part(p, a, n); }

void to_kv(const float* x, void* out, int n, Kind kind) {
    if (kind == F32) {
        memcpy(out, x, sizeof(float) * n);
        return;
    }
    uint16_t* y = static_cast<uint16_t*>(out);
    for (int i = 0; i < n; ++i) y[i] = narrowed(x[i]);
}

// Value i of a row lies `at(i)` values from the start of its panel, or of the row itself.
template <typename T, typename At, typename Widen>
PH_INLINE void embed_from(const void* w, float* out, int n, float scale, At at, Widen widen) {
    const T* p = static_cast<const T*>(w);
    for (int i = 0; i < n; ++i) out[i] = widen(p[at(i)]) * scale;
}

template <typename T, typename Widen>
void embed_as(const Mat& m, int row, float scale, float* out, Widen widen) {
    const size_t lane = row % 16;
    if (!m.n_panels) {
        const T* w = static_cast<const T*>(m.w) + size_t(row) * m.n_in;
        embed_from<T>(w, out, m.n_in, scale, [](size_t i) { return i; }, widen);
        return;
    }
    const char* w = static_cast<const char*>(m.w) + size_t(row / 16) * m.panel;
    if (m.kind == IN_BF16) {
        const auto at = [=](size_t i) { return (i / 2 * 16 + lane) * 2 + (i & 1); };
        embed_from<T>(w, out, m.n_in, scale, at, widen);
    } else {
        embed_from<T>(w, out, m.n_in, scale, [=](size_t i) { return i * 16 + lane; }, widen);
    }
}

void embed(const Mat& m, int row, float scale, float* out) {
    switch (m.kind) {
        case IN_F32: return embed_as<float>(m, row, scale, out, [](float x) { return x; });
        case IN_BF16: return embed_as<uint16_t>(m, row, scale, out, [](uint16_t x) { return widened(x); });
        case IN_F16: return embed_as<uint16_t>(m, row, scale, out, [](uint16_t x) { return half_to_float(x); });
        case IN_F8: {  // a panel's scale makes up for 2^8 already
            const float by = m.scale[row] * (m.n_panels ? 1.0f : 256.0f);
            return embed_as<uint8_t>(m, row, scale, out, [by](uint8_t x) {
                return half_to_float(eighth_to_half(x)) * by;
            });
        }
        case IN_CODES: return embed_codes(m, row, scale, out);
    }
}

void norm(const float* x, const float* w, const float* b, float* y, int width, int group, float eps,
          bool centre) {
    for (int at = 0; at < width; at += group) {
        const float* xs = x + at;
        float* ys = y + at;
        float mean = 0.0f;
        if (centre) {
            V sum = vall(0.0f);
            each(group, [&](int i, int n) { sum = vadd(sum, get(xs + i, n)); });
            mean = vsum(sum) / float(group);
        }
        V squares = vall(0.0f);
        each(group, [&](int i, int n) {
            V d = vsub(get(xs + i, n), vall(mean));
            if (n < 16 && centre) {  // unused lanes hold 0 - mean
                float t[16] = {};
                vst_part(t, d, n);
                d = vld(t);
            }
            squares = vfma(d, d, squares);
        });
        const float root = __builtin_sqrtf(vsum(squares) / float(group) + eps);
        const V by = vall(1.0f / root);
        each(group, [&](int i, int n) {
            V d = vmul(vmul(vsub(get(xs + i, n), vall(mean)), by), get(w + i, n));
            if (b) d = vadd(d, get(b + i, n));
            put(ys + i, d, n);
        });
    }
}

void rotate(const float* x, const float* cos, const float* sin, float* y, int heads, int dim,
            int half) {
    for (int h = 0; h < heads; ++h, x += dim, y += dim) {
        each(half, [&](int i, int n) {
            const V a = get(x + i, n), b = get(x + half + i, n);
            const V c = get(cos + i, n), s = get(sin + i, n);
            put(y + i, vsub(vmul(a, c), vmul(b, s)), n);
            put(y + half + i, vadd(vmul(b, c), vmul(a, s)), n);
        });
        for (int i = 2 * half; i < dim; ++i) y[i] = x[i];
    }
}

template <int FN>
PH_INLINE V activated(const V& x) {
    const V one = vall(1.0f), half = vall(0.5f);
    if constexpr (FN == SILU) {
        // below -88 our exp stands still, and 1e38 over it would not be 0
        const V y = vmax(vall(-88.0f), x);
        return vdiv(y, vadd(one, vexp(vsub(vall(0.0f), y))));
    } else if constexpr (FN == GELU) {
        return vmul(vmul(half, x), vadd(one, verf(vmul(x, vall(0.70710678118654752f)))));
    } else if constexpr (FN == GELU_TANH) {
        const V cube = vmul(vmul(vmul(x, x), x), vall(0.044715f));
        const V inner = vmul(vadd(x, cube), vall(0.79788456080286536f));
        return vmul(vmul(half, x), vadd(one, vtanh(inner)));
    } else {
        return vmax(x, vall(0.0f));
    }
}

template <int FN>
void act_of(const float* x, const float* up, float* y, int n) {
    each(n, [&](int i, int m) {
        V a = activated<FN>(get(x + i, m));
        if (up) a = vmul(a, get(up + i, m));
        put(y + i, a, m);
    });
}

void glu(const float* gate, const float* up, float* y, int n, Act fn) {
    switch (fn) {
        case SILU: return act_of<SILU>(gate, up, y, n);
        case GELU: return act_of<GELU>(gate, up, y, n);
        case GELU_TANH: return act_of<GELU_TANH>(gate, up, y, n);
        case RELU: return act_of<RELU>(gate, up, y, n);
    }
}

void act(const float* x, float* y, int n, Act fn) { glu(x, nullptr, y, n, fn); }

void plus(const float* a, const float* b, float* y, int n) {
    each(n, [&](int i, int m) { put(y + i, vadd(get(a + i, m), get(b + i, m)), m); });
}

void times(const float* x, float by, float* y, int n) {
    each(n, [&](int i, int m) { put(y + i, vmul(get(x + i, m), vall(by)), m); });
}

void axpy(float a, const float* x, float* y, int n) {
    each(n, [&](int i, int m) { put(y + i, vfma(vall(a), get(x + i, m), get(y + i, m)), m); });
}

void softcap(float* x, int n, float scale, float cap) {
    each(n, [&](int i, int m) {
        V y = vmul(get(x + i, m), vall(scale));
        if (cap > 0) y = vmul(vtanh(vdiv(y, vall(cap))), vall(cap));
        put(x + i, y, m);
    });
}

void softmax(float* x, int n) {
    float top = x[0];
    for (int i = 1; i < n; ++i) top = x[i] > top ? x[i] : top;
    V sum = vall(0.0f);
    each(n, [&](int i, int m) {
        V e = vexp(vsub(get(x + i, m), vall(top)));
        put(x + i, e, m);
        sum = vadd(sum, get(x + i, m));
    });
    const V by = vall(vsum(sum));
    each(n, [&](int i, int m) { put(x + i, vdiv(get(x + i, m), by), m); });
}

float largest(const float* x, int n) {
    float top = x[0];
    int i = 0;
    if (n >= 16) {
        V tops = vld(x);
        for (i = 16; i + 16 <= n; i += 16) tops = vmax(tops, vld(x + i));
        top = highest(tops);
    }
    for (; i < n; ++i) top = x[i] > top ? x[i] : top;
    return top;
}

float weigh(const float* x, float* y, int n, float top, float by) {
    V sum = vall(0.0f);
    each(n, [&](int i, int m) {
        put(y + i, vexp(vmul(vsub(get(x + i, m), vall(top)), vall(by))), m);
        sum = vadd(sum, get(y + i, m));
    });
    return vsum(sum);
}

}  // namespace

extern const Kernels table;
const Kernels table = {
    .dot = dot,
    .packs_input = PH_PACKS,
    .narrow = narrow,
    .linear = linear,
    .to_kv = to_kv,
    .embed = embed,
    .norm = norm,
    .rotate = rotate,
    .act = act,
    .glu = glu,
    .add = plus,
    .scale = times,
    .axpy = axpy,
    .softcap = softcap,
    .softmax = softmax,
    .largest = largest,
    .weigh = weigh,
    .attend = attend,
    .attend_merge = attend_merge,
    .fit = fit,
};

}  // namespace ph::PH_ISA
