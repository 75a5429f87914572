#include "executor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "isa.h"
#include "moe.h"
#include "product.h"

namespace ph {
namespace {

void need(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

}  // namespace

Executor::Executor(const std::string& isa, int n_threads, Shape shape, std::vector<int> widths,
                   const Executor* beside)
    : k_(kernels_named(isa)),
      isa_(isa),
      shape_(shape),
      widths_(std::move(widths)),
      threads_(beside ? beside->threads_ : std::make_shared<Team>(n_threads)),
      team_(*threads_),
      walk_([this](Lane& lane) { work(lane); }) {
    need(shape.n_vocab > 0 && shape.n_layers >= 0 && shape.n_kv > 0 && shape.head_dim > 0 &&
             shape.n_heads > 0 && shape.n_heads % shape.n_kv == 0,
         "the model's shape contradicts itself");
    for (int w : widths_) need(w > 0, "a register without width");
    sources_.assign(shape.n_layers, -1);
    chooses_.assign(shape.n_layers, 0);
}

Executor::~Executor() { team_.settle(); }

int Executor::add_matrix(const Source& source) {
    need(!finished_, "a matrix after finish");
    mats_.push_back(ph::prepare(source));
    source_ = source;
    n_panels_ = mats_.back().mat.n_panels;
    job_ = Job::Pack;
    team_.run(walk_);
    return int(mats_.size()) - 1;
}

int Executor::add_codes(const CodesSource& source) {
    need(!finished_, "a matrix after finish");
    mats_.push_back(ph::take(source));
    return int(mats_.size()) - 1;
}

void Executor::set_order(int mat, std::vector<int> order) {
    need(!finished_ && mat >= 0 && mat < int(mats_.size()) && mats_[mat].mat.kind == IN_CODES,
         "an order of something else than a matrix of codes");
    std::vector<char> seen(mats_[mat].mat.n_in, 0);
    for (int i : order) {
        need(i >= 0 && i < int(seen.size()) && !seen[i], "an order of inputs that does not name each once");
        seen[i] = 1;
    }
    need(order.size() == seen.size(), "an order of inputs that does not name each once");
    const auto at = std::find(orders_.begin(), orders_.end(), order);
    mats_[mat].order = int(at - orders_.begin());
    if (at == orders_.end()) orders_.push_back(std::move(order));
}

int Executor::add_rows(const Source& s) {
    need(!finished_, "a matrix after finish");
    PackedMatrix m;
    m.mat.kind = s.kind;
    m.mat.n_out = s.n_out;
    m.mat.n_in = s.n_in;
    m.mat.w = s.w;
    m.mat.scale = s.scale;
    mats_.push_back(std::move(m));
    return int(mats_.size()) - 1;
}

int Executor::add_shared(const Executor& of, int mat) {
    need(!finished_ && mat >= 0 && mat < int(of.mats_.size()), "a matrix that does not exist");
    PackedMatrix m;
    m.mat = of.mats_[mat].mat;
    mats_.push_back(std::move(m));
    const int order = of.mats_[mat].order, number = int(mats_.size()) - 1;
    if (order >= 0) set_order(number, of.orders_[order]);
    return number;
}

int Executor::add_vector(const float* values, int n) {
    need(!finished_, "a vector after finish");
    Vector v;
    v.data = zeroed(sizeof(float) * ((std::size_t(n) + 15) / 16 * 16));
    v.n = n;
    std::memcpy(v.data.get(), values, sizeof(float) * n);
    vecs_.push_back(std::move(v));
    return int(vecs_.size()) - 1;
}

int Executor::add_table(const float* freq, int half, float gain) {
    need(!finished_, "a table after finish");
    Table t;
    t.half = half;
    t.gain = gain;
    if (freq) t.freq.assign(freq, freq + half);
    tables_.push_back(std::move(t));
    table_at_.push_back(angle_stride_);
    angle_stride_ += (std::size_t(half) + 15) / 16 * 16;
    return int(tables_.size()) - 1;
}

void Executor::add_op(TapeOp op) {
    need(!finished_, "an op after finish");
    if (op.what == Do::Tap) {
        op.ints = {n_taps_++};
        tap_reg_.push_back(op.in.at(0));
    }
    if (op.what == Do::Wpe && op.out >= 0 && !op.vecs.empty()) {
        const int n = vecs_.at(op.vecs[0]).n / widths_.at(op.out);
        positions_ = positions_ < 0 ? n : std::min(positions_, n);
    }
    ops_.push_back(std::move(op));
}

void Executor::set_zones(Zone open, Zone sealed, std::vector<int> group, std::vector<int> index) {
    const std::size_t heads = std::size_t(shape_.n_layers) * shape_.n_kv;
    need(!finished_, "a store after finish");
    need(group.size() == heads && index.size() == heads, "the store's groups");
    for (int i : index) need(i >= 0, "the store's groups");
    need(open.kind == F32 || open.kind == BF16, "the open zone is float32 or bfloat16");
    open_ = open;
    sealed_ = sealed;
    group_ = std::move(group);
    index_ = std::move(index);
    for (int g : group_) {
        need(g >= 0, "the store's groups");
        n_groups_ = std::max(n_groups_, g + 1);
    }
    tail_.kind = open.kind;
    tail_.v = (std::size_t(shape_.head_dim) * PAGE * size_of(open.kind) + 63) / 64 * 64;
    tail_.member = 2 * tail_.v;
}

void Executor::set_upon(Upon upon, std::size_t block) {
    const std::size_t heads = group_.size();
    need(!finished_ && heads > 0 && sealed_.kind == BF16, "sealed pages of bfloat16, before finish");
    need(upon.rows.size() == heads && upon.beside.size() == heads, "where the pages of every head lie");
    need(upon.n_other >= 0 && upon.n_other <= PAGE, "rows that stand for others of a page");
    const std::size_t dim = std::size_t(shape_.head_dim), beside = 2 * PAGE * (sizeof(float)) + 4 * upon.n_other * dim;
    const std::size_t rows = std::max(sealed_.k, sealed_.v) + 2 * PAGE * dim;
    for (std::size_t i = 0; i < heads; ++i) {
        need(rows <= block && upon.rows[i] <= block - rows && upon.rows[i] % 64 == 0, "pages within a block");
        need(!upon.beside[i] || (beside <= block && upon.beside[i] <= block - beside && upon.beside[i] % 64 == 0),
             "factors within a block");
    }
    upon_ = std::move(upon);
}

void Executor::sealed_page(std::uint64_t addr, int member, const std::int32_t* pos, int n, int at, KvPage& p) const {
    const char* block = reinterpret_cast<const char*>(addr);
    const bool own = upon_.rows.empty();
    zone_page(sealed_, block + (own ? index_[member] * sealed_.member : upon_.rows[member]), pos, n, at, p);
    if (own || !upon_.beside[member]) return;
    p.ks = reinterpret_cast<const float*>(block + upon_.beside[member]);
    p.vs = p.ks + PAGE;
    p.other = reinterpret_cast<const std::uint16_t*>(p.vs + PAGE);
    p.n_other = upon_.n_other;
}

int Executor::tap_width(int i) const { return widths_[tap_reg_[i]]; }

std::size_t Executor::weight_bytes() const {
    std::size_t n = 0;
    for (const PackedMatrix& m : mats_) n += m.mat.panel * m.mat.n_panels;
    for (const Vector& v : vecs_) n += sizeof(float) * v.n;
    return n;
}

float* Executor::ThreadScratch::floats(std::size_t n) {
    if (n > size) {
        bytes = zeroed(sizeof(float) * n);
        size = n;
    }
    return static_cast<float*>(bytes.get());
}

float* Executor::ThreadScratch::own(std::size_t n) {
    if (n > own_size) {
        own_bytes = zeroed(sizeof(float) * n);
        own_size = n;
    }
    return static_cast<float*>(own_bytes.get());
}

// ---------------------------------------------------------------------------------- a step

void Executor::run(const StepIn& step) {
    tail_rows_ = 0;
    step_ = &step;
    prepare(step);
    for (ThreadScratch& t : scratch_) t.kv_bytes = 0;
    job_ = Job::Step;
    team_.run(walk_);
    tail_rows_ = step.n;
    for (const SeqView& s : step.seqs) {
        if (s.kept && s.row1 > s.row0 && keeps(s, s.row0)) s.kept[0] = 1;
    }
    kv_bytes_ = 0;
    for (const ThreadScratch& t : scratch_) kv_bytes_ += t.kv_bytes;
}

void Executor::prepare(const StepIn& s) {
    const int n = s.n;
    for (const Part& part : parts_) {
        const TapeOp& op = ops_[part.ops[0]];
        need(part.phase != Phase::Moe || std::size_t(n) * op.ints[0] < Team::MOST,
             "too many rows in a step");
    }
    run_.resize(n);
    depth_.resize(n);
    wanted_.clear();
    for (int r = 0; r < n; ++r) {
        const int p = s.parent[r];
        depth_[r] = p < 0 ? 1 : depth_[p] + 1;
        run_[r] = p >= 0 && p == r - 1 ? run_[p] : r;
        if (s.want[r]) wanted_.push_back(r);
    }
    list_choices(s);
    deal(s);
    const std::size_t floats = std::max({attend_scratch(std::size_t(item_queries_), shape_.head_dim),
                                         gated_scratch(n), choice_scratch()});
    const std::size_t own = n <= FUSED_ROWS ? own_floats_ * n : 0;
    for (ThreadScratch& t : scratch_) {
        t.floats(std::max<std::size_t>(floats, shape_.head_dim));
        t.own(own);
    }

    if (row_floats_ * n > arena_size_) {
        arena_.reset();
        arena_ = zeroed(sizeof(float) * row_floats_ * n);
        arena_size_ = row_floats_ * n;
        arena_floats_ = static_cast<float*>(arena_.get());
    }
    n_rows_ = n;
    n_wanted_ = int(wanted_.size());
    logits_ = s.logits;
    const int pages = (n + PAGE - 1) / PAGE;
    const std::size_t heads = std::size_t(shape_.n_layers) * shape_.n_kv;
    if (heads * pages * tail_.member > tail_size_) {
        tail_store_.reset();
        tail_store_ = zeroed(heads * pages * tail_.member);
        tail_size_ = heads * pages * tail_.member;
        tail_bytes_ = static_cast<char*>(tail_store_.get());
    }
    tail_pages_ = pages;
    if (cos_.size() < angle_stride_ * n) {
        cos_.resize(angle_stride_ * n);
        sin_.resize(angle_stride_ * n);
    }
    angles_made_ = n <= FUSED_ROWS / 4;  // fewer than are worth a barrier
    if (angles_made_) {
        for (int r = 0; r < n; ++r) angles(r);
    }
    for (const Part& part : parts_) {
        const TapeOp& op = ops_[part.ops[0]];
        if (part.phase == Phase::Moe) moe_room(op, n);
        if (part.phase == Phase::Head) {
            const std::size_t room = any_form_stride(mats_[op.mats[0]].mat.n_in) * wanted_.size();
            if (room > head_size_) {
                head_in_ = zeroed(sizeof(float) * room);
                head_size_ = room;
                head_floats_ = static_cast<float*>(head_in_.get());
            }
        }
    }
}

void Executor::work(Lane& lane) {
    switch (job_.load(std::memory_order_acquire)) {  // and with it the plan, which a latecomer walks
        case Job::Step: return execute(lane);
        case Job::Commit:
            return team_.each(lane, shape_.n_layers * shape_.n_kv, [&](int i) { commit_head(i); });
        case Job::Look:
            return team_.each(lane, shape_.n_heads, [&](int i) { look_head(lane.id, i); });
        case Job::Pack:
            return team_.each(lane, n_panels_.load(std::memory_order_relaxed),
                              [&](int i) { pack(source_, mats_.back(), i); });
    }
}

// f(from, to) over stretches of rows.
template <typename F>
void Executor::rows(Lane& lane, const F& f) {
    const int n = n_rows(), chunk = std::clamp(n / (2 * team_.size()), 1, PAGE);
    team_.each(lane, (n + chunk - 1) / chunk,
               [&](int c) { f(c * chunk, std::min(n, (c + 1) * chunk)); });
}

void Executor::row_ops(Lane& lane, const std::vector<int>& ops) {
    rows(lane, [&](int from, int to) {
        for (int i : ops) {
            for (int r = from; r < to; ++r) row_op(ops_[i], r, {});
        }
    });
}

void Executor::execute(Lane& lane) {
    lane.watched = profile_.on();
    profile_.enter(lane.id, 0, lane.waited);
    if (!tables_.empty() && !angles_made_) {
        rows(lane, [&](int from, int to) {
            for (int r = from; r < to; ++r) angles(r);
        });
    }
    for (int p = 0; p < int(parts_.size()); ++p) {
        profile_.enter(lane.id, p + 1, lane.waited);
        const Part& part = parts_[p];
        if (!part.before.empty() && !fuses(part)) row_ops(lane, part.before);
        switch (part.phase) {
            case Phase::Rows: row_ops(lane, part.ops); break;
            case Phase::Linears: linears(lane, p); break;
            case Phase::Gated: gated(lane, p); break;
            case Phase::Attend: attend(lane, p); break;
            case Phase::Head: head(lane, p); break;
            case Phase::Moe: moe(lane, ops_[part.ops[0]]); break;
        }
    }
    profile_.enter(lane.id, -1, lane.waited);
}

void Executor::angles(int r) {
    for (std::size_t t = 0; t < tables_.size(); ++t) {
        const Table& table = tables_[t];
        const float* freq = table.freq.empty()
                                ? step_->freqs[t] + std::size_t(step_->freq_of[t][r]) * table.half
                                : table.freq.data();
        float* c = cos_.data() + angle_stride_ * r + table_at_[t];
        float* s = sin_.data() + angle_stride_ * r + table_at_[t];
        for (int i = 0; i < table.half; ++i) {
            // the angle in float32, as the models were trained; its cosine in double
            const float angle = float(step_->pos[r]) * freq[i];
            c[i] = float(std::cos(double(angle)) * double(table.gain));
            s[i] = float(std::sin(double(angle)) * double(table.gain));
        }
    }
}

void Executor::row_op(const TapeOp& op, int r, const Own& own) {
    const auto in = [&](int i) { return row(op.in[i], r, own); };
    const auto vec = [&](int i) { return static_cast<const float*>(vecs_[op.vecs[i]].data.get()); };
    float* y = op.out >= 0 && slot_[op.out] >= 0 ? row(op.out, r, own) : nullptr;
    const int width = op.out >= 0 ? widths_[op.out] : 0;
    switch (op.what) {
        case Do::Embed:
            k_.embed(mats_[op.mats[0]].mat, step_->ids[r], op.floats[0], y);
            break;
        case Do::Wpe:
            k_.add(in(0), vec(0) + std::size_t(step_->pos[r]) * width, y, width);
            break;
        case Do::Norm:
            k_.norm(in(0), vec(0), op.vecs.size() > 1 ? vec(1) : nullptr, y, width, op.ints[0],
                    op.floats[0], op.ints[1] != 0);
            break;
        case Do::Rope: {
            const std::size_t at = angle_stride_ * r + table_at_[op.ints[0]];
            k_.rotate(in(0), cos_.data() + at, sin_.data() + at, y, op.ints[1],
                      width / op.ints[1], tables_[op.ints[0]].half);
            break;
        }
        case Do::Act: k_.act(in(0), y, width, Act(op.ints[0])); break;
        case Do::Glu: k_.glu(in(0), in(1), y, width, Act(op.ints[0])); break;
        case Do::Add: k_.add(in(0), in(1), y, width); break;
        case Do::Scale: k_.scale(in(0), op.floats[0], y, width); break;
        case Do::Narrow: k_.narrow(in(0), y, widths_[op.in[0]], op.ints[0], 0, widths_[op.in[0]]); break;
        case Do::Gather: {
            const std::vector<int>& order = orders_[op.ints[0]];
            const float* x = in(0);
            for (int i = 0; i < width; ++i) y[i] = x[order[i]];
            break;
        }
        case Do::Keep: keep(op, r, own); break;
        case Do::Tap:
            if (!step_->taps.empty()) {
                const std::size_t w = widths_[op.in[0]];
                std::memcpy(step_->taps[op.ints[0]] + w * r, in(0), sizeof(float) * w);
            }
            break;
        case Do::Linear:
        case Do::Gated:
        case Do::Attend:
        case Do::Moe:
        case Do::Head: break;
    }
}

void Executor::keep(const TapeOp& op, int r, const Own& own) {
    const std::size_t dim = shape_.head_dim;
    const float *k = row(op.in[0], r, own), *v = row(op.in[1], r, own);
    for (int h = 0; h < shape_.n_kv; ++h) keep_head(op, r, h, k + h * dim, v + h * dim);
}

// Keys and values of a row as they will be stored, so that it does not matter to a later row whether
// this one was committed before or runs in the same step.
void Executor::keep_head(const TapeOp& op, int r, int head, const float* k, const float* v) {
    const int dim = shape_.head_dim, lane = r % PAGE;
    char* page = tail_page(op.ints[0], head, r / PAGE);
    char* to = page + tail_.v + size_of(tail_.kind) * lane * dim;
    k_.to_kv(k, to, dim, tail_.kind);  // through the values' place, then spread out
    if (tail_.kind == F32) {
        float* out = reinterpret_cast<float*>(page);
        for (int c = 0; c < dim; ++c) out[c * PAGE + lane] = reinterpret_cast<float*>(to)[c];
    } else {
        std::uint16_t* out = reinterpret_cast<std::uint16_t*>(page);
        for (int c = 0; c < dim; ++c) {
            out[c * PAGE + lane] = reinterpret_cast<std::uint16_t*>(to)[c];
        }
    }
    k_.to_kv(v, to, dim, tail_.kind);
}

// ---------------------------------------------------------------------------------- matrices

void Executor::linears(Lane& lane, int part) {
    const std::vector<int>& ops = parts_[part].ops;
    const bool fused = fuses(parts_[part]);
    const int x = ops_[ops[0]].in[0];
    Own own;
    constexpr int MOST = 64;
    Linear list[MOST];
    for (std::size_t from = 0; from < ops.size(); from += MOST) {
        const int n_list = int(std::min<std::size_t>(MOST, ops.size() - from));
        for (int i = 0; i < n_list; ++i) {
            const TapeOp& op = ops_[ops[from + i]];
            const float* bias =
                op.vecs.empty() ? nullptr : static_cast<const float*>(vecs_[op.vecs[0]].data.get());
            list[i] = {&mats_[op.mats[0]].mat, bias, reg(op.out), stride(op.out)};
        }
        const auto input = [&](int i) {
            if (fused && !own.base) own = before(lane.id, part);
            if (fused && i == 0 && from == 0) hand_over(own);
            return row(x, 0, own);
        };
        const bool is_own = fused && own_part_[x] == part;
        const std::size_t ldx = is_own ? own_stride_[x] : stride(x);
        const void* then = from + MOST < ops.size() ? nullptr : then_[part * team_.size() + lane.id];
        product(team_, lane, k_, list, n_list, input, ldx * sizeof(float), n_rows(), then,
                [](int, int, int, int) {});
    }
}

void Executor::head(Lane& lane, int part) {
    const TapeOp& op = ops_[parts_[part].ops[0]];
    const int n = n_wanted_.load(std::memory_order_relaxed), from = op.in[0];
    const Mat& m = mats_[op.mats[0]].mat;
    float* x = head_floats_;  // the wanted rows, as the matrix takes them, side by side
    const std::size_t ld = any_form_stride(m.n_in);
    const int form = form_of(m);
    const auto enter = [&](int i, float* to, const Own& own) {
        const float* values = row(from, wanted_[i], own);
        if (form == FLOATS) {
            std::memcpy(to + ld * i, values, sizeof(float) * m.n_in);
        } else {
            k_.narrow(values, to + ld * i, m.n_in, form, 0, m.n_in);
        }
    };
    const bool fused = fuses(parts_[part]);
    Own own;
    float* mine = nullptr;
    const auto input = [&](int i) {
        if (!fused) return x;
        if (!own.base) {
            own = before(lane.id, part);
            mine = own.base + (own_floats_ - ld) * n_rows();
            for (int j = 0; j < n; ++j) enter(j, mine, own);
        }
        if (i == 0) hand_over(own);
        return mine;
    };
    if (!fused) team_.each(lane, n, [&](int i) { enter(i, x, {}); });
    const float* bias =
        op.vecs.empty() ? nullptr : static_cast<const float*>(vecs_[op.vecs[0]].data.get());
    const Linear l{&m, bias, logits_, std::size_t(shape_.n_vocab)};
    const float scale = op.floats[0], cap = op.floats[1];
    product(team_, lane, k_, &l, 1, input, ld * sizeof(float), n, nullptr, [&](int r0, int r1, int p0, int p1) {
        if (scale == 1.0f && cap <= 0) return;
        const int c0 = p0 * PAGE, c1 = std::min(p1 * PAGE, shape_.n_vocab);
        for (int r = r0; r < r1; ++r) {
            k_.softcap(l.y + l.ldy * r + c0, c1 - c0, scale, cap);
        }
    });
}

// ---------------------------------------------------------------------------------- commit

void Executor::commit(int n, const std::int32_t* row, const std::uint64_t* addr,
                      const std::int32_t* slot) {
    for (int i = 0; i < n; ++i) {
        need(row[i] >= 0 && row[i] < tail_rows_, "commit: a row that the last step did not have");
        need(slot[i] >= 0 && slot[i] < PAGE && addr[i], "commit: a place that does not exist");
    }
    commit_ = {n, row, addr, slot};
    const int heads = shape_.n_layers * shape_.n_kv;
    if (std::size_t(n) * heads * shape_.head_dim < (1u << 15)) {
        for (int i = 0; i < heads; ++i) commit_head(i);
        return;
    }
    job_ = Job::Commit;
    team_.run(walk_);
}

namespace {

// Rows [lane, lane + n) of a page of the tail to rows [slot, slot + n) of an open page.
template <typename T>
void copy_rows(const char* from, const Zone& tail, int lane, char* to, const Zone& open, int slot,
               int n, int dim) {
    const T* k = reinterpret_cast<const T*>(from + tail.k) + lane;
    T* out = reinterpret_cast<T*>(to + open.k) + slot;
    for (int c = 0; c < dim; ++c) {
        for (int i = 0; i < n; ++i) out[c * PAGE + i] = k[c * PAGE + i];
    }
    std::memcpy(reinterpret_cast<T*>(to + open.v) + std::size_t(slot) * dim,
                reinterpret_cast<const T*>(from + tail.v) + std::size_t(lane) * dim,
                sizeof(T) * dim * n);
}

}  // namespace

void Executor::commit_head(int head) const {
    const auto [n, row, addr, slot] = commit_;
    for (int i = 0; i < n;) {
        int j = i + 1;  // rows that lie side by side, here and there
        while (j < n && row[j] == row[j - 1] + 1 && row[j] % PAGE && addr[j] == addr[i] &&
               slot[j] == slot[j - 1] + 1) {
            ++j;
        }
        const char* page = tail_page(head / shape_.n_kv, head % shape_.n_kv, row[i] / PAGE);
        char* to = reinterpret_cast<char*>(addr[i]) + head * open_.member;
        const auto copy = tail_.kind == F32 ? copy_rows<float> : copy_rows<std::uint16_t>;
        copy(page, tail_, row[i] % PAGE, to, open_, slot[i], j - i, shape_.head_dim);
        i = j;
    }
}

}  // namespace ph
