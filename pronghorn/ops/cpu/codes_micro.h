// Products with matrices of small integers, for one kind of code at a time.
//
// Within a group the sum of products is one of integers, hence exact in any order. Groups then follow each
// other in one chain of float sums for each output, whatever the number of rows: scale of the weights
// times sum, times scale of the row, and what the offset adds.
#pragma once

#include "kernels.h"
#include "vec_int.h"

namespace ph::PH_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int MOST_ROWS = 12;
constexpr int across(int rows) { return rows <= 2 ? 8 : rows <= 6 ? 4 : 2; }
#elif defined(__AVX2__)
constexpr int MOST_ROWS = 4;
constexpr int across(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
#else
constexpr int MOST_ROWS = 4;
constexpr int across(int rows) { return rows == 1 ? 2 : 1; }
#endif

struct Tile {
    const Grid* grid;
    const char* w;   // the block of input k0 of the first panel
    size_t panel;    // bytes from panel to panel
    const char* x;   // start of the first row
    size_t ldx;
    CodesRow at;
    int k0, k1;      // inputs; k0 starts a block, k1 does or is the end
    float* y;
    size_t ldy;
    bool first, last;
    const float* scale;  // of a row of weights, or null
    const float* bias;
};

PH_INLINE V half_scales(const Grid& g, const char* p) {
    const uint16_t* h = reinterpret_cast<const uint16_t*>(p);
    return g.scale == BY_BRAIN ? vld(h) : vhalf(h);
}

// Where a block keeps what belongs to group j of its n.
struct Params {
    const char* at;
    int n;
    PH_INLINE V scale(const Grid& g, int j) const {
        if (g.scale != BY_TWO) return half_scales(g, at + size_t(j) * 32);
        const V s = vld(reinterpret_cast<const int8_t*>(at + size_t(j) * 16));
        return vmul(vhalf(reinterpret_cast<const uint16_t*>(at + over(g))), s);
    }
    PH_INLINE V offset(const Grid& g, int j, const V& a) const {
        const char* o = at + size_t(n) * (g.scale == BY_TWO ? 16 : 32);
        if (g.offset == OF_VALUE) return half_scales(g, o + size_t(j) * 32);
        const V z = vbytes(reinterpret_cast<const uint8_t*>(o + size_t(j) * 16));
        const V by = g.offset == OF_ZERO
                         ? a
                         : vhalf(reinterpret_cast<const uint16_t*>(at + over(g) + 32));
        return vsub(vall(0.0f), vmul(by, z));
    }
    PH_INLINE size_t over(const Grid& g) const { return size_t(n) * (g.offset ? 32 : 16); }
};

template <int BITS, bool TABLE, int X, bool HALF, int R, int P>
__attribute__((noinline)) void tile(const Tile& t) {
    constexpr bool SMALL = BITS < 8 && !TABLE;
    constexpr bool KEEP = R * P * PARTS <= 8;  // float sums stay in registers
    constexpr int AHEAD = 4096;                // bytes of a panel that are asked for in advance
    const Grid& g = *t.grid;
    const size_t panel = t.panel, ldx = t.ldx, ldy = t.ldy;
    const int adjust = (SMALL ? 0 : BIAS) - g.zero;
    const int per_group = HALF ? 16 : t.at.group;
    V sum[KEEP ? R : 1][KEEP ? P : 1];
    PH_UNROLL for (int r = 0; r < R; ++r) {
        PH_UNROLL for (int p = 0; p < P; ++p) {
            float* y = t.y + r * ldy + p * 16;
            if constexpr (KEEP) sum[r][p] = t.first ? vall(0.0f) : vld(y);
            else if (t.first) vst(y, vall(0.0f));
        }
    }
    N acc[R][P];
    const char* w = t.w;
    for (int k = t.k0; k < t.k1; k += SUPER) {
        const int some = t.k1 - k < SUPER ? t.k1 - k : SUPER;
        const int n_groups = groups_of(some, g.group);
        const char* codes = w + before_codes(g, n_groups);
        const char* unit = codes;

        const auto begin = [&](int group) __attribute__((always_inline)) {
            PH_UNROLL for (int r = 0; r < R; ++r) {
                const int* sums = reinterpret_cast<const int*>(t.x + r * ldx + t.at.sum);
                const N z = nall(adjust * sums[group]);
                PH_UNROLL for (int p = 0; p < P; ++p) acc[r][p] = z;
            }
        };
        const auto steps = [&]<int S>(const char* x) __attribute__((always_inline)) {
            W wv[P];
            PH_UNROLL for (int p = 0; p < P; ++p) {
                wv[p] = step<BITS, TABLE, S>(unit + p * panel, g.level);
            }
            PH_UNROLL for (int r = 0; r < R; ++r) {
                int four[X / 8];
                memcpy(four, x + r * ldx + S * (X / 2), X / 2);
                const Sums x0 = iall(four[0]), x1 = iall(four[X / 8 - 1]);
                PH_UNROLL for (int p = 0; p < P; ++p) {
                    PH_EACH {
                        Sums& s = acc[r][p].p[i];
                        if constexpr (X == 8) s = dot4<SMALL>(s, wv[p].p[i], x0);
                        else s = dot2(s, wv[p].p[i], x0, x1);
                    }
                }
            }
        };
        // in_block: the group's number in this block; group: in the row.
        const auto end = [&](int in_block, int group) __attribute__((always_inline)) {
            PH_UNROLL for (int p = 0; p < P; ++p) {
                const Params params{w + p * panel, n_groups};
                V a = vall(1.0f), b = a;
                if (n_groups) a = params.scale(g, in_block);
                if (g.offset) b = params.offset(g, in_block, a);
                PH_UNROLL for (int r = 0; r < R; ++r) {
                    const char* x = t.x + r * ldx;
                    const int of = HALF ? group / 2 : group;
                    float* y = t.y + r * ldy + p * 16;
                    V s;
                    if constexpr (KEEP) s = sum[r][p];
                    else s = vld(y);
                    V f = nfloat(acc[r][p]);
                    if (n_groups) f = vmul(f, a);
                    s = vfma(f, vall(reinterpret_cast<const float*>(x + t.at.scale)[of]), s);
                    if (g.offset) {
                        s = vfma(b, vall(reinterpret_cast<const float*>(x + t.at.part)[group]), s);
                    }
                    if constexpr (KEEP) sum[r][p] = s;
                    else vst(y, s);
                }
            }
        };

        const int first = k / per_group;
        for (int at = 0, j = 0; at < some; ++j) {
            const int stop = at + (HALF ? 32 : per_group) < some ? at + (HALF ? 32 : per_group) : some;
            begin(first + j);
            for (; at < stop; at += UNIT, unit += 64 * BITS) {
                if constexpr (R > 1) {
                    PH_UNROLL for (int p = 0; p < P; ++p) {
                        PH_UNROLL for (int i = 0; i < BITS; ++i) {
                            __builtin_prefetch(unit + p * panel + AHEAD + i * 64);
                        }
                    }
                }
                const char* x = t.x + size_t(k + at) * (X / 8);
                steps.template operator()<0>(x);
                if constexpr (!HALF) steps.template operator()<4>(x);
                steps.template operator()<1>(x);
                if constexpr (!HALF) steps.template operator()<5>(x);
                steps.template operator()<2>(x);
                if constexpr (!HALF) steps.template operator()<6>(x);
                steps.template operator()<3>(x);
                if constexpr (!HALF) steps.template operator()<7>(x);
                if constexpr (HALF) {
                    end(j, first + j);
                    if (at + 16 >= some) continue;
                    begin(first + ++j);
                    steps.template operator()<4>(x);
                    steps.template operator()<5>(x);
                    steps.template operator()<6>(x);
                    steps.template operator()<7>(x);
                    end(j, first + j);
                }
            }
            if constexpr (!HALF) end(j, first + j);
        }
        w = unit;
    }
    PH_UNROLL for (int p = 0; p < P; ++p) {
        V scale = vall(1.0f), bias = vall(0.0f);
        if (t.last && t.scale) scale = vld(t.scale + p * 16);
        if (t.last && t.bias) bias = vld(t.bias + p * 16);
        PH_UNROLL for (int r = 0; r < R; ++r) {
            float* y = t.y + r * ldy + p * 16;
            V s;
            if constexpr (KEEP) s = sum[r][p];
            else s = vld(y);
            if (t.last && t.scale) s = vmul(s, scale);
            if (t.last && t.bias) s = vadd(s, bias);
            vst(y, s);
        }
    }
}

template <int BITS, bool TABLE, int X, bool HALF, int R, int P>
PH_INLINE void tiles(Tile& t, int& n_panels) {
    for (; n_panels >= P; n_panels -= P) {
        tile<BITS, TABLE, X, HALF, R, P>(t);
        t.w += P * t.panel;
        t.y += P * 16;
        if (t.scale) t.scale += P * 16;
        if (t.bias) t.bias += P * 16;
    }
}

template <int BITS, bool TABLE, int X, bool HALF, int R>
void panels(Tile t, int n_panels) {
    constexpr int WIDE = HALF || X == 16 ? (across(R) < 4 ? across(R) : 4) : across(R);
    tiles<BITS, TABLE, X, HALF, R, WIDE>(t, n_panels);
    if constexpr (WIDE > 2) tiles<BITS, TABLE, X, HALF, R, WIDE / 4>(t, n_panels);
    if constexpr (WIDE > 1) tiles<BITS, TABLE, X, HALF, R, 1>(t, n_panels);
}

// Rows go in blocks of a few sizes; a rest of other size goes in two.
template <int BITS, bool TABLE, int X, bool HALF>
int rows_at_once(const Tile& t, int n, int n_panels) {
    constexpr bool RARE = HALF || X == 16;
    if constexpr (MOST_ROWS >= 12 && !RARE) {
        if (n >= 12) return panels<BITS, TABLE, X, HALF, 12>(t, n_panels), 12;
    }
    if constexpr (MOST_ROWS >= 12) {
        if (n >= 8) return panels<BITS, TABLE, X, HALF, 8>(t, n_panels), 8;
        if constexpr (!RARE) {
            if (n >= 6) return panels<BITS, TABLE, X, HALF, 6>(t, n_panels), 6;
        }
    }
    if (n >= 4) return panels<BITS, TABLE, X, HALF, 4>(t, n_panels), 4;
    if constexpr (MOST_ROWS >= 12 && !RARE) {
        if (n >= 3) return panels<BITS, TABLE, X, HALF, 3>(t, n_panels), 3;
    }
    if (n >= 2) return panels<BITS, TABLE, X, HALF, 2>(t, n_panels), 2;
    return panels<BITS, TABLE, X, HALF, 1>(t, n_panels), 1;
}

template <bool RARE>
constexpr bool one_block(int n) {
    if (n == 3 || n == 6 || n == 12) return !RARE && n <= MOST_ROWS && MOST_ROWS >= 12;
    return n <= MOST_ROWS && (n & (n - 1)) == 0;
}

template <int BITS, bool TABLE, int X, bool HALF>
void product(const Linear& l, const char* x, size_t ldx, int n, int p0, int p1) {
    constexpr int TOGETHER = 192;     // rows whose inputs stay in the second-level cache
    constexpr int CUT = 2 * SUPER;    // inputs between visits to memory
    const Mat& m = *l.mat;
    const int spare = m.n_panels * 16 - m.n_out;
    const int whole = p1 == m.n_panels && spare ? p1 - 1 : p1;
    const bool many = n > 4 * MOST_ROWS;
    const auto rows = [&](Tile t, int from, int to, int n_panels) {
        while (from < to) {
            t.x = x + from * ldx;
            // 13 to 16 rows go as two blocks of like size
            const int left = to - from;
            const int want = left > MOST_ROWS && left <= 16 ? 8 : left;
            const int done = rows_at_once<BITS, TABLE, X, HALF>(t, want, n_panels);
            t.y += done * t.ldy;
            from += done;
        }
    };
    Tile t;
    t.grid = &m.grid;
    t.panel = m.panel;
    t.ldx = ldx;
    t.at = codes_row(form_of(m), m.n_in);
    const auto place = [&](int p, int k0, int k1, float* y, size_t ldy) {
        t.k0 = k0;
        t.k1 = k1;
        t.first = k0 == 0;
        t.last = k1 == m.n_in;
        t.w = static_cast<const char*>(m.w) + p * m.panel + codes_bytes(m.grid, k0);
        t.y = y;
        t.ldy = ldy;
        t.scale = m.scale ? m.scale + p * 16 : nullptr;
        t.bias = l.bias ? l.bias + p * 16 : nullptr;
    };
    float edge[MOST_ROWS * 16];
    for (int top = 0; top < n; top += TOGETHER) {
        const int bottom = top + TOGETHER < n ? top + TOGETHER : n;
        const int cut = many ? CUT : m.n_in;
        // Rows that go in several blocks pass by a few panels, which stay in the cache meanwhile.
        const int some = one_block<HALF || X == 16>(n) ? whole - p0 : n < MOST_ROWS ? 4 : 2;
        for (int k = 0; k < m.n_in; k += cut) {
            for (int p = p0; p < whole; p += some) {
                place(p, k, k + cut < m.n_in ? k + cut : m.n_in, l.y + top * l.ldy + p * 16, l.ldy);
                rows(t, top, bottom, p + some < whole ? some : whole - p);
            }
        }
        if (whole == p1) continue;
        // The last panel is partly outside of the matrix: through a buffer, in one go.
        for (int r = top; r < bottom; r += MOST_ROWS) {
            const int end = r + MOST_ROWS < bottom ? r + MOST_ROWS : bottom;
            place(whole, 0, m.n_in, edge, 16);
            rows(t, r, end, 1);
            for (int i = r; i < end; ++i) {
                memcpy(l.y + i * l.ldy + whole * 16, edge + (i - r) * 16, (16 - spare) * 4);
            }
        }
    }
}

template <int BITS, bool TABLE>
void by_inputs(const Linear& l, const void* x, size_t ldx, int n, int p0, int p1) {
    const Grid& g = l.mat->grid;
    const char* from = static_cast<const char*>(x);
    if (g.act == 8) {
        if (g.group == 16) return product<BITS, TABLE, 8, true>(l, from, ldx, n, p0, p1);
        return product<BITS, TABLE, 8, false>(l, from, ldx, n, p0, p1);
    }
    if (g.group == 16) return product<BITS, TABLE, 16, true>(l, from, ldx, n, p0, p1);
    return product<BITS, TABLE, 16, false>(l, from, ldx, n, p0, p1);
}

}  // namespace
}  // namespace ph::PH_ISA
