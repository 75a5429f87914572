// From a tape to phases: what can run between two barriers runs together.
//
// Ops that work row by row form one phase; products with one input form one phase (queries, keys and
// values; gate and up). Registers share memory where their lives do not overlap.
#include <algorithm>
#include <map>
#include <stdexcept>

#include "executor.h"
#include "moe.h"

namespace ph {
namespace {

bool by_rows(Do what) {
    return what != Do::Linear && what != Do::Gated && what != Do::Attend && what != Do::Head &&
           what != Do::Moe;
}

void need(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(std::string("the tape contradicts itself: ") + what);
}

}  // namespace

int Executor::new_register(int width) {
    widths_.push_back(width);
    return int(widths_.size()) - 1;
}

void Executor::check_op(const TapeOp& op) const {
    const int n_regs = int(widths_.size());
    const auto width = [&](int r) {
        need(r >= 0 && r < n_regs, "a register that does not exist");
        return widths_[r];
    };
    const auto mat = [&](std::size_t i) -> const Mat& {
        need(i < op.mats.size() && op.mats[i] >= 0 && op.mats[i] < int(mats_.size()), "a matrix");
        return mats_[op.mats[i]].mat;
    };
    const auto vec = [&](std::size_t i, int n) {
        need(i < op.vecs.size() && op.vecs[i] >= 0 && op.vecs[i] < int(vecs_.size()), "a vector");
        need(n < 0 || vecs_[op.vecs[i]].n == n, "a vector's length");
    };
    const auto counts = [&](std::size_t ins, std::size_t ints, std::size_t floats) {
        need(op.in.size() == ins && op.ints.size() == ints && op.floats.size() == floats,
             "the number of an op's inputs or attributes");
        for (int r : op.in) width(r);
    };
    const auto same = [&](int a, int b) { need(width(a) == width(b), "two widths"); };
    const auto product = [&](const Mat& m, int in, int out) {
        need(m.n_panels > 0 && m.n_in == in && m.n_out == out, "a matrix's shape");
    };
    const int heads = shape_.n_heads * shape_.head_dim, kv = shape_.n_kv * shape_.head_dim;
    need(op.out >= -1 && op.out < n_regs, "a register that does not exist");
    switch (op.what) {
        case Do::Embed:
            counts(0, 0, 1);
            need(mat(0).n_in == width(op.out) && mat(0).n_out >= shape_.n_vocab, "the embedding");
            break;
        case Do::Wpe:
            counts(1, 0, 0);
            same(op.in[0], op.out);
            vec(0, -1);
            need(vecs_[op.vecs[0]].n % width(op.out) == 0, "the position table");
            break;
        case Do::Norm: {
            counts(1, 2, 1);
            same(op.in[0], op.out);
            const int group = op.ints[0];
            need(group > 0 && width(op.out) % group == 0, "the group of a norm");
            vec(0, group);
            if (op.vecs.size() > 1) vec(1, group);
            break;
        }
        case Do::Linear:
            counts(1, 0, 0);
            product(mat(0), width(op.in[0]), width(op.out));
            if (!op.vecs.empty()) vec(0, width(op.out));
            break;
        case Do::Rope: {
            counts(1, 2, 0);
            same(op.in[0], op.out);
            const int table = op.ints[0], n = op.ints[1];
            need(table >= 0 && table < int(tables_.size()), "a rotary table");
            need(n > 0 && width(op.out) % n == 0 && 2 * tables_[table].half <= width(op.out) / n,
                 "the heads of a rotation");
            break;
        }
        case Do::Attend:
            counts(3, 2, 2);
            need(width(op.in[0]) == heads && width(op.out) == heads && width(op.in[1]) == kv &&
                     width(op.in[2]) == kv, "the widths of an attention");
            need(op.ints[0] >= 0 && op.ints[0] < shape_.n_layers && op.ints[1] >= 0, "a layer");
            break;
        case Do::Act:
        case Do::Glu:
            counts(op.what == Do::Act ? 1 : 2, 1, 0);
            for (int r : op.in) same(r, op.out);
            need(op.ints[0] >= SILU && op.ints[0] <= RELU, "an activation");
            break;
        case Do::Add:
            counts(2, 0, 0);
            for (int r : op.in) same(r, op.out);
            break;
        case Do::Scale:
            counts(1, 0, 1);
            same(op.in[0], op.out);
            break;
        case Do::Moe: {
            counts(1, 4, 0);
            same(op.in[0], op.out);
            need(op.mats.size() % 3 == 1 && op.mats.size() > 1, "the experts");
            const int n_experts = int(op.mats.size()) / 3, d = width(op.out), h = op.ints[3];
            product(mat(0), d, n_experts);
            for (int e = 0; e < n_experts; ++e) {
                product(mat(1 + 3 * e), d, h);
                product(mat(2 + 3 * e), d, h);
                product(mat(3 + 3 * e), h, d);
                need(form_of(mat(1 + 3 * e)) == form_of(mat(2 + 3 * e)), "gate and up differ in kind");
            }
            for (int m : op.mats) need(mats_[m].order < 0, "an expert whose inputs have an order");
            need(op.ints[0] > 0 && op.ints[0] <= n_experts, "top_k");
            need(op.ints[2] >= SILU && op.ints[2] <= RELU, "an activation");
            break;
        }
        case Do::Tap:
            counts(1, 1, 0);
            break;
        case Do::Head:
            counts(1, 0, 2);
            product(mat(0), width(op.in[0]), shape_.n_vocab);
            if (!op.vecs.empty()) vec(0, shape_.n_vocab);
            break;
        case Do::Narrow:
        case Do::Keep:
        case Do::Gated:
        case Do::Gather: break;
    }
}

void Executor::finish() {
    need(!finished_ && open_.member > 0, "finished twice, or without a store");
    for (const TapeOp& op : ops_) check_op(op);
    plan();
    place_registers();
    look_ahead();
    scratch_.resize(team_.size());
    moe_ = std::make_unique<Moe>();
    finished_ = true;
    give_back();  // what packing needed
}

// Inputs take the form that a matrix wants once, right after they are made.
int Executor::narrowed(int reg, int form, std::vector<TapeOp>& out, Made& of) {
    if (form == FLOATS) return reg;
    const auto [at, fresh] = of.try_emplace({reg, form}, 0);
    if (fresh) {
        at->second = new_register(form_floats(form, widths_[reg], k_.packs_input));
        out.push_back({Do::Narrow, {reg}, at->second, {}, {}, {form}, {}});
    }
    return at->second;
}

// Inputs in the order of a matrix's own, where it has one.
int Executor::gathered(int reg, int order, std::vector<TapeOp>& out, Made& of) {
    if (order < 0) return reg;
    const auto [at, fresh] = of.try_emplace({reg, order}, 0);
    if (fresh) {
        at->second = new_register(widths_[reg]);
        out.push_back({Do::Gather, {reg}, at->second, {}, {}, {order}, {}});
    }
    return at->second;
}

void Executor::plan() {
    std::vector<TapeOp> flat;
    Made narrow, gather;
    for (TapeOp& op : ops_) {
        if (op.what == Do::Linear) {
            const PackedMatrix& m = mats_[op.mats[0]];
            op.in[0] = narrowed(gathered(op.in[0], m.order, flat, gather), form_of(m.mat), flat, narrow);
        } else if (op.what == Do::Head) {
            op.in[0] = gathered(op.in[0], mats_[op.mats[0]].order, flat, gather);
        } else if (op.what == Do::Attend) {
            const int done = new_register(0);  // a register of no width stands for "kept"
            flat.push_back({Do::Keep, {op.in[1], op.in[2]}, done, {}, {}, {op.ints[0]}, {}});
            op.in = {op.in[0], done};
        } else if (op.what == Do::Moe) {
            const Mat& router = mats_[op.mats[0]].mat;
            const int logits = new_register(router.n_out);
            const int x = narrowed(op.in[0], form_of(router), flat, narrow);
            flat.push_back({Do::Linear, {x}, logits, {op.mats[0]}, {}, {}, {}});
            op.in = {op.in[0], logits};
        }
        flat.push_back(std::move(op));
    }
    ops_ = std::move(flat);
    gate_products();

    std::vector<char> made(widths_.size(), 0), done(ops_.size(), 0);
    const auto ready = [&](const TapeOp& op) {
        return std::all_of(op.in.begin(), op.in.end(), [&](int r) { return made[r]; });
    };
    for (std::size_t left = ops_.size(); left > 0;) {
        std::size_t first = 0;
        while (first < ops_.size() && (done[first] || !ready(ops_[first]))) ++first;
        need(first < ops_.size(), "a register is used before it is made");
        const Do what = ops_[first].what;
        Part part;
        const auto take = [&](std::size_t i) {
            part.ops.push_back(int(i));
            done[i] = 1;
            --left;
        };
        const auto finish_op = [&](int i) {
            if (ops_[i].out >= 0) made[ops_[i].out] = 1;
        };
        if (by_rows(what)) {
            part.phase = Phase::Rows;
            for (bool more = true; more;) {
                more = false;
                for (std::size_t i = first; i < ops_.size(); ++i) {
                    if (done[i] || !by_rows(ops_[i].what) || !ready(ops_[i])) continue;
                    take(i);
                    finish_op(int(i));
                    more = true;
                }
            }
        } else if (what == Do::Linear) {
            part.phase = Phase::Linears;
            for (std::size_t i = first; i < ops_.size(); ++i) {
                if (!done[i] && ops_[i].what == Do::Linear && ops_[i].in[0] == ops_[first].in[0]) {
                    take(i);
                }
            }
            for (int i : part.ops) finish_op(i);
        } else {
            part.phase = what == Do::Gated    ? Phase::Gated
                         : what == Do::Attend ? Phase::Attend
                         : what == Do::Head ? Phase::Head
                                            : Phase::Moe;
            take(first);
            finish_op(int(first));
        }
        parts_.push_back(std::move(part));
    }
    merge_parts();
    need(parts_.size() < Team::PHASES / 16, "too many ops");
}

void Executor::place_registers() {
    const int n_regs = int(widths_.size()), n_parts = int(parts_.size());
    std::vector<int> last(n_regs, -1);
    std::vector<std::vector<int>> ops_of(n_parts);
    for (int p = 0; p < n_parts; ++p) {
        ops_of[p] = parts_[p].before;
        ops_of[p].insert(ops_of[p].end(), parts_[p].ops.begin(), parts_[p].ops.end());
        for (int i : ops_of[p]) {
            for (int r : ops_[i].in) last[r] = p;
            if (ops_[i].out >= 0) last[ops_[i].out] = std::max(last[ops_[i].out], p);
        }
    }
    slot_.assign(n_regs, -1);
    std::vector<int> idle;  // slots that nobody uses
    for (int p = 0; p < n_parts; ++p) {
        for (int i : parts_[p].before) {
            const int r = ops_[i].out;
            if (r >= 0 && widths_[r] > 0 && last[r] > p) parts_[p].kept.push_back(r);
        }
        for (int i : ops_of[p]) {
            const int r = ops_[i].out;
            if (r < 0 || widths_[r] == 0) continue;
            const std::size_t width = row_stride(widths_[r]);
            // the smallest slot that is wide enough, else the widest, which grows
            int best = -1;
            for (int j = 0; j < int(idle.size()); ++j) {
                if (best < 0) {
                    best = j;
                    continue;
                }
                const std::size_t a = slot_stride_[idle[j]], b = slot_stride_[idle[best]];
                if (a >= width ? b < width || a < b : b < width && a > b) best = j;
            }
            if (best < 0) {
                slot_[r] = int(slot_stride_.size());
                slot_stride_.push_back(width);
            } else {
                slot_[r] = idle[best];
                slot_stride_[slot_[r]] = std::max(slot_stride_[slot_[r]], width);
                idle.erase(idle.begin() + best);
            }
        }
        for (int r = 0; r < n_regs; ++r) {
            if (last[r] == p && slot_[r] >= 0) idle.push_back(slot_[r]);
        }
    }
    for (std::size_t s : slot_stride_) {
        slot_at_.push_back(row_floats_);
        row_floats_ += s;
    }
    place_own();
}

}  // namespace ph
