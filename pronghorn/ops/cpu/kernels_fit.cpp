// Codes of least squared error on a grid; quantize/fit.py says what is looked for.
//
// Sixteen rows are searched side by side, one in each lane: a group of inputs is turned so that a vector
// holds one input of all rows, and nothing is ever folded. Widths that do not divide need no care then, and
// sets differ in nothing but how many registers make a vector. Sums are taken in stretches of STRETCH inputs:
// candidates for a whole row in 8 bits differ by a millionth of the sums that tell which is the best.
// The rules of kernels.cpp hold.
#include "kernels.h"
#include "vec_int.h"

namespace ph::PH_ISA {
namespace {

constexpr int STRETCH = 128;
constexpr int ROUNDS = 2;  // of rounding and solving in turn, after the best candidate is known

// Levels past the last one at which the largest magnitude of a group is tried.
struct Past {
    int n;
    float by[5];
};
constexpr Past FINE = {3, {0.0f, 0.5f, 1.0f}}, FOUR = {5, {-0.4f, 0.0f, 0.4f, 0.8f, 1.3f}},
               THREE = {5, {-0.4f, 0.0f, 0.4f, 0.8f, 1.2f}}, TWO = {5, {-0.4f, -0.1f, 0.2f, 0.5f, 0.8f}};
PH_INLINE const Past& past(int bits) {
    return bits > 4 ? FINE : bits == 4 ? FOUR : bits == 3 ? THREE : TWO;
}
// Shares of a group's range, beside all of it, that the levels of a grid with an offset span.
struct Shrunk {
    int n;
    float by[2];
};
constexpr Shrunk ALL = {0, {}}, MOST6 = {1, {0.95f}}, MOST5 = {1, {0.93f}}, MOST4 = {2, {0.92f, 0.84f}},
                 MOST3 = {2, {0.88f, 0.76f}}, MOST2 = {2, {0.8f, 0.6f}};
PH_INLINE const Shrunk& shrunk(int bits) {
    return bits == 8   ? ALL
           : bits == 6 ? MOST6
           : bits == 5 ? MOST5
           : bits == 4 ? MOST4
           : bits == 3 ? MOST3
                       : MOST2;
}

// The whole number nearest to x, between two others not beyond 2^22.
PH_INLINE V nearest(const V& x, const V& low, const V& high) {
    const V magic = vall(12582912.0f);  // 1.5 * 2^23
    return vsub(vadd(vmin(vmax(x, low), high), magic), magic);
}

// Levels as they are rounded to, and their codes.
struct Whole {
    V low, high;
    float zero;
    explicit Whole(const Grid& g)
        : low(vall(float(-g.zero))), high(vall(float((1 << g.bits) - 1 - g.zero))), zero(float(g.zero)) {}
    PH_INLINE V level(const V& x) const { return nearest(x, low, high); }
    PH_INLINE V code(const V& x) const { return vadd(level(x), vall(zero)); }
};
struct Table {
    float of[16], from[16];  // level c is the nearest from from[c] on
    explicit Table(const Grid& g) {
        for (int c = 0; c < 16; ++c) of[c] = float(g.level[c]) - 128.0f;
        for (int c = 1; c < 16; ++c) from[c] = 0.5f * (of[c - 1] + of[c]);
    }
    PH_INLINE V level(const V& x) const {
        V q = vall(of[0]);
        PH_UNROLL for (int c = 1; c < 16; ++c) q = vif_less(x, vall(from[c]), q, vall(of[c]));
        return q;
    }
    PH_INLINE V code(const V& x) const {
        V q = vall(0.0f);
        PH_UNROLL for (int c = 1; c < 16; ++c) q = vif_less(x, vall(from[c]), q, vall(float(c)));
        return q;
    }
};

// 1 / a, 0 where there is no float for it.
PH_INLINE V inverse(const V& a) {
    return vif_less(vabs(a), vall(1.1754944e-38f), vall(0.0f), vdiv(vall(1.0f), a));
}

[[maybe_unused]] uint16_t to_half(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    const uint32_t sign = u >> 16 & 0x8000u;
    u &= 0x7fffffffu;
    if (u >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // 65520 and more: infinity
    if (u < 0x38800000u) {  // adding 0.5 leaves the multiple of 2^-24 in the low bits
        float y;
        memcpy(&y, &u, 4);
        y += 0.5f;
        memcpy(&u, &y, 4);
        return uint16_t(sign | (u - 0x3f000000u));
    }
    return uint16_t(sign | ((u + 0xfffu + (u >> 13 & 1u) - 0x38000000u) >> 13));
}
PH_INLINE void vst_halves(uint16_t* to, const V& a) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(a.p[0], _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
    PH_EACH _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * 8),
                             _mm256_cvtps_ph(a.p[i], _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    PH_EACH vst1_u16(to + i * 4, vreinterpret_u16_f16(vcvt_f16_f32(a.p[i])));
#else
    float t[16];
    vst(t, a);
    for (int i = 0; i < 16; ++i) to[i] = to_half(t[i]);
#endif
}

// Sixteen factors as the grid holds them, for each of n rows `apart` factors from the one before. Returns
// their values; `worst` is the largest magnitude that has no form.
V stored(const V& a, Scales kind, void* to, size_t apart, int n, float& worst) {
    if (kind == BY_ROW) {
        float t[16];
        vst(t, a);
        for (int r = 0; r < n; ++r) static_cast<float*>(to)[r * apart] = t[r];
        return a;
    }
    uint16_t h[16];
    if (kind == BY_HALF) {
        vst_halves(h, a);
    } else {
        float t[16];
        vst(t, a);
        for (int r = 0; r < 16; ++r) h[r] = narrowed(t[r]);
    }
    for (int r = 0; r < n; ++r) static_cast<uint16_t*>(to)[r * apart] = h[r];
    const V back = kind == BY_HALF ? vhalf(h) : vld(h);
    const float size = highest(vif_less(vabs(back), vall(__builtin_inff()), vall(-1.0f), vabs(a)));
    worst = size > worst ? size : worst;
    return back;
}

// n inputs of a group, turned: vector i is input i of each row.
struct Group {
    const float* w;
    const float* weight;  // of each input's squared error, or null
    int n;
};

template <bool WEIGHED>
PH_INLINE V weighed(const V& x, const Group& g, int i) {
    if constexpr (WEIGHED) return vmul(x, vall(g.weight[i]));
    return x;
}

// A scale that may be the best: the part of the squares that codes near w / a explain, and the scale that
// explains it. N at a time.
template <int N, bool WEIGHED, typename Levels>
PH_INLINE void solve(const Group& g, const Levels& levels, const V (&a)[N], V (&part)[N], V (&fitted)[N]) {
    const V zero = vall(0.0f);
    V by[N], wq[N], qq[N];
    PH_UNROLL for (int k = 0; k < N; ++k) {
        by[k] = inverse(a[k]);
        wq[k] = qq[k] = zero;
    }
    for (int from = 0; from < g.n; from += STRETCH) {
        const int to = from + STRETCH < g.n ? from + STRETCH : g.n;
        V wq1[N], qq1[N];
        PH_UNROLL for (int k = 0; k < N; ++k) wq1[k] = qq1[k] = zero;
        for (int i = from; i < to; ++i) {
            const V w = vld(g.w + size_t(i) * 16), wh = weighed<WEIGHED>(w, g, i);
            PH_UNROLL for (int k = 0; k < N; ++k) {
                const V q = levels.level(vmul(w, by[k]));
                wq1[k] = vfma(wh, q, wq1[k]);
                qq1[k] = vfma(q, weighed<WEIGHED>(q, g, i), qq1[k]);
            }
        }
        PH_UNROLL for (int k = 0; k < N; ++k) {
            wq[k] = vadd(wq[k], wq1[k]);
            qq[k] = vadd(qq[k], qq1[k]);
        }
    }
    PH_UNROLL for (int k = 0; k < N; ++k) {
        fitted[k] = vif_less(zero, qq[k], vdiv(wq[k], vif_less(zero, qq[k], qq[k], vall(1.0f))), zero);
        part[k] = vmul(wq[k], fitted[k]);
    }
}

// The scale of a group, where the grid has no offset.
template <bool WEIGHED, typename Levels>
V scale_of(const Group& g, const Levels& levels, const Grid& grid, float first, float last) {
    const V zero = vall(0.0f);
    V low = zero, high = zero;
    for (int i = 0; i < g.n; ++i) {
        const V w = vld(g.w + size_t(i) * 16);
        low = vmin(low, w);
        high = vmax(high, w);
    }
    const V below = vsub(zero, low), top = vif_less(high, below, low, high);
    const float unit = grid.table ? 16.0f : 1.0f;  // about one step between levels
    const Past& tries = past(grid.bits);
    V best = vall(-1.0f), scale = zero;
    const float ends[2] = {first, last};
    for (const float end : ends) {
        if (end == 0.0f) continue;  // levels that all have one sign
        const float step = end < 0 ? -unit : unit;
        const V one = vdiv(top, vall(end + step * tries.by[0]));
        const V other = vdiv(top, vall(end + step * tries.by[tries.n - 1]));
        const V least = vmin(one, other), most = vmax(one, other);
        const auto consider = [&](const V& part, const V& fitted) {
            const V held = vmin(vmax(fitted, least), most);
            scale = vif_less(best, part, held, scale);
            best = vif_less(best, part, part, best);
        };
        int k = 0;
        for (; k + 2 <= tries.n; k += 2) {
            const V a[2] = {vdiv(top, vall(end + step * tries.by[k])),
                            vdiv(top, vall(end + step * tries.by[k + 1]))};
            V part[2], fitted[2];
            solve<2, WEIGHED>(g, levels, a, part, fitted);
            consider(part[0], fitted[0]);
            consider(part[1], fitted[1]);
        }
        for (; k < tries.n; ++k) {
            const V a[1] = {vdiv(top, vall(end + step * tries.by[k]))};
            V part[1], fitted[1];
            solve<1, WEIGHED>(g, levels, a, part, fitted);
            consider(part[0], fitted[0]);
        }
    }
    const float widest = -first > last ? -first : last;
    const V least = vdiv(vabs(top), vall(widest + unit * tries.by[tries.n - 1]));
    for (int round = 0; round < ROUNDS; ++round) {
        const V a[1] = {scale};
        V part[1], fitted[1];
        solve<1, WEIGHED>(g, levels, a, part, fitted);
        const V better = vif_less(vabs(fitted[0]), least, vall(-1.0f), part[0]);
        scale = vif_less(best, better, fitted[0], scale);
        best = vif_less(best, better, better, best);
    }
    return scale;
}

// A scale and an offset: values a * code + b.
template <bool WEIGHED>
void line_of(const Group& g, const Grid& grid, V& scale, V& offset) {
    const V zero = vall(0.0f), last = vall(float((1 << grid.bits) - 1));
    V low = vld(g.w), high = low, sw = zero;
    float n = 0;
    for (int i = 0; i < g.n; ++i) {
        const V w = vld(g.w + size_t(i) * 16);
        low = vmin(low, w);
        high = vmax(high, w);
        sw = vadd(sw, weighed<WEIGHED>(w, g, i));
        n += WEIGHED ? g.weight[i] : 1.0f;
    }
    const V count = vall(n), by_count = vall(n > 0 ? 1.0f / n : 0.0f);
    V best = vall(__builtin_inff());
    scale = offset = zero;
    const auto consider = [&](const V& a, const V& b) {
        const V by = inverse(a);
        V sq = zero, sqq = zero, swq = zero;
        for (int i = 0; i < g.n; ++i) {
            const V w = vld(g.w + size_t(i) * 16);
            const V q = nearest(vmul(vsub(w, b), by), zero, last), qh = weighed<WEIGHED>(q, g, i);
            sq = vadd(sq, qh);
            sqq = vfma(q, qh, sqq);
            swq = vfma(w, qh, swq);
        }
        const V whole = vmul(count, sqq), det = vsub(whole, vmul(sq, sq)), small = vmul(vall(1e-6f), whole);
        const V solved = vdiv(vsub(vmul(count, swq), vmul(sq, sw)), vif_less(small, det, det, vall(1.0f)));
        const V fa = vif_less(small, det, solved, a);
        const V fb = n > 0 ? vmul(vsub(sw, vmul(fa, sq)), by_count) : b;
        // the error without sum(w^2), which is the same for all
        const V cross = vsub(vsub(vmul(vmul(fa, fb), sq), vmul(fa, swq)), vmul(fb, sw));
        const V err = vadd(vadd(vmul(vmul(fa, fa), sqq), vmul(count, vmul(fb, fb))), vadd(cross, cross));
        scale = vif_less(err, best, fa, scale);
        offset = vif_less(err, best, fb, offset);
        best = vmin(err, best);
    };
    const V half = vall(0.5f), middle = vmul(vadd(low, high), half), wide = vmul(vsub(high, low), half);
    const V step = vdiv(wide, last);
    consider(vadd(step, step), low);
    const Shrunk& tries = shrunk(grid.bits);
    for (int k = 0; k < tries.n; ++k) {
        const V share = vall(tries.by[k]), from = vsub(middle, vmul(wide, share));
        const V longer = vmul(step, vall(1.0f + tries.by[k]));
        consider(vmul(vadd(step, step), share), from);
        consider(longer, from);  // one end alone
        consider(longer, low);
    }
    for (int round = 0; round < ROUNDS; ++round) {
        const V a = scale, b = offset;
        consider(a, b);
    }
}

// n values of a row, widened, as lane `lane` of n vectors. Returns whether all are finite.
bool turned(const Fit& f, int row, int from, int n, float* out) {
    const size_t size = f.kind == IN_F32 ? 4 : 2;
    const char* w = static_cast<const char*>(f.w) + row * f.row + from * f.column;
    alignas(64) char raw[64];
    V odd = vall(0.0f);
    for (int i = 0; i < n; i += 16) {
        const int some = n - i < 16 ? n - i : 16;
        const char* at = w + i * f.column;
        if (some < 16) memset(raw, 0, 64);
        if (some < 16 || f.column != ptrdiff_t(size)) {
            for (int k = 0; k < some; ++k) memcpy(raw + k * size, at + k * f.column, size);
            at = raw;
        }
        const V v = f.kind == IN_F32    ? vld(reinterpret_cast<const float*>(at))
                    : f.kind == IN_BF16 ? vld(reinterpret_cast<const uint16_t*>(at))
                                        : vhalf(reinterpret_cast<const uint16_t*>(at));
        odd = vfma(v, vall(0.0f), odd);  // NaN after an infinity too
        alignas(64) float t[16];
        vst(t, v);
        float* to = out + size_t(i) * 16 + row;
        for (int k = 0; k < some; ++k) to[k * 16] = t[k];
    }
    return summed(odd) == 0.0f;
}

template <bool WEIGHED, typename Levels>
void search(const Fit& f, const Group& g, const Levels& levels, float first, float last, int group,
            uint8_t* codes, float& worst) {
    const size_t wide = f.grid.scale == BY_ROW ? 4 : 2;
    char* const to = static_cast<char*>(f.scale) + group * wide;
    V a, b = vall(0.0f);
    if (f.grid.offset) {
        line_of<WEIGHED>(g, f.grid, a, b);
        b = stored(b, f.grid.scale, static_cast<char*>(f.offset) + group * wide, f.n_groups, f.n_rows, worst);
    } else {
        a = scale_of<WEIGHED>(g, levels, f.grid, first, last);
    }
    const V by = inverse(stored(a, f.grid.scale, to, f.n_groups, f.n_rows, worst));
    for (int i = 0; i < g.n; ++i) {
        const V c = levels.code(vmul(vsub(vld(g.w + size_t(i) * 16), b), by));
        vst_bytes(reinterpret_cast<int8_t*>(codes + size_t(i) * 16), c);  // modulo 256
    }
}

template <typename Levels>
Fitted fit_on(const Fit& f, const Levels& levels, float first, float last) {
    const int span = f.grid.group ? f.grid.group : f.n_in;
    float* const w = f.scratch;
    uint8_t* const codes = reinterpret_cast<uint8_t*>(w + size_t(span) * 16);
    memset(w, 0, size_t(span) * 64);
    float worst = -1.0f;
    for (int k = 0, group = 0; k < f.n_in; k += span, ++group) {
        const int n = f.n_in - k < span ? f.n_in - k : span;
        for (int r = 0; r < f.n_rows; ++r) {
            if (!turned(f, r, k, n, w)) return {NOT_FINITE, 0.0f};
        }
        const Group g = {w, f.weight ? f.weight + k : nullptr, n};
        const auto one = f.weight ? search<true, Levels> : search<false, Levels>;
        one(f, g, levels, first, last, group, codes, worst);
        for (int r = 0; r < f.n_rows; ++r) {
            uint8_t* to = f.code + size_t(r) * f.n_in + k;
            for (int i = 0; i < n; ++i) to[i] = codes[size_t(i) * 16 + r];
        }
    }
    return worst < 0 ? Fitted{FITTED, 0.0f} : Fitted{TOO_LARGE, worst};
}

}  // namespace

Fitted fit(const Fit& f) {
    if (f.grid.table) {
        const Table table(f.grid);
        return fit_on(f, table, table.of[0], table.of[15]);
    }
    const Whole whole(f.grid);
    return fit_on(f, whole, float(-f.grid.zero), float((1 << f.grid.bits) - 1 - f.grid.zero));
}

}  // namespace ph::PH_ISA
