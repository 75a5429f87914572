// Scores of pages by what an index keeps of them; see select.h. The rules of kernels.cpp hold.
//
// A score is one chain of sums over channels, in an order that depends on the set only.
#include "attend_tile.h"
#include "select.h"
#include "vec.h"

namespace ph::PH_ISA {
namespace {

constexpr int AHEAD = 24;  // pages: each is a miss of its own, in a mapping of its own

const char* page_of(const ScoreItem& a, int i) {
    return reinterpret_cast<const char*>(a.pages[i]) + a.member;
}

// Asks for what is kept of a page. Inlined by force: a call that only asks counts as one without effect.
PH_INLINE void ask(const ScoreItem& a, int i) {
    if (i >= a.n_pages) return;
    const char* p = page_of(a, i) + a.by->at[0];
    for (size_t j = 0; j < a.by->stride; j += 64) ask_for(p + j);
}

// Sums of the lanes of Q registers.
template <int Q>
PH_INLINE void fold(const V (&a)[Q], float (&out)[Q]) {
#if defined(__AVX512F__)
    if constexpr (Q > 4) {
        const auto pair = [](__m512 x, __m512 y) {  // halves of x, then of y
            return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xee));
        };
        const auto four = [&](int i) {  // quarters of four registers, one after the other
            const __m512 zero = _mm512_setzero_ps();
            const auto get = [&](int j) { return j < Q ? a[j].p[0] : zero; };
            const __m512 x = pair(get(i), get(i + 1)), y = pair(get(i + 2), get(i + 3));
            return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
        };
        const auto rest = [](__m512 x) {  // the sum of each four lanes, in all of them
            x = _mm512_add_ps(x, _mm512_permute_ps(x, 0x4e));
            return _mm512_add_ps(x, _mm512_permute_ps(x, 0xb1));
        };
        float t[32];
        _mm512_storeu_ps(t, rest(four(0)));
        _mm512_storeu_ps(t + 16, rest(four(4)));
        for (int i = 0; i < Q; ++i) out[i] = t[i * 4];
        return;
    }
#endif
    for (int i = 0; i < Q; ++i) out[i] = summed(a[i]);
}

// Queries, filled up with zeros: the positive parts and, for boxes, the negative ones.
struct Queries {
    size_t ld;
    float *up, *down;
    Queries(const ScoreItem& a, bool boxes) : ld(size_t(a.dim + 15) / 16 * 16), up(a.scratch), down(up + a.g * ld) {
        memset(up, 0, sizeof(float) * 2 * a.g * ld);
        for (int h = 0; h < a.g; ++h) {
            for (int c = 0; c < a.dim; ++c) {
                const float x = a.q[size_t(h) * a.dim + c] * a.scale;
                if (boxes && x < 0) {
                    down[h * ld + c] = x;
                } else {
                    up[h * ld + c] = x;
                }
            }
        }
    }
};

PH_INLINE V brains(const uint16_t* p, int n) { return n >= 16 ? vld(p) : vld_part(p, n); }

// Boxes or vectors.
template <bool BOXES, int Q>
void by_vectors(const ScoreItem& a, const Queries& q, int h0) {
    for (int i = 0; i < a.n_pages; ++i) {
        ask(a, i + AHEAD);
        const char* page = page_of(a, i);
        const auto* lo = reinterpret_cast<const uint16_t*>(page + a.by->at[0]);
        const auto* hi = reinterpret_cast<const uint16_t*>(page + a.by->at[BOXES ? 1 : 0]);
        float best[Q] = {};
        for (int r = 0; r < a.by->n; ++r, lo += a.dim, hi += a.dim) {
            V sum[Q];
            PH_UNROLL for (int j = 0; j < Q; ++j) sum[j] = vall(0.0f);
            for (int c = 0; c < a.dim; c += 16) {
                const V top = brains(hi + c, a.dim - c);
                const V low = BOXES ? brains(lo + c, a.dim - c) : top;
                PH_UNROLL for (int j = 0; j < Q; ++j) {
                    sum[j] = vfma(vld(q.up + (h0 + j) * q.ld + c), top, sum[j]);
                    if (BOXES) sum[j] = vfma(vld(q.down + (h0 + j) * q.ld + c), low, sum[j]);
                }
            }
            float now[Q];
            fold<Q>(sum, now);
            for (int j = 0; j < Q; ++j) best[j] = r && best[j] > now[j] ? best[j] : now[j];
        }
        for (int j = 0; j < Q; ++j) a.out[(h0 + j) * a.ldo + i] = best[j];
    }
}

template <int Q>
void by_labels(const ScoreItem& a, const Queries& q, int h0) {
    const int n = a.by->n;
    for (int i = 0; i < a.n_pages; ++i) {
        ask(a, i + AHEAD);
        const char* page = page_of(a, i);
        const auto* channel = reinterpret_cast<const uint8_t*>(page + a.by->at[0]);
        const auto* label = reinterpret_cast<const int8_t*>(page + a.by->at[1]);
        const auto* unit = reinterpret_cast<const float*>(page + a.by->at[2]);
        V sum[Q];
        PH_UNROLL for (int j = 0; j < Q; ++j) sum[j] = vall(0.0f);
        for (int s = 0; s < n; ++s) {
            const V rows = vld(label + s * PAGE);
            const int c = channel[s] < a.dim ? channel[s] : 0;
            PH_UNROLL for (int j = 0; j < Q; ++j) {
                sum[j] = vfma(vall(q.up[(h0 + j) * q.ld + c] * unit[s]), rows, sum[j]);
            }
        }
        for (int j = 0; j < Q; ++j) a.out[(h0 + j) * a.ldo + i] = highest(sum[j]);
    }
}

// t[at[i]] for sixteen rows.
PH_INLINE V looked_up(const float* t, const uint8_t* at) {
    V a;
#if defined(__AVX512F__)
    const __m512i i = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    a.p[0] = _mm512_i32gather_ps(i, t, 4);
#elif defined(__AVX2__)
    PH_EACH {
        const __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at + i * LANES));
        a.p[i] = _mm256_i32gather_ps(t, _mm256_cvtepu8_epi32(b), 4);
    }
#else
    float x[16];
    for (int i = 0; i < 16; ++i) x[i] = t[at[i]];
    a = vld(x);
#endif
    return a;
}

// Products of all centroids with the turned queries of Q heads: for each head n tables of BOOK.
template <int Q>
void make_tables(const ScoreItem& a, const Queries& q, int h0, float* turned, float* tables) {
    const size_t width = a.by->turned(), part = size_t(a.by->part);
    for (size_t w = 0; w < width; w += 16) {
        V sum[Q];
        PH_UNROLL for (int j = 0; j < Q; ++j) sum[j] = vall(0.0f);
        for (int c = 0; c < a.dim; ++c) {
            const V row = vld(a.turn + c * width + w);
            PH_UNROLL for (int j = 0; j < Q; ++j) sum[j] = vfma(vall(q.up[(h0 + j) * q.ld + c]), row, sum[j]);
        }
        PH_UNROLL for (int j = 0; j < Q; ++j) vst(turned + j * width + w, sum[j]);
    }
    for (int s = 0; s < a.by->n; ++s) {
        const float* book = a.book + s * part * BOOK;
        for (int at = 0; at < BOOK; at += 16) {
            V sum[Q];
            PH_UNROLL for (int j = 0; j < Q; ++j) sum[j] = vall(0.0f);
            for (size_t c = 0; c < part; ++c) {
                const V value = vld(book + c * BOOK + at);
                PH_UNROLL for (int j = 0; j < Q; ++j) {
                    sum[j] = vfma(vall(turned[j * width + s * part + c]), value, sum[j]);
                }
            }
            PH_UNROLL for (int j = 0; j < Q; ++j) vst(tables + (size_t(j) * a.by->n + s) * BOOK + at, sum[j]);
        }
    }
}

template <int Q>
void by_codes(const ScoreItem& a, const Queries& q, int h0) {
    const int n = a.by->n;
    float* turned = q.down + size_t(a.g) * q.ld;
    float* tables = turned + size_t(a.g) * a.by->turned();
    make_tables<Q>(a, q, h0, turned, tables);
    for (int i = 0; i < a.n_pages; ++i) {
        ask(a, i + AHEAD);
        const auto* code = reinterpret_cast<const uint8_t*>(page_of(a, i) + a.by->at[0]);
        V sum[Q];
        PH_UNROLL for (int j = 0; j < Q; ++j) sum[j] = vall(0.0f);
        for (int s = 0; s < n; ++s, code += PAGE) {
            PH_UNROLL for (int j = 0; j < Q; ++j) {
                sum[j] = vadd(sum[j], looked_up(tables + (size_t(j) * n + s) * BOOK, code));
            }
        }
        for (int j = 0; j < Q; ++j) a.out[(h0 + j) * a.ldo + i] = highest(sum[j]);
    }
}

}  // namespace

void score_pages(const ScoreItem& a) {
    const Queries q(a, a.by->score == BOUNDS);
    for (int i = 0; i < AHEAD; ++i) ask(a, i);
    by_rows(0, a.g, [&]<int Q>(int h) {
        switch (a.by->score) {
            case BOUNDS: return by_vectors<true, Q>(a, q, h);
            case DOTS: return by_vectors<false, Q>(a, q, h);
            case LABELS: return by_labels<Q>(a, q, h);
            case BY_KEYS: return;
            case CODES: return by_codes<Q>(a, q, h);
        }
    });
}

}  // namespace ph::PH_ISA
