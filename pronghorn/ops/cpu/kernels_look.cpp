// Weights of attention themselves, of a few queries at a time; see look.h. The rules of kernels.cpp hold.
//
// A row's scores are finished one by one and summed in the order of rows, so results depend on the queries
// and the stored rows only.
#include "attend_codes.h"
#include "look.h"
#include "vec.h"

namespace ph::PH_ISA {
namespace {

constexpr float NONE = -__builtin_inff();
constexpr float LOWEST = -3e38f;  // of a page without rows

struct Reach {  // positions of a page
    std::int32_t least, most;
};

struct Room {
    float *scores, *sums;
    const void** keys;
    Reach* reach;
    float* unpacked;
    size_t lds;

    explicit Room(const LookItem& a) : lds(size_t(a.n_pages) * PAGE) {
        sums = a.scratch;
        scores = sums + lds;
        keys = reinterpret_cast<const void**>(scores + lds * size_t(look_rows(a.n_pages)));
        reach = reinterpret_cast<Reach*>(keys + a.n_pages);
        unpacked = reinterpret_cast<float*>(reach + a.n_pages);
    }
};

template <int K>
void products(const LookItem& a, const Room& r, int row0, int row1, int c0, int c1) {
    const void* ahead[4 * PAGE];
    by_rows(0, row1 - row0, [&]<int Q>(int q) {
        constexpr int N = across(Q);
        const float* x = a.q + size_t(row0 + q) * a.dim;
        const auto tile = [&]<int M>(int c) {
            for (int j = 0; j < M; ++j) ahead[j * PAGE] = r.keys[c + M + j < c1 ? c + M + j : c + j];
            score_tile<Singles, K, Q, M>(x, a.dim, r.keys + c, ahead, a.dim, r.scores + q * r.lds + c * PAGE,
                                         r.lds);
        };
        int c = c0;
        for (; c + N <= c1; c += N) tile.template operator()<N>(c);
        if constexpr (N > 1) {
            for (; c < c1; ++c) tile.template operator()<1>(c);
        }
    });
}

// The same of pages in codes: some are unpacked, and all rows look at them.
void products_coded(const LookItem& a, const Room& r, int row0, int row1, int c0, int c1) {
    const void* pages[LOOK_PAGES];
    for (int c = c0; c < c1; c += LOOK_PAGES) {
        const int m = c1 - c < LOOK_PAGES ? c1 - c : LOOK_PAGES;
        for (int j = 0; j < m; ++j) {
            float* to = r.unpacked + size_t(j) * a.dim * PAGE;
            unpack_keys<Singles>(*a.codes, a.pages[c + j], a.dim, to);
            if (a.codes->turn) turn<PAGE>(to, a.dim, true);
            pages[j] = to;
        }
        by_rows(0, row1 - row0, [&]<int Q>(int q) {
            const float* x = a.q + size_t(row0 + q) * a.dim;
            for (int j = 0; j < m; ++j) {
                score_tile<Singles, PACKED, Q, 1>(x, a.dim, pages + j, pages, a.dim,
                                                  r.scores + q * r.lds + (c + j) * PAGE, r.lds);
            }
        });
    }
}

// Products with what stands for some keys of a page (KvPage::other).
void products_others(const LookItem& a, const Room& r, int row0, int row1, int c) {
    const KvPage& p = a.pages[c];
    const uint16_t* key = p.other;
    for (int lane = 0, left = p.n_other; lane < p.hi && left; ++lane) {
        if (!(p.ks[lane] < 0)) continue;
        for (int i = row0; i < row1; ++i) {
            const float* x = a.q + size_t(i) * a.dim;
            float sum = 0.0f;
            for (int d = 0; d < a.dim; ++d) sum += x[d] * widened(key[d]);
            r.scores[size_t(i - row0) * r.lds + c * PAGE + lane] = sum;
        }
        key += a.dim;
        --left;
    }
}

// Products to scores, NONE where the row does not see; their maximum.
float finish(const LookItem& a, const Room& r, float* s, std::int32_t at) {
    const V scale = vall(a.scale), cap = vall(a.softcap);
    const std::int64_t limit = a.window ? std::int64_t(at) - a.window : -1;
    V top = vall(NONE);
    for (int c = 0; c < a.n_pages; ++c) {
        const KvPage& p = a.pages[c];
        const Reach& held = r.reach[c];
        float* x = s + c * PAGE;
        if (held.least > at || held.most <= limit) {
            vst(x, vall(NONE));
            continue;
        }
        V y = vmul(p.ks ? vmul(vld(x), vld(p.ks)) : vld(x), scale);
        if (a.softcap > 0) y = vmul(vtanh(vdiv(y, cap)), cap);
        if (p.bias) y = vadd(y, vld(p.bias));
        vst(x, y);
        if (p.hi < PAGE || held.most > at || held.least <= limit) {
            for (int i = 0; i < PAGE; ++i) {
                if (i >= p.hi || p.pos[i] > at || p.pos[i] <= limit) x[i] = NONE;
            }
            y = vld(x);
        }
        top = vmax(top, y);
    }
    return highest(top);
}

// Products to the highest score of each page.
void finish_tops(const LookItem& a, const float* s, float* out) {
    const V scale = vall(a.scale);
    for (int c = 0; c < a.n_pages; c += PAGE) {
        const int n = a.n_pages - c < PAGE ? a.n_pages - c : PAGE;
        V page[PAGE];
        for (int i = 0; i < PAGE; ++i) {
            page[i] = vall(LOWEST);
            if (i >= n) continue;
            const KvPage& p = a.pages[c + i];
            const V x = vld(s + (c + i) * PAGE);
            page[i] = vmul(p.ks ? vmul(x, vld(p.ks)) : x, scale);
            if (p.hi == PAGE) continue;
            float t[PAGE];
            vst(t, page[i]);
            for (int r = p.hi; r < PAGE; ++r) t[r] = LOWEST;
            page[i] = vld(t);
        }
        const V top = folded<false>(page);
        if (n == PAGE) {
            vst(out + c, top);
        } else {
            vst_part(out + c, top, n);
        }
    }
}

// Scores to exponentials; their sum.
float raise(const LookItem& a, float* s, float top) {
    const V base = vall(top);
    V sum = vall(0.0f);
    for (int c = 0; c < a.n_pages; ++c) {
        const V e = vexp(vsub(vld(s + c * PAGE), base));
        vst(s + c * PAGE, e);
        sum = vadd(sum, e);
    }
    return summed(sum);
}

void scale_to(const LookItem& a, float* s, float by, float* sums) {
    for (int c = 0; c < a.n_pages; ++c) {
        const V w = vmul(vld(s + c * PAGE), vall(by));
        if (sums) {
            vst(sums + c * PAGE, vadd(vld(sums + c * PAGE), w));
        } else {
            vst(s + c * PAGE, w);
        }
    }
}

// Without the lanes that hold no row.
void write(const LookItem& a, const float* s, float* out) {
    for (int c = 0; c < a.n_pages; ++c) {
        memcpy(out, s + c * PAGE, sizeof(float) * a.pages[c].hi);
        out += a.pages[c].hi;
    }
}

}  // namespace

void look(const LookItem& a) {
    const Room r(a);
    memset(r.sums, 0, sizeof(float) * r.lds);
    for (int c = 0; c < a.n_pages; ++c) {
        const KvPage& p = a.pages[c];
        r.keys[c] = p.k;
        if (a.what == TOPS) continue;
        Reach held{0x7fffffff, -1};
        for (int i = 0; i < p.hi; ++i) {
            held.least = p.pos[i] < held.least ? p.pos[i] : held.least;
            held.most = p.pos[i] > held.most ? p.pos[i] : held.most;
        }
        r.reach[c] = held;
    }
    const int rows = look_rows(a.n_pages);
    for (int row0 = 0; row0 < a.n_rows; row0 += rows) {
        const int row1 = row0 + rows < a.n_rows ? row0 + rows : a.n_rows;
        for (int c = 0; c < a.n_pages;) {
            int end = c + 1;
            while (end < a.n_pages && a.pages[end].kind == a.pages[c].kind) ++end;
            switch (a.pages[c].kind) {
                case F32: products<F32>(a, r, row0, row1, c, end); break;
                case BF16: products<BF16>(a, r, row0, row1, c, end); break;
                case I8: products<I8>(a, r, row0, row1, c, end); break;
                case CODED: products_coded(a, r, row0, row1, c, end); break;
            }
            for (; c < end; ++c) {
                if (a.pages[c].other) products_others(a, r, row0, row1, c);
            }
        }
        for (int i = row0; i < row1; ++i) {
            float* s = r.scores + size_t(i - row0) * r.lds;
            if (a.what == TOPS) {
                finish_tops(a, s, a.out + size_t(i) * a.n);
                continue;
            }
            const float top = finish(a, r, s, a.pos[i]);
            if (a.what != LOGITS) {
                const float total = raise(a, s, top == NONE ? 0.0f : top);
                scale_to(a, s, total > 0 ? 1 / total : 0.0f, a.what == SUMS ? r.sums : nullptr);
            }
            if (a.what != SUMS) write(a, s, a.out + size_t(i) * a.n);
        }
    }
    if (a.what == SUMS) write(a, r.sums, a.out);
}

}  // namespace ph::PH_ISA
