// Which pages a row's attention reads, in which order.
#include <algorithm>

#include "executor.h"

namespace ph {

void Executor::attend(Lane& lane, int part) {
    const TapeOp& op = ops_[parts_[part].ops[0]];
    const bool fused = fuses(parts_[part]);
    const Dealt& d = dealt_for(op.ints[0]);
    if (choosing_.load(std::memory_order_relaxed) && chooses_[op.ints[0]]) choose_pages(lane, op);
    team_.each(lane, d.n_tasks.load(std::memory_order_relaxed) * shape_.n_kv, [&](int i) {
        const Task& task = d.tasks[i / shape_.n_kv];
        if (fused) {  // then an item is all rows of a sequence, and a task is an item
            const Item& item = d.items[task.item];
            for (int op : parts_[part].before) {
                for (int r = item.row0; r < item.row1; ++r) {
                    before_head(ops_[op], r, i % shape_.n_kv);
                }
            }
        }
        attend_item(lane.id, op, d, task, i % shape_.n_kv);
    });
    team_.each(lane, d.n_merges.load(std::memory_order_relaxed) * shape_.n_kv, [&](int i) {
        merge_item(lane.id, op, d, d.merges[i / shape_.n_kv], i % shape_.n_kv);
    });
}

// What an item's kernels have in common.
AttendItem Executor::asked(int thread, const TapeOp& op, const Item& item, int head) const {
    const int g = shape_.n_heads / shape_.n_kv, dim = shape_.head_dim;
    AttendItem a{};
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
    // A float32 store keeps its precision, whatever its sealed pages are made of.
    a.pairs = open_.kind == BF16 && sealed_.kind != F32;
    const int member = op.ints[0] * shape_.n_kv + head;
    a.factors = sealed_.kind == I8 || (!upon_.beside.empty() && upon_.beside[member]);
    a.k_codes = &sealed_.k_codes;
    a.v_codes = &sealed_.v_codes;
    a.bias = bias_of(step_->seqs[item.seq], member) != nullptr;
    a.scratch = static_cast<float*>(scratch_[thread].bytes.get());
    return a;
}

// Where the result of an item's block lies.
float* Executor::part_of(const Item& item, int head, int block) const {
    const int g = shape_.n_heads / shape_.n_kv, blocks = item.block1 - item.block0;
    const std::size_t part = attend_part(std::size_t(item.row1 - item.row0) * g, shape_.head_dim);
    return static_cast<float*>(parts_of_items_.get()) + item.part +
           part * (std::size_t(head) * blocks + block - item.block0);
}

void Executor::attend_item(int thread, const TapeOp& op, const Dealt& d, const Task& task, int head) {
    ThreadScratch& t = scratch_[thread];
    const Item& item = d.items[task.item];
    AttendItem a = asked(thread, op, item, head);
    a.block0 = task.block0;
    a.block1 = task.block1;
    if (item.parts) a.parts = part_of(item, head, task.block0);
    t.shared.clear();
    t.own_keys.clear();
    t.runs.clear();
    gather_shared(op, item, task, head, t, a);
    if (item.shared) {  // all rows see all keys of its blocks, before any of their own
        t.runs.push_back({0, a.n_rows, item.block1 * KEYS + a.n_rows, 0, 0});
    } else {
        gather_own(op, item, head, t, a);
    }
    a.shared = t.shared.data();
    a.n_shared = int(t.shared.size());
    a.own = t.own_keys.data();
    a.runs = t.runs.data();
    a.n_runs = int(t.runs.size());
    KvPage coded{};  // pages in codes all have the same
    coded.kind = CODED;
    const std::size_t bytes = page_bytes(coded);
    for (const auto* pages : {&t.shared, &t.own_keys}) {
        for (const KvPage& p : *pages) t.kv_bytes += p.kind == CODED ? bytes : page_bytes(p);
    }
    k_.attend(a);
}

// Of the keys and values of a page.
std::size_t Executor::page_bytes(const KvPage& p) const {
    if (p.kind == CODED) {
        const Coding &k = sealed_.k_codes, &v = sealed_.v_codes;
        const int dim = shape_.head_dim;
        const std::size_t keys = code_keys(k, dim), values = PAGE * code_row(v, dim);
        return keys + code_more(k, keys) + code_beside(k, dim) + values + code_more(v, values) + code_beside(v, dim);
    }
    const std::size_t row = shape_.head_dim * size_of(p.kind) + (p.ks ? sizeof(float) : 0);
    return 2 * (PAGE * row + p.n_other * shape_.head_dim * sizeof(std::uint16_t));
}

void Executor::merge_item(int thread, const TapeOp& op, const Dealt& d, const Merge& merge, int head) {
    ThreadScratch& t = scratch_[thread];
    const int g = shape_.n_heads / shape_.n_kv;
    const Item& own = d.items[merge.item];
    t.parts.clear();
    const auto add = [&](const Item& item) {
        for (int i = item.block0; i < item.block1; ++i) {
            t.parts.push_back(
                {part_of(item, head, i), (item.row1 - item.row0) * g, (own.row0 - item.row0) * g});
        }
    };
    for (int i = merge.join0; i < merge.join1; ++i) add(d.items[d.joins[i].shared]);
    add(own);
    AttendItem a = asked(thread, op, own, head);
    a.done = t.parts.data();
    a.n_done = int(t.parts.size());
    k_.attend_merge(a);
}

// Sealed and open pages of a task's blocks, but for an open page that is partly filled: there the rows
// of the step go on. A page that no row of the item sees is left out; its keys keep their numbers. Where a
// row chose pages there are no others, and keys are numbered without them.
void Executor::gather_shared(const TapeOp& op, const Item& item, const Task& task, int head,
                             ThreadScratch& t, AttendItem& a) {
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
    const Pages read = chosen_by(op, head, item);
    const std::int32_t* chosen = read.at;
    const int n_sealed = chosen ? read.n : int(row[3]), n_open = s.n_open / PAGE;
    const float* bias = bias_of(s, member);
    constexpr int PAGES = KEYS / PAGE;
    for (int i = task.block0 * PAGES; i < std::min(task.block1 * PAGES, n_sealed); ++i) {
        const int j = chosen ? chosen[i] : i, n = std::clamp(fill[j], 0, PAGE);
        if (!n || !visible(pos + j * PAGE, n)) continue;
        KvPage& p = t.shared.emplace_back();
        sealed_page(addr[j], member, pos + j * PAGE, n, i * PAGE, p);
        s.see(member, j);
        if (bias) p.bias = bias + j * PAGE;
    }
    const auto open_page = [&](int i, int n) {
        const char* base = reinterpret_cast<const char*>(s.open[i]) + member * open_.member;
        KvPage p;
        zone_page(open_, base, s.open_pos + i * PAGE, n, (n_sealed + i) * PAGE, p);
        return p;
    };
    for (int i = std::max(0, task.block0 * PAGES - n_sealed);
         i < std::min(task.block1 * PAGES - n_sealed, n_open); ++i) {
        if (visible(s.open_pos + i * PAGE, PAGE)) t.shared.push_back(open_page(i, PAGE));
    }
    a.n_shared_keys = (n_sealed + n_open) * PAGE;
    if (s.n_open % PAGE) t.partial = open_page(n_open, s.n_open % PAGE);
}

// A partly filled open page, and ancestors within the step as stretches of rows: a row's own chain, then
// that of its chain's parent, and so on up. Keys are numbered from the root down.
void Executor::gather_own(const TapeOp& op, const Item& item, int head, ThreadScratch& t,
                          AttendItem& a) {
    const int layer = op.ints[0], n_partial = step_->seqs[item.seq].n_open % PAGE;
    for (int r = item.row0; r < item.row1;) {
        int end = r + 1;
        while (end < item.row1 && run_[end] == run_[r]) ++end;
        KvRun run;
        run.row0 = r - item.row0;
        run.row1 = end - item.row0;
        run.page0 = int(t.own_keys.size());
        int at = a.n_shared_keys + n_partial + depth_[end - 1];
        run.n_keys = at;
        // upwards, last page first
        for (int last = end - 1; last >= 0;) {
            const int first = run_[last];
            for (int p = last / PAGE; p >= first / PAGE; --p) {
                const int lo = std::max(first - p * PAGE, 0);
                const int hi = std::min(last - p * PAGE, PAGE - 1) + 1;
                const char* base = tail_page(layer, head, p);
                at -= hi - lo;
                t.own_keys.push_back({base, base + tail_.v, nullptr, nullptr, step_->pos + p * PAGE,
                                 tail_.kind, lo, hi, at});
            }
            last = step_->parent[first];
        }
        if (n_partial) t.own_keys.push_back(t.partial);
        std::reverse(t.own_keys.begin() + run.page0, t.own_keys.end());
        run.page1 = int(t.own_keys.size());
        t.runs.push_back(run);
        r = end;
    }
}

}  // namespace ph
