// Which sealed pages a query reads: scored by their index fields, the best are taken; see select.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace ph {

enum Score : int { BOUNDS = 0, DOTS = 1, LABELS = 2, BY_KEYS = 3, CODES = 4 };
enum Heads : int { MOST = 0, SUM = 1, VOTE = 2 };
enum Keep : int { NOT = 0, ELSE_ALL = 1, ELSE_OWN = 2 };

constexpr int STEPS = 4096;  // a score is rounded to this fraction of the largest
constexpr int BOOK = 256;    // centroids of a book, of which a code of 8 bits is one
constexpr int EIGHT = 8;     // query heads that look codes up together

constexpr std::size_t sixteens(std::size_t n) { return (n + 15) / 16 * 16; }

// `types.Choice`: how pages are chosen.
struct Chooser {
    Score score = BOUNDS;
    Heads heads = MOST;
    int pages = 1, first = 0, last = 0, span = 1;
    float cover = 1;
    Keep keep = NOT;
    float like = -2;
    int n = 1;              // boxes, vectors or channels of a page, or codes of a row
    std::size_t at[3] = {};  // of the fields of a block's first head: lo, hi; mean; channel, label, unit; code
    std::size_t stride = 0;  // from head to head
    std::size_t block = 0;   // bytes of a block
    std::size_t bytes = 0;   // of the fields of a page
    int part = 0;            // turned channels of a query that one of n codes is about

    std::size_t turned() const { return sixteens(std::size_t(n) * part); }
    std::size_t book() const { return std::size_t(n) * part * BOOK; }
};

// Scores of pages for the query heads that share a KV head, by fields of the index.
struct ScoreItem {
    const Chooser* by;
    int dim, g, n_pages;
    float scale;                 // of queries
    const float* q;              // (g, dim)
    const std::uint64_t* pages;  // addresses of blocks
    std::size_t member;          // from a block's first head to this one
    float* out;                  // of head h and page i: out[h * ldo + i]
    std::size_t ldo;
    float* scratch;              // score_scratch floats
    const float* turn;           // of codes: (dim, turned) that queries are multiplied with
    const float* book;           // of codes: (n, part, BOOK) centroids
};

inline std::size_t score_scratch(const Chooser& by, int g, int dim) {
    std::size_t beside = 0;
    if (by.score == CODES) beside = EIGHT * (by.turned() + std::size_t(by.n) * BOOK);
    if (by.score == LABELS) beside = EIGHT * (std::size_t(dim) + by.n);
    return std::size_t(g) * 2 * sixteens(dim) + beside;
}

#define PH_DECLARE_SCORE(name) \
    namespace name { void score_pages(const ScoreItem&); }
PH_FOR_EACH_ISA(PH_DECLARE_SCORE)
#undef PH_DECLARE_SCORE

}  // namespace ph
