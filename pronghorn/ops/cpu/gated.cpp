// Products whose results only go through an activation, or a gate, to the next product.
//
// What they would write is far larger than a core's cache when rows are many. So an item makes some columns of
// some rows in its thread's own memory, which stays there, and writes what the next product reads: the
// activated values in that product's form. Values are those of the ops one by one, to the bit.
#include <algorithm>

#include "executor.h"
#include "product.h"

namespace ph {

// Puts an op Gated in the place of products that only an Act or a Glu reads, and of the Narrow behind it.
void Executor::gate_products() {
    const int n_regs = int(widths_.size()), n_ops = int(ops_.size());
    std::vector<int> maker(n_regs, -1), uses(n_regs, 0), narrows(n_regs, -1), n_narrows(n_regs, 0);
    for (int i = 0; i < n_ops; ++i) {
        const TapeOp& op = ops_[i];
        if (op.out >= 0) maker[op.out] = i;
        for (int r : op.in) ++uses[r];
        if (op.what == Do::Narrow) {
            narrows[op.in[0]] = i;
            ++n_narrows[op.in[0]];
        }
    }
    std::vector<char> gone(n_ops, 0);
    for (int i = 0; i < n_ops; ++i) {
        TapeOp& op = ops_[i];
        if (op.what != Do::Act && op.what != Do::Glu) continue;
        const bool alone = n_narrows[op.out] == 0;
        if (!alone && uses[op.out] != 1) continue;
        TapeOp made{Do::Gated, {}, op.out, {}, {}, {op.ints[0], FLOATS, widths_[op.out]}, {}};
        bool fits = true;
        for (int r : op.in) {
            const TapeOp* from = maker[r] < 0 ? nullptr : &ops_[maker[r]];
            fits = fits && from && from->what == Do::Linear && uses[r] == 1 &&
                   (made.in.empty() || made.in == from->in);
            if (!fits) break;
            made.in = from->in;
            made.mats.push_back(from->mats[0]);
            made.vecs.push_back(from->vecs.empty() ? -1 : from->vecs[0]);
        }
        if (!fits) continue;
        for (int r : op.in) gone[maker[r]] = 1;
        if (!alone) {
            const TapeOp& narrow = ops_[narrows[op.out]];
            made.out = narrow.out;
            made.ints[1] = narrow.ints[0];
            gone[narrows[op.out]] = 1;
        }
        op = std::move(made);
    }
    std::vector<TapeOp> left;
    for (int i = 0; i < n_ops; ++i) {
        if (!gone[i]) left.push_back(std::move(ops_[i]));
    }
    ops_ = std::move(left);
}

int Executor::GatedCut::panel(int piece, int n_panels) const {
    const std::int64_t units = pieces(n_panels, unit);
    return std::min(int(units * piece / across) * unit, n_panels);
}

Executor::GatedCut Executor::gated_cut(const TapeOp& op, int n) const {
    const int form = op.ints[1], width = op.ints[2];
    const int unit = form < FIRST_CODES ? 1 : codes_row(form, width).per_scale / PAGE;
    const int units = pieces(pieces(width, PAGE), unit);
    if (n <= FEW) return {n, std::min(units, 2 * team_.size()), unit};
    int chunk = PANELS / unit;
    while (chunk > 1 && pieces(units, chunk) * pieces(n, height(n)) < 16 * team_.size()) chunk /= 2;
    return {height(n), pieces(units, chunk), unit};
}

// Floats that the largest item of a step of n rows works in.
std::size_t Executor::gated_scratch(int n) const {
    std::size_t most = 0;
    for (const Part& part : parts_) {
        if (part.phase != Phase::Gated) continue;
        const TapeOp& op = ops_[part.ops[0]];
        const GatedCut cut = gated_cut(op, n);
        const int units = pieces(op.ints[2], cut.unit * PAGE);
        const int columns = (units / cut.across + 1) * cut.unit * PAGE;
        most = std::max(most, op.mats.size() * cut.tall * row_stride(columns));
    }
    return most;
}

void Executor::gated(Lane& lane, int part) {
    const TapeOp& op = ops_[parts_[part].ops[0]];
    const int n = n_rows(), x = op.in[0], form = op.ints[1], width = op.ints[2];
    if (n <= 0) return;
    const Act fn = Act(op.ints[0]);
    const GatedCut cut = gated_cut(op, n);
    const int n_panels = mats_[op.mats[0]].mat.n_panels;
    const bool fused = fuses(parts_[part]);
    const std::size_t ldx = (fused && own_part_[x] == part ? own_stride_[x] : stride(x)) * sizeof(float);
    const int last = Team::first(cut.across, lane.id + 1, team_.size()) - 1;
    const auto panels = [&](std::size_t j, int p) { return panel_of(mats_[op.mats[j]].mat, p); };
    Own own;
    team_.each(lane, cut.across * pieces(n, cut.tall), [&](int i) {
        if (fused && !own.base) own = before(lane.id, part);
        if (fused && i == 0) hand_over(own);
        const int r0 = i / cut.across * cut.tall, rows = std::min(n - r0, cut.tall), at = i % cut.across;
        const int p0 = cut.panel(at, n_panels), p1 = cut.panel(at + 1, n_panels);
        const int c0 = p0 * PAGE, c1 = std::min(p1 * PAGE, width);
        const std::size_t ld = row_stride((p1 - p0) * PAGE);
        float* made[2] = {scratch_[lane.id].floats(0), nullptr};
        for (std::size_t j = 0; j < op.mats.size(); ++j) {
            made[j] = made[0] + j * ld * rows;
            const float* bias =
                op.vecs[j] < 0 ? nullptr : static_cast<const float*>(vecs_[op.vecs[j]].data.get());
            const void* then = j + 1 < op.mats.size() ? panels(j + 1, p0)
                               : i == last           ? then_[part * team_.size() + lane.id]
                                                     : panels(0, p1);
            const Linear l{&mats_[op.mats[j]].mat, bias, made[j] - c0, ld, then};
            k_.linear(l, reinterpret_cast<const char*>(row(x, 0, own)) + ldx * r0, ldx, rows, p0, p1);
        }
        for (int r = 0; r < rows; ++r) {
            float* gate = made[0] + ld * r;
            const float* up = made[1] ? made[1] + ld * r : nullptr;
            float* out = row(op.out, r0 + r, {});
            float* to = form == FLOATS ? out + c0 : gate;
            if (up) k_.glu(gate, up, to, c1 - c0, fn);
            else k_.act(gate, to, c1 - c0, fn);
            if (form != FLOATS) k_.narrow(gate, out, width, form, c0, c1);
        }
    });
}

}  // namespace ph
