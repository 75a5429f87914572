// Row ops without barriers of their own.
//
// With few rows a barrier costs more than the norms and sums around it. What leads to the input of a
// product (`Part::before`) then runs inside the phase of the product: each thread that claims an item of
// it makes the rows for itself, in its own memory. Whoever does item 0 also puts where all find them
// the registers that later parts read. What leads to an attention works head by head, and belongs to the
// item that reads the head. Inputs stay valid until the phase ends, for nobody makes registers in
// memory that the part reads; and the same ops on the same values give the same bits.
#include <algorithm>
#include <cstring>

#include "executor.h"
#include "product.h"

namespace ph {
namespace {

constexpr float BARRIER = 500;  // ns, about; what is made several times over may cost no more

// About, in ns: whether ops are worth repeating depends on the order of magnitude.
float cost_of(Do what, int width) {
    switch (what) {
        case Do::Embed: return 20 + 1.0f * width;
        case Do::Act:
        case Do::Glu: return 20 + 0.3f * width;
        case Do::Norm: return 20 + 0.1f * width;
        default: return 20 + 0.05f * width;
    }
}

}  // namespace

// Lets a part of row ops go into the part that follows where that can take it.
void Executor::merge_parts() {
    std::vector<Part> merged;
    for (Part& part : parts_) {
        Part* rows = merged.empty() || merged.back().phase != Phase::Rows ? nullptr : &merged.back();
        const bool takes = multiplies(part.phase) ||
                           (part.phase == Phase::Attend && rows && by_head(*rows));
        if (!rows || !takes) {
            merged.push_back(std::move(part));
            continue;
        }
        part.before = std::move(rows->ops);
        for (int i : part.before) {
            const TapeOp& op = ops_[i];
            part.cost += cost_of(op.what, widths_[op.out >= 0 && widths_[op.out] ? op.out : op.in[0]]);
        }
        *rows = std::move(part);
    }
    parts_ = std::move(merged);
}

// Whether each op keeps to the columns of a KV head and its queries.
bool Executor::by_head(const Part& part) const {
    const int dim = shape_.head_dim, q = shape_.n_heads * dim, kv = shape_.n_kv * dim;
    return std::all_of(part.ops.begin(), part.ops.end(), [&](int i) {
        const TapeOp& op = ops_[i];
        const int width = op.in.empty() ? 0 : widths_[op.in[0]];
        if (width != q && width != kv) return false;
        switch (op.what) {
            case Do::Norm: return op.ints[0] == dim;
            case Do::Rope: return op.ints[1] == width / dim;
            case Do::Scale:
            case Do::Keep:
            case Do::Tap: return true;
            default: return false;
        }
    });
}

void Executor::place_own() {
    own_part_.assign(widths_.size(), -1);
    own_at_.assign(widths_.size(), 0);
    own_stride_.assign(widths_.size(), 0);
    std::size_t head = 0;
    for (int p = 0; p < int(parts_.size()); ++p) {
        const Part& part = parts_[p];
        if (part.phase == Phase::Head) head = any_form_stride(mats_[ops_[part.ops[0]].mats[0]].mat.n_in);
        if (!multiplies(part.phase)) continue;
        std::size_t at = 0;
        for (int i : part.before) {
            const int r = ops_[i].out;
            if (r < 0 || widths_[r] == 0) continue;
            own_part_[r] = p;
            own_at_[r] = at;
            own_stride_[r] = row_stride(widths_[r]);
            at += own_stride_[r];
        }
        own_floats_ = std::max(own_floats_, at);
    }
    own_floats_ += head;  // behind them: the rows as the head takes them
}

// What each thread begins to read in a part, with few rows: known in advance, so that it can be on its way
// while the part before ends.
void Executor::look_ahead() {
    const int threads = team_.size(), n_parts = int(parts_.size());
    then_.assign(std::size_t(n_parts) * threads, nullptr);
    for (int p = n_parts - 2; p >= 0; --p) {
        const Part& next = parts_[p + 1];
        const bool reads = multiplies(next.phase);
        Linear list[FEW];
        int n_list = 0, total = 0;
        for (int i : next.ops) {
            if (!reads || n_list == FEW) break;
            const Mat& m = mats_[ops_[i].mats[0]].mat;
            list[n_list++] = {&m, nullptr, nullptr, 0};
            total += m.n_panels;
        }
        for (int t = 0; t < threads; ++t) {
            const void*& then = then_[p * threads + t];
            if (next.phase == Phase::Gated) {
                const GatedCut cut = gated_cut(ops_[next.ops[0]], 1);
                then = panel_at(list, 1, cut.panel(Team::first(cut.across, t, threads), total));
            } else if (reads) {
                const int chunk = few_panels(total, threads);
                then = panel_at(list, n_list, Team::first(pieces(total, chunk), t, threads) * chunk);
            } else {
                then = then_[(p + 1) * threads + t];
            }
        }
    }
}

bool Executor::fuses(const Part& part) const {
    const int n = n_rows(), threads = team_.size();
    if (part.before.empty() || n > FUSED_ROWS || threads == 1) return false;
    if (part.phase == Phase::Attend) {
        const int layer = ops_[part.ops[0]].ints[0];
        return dealt_for(layer).whole_seqs && !(choosing_ && chooses_[layer]);
    }
    return float(n - (n + threads - 1) / threads) * part.cost <= BARRIER;
}

Executor::Own Executor::before(int thread, int part) {
    const Own own{static_cast<float*>(scratch_[thread].own_bytes.get()), part};
    for (int i : parts_[part].before) {
        const Do what = ops_[i].what;
        if (what == Do::Tap || what == Do::Keep) continue;  // they write where all read: once
        for (int r = 0; r < n_rows(); ++r) row_op(ops_[i], r, own);
    }
    return own;
}

void Executor::hand_over(const Own& own) {
    for (int reg : parts_[own.part].kept) {
        for (int r = 0; r < n_rows(); ++r) {
            std::memcpy(row(reg, r, {}), row(reg, r, own), sizeof(float) * widths_[reg]);
        }
    }
    for (int i : parts_[own.part].before) {
        const Do what = ops_[i].what;
        if (what != Do::Tap && what != Do::Keep) continue;
        for (int r = 0; r < n_rows(); ++r) row_op(ops_[i], r, own);
    }
}

// An op of `by_head` on the columns of a KV head and its queries.
void Executor::before_head(const TapeOp& op, int r, int head) {
    const int dim = shape_.head_dim, width = widths_[op.in[0]];
    const int n = width / shape_.n_kv, at = head * n;  // one head, or its queries
    const float* x = row(op.in[0], r, {}) + at;
    float* y = op.out >= 0 && slot_[op.out] >= 0 ? row(op.out, r, {}) + at : nullptr;
    const auto vec = [&](int i) { return static_cast<const float*>(vecs_[op.vecs[i]].data.get()); };
    switch (op.what) {
        case Do::Norm:
            k_.norm(x, vec(0), op.vecs.size() > 1 ? vec(1) : nullptr, y, n, dim, op.floats[0],
                    op.ints[1] != 0);
            break;
        case Do::Rope: {
            const std::size_t angle = angle_stride_ * r + table_at_[op.ints[0]];
            k_.rotate(x, cos_.data() + angle, sin_.data() + angle, y, n / dim, dim,
                      tables_[op.ints[0]].half);
            break;
        }
        case Do::Scale: k_.scale(x, op.floats[0], y, n); break;
        case Do::Keep: keep_head(op, r, head, x, row(op.in[1], r, {}) + at); break;
        case Do::Tap:
            if (!step_->taps.empty()) {
                std::memcpy(step_->taps[op.ints[0]] + std::size_t(width) * r + at, x, sizeof(float) * n);
            }
            break;
        default: break;
    }
}

}  // namespace ph
