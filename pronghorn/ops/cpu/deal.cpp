// How the attention of a step is dealt out: which rows read which blocks of keys together.
//
// Rows of a sequence share page reads in items. Blocks of keys that sequences have in common, in the very
// same pages, are an item of their own for the rows of all of them, as in Hydragen (Juravsky et al. 2024),
// level by level where a tree of prefixes branches: what is common is read once. A block's result for a
// query does not depend on who shares the reading, and results are joined in the order of the blocks by one
// rule, so a sequence's bits are the same as alone.
#include <algorithm>
#include <climits>
#include <cstring>
#include <stdexcept>

#include "executor.h"

namespace ph {
namespace {

constexpr int QUERIES = 96;  // of an item: few enough for the cache
constexpr int SHARED = 512;  // of an item of several sequences: pages are read once for all of them
constexpr int FEWEST = 2;    // blocks of a task
constexpr int PAGES = KEYS / PAGE;

void need(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

// Whether page i of two lists of positions holds the same.
bool same_positions(const std::int32_t* a, const std::int32_t* b, int i) {
    return std::memcmp(a + i * PAGE, b + i * PAGE, PAGE * sizeof(std::int32_t)) == 0;
}

}  // namespace

void Executor::deal(const StepIn& s) {
    item_queries_ = 0;
    for (Dealt& d : dealt_) {
        if (&d == dealt_ + 1 && !choosing_) continue;
        d.items.clear();
        d.tasks.clear();
        d.merges.clear();
        d.joins.clear();
        cut_rows(s, d);
        const int n_own = int(d.items.size()), n_seqs = int(live_.size());
        if (n_seqs > 1 && &d == dealt_) share_blocks(s, d);
        need(d.items.size() * shape_.n_kv < Team::MOST, "too many rows in a step");
        cut_blocks(d, n_own);
        need(d.tasks.size() * shape_.n_kv < Team::MOST, "too many rows in a step");
        d.whole_seqs = d.merges.empty() && n_own == n_seqs;
        d.n_tasks = int(d.tasks.size());
        d.n_merges = int(d.merges.size());
    }
}

// Items of a sequence's own, sequence by sequence in the order of rows: of all its blocks. Where there are
// few blocks too, items take fewer rows. A row that chooses pages reads its own, and is an item alone.
void Executor::cut_rows(const StepIn& s, Dealt& d) {
    const int g = shape_.n_heads / shape_.n_kv;
    int most = std::max(1, QUERIES / g);
    while (most > 1 && most * g % 6) --most;  // queries go by sixes at best
    const int few = std::max(1, s.n * shape_.n_kv / (2 * team_.size()));
    live_.clear();
    for (int row = 0; row < s.n; row = s.seqs[s.seq[row]].row1) {
        const int i = s.seq[row];
        const SeqView& q = s.seqs[i];
        const bool alone = &d == dealt_ + 1 && chooses(q);
        live_.push_back({i, int(d.items.size()), 0});
        std::int64_t pages = (q.n_open + PAGE - 1) / PAGE, sealed = 0;
        for (int j : group_) sealed = std::max(sealed, q.table[4 * j + 3]);
        if (alone && chooser_.keep != ELSE_ALL) sealed = chooser_.pages;
        const std::int64_t before = (pages + sealed) * PAGE;
        const int rows = before < 2 * FEWEST * KEYS ? std::min(most, few) : most;
        const auto picks = [&](int r) { return alone && (chooser_.keep != ELSE_ALL || answers(r)); };
        for (int r = q.row0, end = r; r < q.row1; r = end) {
            const int most_here = picks(r) ? 1 : rows;
            for (end = r + 1; end < q.row1 && end < r + most_here && !picks(end);) ++end;
            const int deep = *std::max_element(depth_.begin() + r, depth_.begin() + end);
            d.items.push_back({i, r, end, 0, int((before + deep + KEYS - 1) / KEYS), false, false, 0});
        }
        live_.back().item1 = int(d.items.size());
    }
}

// Blocks with which two sequences begin alike: pages that are full of the same rows at the same positions.
int Executor::common_blocks(const SeqView& a, const SeqView& b) const {
    int least = n_groups_ ? INT_MAX : 0;
    for (int g = 0; g < n_groups_ && least; ++g) {
        const std::int64_t *x = a.table + 4 * g, *y = b.table + 4 * g;
        const int n_x = int(x[3]), n_y = int(y[3]), n_sealed = std::min(n_x, n_y);
        if ((a.bias ? a.bias[g] : 0) != (b.bias ? b.bias[g] : 0)) return 0;
        const auto addr = [](const std::int64_t* t) { return reinterpret_cast<const std::uint64_t*>(t[0]); };
        const auto fill = [](const std::int64_t* t) { return reinterpret_cast<const std::int32_t*>(t[1]); };
        const auto pos = [](const std::int64_t* t) { return reinterpret_cast<const std::int32_t*>(t[2]); };
        const auto same_sealed = [&](int i) {
            return addr(x)[i] == addr(y)[i] && fill(x)[i] == fill(y)[i] && same_positions(pos(x), pos(y), i);
        };
        int n = 0;
        while (n < n_sealed && same_sealed(n)) ++n;
        if (n == n_x && n == n_y) {
            const int n_open = std::min(a.n_open, b.n_open) / PAGE;
            int i = 0;
            while (i < n_open && a.open[i] == b.open[i] && same_positions(a.open_pos, b.open_pos, i)) ++i;
            n += i;
        }
        least = std::min(least, n / PAGES);
    }
    return least;
}

// Items of several sequences, for stretches of neighbours that begin alike; what follows where some of them
// part is theirs, and so on.
void Executor::share_blocks(const StepIn& s, Dealt& d) {
    const int n_seqs = int(live_.size());
    common_.resize(n_seqs - 1);  // of a sequence and the next
    for (int i = 0; i + 1 < n_seqs; ++i) {
        common_[i] = common_blocks(s.seqs[live_[i].seq], s.seqs[live_[i + 1].seq]);
    }
    stretches_.assign(1, {0, n_seqs, 0});
    while (!stretches_.empty()) {
        const auto [from, to, done] = stretches_.back();
        stretches_.pop_back();
        const int all = *std::min_element(common_.begin() + from, common_.begin() + to - 1);
        if (all > done) share_items(d, live_[from].item0, live_[to - 1].item1, done, all);
        for (int i = from; i < to - 1; ++i) {
            const int first = i;
            while (i < to - 1 && common_[i] > all) ++i;
            if (i > first) stretches_.push_back({first, i + 1, all});
        }
    }
    std::stable_sort(d.joins.begin(), d.joins.end(),
                     [](const Join& a, const Join& b) { return a.own < b.own; });
}

// Blocks [block0, block1) of own items [from, to) go to items for several of them, of about the same size.
void Executor::share_items(Dealt& d, int from, int to, int block0, int block1) {
    const int rows = d.items[to - 1].row1 - d.items[from].row0;
    const int n = (rows * (shape_.n_heads / shape_.n_kv) + SHARED - 1) / SHARED, most = (rows + n - 1) / n;
    for (int i = from; i < to;) {
        const Item first = d.items[i];
        Item item{first.seq, first.row0, first.row1, block0, block1, true, true, 0};
        for (int j = i; i < to && (i == j || d.items[i].row1 - first.row0 <= most); ++i) {
            item.row1 = d.items[i].row1;
            d.items[i].block0 = block1;
            d.joins.push_back({i, int(d.items.size())});
        }
        d.items.push_back(item);
    }
}

// Tasks of items: where items are too few for the threads, blocks are dealt out and their results merged.
void Executor::cut_blocks(Dealt& d, int n_own) {
    const int g = shape_.n_heads / shape_.n_kv, n_threads = team_.size();
    double work = 0;
    for (const Item& item : d.items) work += double(item.row1 - item.row0) * (item.block1 - item.block0);
    const double task = work / (4 * n_threads) * shape_.n_kv;
    std::size_t floats = 0;
    for (int i = 0, join = 0; i < int(d.items.size()); ++i) {
        Item& item = d.items[i];
        const int rows = item.row1 - item.row0, blocks = item.block1 - item.block0;
        item_queries_ = std::max(item_queries_, rows * g);
        int n = int(std::min<double>(blocks / FEWEST, rows * double(blocks) / task + 0.5));
        if (n_threads == 1 || n < 1) n = 1;
        for (int j = 0; j < n; ++j) {
            d.tasks.push_back({i, item.block0 + blocks * j / n, item.block0 + blocks * (j + 1) / n});
        }
        const int first = join;
        while (join < int(d.joins.size()) && d.joins[join].own == i) ++join;
        if (i < n_own && n == 1 && join == first) continue;
        if (i < n_own) d.merges.push_back({i, first, join});
        item.parts = true;
        item.part = floats;
        floats += attend_part(std::size_t(rows) * g, shape_.head_dim) * blocks * shape_.n_kv;
    }
    if (floats > parts_size_) {
        parts_of_items_.reset();
        parts_of_items_ = zeroed(sizeof(float) * floats);
        parts_size_ = floats;
    }
}

}  // namespace ph
