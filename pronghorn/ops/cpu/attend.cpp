// Which pages a row's attention reads, in which order.
#include <algorithm>

#include "executor.h"

namespace ph {

void Executor::attend(Lane& lane, int part) {
    const TapeOp& op = ops_[parts_[part].ops[0]];
    const bool fused = fuses(parts_[part]);
    if (selects_[op.ints[0]]) {
        team_.once(lane, [&] { select(op); });
    }
    team_.each(lane, n_items_.load(std::memory_order_relaxed) * shape_.n_kv, [&](int i) {
        const Item& item = items_[i / shape_.n_kv];
        if (fused) {
            for (int op : parts_[part].before) {
                for (int r = item.row0; r < item.row1; ++r) {
                    before_head(ops_[op], r, i % shape_.n_kv);
                }
            }
        }
        attend_item(lane.id, op, item, i % shape_.n_kv);
    });
}

// Asks for pages, sequence by sequence, on the thread that called `run`.
void Executor::select(const TapeOp& op) {
    for (Picks& p : picks_) p.clear();  // all at once: a question may throw
    for (std::size_t i = 0; i < picks_.size(); ++i) {
        const SeqView& s = step_->seqs[i];
        const int n = s.row1 - s.row0;
        bool any = false;
        for (int g : group_) any |= s.table[4 * g + 3] > 0;
        if (!n || !any) continue;
        const std::size_t width = widths_[op.in[0]], step = stride(op.in[0]);
        std::vector<float> q(width * n);
        for (int r = 0; r < n; ++r) {
            std::copy_n(reg(op.in[0]) + step * (s.row0 + r), width, q.begin() + width * r);
        }
        picks_[i] = step_->select(op.ints[0], int(i), q.data(), n);
    }
}

void Executor::attend_item(int thread, const TapeOp& op, const Item& item, int head) {
    ThreadScratch& t = scratch_[thread];
    const int g = shape_.n_heads / shape_.n_kv, dim = shape_.head_dim;
    t.shared.clear();
    t.tail.clear();
    t.runs.clear();
    int n_keys = 0;
    gather_shared(op, item, head, t, n_keys);
    gather_tail(op, item, head, t, n_keys);
    AttendItem a;
    a.dim = dim;
    a.g = g;
    a.n_rows = item.row1 - item.row0;
    a.window = op.ints[1];
    a.scale = op.floats[0];
    a.softcap = op.floats[1];
    a.ldq = stride(op.in[0]);
    a.q = reg(op.in[0]) + a.ldq * item.row0 + std::size_t(head) * g * dim;
    a.ldo = stride(op.out);
    a.out = reg(op.out) + a.ldo * item.row0 + std::size_t(head) * g * dim;
    a.pos = step_->pos + item.row0;
    a.shared = t.shared.data();
    a.n_shared = int(t.shared.size());
    a.tail = t.tail.data();
    a.runs = t.runs.data();
    a.n_runs = int(t.runs.size());
    const int group = group_[op.ints[0] * shape_.n_kv + head];
    a.pick_step = std::size_t(step_->seqs[item.seq].table[4 * group + 3]);
    a.scratch = static_cast<float*>(t.bytes.get());
    a.stride = score_stride_;
    k_.attend(a);
}

// Sealed and open pages. Pages that no row of the item sees are left out; each would count sixteen
// keys of weight 0, so leaving it out moves no key to another lane. The last open page always stays:
// it may be partly filled.
void Executor::gather_shared(const TapeOp& op, const Item& item, int head, ThreadScratch& t,
                             int& n_keys) {
    const SeqView& s = step_->seqs[item.seq];
    const int layer = op.ints[0], window = op.ints[1];
    const int member = layer * shape_.n_kv + head;
    int limit = -1;  // keys at or below it are behind every row's window
    if (window) {
        limit = *std::min_element(step_->pos + item.row0, step_->pos + item.row1) - window;
    }
    const auto visible = [&](const std::int32_t* pos, int n) {
        return !window || *std::max_element(pos, pos + n) > limit;
    };
    const std::int64_t* row = s.table + 4 * group_[member];
    const auto* addr = reinterpret_cast<const std::uint64_t*>(row[0]);
    const auto* fill = reinterpret_cast<const std::int32_t*>(row[1]);
    const auto* pos = reinterpret_cast<const std::int32_t*>(row[2]);
    const int n_pages = int(row[3]);
    const std::uint8_t* picks = nullptr;
    if (selects_[layer] && !picks_[item.seq].empty()) {
        picks = picks_[item.seq][head].data() + std::size_t(item.row0 - s.row0) * n_pages;
    }
    const auto page = [](const Zone& zone, const char* base, const std::int32_t* where, int n) {
        const auto factors = [&](std::size_t at) {
            return zone.kind == I8 ? reinterpret_cast<const float*>(base + at) : nullptr;
        };
        return KvPage{base + zone.k, base + zone.v, factors(zone.ks), factors(zone.vs), where,
                      nullptr, zone.kind, 0, n, 0};
    };
    for (int i = 0; i < n_pages; ++i) {
        const int n = std::clamp(fill[i], 0, PAGE);
        if (!n || !visible(pos + i * PAGE, n)) continue;
        const char* base =
            reinterpret_cast<const char*>(addr[i]) + index_[member] * sealed_.member;
        KvPage p = page(sealed_, base, pos + i * PAGE, n);
        if (picks) {
            p.pick = picks + i;
            bool any = false;
            for (int r = 0; r < item.row1 - item.row0; ++r) any |= p.pick[std::size_t(r) * n_pages];
            if (!any) continue;
        }
        p.at = n_keys;
        n_keys += PAGE;
        t.shared.push_back(p);
    }
    for (int i = 0; i * PAGE < s.n_open; ++i) {
        const int n = std::min(PAGE, s.n_open - i * PAGE);
        const bool last = (i + 1) * PAGE >= s.n_open;
        if (!last && !visible(s.open_pos + i * PAGE, n)) continue;
        const char* base = reinterpret_cast<const char*>(s.open[i]) + member * open_.member;
        KvPage p = page(open_, base, s.open_pos + i * PAGE, n);
        p.at = n_keys;
        n_keys += n;
        t.shared.push_back(p);
    }
}

// Ancestors within the step, as stretches of rows: a row's own chain, then that of its chain's parent,
// and so on up. Keys are numbered from the root down.
void Executor::gather_tail(const TapeOp& op, const Item& item, int head, ThreadScratch& t,
                           int n_keys) {
    const int layer = op.ints[0];
    for (int r = item.row0; r < item.row1;) {
        int end = r + 1;
        while (end < item.row1 && run_[end] == run_[r]) ++end;
        KvRun run;
        run.row0 = r - item.row0;
        run.row1 = end - item.row0;
        run.page0 = int(t.tail.size());
        int at = n_keys + depth_[end - 1];
        run.n_keys = at;
        // upwards, last page first
        for (int last = end - 1; last >= 0;) {
            const int first = run_[last];
            for (int p = last / PAGE; p >= first / PAGE; --p) {
                const int lo = std::max(first - p * PAGE, 0);
                const int hi = std::min(last - p * PAGE, PAGE - 1) + 1;
                const char* base = tail_page(layer, head, p);
                at -= hi - lo;
                t.tail.push_back({base, base + tail_.v, nullptr, nullptr, step_->pos + p * PAGE,
                                  nullptr, tail_.kind, lo, hi, at});
            }
            last = step_->parent[first];
        }
        std::reverse(t.tail.begin() + run.page0, t.tail.end());
        run.page1 = int(t.tail.size());
        t.runs.push_back(run);
        r = end;
    }
}

}  // namespace ph
