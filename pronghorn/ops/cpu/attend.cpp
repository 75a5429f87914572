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
    t.own_keys.clear();
    t.runs.clear();
    gather_shared(op, item, task, head, t, a);
    if (item.shared) {  // all rows see all keys of its blocks, before any of their own
        t.runs.push_back({0, a.n_rows, item.block1 * KEYS + a.n_rows, 0, 0});
    } else {
        gather_own(op, item, head, t, a);
    }
    a.own = t.own_keys.data();
    a.runs = t.runs.data();
    a.n_runs = int(t.runs.size());
    t.kv_bytes += t.own_keys.size() * page_bytes(layout_of(open_));
    k_.attend(a);
}

// Of the keys and values of a page.
std::size_t Executor::page_bytes(const KvLayout& l) const {
    if (l.kind == CODED) {
        const Coding &k = sealed_.k_codes, &v = sealed_.v_codes;
        const int dim = shape_.head_dim;
        const std::size_t keys = code_keys(k, dim), values = PAGE * code_row(v, dim);
        return keys + code_more(k, keys) + code_beside(k, dim) + values + code_more(v, values) + code_beside(v, dim);
    }
    const std::size_t row = shape_.head_dim * size_of(l.kind) + (l.factors ? sizeof(float) : 0);
    return 2 * (PAGE * row + l.n_other * shape_.head_dim * sizeof(std::uint16_t));
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
    const int member = op.ints[0] * shape_.n_kv + head, window = op.ints[1];
    a.sealed = sealed_of(s, member);
    if (const Pages read = chosen_by(op, head, item); read.at) {
        a.sealed.chosen = read.at;
        a.sealed.n = read.n;
    }
    a.open = open_of(s, member, a.sealed.n * PAGE);
    a.n_shared_keys = a.open.at + a.open.n * PAGE;
    if (s.n_open % PAGE) t.partial = a.open.page(a.open.n, s.n_open % PAGE);
    if (window) {
        const int least = *std::min_element(step_->pos + item.row0, step_->pos + item.row1);
        a.sealed.behind = a.open.behind = std::max(least - window, -1);
    }
    for (const KvTable* table : {&a.sealed, &a.open}) {
        std::size_t n = 0;
        table->each(task.block0, task.block1, [&](int i) {
            if (!table->lanes(i)) return;
            if (table == &a.sealed) s.see(member, table->entry(i));
            ++n;
        });
        t.kv_bytes += n * page_bytes(table->layout);
    }
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
