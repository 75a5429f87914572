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

// Panels that a block of many rows reads side by side: as many sums as registers hold, or half of them where
// the float sums of short groups stay in registers too. Few rows are bound by memory: then a block reads one
// panel, which is one stream.
#if defined(__AVX512F__)
constexpr int MOST_ROWS = 8;
constexpr int across(int rows) { return rows == 1 ? 1 : 2; }
#elif defined(__AVX2__)
constexpr int MOST_ROWS = 4;
constexpr int across(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
#else
constexpr int MOST_ROWS = 4;
constexpr int across(int rows) { return rows == 1 ? 2 : 1; }
#endif
constexpr int AHEAD = 8192;  // bytes, over all panels of a block, that are asked for in advance, at least

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
    size_t ahead;        // bytes from what is read to what is asked for, where a block reads one panel
    const char* then;    // weights that are read after the last panel, or null
    int turn;            // -1: the block asks for its own panels in advance; 0, 1: for the first or the
                         // second panel of the next two; else for nothing
    const float* scale;  // of a row of weights, or null
    const float* bias;
};

PH_INLINE V half_scales(const Grid& g, const char* p) {
    const uint16_t* h = reinterpret_cast<const uint16_t*>(p);
    return g.scale == BY_BRAIN ? vld(h) : vhalf(h);
}

// Where a block keeps what belongs to group j of its n.
struct Params {
    const Grid& g;
    int n;
    PH_INLINE V scale(const char* at, int j) const {
        if (g.scale == BY_ROW) return vall(1.0f);
        if (g.scale != BY_TWO) return half_scales(g, at + size_t(j) * 32);
        const V s = vld(reinterpret_cast<const int8_t*>(at + size_t(j) * 16));
        return vmul(vhalf(reinterpret_cast<const uint16_t*>(at + over())), s);
    }
    PH_INLINE V offset(const char* at, int j) const {
        const char* o = at + size_t(n) * (g.scale == BY_TWO ? 16 : 32);
        if (g.offset == OF_VALUE) return half_scales(g, o + size_t(j) * 32);
        const V z = vbytes(reinterpret_cast<const uint8_t*>(o + size_t(j) * 16));
        const V by = g.offset == OF_ZERO
                         ? scale(at, j)
                         : vhalf(reinterpret_cast<const uint16_t*>(at + over() + 32));
        return vsub(vall(0.0f), vmul(by, z));
    }
    PH_INLINE size_t over() const { return size_t(n) * (g.offset ? 32 : 16); }
};

// N addresses a stride apart, by a third as many registers: compilers would take N.
template <typename T, int N>
struct Strided {
    T* p[(N + 2) / 3];
    size_t step;
    PH_INLINE Strided(T* first, size_t stride) : step(stride) {
        PH_UNROLL for (int i = 0; i < N; i += 3) p[i / 3] = first + i * stride;
        hide();
    }
    PH_INLINE T* operator[](int i) const { return p[i / 3] + i % 3 * step; }
    PH_INLINE void move(size_t by) {
        PH_UNROLL for (T*& one : p) one += by;
        hide();
    }
    PH_INLINE void hide() {
        PH_UNROLL for (T*& one : p) __asm__("" : "+r"(one));
    }
};

template <int BITS, bool TABLE, int X, bool HALF, int R, int P>
__attribute__((noinline)) void tile(const Tile& t) {
    constexpr bool SMALL = BITS < 8 && !TABLE;
    constexpr bool KEEP = R * P * PARTS <= 12;  // float sums stay in registers
    // Sums of integers that take turns, where there are too few to hide how long one addition takes.
    constexpr int CHAINS = R * P * PARTS == 1 ? 4 : R * P * PARTS <= 3 ? 2 : 1;
    const Grid& g = *t.grid;
    const bool scaled = g.scale != BY_ROW;
    const N adjust = nall((SMALL || X == 16 ? 0 : BIAS) - g.zero);
    const int per_group = HALF ? 16 : t.at.group;
    const size_t ahead = P == 1 ? t.ahead : t.turn < 0 ? AHEAD / P : 2 * t.panel;
    V sum[KEEP ? R : 1][KEEP ? P : 1];
    {
        const Strided<float, R> y(t.y, t.ldy);
        PH_UNROLL for (int r = 0; r < R; ++r) {
            PH_UNROLL for (int p = 0; p < P; ++p) {
                if constexpr (KEEP) sum[r][p] = t.first ? vall(0.0f) : vld(y[r] + p * 16);
                else if (t.first) vst(y[r] + p * 16, vall(0.0f));
            }
        }
    }
    N acc[CHAINS][R][P];
    const char* block = t.w;
    for (int k = t.k0; k < t.k1; k += SUPER) {
        const int some = t.k1 - k < SUPER ? t.k1 - k : SUPER;
        const Params params{g, groups_of(some, g.group)};
        Strided<const char, P> unit(block + before_codes(g, params.n), t.panel);

        const auto begin = [&](int group) __attribute__((always_inline)) {
            const Strided<const char, R> x(t.x + t.at.sum + size_t(group) * 4, t.ldx);
            PH_UNROLL for (int r = 0; r < R; ++r) {
                const N z = nmul(*reinterpret_cast<const int*>(x[r]), adjust);
                PH_UNROLL for (int p = 0; p < P; ++p) {
                    acc[0][r][p] = z;
                    PH_UNROLL for (int c = 1; c < CHAINS; ++c) acc[c][r][p] = nall(0);
                }
            }
        };
        const auto steps = [&]<int S>(const Strided<const char, R>& x) __attribute__((always_inline)) {
            W wv[P];
            PH_UNROLL for (int p = 0; p < P; ++p) wv[p] = step<BITS, TABLE, S>(unit[p], g.level);
            if constexpr (P == 1) {
                PH_UNROLL for (int i = S * BITS / 8; i < (S + 1) * BITS / 8; ++i) {
                    __builtin_prefetch(reinterpret_cast<const void*>(uintptr_t(unit[0]) + ahead + i * 64));
                }
            }
            PH_UNROLL for (int r = 0; r < R; ++r) {
                int four[X / 8];
                memcpy(four, x[r] + S * (X / 2), X / 2);
                const Sums x0 = iall(four[0]), x1 = iall(four[X / 8 - 1]);
                PH_UNROLL for (int p = 0; p < P; ++p) {
                    PH_EACH {
                        Sums& s = acc[S % CHAINS][r][p].p[i];
                        if constexpr (X == 8) s = dot4<SMALL>(s, wv[p].p[i], x0);
                        else s = dot2(s, wv[p].p[i], x0, x1);
                    }
                }
            }
        };
        // in_block: the group's number in this block; group: in the row.
        const auto end = [&](int in_block, int group) __attribute__((always_inline)) {
            const Strided<const char, P> at(block, t.panel);
            const Strided<float, R> y(t.y, t.ldy);
            const size_t of = HALF ? group / 2 : group;
            const Strided<const char, R> by(t.x + t.at.scale + of * 4, t.ldx);
            V a[P];
            PH_UNROLL for (int p = 0; p < P; ++p) a[p] = params.scale(at[p], in_block);
            PH_UNROLL for (int r = 0; r < R; ++r) {
                const V xv = vall(*reinterpret_cast<const float*>(by[r]));
                PH_UNROLL for (int p = 0; p < P; ++p) {
                    PH_UNROLL for (int c = 1; c < CHAINS; ++c) acc[0][r][p] = nadd(acc[0][r][p], acc[c][r][p]);
                    V f = nfloat(acc[0][r][p]);
                    if (scaled) f = vmul(f, a[p]);
                    if constexpr (KEEP) sum[r][p] = vfma(f, xv, sum[r][p]);
                    else vst(y[r] + p * 16, vfma(f, xv, vld(y[r] + p * 16)));
                }
            }
            if (!g.offset) return;
            const Strided<const char, R> part(t.x + t.at.part + size_t(group) * 4, t.ldx);
            PH_UNROLL for (int p = 0; p < P; ++p) a[p] = params.offset(at[p], in_block);
            PH_UNROLL for (int r = 0; r < R; ++r) {
                const V xv = vall(*reinterpret_cast<const float*>(part[r]));
                PH_UNROLL for (int p = 0; p < P; ++p) {
                    if constexpr (KEEP) sum[r][p] = vfma(a[p], xv, sum[r][p]);
                    else vst(y[r] + p * 16, vfma(a[p], xv, vld(y[r] + p * 16)));
                }
            }
        };

        Strided<const char, R> x(t.x + size_t(k) * (X / 8), t.ldx);
        const int first = k / per_group;
        for (int at = 0, j = 0; at < some; ++j) {
            const int stop = at + (HALF ? 32 : per_group) < some ? at + (HALF ? 32 : per_group) : some;
            begin(first + j);
            for (; at < stop; at += UNIT) {
                PH_UNROLL for (int p = 0; p < P; ++p) {
                    if (P == 1 || (t.turn >= 0 && t.turn != p)) continue;
                    PH_UNROLL for (int i = 0; i < BITS; ++i) __builtin_prefetch(unit[p] + ahead + i * 64);
                }
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
                    if (at + 16 < some) {
                        begin(first + ++j);
                        steps.template operator()<4>(x);
                        steps.template operator()<5>(x);
                        steps.template operator()<6>(x);
                        steps.template operator()<7>(x);
                        end(j, first + j);
                    }
                }
                x.move(UNIT * (X / 8));
                unit.move(64 * BITS);
            }
            if constexpr (!HALF) end(j, first + j);
        }
        block = unit[0];
    }
    const Strided<float, R> y(t.y, t.ldy);
    PH_UNROLL for (int p = 0; p < P; ++p) {
        V scale = vall(1.0f), bias = vall(0.0f);
        if (t.last && t.scale) scale = vld(t.scale + p * 16);
        if (t.last && t.bias) bias = vld(t.bias + p * 16);
        PH_UNROLL for (int r = 0; r < R; ++r) {
            V s;
            if constexpr (KEEP) s = sum[r][p];
            else s = vld(y[r] + p * 16);
            if (t.last && t.scale) s = vmul(s, scale);
            if (t.last && t.bias) s = vadd(s, bias);
            vst(y[r] + p * 16, s);
        }
    }
}

// What one stream asks for while it reads the first of its last n panels. Short panels ask for whole ones, and
// at the end for what comes then; long ones for that all at once. Neither asks for much that nobody reads.
PH_INLINE void look_ahead(Tile& t, int n) {
    const int reach = t.panel <= 2 * AHEAD ? int((AHEAD + t.panel - 1) / t.panel) : 0;
    t.ahead = t.then && reach ? reach * t.panel : AHEAD;
    if (!t.then || n > (reach ? reach : 1)) return;
    if (reach) {
        t.ahead = uintptr_t(t.then) - uintptr_t(t.w) + size_t(reach - n) * t.panel;
    } else {
        for (int i = 0; i < AHEAD; i += 64) __builtin_prefetch(t.then + i);
    }
}

template <int BITS, bool TABLE, int X, bool HALF, int R, int P>
PH_INLINE void tiles(Tile& t, int& n_panels) {
    for (; n_panels >= P; n_panels -= P) {
        if constexpr (P == 1) look_ahead(t, n_panels);
        tile<BITS, TABLE, X, HALF, R, P>(t);
        t.w += P * t.panel;
        t.y += P * 16;
        if (t.scale) t.scale += P * 16;
        if (t.bias) t.bias += P * 16;
    }
}

template <int BITS, bool TABLE, int X, bool HALF, int R, int P = across(R)>
void panels(Tile t, int n_panels) {
    tiles<BITS, TABLE, X, HALF, R, P>(t, n_panels);
    if constexpr (P > 1) tiles<BITS, TABLE, X, HALF, R, 1>(t, n_panels);
}

// Up to 8 rows go as one block, more of them by eights; very many, or those of short groups, by sixes, whose
// float sums stay in registers. Returns how many went.
template <int BITS, bool TABLE, int X, bool HALF>
int rows_at_once(const Tile& t, int n, int n_panels, bool more, bool many) {
    if constexpr (MOST_ROWS == 8 && !HALF && X == 8) {
        if (more && n >= 6 && (many || t.at.group < 128)) return panels<BITS, TABLE, X, HALF, 6>(t, n_panels), 6;
        if (more && n >= 8) return panels<BITS, TABLE, X, HALF, 8>(t, n_panels), 8;
        switch (more ? 0 : n) {
            case 8: return panels<BITS, TABLE, X, HALF, 8, 1>(t, n_panels), 8;
            case 7: return panels<BITS, TABLE, X, HALF, 7, 1>(t, n_panels), 7;
            case 6: return panels<BITS, TABLE, X, HALF, 6, 1>(t, n_panels), 6;
            case 5: return panels<BITS, TABLE, X, HALF, 5, 1>(t, n_panels), 5;
            case 4: return panels<BITS, TABLE, X, HALF, 4, 1>(t, n_panels), 4;
            case 3: return panels<BITS, TABLE, X, HALF, 3, 1>(t, n_panels), 3;
            case 2: return panels<BITS, TABLE, X, HALF, 2, 1>(t, n_panels), 2;
            default: break;
        }
    }
    if (n >= 4) return panels<BITS, TABLE, X, HALF, 4>(t, n_panels), 4;
    if (n >= 2) return panels<BITS, TABLE, X, HALF, 2>(t, n_panels), 2;
    return panels<BITS, TABLE, X, HALF, 1>(t, n_panels), 1;
}

template <bool RARE>
constexpr bool one_block(int n) {
    return n == 1 || n == 2 || n == 4 || (!RARE && MOST_ROWS == 8 && n <= 8);
}

template <int BITS, bool TABLE, int X, bool HALF>
void product(const Linear& l, const char* x, size_t ldx, int n, int p0, int p1) {
    constexpr int TOGETHER = 192;     // rows whose inputs stay in the second-level cache
    constexpr int CUT = 10 * SUPER;    // inputs between visits to memory
    const Mat& m = *l.mat;
    const int spare = m.n_panels * 16 - m.n_out;
    const int whole = p1 == m.n_panels && spare ? p1 - 1 : p1;
    const bool many = n > 32;
    const auto rows = [&](Tile t, int from, int to, int n_panels) {
        const bool more = !one_block<HALF || X == 16>(to - from);
        for (int turn = 0; from < to; ++turn) {
            t.x = x + from * ldx;
            t.turn = !more ? -1 : turn;
            const int done = rows_at_once<BITS, TABLE, X, HALF>(t, to - from, n_panels, more, many);
            t.y += done * t.ldy;
            from += done;
        }
    };
    Tile t;
    t.grid = &m.grid;
    t.panel = m.panel;
    t.ldx = ldx;
    t.at = codes_row(form_of(m), m.n_in);
    t.then = n <= MOST_ROWS ? static_cast<const char*>(l.then) : nullptr;
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
        const int some = one_block<HALF || X == 16>(n) ? whole - p0 : 2;
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
    if (g.act == 16) return product<BITS, TABLE, 16, false>(l, from, ldx, n, p0, p1);
    if (g.group == 16) return product<BITS, TABLE, 8, true>(l, from, ldx, n, p0, p1);
    return product<BITS, TABLE, 8, false>(l, from, ldx, n, p0, p1);
}

}  // namespace
}  // namespace ph::PH_ISA
