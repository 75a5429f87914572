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

inline const void* panel_of(const Mat& m, int panel) { return static_cast<const char*>(m.w) + panel * m.panel; }

// The panel of that number, counted over the whole list; null past its end.
inline const void* panel_at(const Linear* list, int n_list, int panel) {
    for (int j = 0; j < n_list; panel -= list[j++].mat->n_panels) {
        const Mat& m = *list[j].mat;
        if (panel < m.n_panels) return panel_of(m, panel);
    }
    return nullptr;
}

// Panels of an item of few rows: two items for each thread, or fewer than PANELS panels are left for one.
inline int few_panels(int total, int threads) {
    return std::max(pieces(total, 2 * threads), std::min(PANELS, pieces(total, threads)));
}

// Products of n rows with each matrix of a list. input(i), called at the start of piece i, says where the
// rows are, ldx bytes from row to row. after(r0, r1, p0, p1) is called for each finished piece, with
// panels counted over the whole list. then: the weights that this thread will read after its own items.
template <typename Input, typename After>
void product(Team& team, Lane& lane, const Kernels& k, const Linear* list, int n_list,
             const Input& input, std::size_t ldx, int n, const void* then, const After& after) {
    if (n <= 0) return;
    int total = 0;
    for (int i = 0; i < n_list; ++i) total += list[i].mat->n_panels;
    const int threads = team.size();
    int chunk = PANELS;
    const int tall = height(n);
    if (n <= FEW) {
        chunk = few_panels(total, threads);
    } else {
        while (chunk > 2 && pieces(total, chunk) * pieces(n, tall) < 16 * threads) chunk /= 2;
    }
    const int across = pieces(total, chunk);
    const int last = Team::first(across, lane.id + 1, threads) - 1;
    team.each(lane, across * pieces(n, tall), [&](int i) {
        const void* x = input(i);
        const int r0 = i / across * tall, r1 = std::min(n, r0 + tall);
        const int p0 = i % across * chunk, p1 = std::min(total, p0 + chunk);
        for (int j = 0, first = 0; j < n_list; first += list[j].mat->n_panels, ++j) {
            const int from = std::max(p0 - first, 0);
            const int to = std::min(p1 - first, list[j].mat->n_panels);
            if (from >= to) continue;
            Linear l = list[j];
            const int stop = first + to;
            l.then = stop == p1 && i == last ? then : panel_at(list, n_list, stop);
            l.y += l.ldy * r0;
            k.linear(l, static_cast<const char*>(x) + ldx * r0, ldx, r1 - r0, from, to);
        }
        after(r0, r1, p0, p1);
    });
}

}  // namespace ph
