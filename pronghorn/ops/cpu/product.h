// How the work of matrix products is shared out.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "team.h"

namespace ph {

// Up to FEW rows go together, more by MANY: then inputs stay in a core's cache while pieces of PANELS panels
// pass by.
constexpr int FEW = 12, MANY = 192, PANELS = 8;

inline int pieces(int a, int b) { return (a + b - 1) / b; }

// Rows of an item, of n rows: all items have about as many.
inline int height(int n) { return n <= FEW ? n : pieces(pieces(n, pieces(n, MANY)), 6) * 6; }

// Products of n rows with each matrix of a list. input(i), called at the start of piece i, says where the
// rows are, ldx bytes from row to row. after(r0, r1, p0, p1) is called for each finished piece, with
// panels counted over the whole list.
template <typename Input, typename After>
void product(Team& team, Lane& lane, const Kernels& k, const Linear* list, int n_list,
             const Input& input, std::size_t ldx, int n, const After& after) {
    if (n <= 0) return;
    int total = 0;
    for (int i = 0; i < n_list; ++i) total += list[i].mat->n_panels;
    const int threads = team.size();
    int chunk = PANELS;
    const int tall = height(n);
    if (n <= FEW) {
        chunk = std::max(pieces(total, 2 * threads), std::min(PANELS, pieces(total, threads)));
    } else {
        while (chunk > 2 && pieces(total, chunk) * pieces(n, tall) < 16 * threads) chunk /= 2;
    }
    const int across = pieces(total, chunk);
    team.each(lane, across * pieces(n, tall), [&](int i) {
        const void* x = input(i);
        const int r0 = i / across * tall, r1 = std::min(n, r0 + tall);
        const int p0 = i % across * chunk, p1 = std::min(total, p0 + chunk);
        for (int j = 0, first = 0; j < n_list; first += list[j].mat->n_panels, ++j) {
            const int from = std::max(p0 - first, 0);
            const int to = std::min(p1 - first, list[j].mat->n_panels);
            if (from >= to) continue;
            Linear l = list[j];
            l.y += l.ldy * r0;
            k.linear(l, static_cast<const char*>(x) + ldx * r0, ldx, r1 - r0, from, to);
        }
        after(r0, r1, p0, p1);
    });
}

}  // namespace ph
