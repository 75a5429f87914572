// Which sealed pages rows read.
//
// A row chooses where a head has more pages than it may read. Its pages are scored by several items where rows
// are few; who scores the last of them takes the best. A choice depends on the row's queries and on the pages'
// fields only: scores are rounded, as the last bits of a sum differ between instruction sets and from the
// reference, and ties go to the earlier page. A row that chooses is an item of attention by itself (deal.cpp), so
// that the numbers of its keys, and with them its bits, do not depend on what others choose.
#include "select.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "executor.h"
#include "isa.h"

namespace ph {
namespace {

constexpr int FEWEST = 64;  // pages that are worth an item
constexpr int TURN = 64;     // pages whose keys are looked at in one go

void need(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

using Scorer = void (*)(const ScoreItem&);

Scorer scorer_named(const std::string& isa_name) {
    const std::string& name = isa_name.empty() ? isa() : isa_name;
#define PH_SCORER_OF(set) \
    if (name == #set) return set::score_pages;
    PH_FOR_EACH_ISA(PH_SCORER_OF)
#undef PH_SCORER_OF
    return baseline::score_pages;
}

// Ask the system for n bytes that a file has, without waiting for them.
void ask_for(const char* at, std::size_t n) {
    static const std::uintptr_t unit = std::uintptr_t(sysconf(_SC_PAGESIZE));
    const std::uintptr_t from = reinterpret_cast<std::uintptr_t>(at) / unit * unit;
    posix_madvise(reinterpret_cast<void*>(from), reinterpret_cast<std::uintptr_t>(at) + n - from, POSIX_MADV_WILLNEED);
}

// Scores to levels of 0 to 2 * STEPS, in place; what is not a number is somewhere among them.
void round_levels(const float* x, int n, std::int32_t* level) {
    constexpr int LANES = 8;  // maxima that do not wait for each other
    float tops[LANES] = {}, top = 0;
    int at = 0;
    for (; at + LANES <= n; at += LANES) {
        for (int i = 0; i < LANES; ++i) tops[i] = std::max(tops[i], std::max(x[at + i], -x[at + i]));
    }
    for (; at < n; ++at) tops[0] = std::max(tops[0], std::max(x[at], -x[at]));
    for (const float t : tops) top = std::max(top, t);
    const float step = top > 0 ? top / float(STEPS) : 1.0f;
    constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an even integer in the low bits
    std::int32_t zero;
    std::memcpy(&zero, &magic, sizeof zero);
    for (int i = 0; i < n; ++i) {
        const float y = x[i] / step + magic;
        std::int32_t bits;
        std::memcpy(&bits, &y, sizeof bits);
        level[i] = std::clamp(bits - zero + STEPS, 0, 2 * STEPS);
    }
}

// The least level of the `want` highest, and how many of that level are among them.
struct Least {
    int level, n;
};
Least least_of(const std::int32_t* level, int n, int want) {
    constexpr int SHIFT = 6, COARSE = (2 * STEPS + 1) / (1 << SHIFT) + 1, FINE = 1 << SHIFT;
    int coarse[COARSE] = {}, fine[FINE] = {};
    for (int i = 0; i < n; ++i) ++coarse[level[i] >> SHIFT];
    int c = COARSE - 1;
    while (c > 0 && coarse[c] < want) want -= coarse[c--];
    for (int i = 0; i < n; ++i) {
        if (level[i] >> SHIFT == c) ++fine[level[i] & (FINE - 1)];
    }
    int f = FINE - 1;
    while (f > 0 && fine[f] < want) want -= fine[f--];
    return {c << SHIFT | f, want};
}

}  // namespace

void Executor::set_select(std::vector<int> sources, const Chooser& by, std::vector<float> turn,
                          std::vector<float> book) {
    need(!finished_, "a selection after finish");
    need(int(sources.size()) == shape_.n_layers && (group_.size() || !shape_.n_layers), "a source for each layer");
    need(by.pages >= 1 && by.pages < (1 << 24) && by.span >= 1 && by.pages % by.span == 0 && by.first >= 0 &&
             by.last >= 0 && by.first <= by.pages && by.last <= by.pages &&
             (by.first + by.last) * by.span <= by.pages && by.cover > 0,
         "pages that are always read are among those that are read, whole spans of them");
    need(by.score >= BOUNDS && by.score <= CODES && by.heads >= MOST && by.heads <= VOTE && by.keep >= NOT && by.keep <= ELSE_OWN && by.n >= 1 &&
             by.n <= 256 && ((by.score != LABELS && by.score != CODES) || by.n <= shape_.head_dim),
         "a choice that does not exist");
    const std::size_t vectors = std::size_t(by.n) * shape_.head_dim * 2;
    const std::size_t size[5][3] = {{vectors, vectors, 0}, {vectors, 0, 0},
                                    {std::size_t(by.n), std::size_t(by.n) * PAGE, std::size_t(by.n) * 4},
                                    {0, 0, 0}, {std::size_t(by.n) * PAGE, 0, 0}};
    const bool codes = by.score == CODES;
    const std::size_t members = codes ? std::size_t(shape_.n_layers) * shape_.n_kv : 0;
    need(by.part >= (codes ? 1 : 0) && by.part <= (codes ? shape_.head_dim : 0), "books of parts of a query");
    need(turn.size() == members * shape_.head_dim * by.turned() && book.size() == members * by.book(),
         "books for each head");
    const std::size_t last = by.stride * *std::max_element(index_.begin(), index_.end());
    for (int i = 0; i < 3; ++i) need(by.at[i] + last + size[by.score][i] <= by.block, "index fields outside of a page");
    std::vector<char> attends(shape_.n_layers, 0);
    for (const TapeOp& op : ops_) {
        if (op.what == Do::Attend) attends.at(op.ints.at(0)) = 1;
    }
    for (int i = 0; i < shape_.n_layers; ++i) {
        need(sources[i] >= -1 && sources[i] <= i && (sources[i] < 0 || attends[sources[i]]),
             "a layer reads by the choice of one that runs, itself or before it");
        if (sources[i] >= 0) chooses_[sources[i]] = 1;
    }
    for (int i = 0, now = -1; i < shape_.n_layers; ++i) {
        if (chooses_[i]) now = i;
        need(sources[i] < 0 || sources[i] == (by.keep ? i : now), "a layer reads by the last choice before it");
        for (int h = 0; sources[i] >= 0 && h < shape_.n_kv; ++h) {
            need(group_[i * shape_.n_kv + h] == group_[now * shape_.n_kv + h],
                 "layers that read by one choice hold the same rows");
        }
        any_select_ |= sources[i] >= 0;
    }
    sources_ = std::move(sources);
    chooser_ = by;
    turn_ = std::move(turn);
    book_ = std::move(book);
}

// Rows that choose, and who scores which of their pages.
void Executor::list_choices(const StepIn& s) {
    asked_.clear();
    std::size_t rows = 0, pages = 0;
    for (const SeqView& q : s.seqs) {
        if (!any_select_ || !chooses(q)) continue;
        rows += std::size_t(q.row1 - q.row0);
        for (int g : group_) pages = std::max(pages, std::size_t(q.table[4 * g + 3]));
    }
    choosing_ = rows > 0;
    n_asked_ = 0;
    if (!rows) return;
    const std::size_t heads = rows * shape_.n_kv, threads = std::size_t(team_.size());
    const std::size_t most = threads == 1 ? 1 : (3 * threads + heads - 1) / heads;
    const int parts = int(std::clamp<std::size_t>(pages / FEWEST, 1, most));
    int n = 0;
    for (int i = 0; i < int(s.seqs.size()); ++i) {
        if (!chooses(s.seqs[i])) continue;
        for (int r = s.seqs[i].row0; r < s.seqs[i].row1; ++r) {
            if (chooser_.keep == ELSE_ALL && !keeps(s.seqs[i], r)) continue;
            for (int p = 0; p < parts; ++p) asked_.push_back({i, r, p, parts, n});
            ++n;
        }
    }
    need(asked_.size() * shape_.n_kv < Team::MOST, "too many rows in a step");
    n_asked_ = int(asked_.size());
    n_chosen_.assign(std::size_t(s.n) * shape_.n_kv, 0);
    chosen_.resize(n_chosen_.size() * chooser_.pages);
    scores_ld_ = sixteens(pages);
    if (parts == 1) return;
    const std::size_t floats = heads * scores_ld_ * (shape_.n_heads / shape_.n_kv);
    if (floats > scores_size_) {
        scores_.reset();
        scores_ = zeroed(sizeof(float) * floats);
        scores_size_ = floats;
    }
    if (heads > left_size_) {
        left_ = std::make_unique<std::atomic<int>[]>(heads);
        left_size_ = heads;
    }
    for (std::size_t i = 0; i < heads; ++i) left_[i] = parts;
}

// Floats that an item of a choice takes: for its kernel, for scores and for levels.
std::size_t Executor::choice_scratch() const {
    if (!choosing_) return 0;
    const int g = shape_.n_heads / shape_.n_kv;
    return sixteens(std::max(score_scratch(chooser_, g, shape_.head_dim),
                           look_scratch(TURN, shape_.head_dim))) +
           scores_ld_ * std::size_t(g + 1);
}

std::vector<int> Executor::chosen(int row, int head) const {
    if (!choosing_ || row < 0 || row >= n_rows() || head < 0 || head >= shape_.n_kv) return {};
    const std::size_t number = std::size_t(row) * shape_.n_kv + head;
    const std::int32_t* from = chosen_.data() + number * chooser_.pages;
    return {from, from + n_chosen_[number]};
}

void Executor::choose_pages(Lane& lane, const TapeOp& op) {
    team_.each(lane, n_asked_.load(std::memory_order_relaxed) * shape_.n_kv, [&](int i) {
        choose_item(lane.id, op, asked_[i / shape_.n_kv], i % shape_.n_kv);
    });
}

void Executor::choose_item(int thread, const TapeOp& op, const Asked& asked, int head) {
    ThreadScratch& t = scratch_[thread];
    const int layer = op.ints[0], member = layer * shape_.n_kv + head, g = shape_.n_heads / shape_.n_kv;
    const std::int64_t* row = step_->seqs[asked.seq].table + 4 * group_[member];
    const int n = int(row[3]);
    const float* q = reg(op.in[0]) + stride(op.in[0]) * asked.row + std::size_t(head) * g * shape_.head_dim;
    if (!asked.part && keeps(step_->seqs[asked.seq], asked.row)) {  // also of heads that have nothing to choose
        const std::size_t floats = std::size_t(g) * shape_.head_dim;
        std::copy_n(q, floats, kept_queries(step_->seqs[asked.seq], layer) + head * floats);
    }
    if (n <= chooser_.pages || reads_kept(op, step_->seqs[asked.seq], asked.row)) return;
    const int from = int(std::int64_t(n) * asked.part / asked.parts);
    const int to = int(std::int64_t(n) * (asked.part + 1) / asked.parts);
    float* own = static_cast<float*>(t.bytes.get());
    float* scores = own + choice_scratch() - scores_ld_ * std::size_t(g + 1);
    std::int32_t* level = reinterpret_cast<std::int32_t*>(scores + scores_ld_ * std::size_t(g));
    const std::size_t number = std::size_t(asked.first) * shape_.n_kv + head;
    if (asked.parts > 1) scores = static_cast<float*>(scores_.get()) + number * scores_ld_ * std::size_t(g);
    if (chooser_.score == BY_KEYS) {
        score_keys(t, op, asked, head, from, to, scores + from, scores_ld_);
    } else {
        const ScoreItem item{&chooser_, shape_.head_dim, g, to - from, op.floats[0], q,
                             reinterpret_cast<const std::uint64_t*>(row[0]) + from,
                             index_[member] * chooser_.stride, scores + from, scores_ld_, own,
                             turn_.data() + member * (shape_.head_dim * chooser_.turned()),
                             book_.data() + member * chooser_.book()};
        scorer_named(isa_)(item);
        t.kv_bytes += chooser_.bytes * std::size_t(to - from);
    }
    if (asked.parts > 1 && left_[number].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    if (asked.parts > 1) left_[number].store(asked.parts, std::memory_order_relaxed);
    choose(scores, level, n, asked.row, head);
    const SeqView& s = step_->seqs[asked.seq];
    const std::size_t at = std::size_t(asked.row) * shape_.n_kv + head;
    // All that is missing is asked for before attention, which would wait for one page after the other.
    for (int i = layer; s.seen && i < shape_.n_layers; ++i) {
        if (sources_[i] != layer) continue;
        for (const std::int32_t *p = chosen_.data() + at * chooser_.pages, *end = p + n_chosen_[at]; p < end; ++p) {
            if (!s.fetches(i * shape_.n_kv + head, *p)) continue;
            ask_for(static_cast<const char*>(keys_of(s, i, head, *p).k), sealed_.member);
        }
    }
    if (!keeps(s, asked.row)) return;
    std::int32_t* kept = kept_pages(s, layer, head);
    kept[0] = n_chosen_[at];
    std::copy_n(chosen_.data() + at * chooser_.pages, kept[0], kept + 1);
}

// Whether a row reads by the choice that its sequence keeps.
bool Executor::reads_kept(const TapeOp& op, const SeqView& s, int row) const {
    if (!chooser_.keep || !s.kept || !answers(row) || keeps(s, row)) return false;
    if (s.n_open ? !s.kept[0] : !keeps(s, s.row0)) return false;
    const std::size_t n = std::size_t(shape_.n_heads) * shape_.head_dim;
    const float* a = reg(op.in[0]) + stride(op.in[0]) * row;
    const float* b = s.n_open ? kept_queries(s, op.ints[0]) : reg(op.in[0]) + stride(op.in[0]) * s.row0;
    const float size = std::sqrt(k_.dot(a, a, n) * k_.dot(b, b, n));
    return std::nearbyint(size > 0 ? 1024 * k_.dot(a, b, n) / size : 0.0f) >= 1024 * chooser_.like;
}

Executor::Pages Executor::chosen_by(const TapeOp& op, int head, const Item& item) const {
    const int layer = op.ints[0], group = group_[layer * shape_.n_kv + head];
    const SeqView& s = step_->seqs[item.seq];
    if (!choosing_.load(std::memory_order_relaxed) || sources_[layer] < 0) return {nullptr, 0};
    if (s.table[4 * group + 3] <= chooser_.pages) return {nullptr, 0};
    std::size_t number = std::size_t(item.row0) * shape_.n_kv + head;
    if (reads_kept(op, s, item.row0)) {
        if (s.n_open) {
            const std::int32_t* kept = kept_pages(s, layer, head);
            return {kept + 1, kept[0]};
        }
        number = std::size_t(s.row0) * shape_.n_kv + head;
    } else if (chooser_.keep == ELSE_ALL) {
        return {nullptr, 0};
    }
    return {chosen_.data() + number * chooser_.pages, n_chosen_[number]};
}

void Executor::score_keys(ThreadScratch& t, const TapeOp& op, const Asked& asked, int head, int from, int to,
                          float* scores, std::size_t ld) {
    const int g = shape_.n_heads / shape_.n_kv, dim = shape_.head_dim;
    const float* q = reg(op.in[0]) + stride(op.in[0]) * asked.row + std::size_t(head) * g * dim;
    const Looks look = looks_named(isa_);
    for (int i = from; i < to; i += TURN) {
        t.shared.clear();
        for (int j = i; j < std::min(i + TURN, to); ++j) {
            t.shared.push_back(keys_of(step_->seqs[asked.seq], op.ints[0], head, j));
            step_->seqs[asked.seq].see(op.ints[0] * shape_.n_kv + head, j);
            t.kv_bytes += page_bytes(t.shared.back()) / 2;
        }
        look({dim, g, 0, op.floats[0], 0.0f, q, nullptr, t.shared.data(), int(t.shared.size()), &sealed_.k_codes,
              TOPS, int(ld), scores + (i - from), static_cast<float*>(t.bytes.get())});
    }
}

// The best of n pages, from the scores of each head, which this overwrites.
void Executor::choose(float* scores, std::int32_t* level, int n, int row, int head) {
    const int g = shape_.n_heads / shape_.n_kv, span = chooser_.span, n_spans = (n + span - 1) / span;
    const std::size_t ld = scores_ld_;
    for (int h = 0; h < g; ++h) {
        float* x = scores + h * ld;
        if (chooser_.heads == VOTE) {
            const float by = 1.0f / k_.weigh(x, x, n, k_.largest(x, n), 1.0f);
            for (int i = 0; i < n; ++i) x[i] *= by;
        }
        if (!h) continue;
        if (chooser_.heads == MOST) {
            for (int i = 0; i < n; ++i) scores[i] = std::max(scores[i], x[i]);
        } else {
            for (int i = 0; i < n; ++i) scores[i] += x[i];
        }
    }
    for (int i = 0; i < n_spans && span > 1; ++i) {
        scores[i] = *std::max_element(scores + i * span, scores + std::min((i + 1) * span, n));
    }
    round_levels(scores, n_spans, level);
    for (int i = 0; i < chooser_.first; ++i) level[i] = 2 * STEPS + 1;
    for (int i = n_spans - chooser_.last; i < n_spans; ++i) level[i] = 2 * STEPS + 1;
    Least least = least_of(level, n_spans, chooser_.pages / span);
    const std::size_t number = std::size_t(row) * shape_.n_kv + head;
    std::int32_t* out = chosen_.data() + number * chooser_.pages;
    int m = 0;  // spans
    for (int i = 0; i < n_spans; ++i) {
        if (level[i] > least.level || (level[i] == least.level && least.n-- > 0)) out[m++] = i;
    }
    if (chooser_.cover < 1) {
        float all = 0, before = 0;
        for (int i = 0; i < n_spans; ++i) all += scores[i];
        std::sort(out, out + m, [&](int a, int b) { return level[a] != level[b] ? level[a] > level[b] : a < b; });
        int kept = 0;
        while (kept < m && (level[out[kept]] > 2 * STEPS || before < chooser_.cover * all)) before += scores[out[kept++]];
        m = kept;
        std::sort(out, out + m);
    }
    int n_pages = 0;
    for (int i = 0; i < m; ++i) n_pages += std::min(span, n - out[i] * span);
    n_chosen_[number] = n_pages;
    for (int i = m - 1; i >= 0; --i) {  // from the end: it spreads over what it has read
        for (int p = std::min((out[i] + 1) * span, n) - 1, first = out[i] * span; p >= first; --p) out[--n_pages] = p;
    }
}

}  // namespace ph
