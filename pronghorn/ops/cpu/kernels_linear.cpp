// Products with packed matrices.
//
// Each output is one chain of sums over its inputs, in order, whatever the number of rows: blocks are
// formed over rows and panels only, and where the inputs are cut to fit the cache the partial sum goes
// to memory and comes back unchanged. bfloat16 matrices take inputs rounded to bfloat16 and sum in float32, float16
// and E4M3 take floats; E4M3 multiplies the finished sum by the output's factor.
#include "kernels.h"
#include "vec_int.h"

namespace ph::PH_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int MAX_ROWS = 12;
constexpr int wide(int rows) { return rows == 1 ? 8 : rows <= 6 ? 4 : 2; }
#elif defined(__AVX2__)
constexpr int MAX_ROWS = 4;
constexpr int wide(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
#elif defined(__aarch64__)
constexpr int MAX_ROWS = 6;
constexpr int wide(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
#else
constexpr int MAX_ROWS = 2;
constexpr int wide(int rows) { return rows == 1 ? 2 : 1; }
#endif

constexpr int CUT = 192;         // steps of inputs between visits to memory
constexpr int ROWS_TOGETHER = 192;  // rows whose inputs stay in the second-level cache

constexpr int AHEAD = 4096;      // bytes of a panel that are asked for in advance

struct Block {
    const char* w;  // first step of the first panel
    size_t panel;   // bytes
    const char* x;  // first step of the first row
    size_t ldx;
    int steps;
    float* y;
    size_t ldy;
    bool first, last;
    const float* scale;
    const float* bias;
};

constexpr size_t step_bytes(int kind) { return kind == IN_F16 ? 32 : kind == IN_F8 ? 16 : 64; }

// Sixteen weights of one input as floats; those of IN_F8 are too small by 2^8, which their scale makes up for.
template <int K>
PH_INLINE V widen(const char* w) {
    if constexpr (K == IN_F32) return vld(reinterpret_cast<const float*>(w));
    else if constexpr (K == IN_F16) return vhalf(reinterpret_cast<const uint16_t*>(w));
    else return veighth(reinterpret_cast<const uint8_t*>(w));
}

template <int K, int R, int P>
__attribute__((noinline)) void micro(const Block& b) {
    V sum[R][P];
    PH_UNROLL for (int r = 0; r < R; ++r) {
        PH_UNROLL for (int p = 0; p < P; ++p) {
            sum[r][p] = b.first ? vall(0.0f) : vld(b.y + r * b.ldy + p * 16);
        }
    }
    const char* w = b.w;
    const char* x = b.x;
    const size_t panel = b.panel, ldx = b.ldx;
    for (int s = 0; s < b.steps; ++s) {
        // Rows slow a stream down until it no longer keeps memory busy by itself.
        if constexpr (R > 1) {
            PH_UNROLL for (int p = 0; p < P; ++p) __builtin_prefetch(w + p * panel + AHEAD);
        }
        if constexpr (K != IN_BF16) {
            V wv[P];
            PH_UNROLL for (int p = 0; p < P; ++p) wv[p] = widen<K>(w + p * panel);
            PH_UNROLL for (int r = 0; r < R; ++r) {
                const V xv = vall(*reinterpret_cast<const float*>(x + r * ldx));
                PH_UNROLL for (int p = 0; p < P; ++p) sum[r][p] = vfma(xv, wv[p], sum[r][p]);
            }
            x += 4;
        } else {
#if PH_PACKS
            __m512bh wv[P];
            PH_UNROLL for (int p = 0; p < P; ++p) {
                wv[p] = (__m512bh)_mm512_loadu_si512(w + p * panel);
            }
            PH_UNROLL for (int r = 0; r < R; ++r) {
                int two;
                memcpy(&two, x + r * ldx, 4);
                const __m512bh xv = (__m512bh)_mm512_set1_epi32(two);
                PH_UNROLL for (int p = 0; p < P; ++p) {
                    sum[r][p].p[0] = _mm512_dpbf16_ps(sum[r][p].p[0], wv[p], xv);
                }
            }
            x += 4;
#else
            // All even inputs of a step, then all odd ones: more at once does not fit the registers.
            PH_UNROLL for (int odd = 0; odd < 2; ++odd) {
                V wv[P];
                PH_UNROLL for (int p = 0; p < P; ++p) {
                    PH_UNROLL for (int i = 0; i < PARTS; ++i) {
                        Part both[2];
                        ld_pairs(reinterpret_cast<const uint16_t*>(w + p * panel) + 2 * LANES * i, both[0],
                                 both[1]);
                        wv[p].p[i] = both[odd];
                    }
                }
                PH_UNROLL for (int r = 0; r < R; ++r) {
                    const V xv = vall(reinterpret_cast<const float*>(x + r * ldx)[odd]);
                    PH_UNROLL for (int p = 0; p < P; ++p) sum[r][p] = vfma(xv, wv[p], sum[r][p]);
                }
            }
            x += 8;
#endif
        }
        w += step_bytes(K);
    }
    PH_UNROLL for (int p = 0; p < P; ++p) {
        V scale = vall(1.0f), bias = vall(0.0f);
        if constexpr (K == IN_F8) {
            if (b.last) scale = vld(b.scale + p * 16);
        }
        const bool biased = b.last && b.bias;
        if (biased) bias = vld(b.bias + p * 16);
        PH_UNROLL for (int r = 0; r < R; ++r) {
            V t = sum[r][p];
            if constexpr (K == IN_F8) t = vmul(t, scale);
            if (biased) t = vadd(t, bias);
            vst(b.y + r * b.ldy + p * 16, t);
        }
    }
}

template <int K, int R>
void rows_of(Block b, int n_panels) {
    constexpr int W = wide(R);
    auto move = [&b](int p) {
        b.w += p * b.panel;
        b.y += p * 16;
        if (b.scale) b.scale += p * 16;
        if (b.bias) b.bias += p * 16;
    };
    for (; n_panels >= W; n_panels -= W, move(W)) micro<K, R, W>(b);
    if constexpr (W > 4) {
        if (n_panels >= 4) {
            micro<K, R, 4>(b);
            n_panels -= 4, move(4);
        }
    }
    if constexpr (W > 2) {
        if (n_panels >= 2) {
            micro<K, R, 2>(b);
            n_panels -= 2, move(2);
        }
    }
    if (n_panels > 0) micro<K, R, 1>(b);
}

template <int K, int R = MAX_ROWS>
void rows_at_most(const Block& b, int n_rows, int n_panels) {
    if constexpr (R >= 1) {
        if (n_rows == R) {
            rows_of<K, R>(b, n_panels);
        } else {
            rows_at_most<K, R - 1>(b, n_rows, n_panels);
        }
    }
}

// n rows of a few panels, all full or ending in `spare` unused outputs (then one panel only).
template <int K>
void region(const Linear& l, const char* x, size_t ldx, int n, int p0, int p1) {
    const Mat& m = *l.mat;
    const size_t step_w = step_bytes(K);
    const size_t step_x = K == IN_BF16 && !PH_PACKS ? 8 : 4;
    const int spare = m.n_panels * 16 - m.n_out;
    float edge[MAX_ROWS * 16];
    const int whole = p1 == m.n_panels && spare ? p1 - 1 : p1;
    Block b;
    b.panel = m.panel;
    b.ldx = ldx;
    for (int top = 0; top < n; top += ROWS_TOGETHER) {
        const int bottom = top + ROWS_TOGETHER < n ? top + ROWS_TOGETHER : n;
        const int cut = bottom - top <= MAX_ROWS ? m.n_steps : CUT;
        for (int s0 = 0; s0 < m.n_steps; s0 += cut) {
            b.steps = s0 + cut < m.n_steps ? cut : m.n_steps - s0;
            b.first = s0 == 0;
            b.last = s0 + b.steps == m.n_steps;
            // With many rows a few panels stay in the first-level cache while the rows pass by.
            const int together = bottom - top <= MAX_ROWS ? whole - p0 : wide(MAX_ROWS);
            for (int p = p0; p < whole; p += together) {
                const int some = p + together < whole ? together : whole - p;
                for (int r = top; r < bottom; r += MAX_ROWS) {
                    b.w = static_cast<const char*>(m.w) + p * m.panel + s0 * step_w;
                    b.x = x + r * ldx + s0 * step_x;
                    b.y = l.y + r * l.ldy + p * 16;
                    b.ldy = l.ldy;
                    b.scale = K == IN_F8 ? m.scale + p * 16 : nullptr;
                    b.bias = l.bias ? l.bias + p * 16 : nullptr;
                    rows_at_most<K>(b, bottom - r < MAX_ROWS ? bottom - r : MAX_ROWS, some);
                }
            }
        }
        if (whole == p1) continue;
        // The last panel is partly outside of the matrix: through a buffer, in one go.
        for (int r = top; r < bottom; r += MAX_ROWS) {
            const int rows = bottom - r < MAX_ROWS ? bottom - r : MAX_ROWS;
            b.w = static_cast<const char*>(m.w) + whole * m.panel;
            b.x = x + r * ldx;
            b.steps = m.n_steps;
            b.first = b.last = true;
            b.y = edge;
            b.ldy = 16;
            b.scale = K == IN_F8 ? m.scale + whole * 16 : nullptr;
            b.bias = l.bias ? l.bias + whole * 16 : nullptr;
            rows_at_most<K>(b, rows, 1);
            for (int i = 0; i < rows; ++i) {
                memcpy(l.y + (r + i) * l.ldy + whole * 16, edge + i * 16, (16 - spare) * 4);
            }
        }
    }
}

}  // namespace

void narrow(const float* x, void* out, int n_in, int form, int from, int to) {
    if (form != BRAINS) return narrow_codes(x, out, n_in, form, from, to);
    const int n = to - from;
#if PH_PACKS
    uint16_t* y = static_cast<uint16_t*>(out) + from;
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256bh h = _mm512_cvtneps_pbh(_mm512_loadu_ps(x + i));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i), (__m256i)h);
    }
    if (i < n) {
        const __mmask16 m = __mmask16((1u << (n - i)) - 1);
        const __m256bh h = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(m, x + i));
        _mm256_mask_storeu_epi16(y + i, m, (__m256i)h);
    }
    if (n & 1) y[n] = 0;
#else
    float* y = static_cast<float*>(out) + from;
    for (int i = 0; i < n; ++i) y[i] = widened(narrowed(x[i]));
    if (n & 1) y[n] = 0;
#endif
}

void linear(const Linear& l, const void* x, size_t ldx, int n, int p0, int p1) {
    const char* from = static_cast<const char*>(x);
    switch (l.mat->kind) {
        case IN_F32: return region<IN_F32>(l, from, ldx, n, p0, p1);
        case IN_BF16: return region<IN_BF16>(l, from, ldx, n, p0, p1);
        case IN_F16: return region<IN_F16>(l, from, ldx, n, p0, p1);
        case IN_F8: return region<IN_F8>(l, from, ldx, n, p0, p1);
        case IN_CODES: return linear_codes(l, x, ldx, n, p0, p1);
    }
}

}  // namespace ph::PH_ISA
