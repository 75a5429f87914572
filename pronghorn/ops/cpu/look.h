// What rows look at: the weights with which given queries attend to stored rows, for policies.
//
// Queries are float32 and so are the products, whatever keys are made of: attention in pairs of bfloat16
// rounds both, so weights are those of attention up to that rounding.
#pragma once

#include <cstddef>
#include <string>

#include "kernels.h"

namespace ph {

enum Look : int { SUMS = 0, WEIGHTS = 1, LOGITS = 2, TOPS = 3 };

// Queries of one head, and the pages of its KV head in the order of rows, which lie in lanes [0, hi) of each;
// `at` is a page's number times 16.
struct LookItem {
    int dim, n_rows, window;
    float scale, softcap;
    const float* q;           // (n_rows, dim)
    const std::int32_t* pos;  // (n_rows,) a row sees what is not behind it
    const KvPage* pages;
    int n_pages;
    const Coding* codes;  // of CODED pages' keys
    Look what;
    int n;          // floats of a row of `out`, at least one per stored row (or page); those beyond them stay
    float* out;     // SUMS: (n,), over the queries in their order; else (n_rows, n); TOPS: (n_rows, n), the highest
                    // score of each page, of which all rows are seen
    float* scratch;  // look_scratch floats
};

// Queries that are looked at together: their scores stay in the cache.
inline int look_rows(int n_pages) {
    const int n = (1 << 17) / ((n_pages + 1) * PAGE);
    return n >= 24 ? 24 : n >= 12 ? 12 : 6;
}

constexpr int LOOK_PAGES = 4;  // of codes that are unpacked together

inline std::size_t look_scratch(int n_pages, int dim) {
    return std::size_t(n_pages) * PAGE * std::size_t(look_rows(n_pages) + 1) + std::size_t(n_pages) * 4 +
           std::size_t(LOOK_PAGES) * PAGE * dim;
}

#define PH_DECLARE_LOOK(name) \
    namespace name { void look(const LookItem&); }
PH_FOR_EACH_ISA(PH_DECLARE_LOOK)
#undef PH_DECLARE_LOOK

using Looks = void (*)(const LookItem&);
Looks looks_named(const std::string& isa);  // empty: the best

}  // namespace ph
