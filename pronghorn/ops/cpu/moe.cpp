// Mixture of experts: rows are sorted by expert, each expert runs once over its rows, and every row
// sums its experts in the order of their probability.
#include "moe.h"

#include <algorithm>
#include <cstring>

namespace ph {
namespace {

void room(std::vector<float>& v, std::size_t n) {
    if (v.size() < n) v.resize(n);
}

// Panels per piece: about two pieces per thread, or more when experts are many.
int pieces_of(int panels, int threads) { return std::max(1, (panels + 2 * threads - 1) / (2 * threads)); }

}  // namespace

void Executor::moe_room(const TapeOp& op, int n) {
    Moe& m = *moe_;
    const int top_k = op.ints[0], h = op.ints[3], d = widths_[op.out];
    const std::size_t places = std::size_t(n) * top_k;
    if (m.choice.size() < places) {
        m.choice.resize(places);
        m.weight.resize(places);
        m.place.resize(places);
        m.row.resize(places);
    }
    room(m.x, places * any_form_stride(d));
    room(m.gate, places * any_form_stride(h));
    room(m.up, places * any_form_stride(h));
    room(m.hidden, places * any_form_stride(h));
    room(m.y, places * any_form_stride(d));
}

void Executor::moe(Lane& lane, const TapeOp& op) {
    Moe& m = *moe_;
    const int n = n_rows(), top_k = op.ints[0], h = op.ints[3], d = widths_[op.out];
    const int n_experts = int(op.mats.size()) / 3, places = n * top_k;
    const int x = op.in[0], logits = op.in[1];
    const std::size_t ldx = any_form_stride(d), ldh = any_form_stride(h);
    const auto expert = [&](int e, int which) -> const Mat& {
        return mats_[op.mats[1 + 3 * e + which]].mat;
    };

    team_.each(lane, n, [&](int r) {
        float* p = reg(logits) + stride(logits) * r;
        k_.softmax(p, n_experts);
        float sum = 0;
        for (int k = 0; k < top_k; ++k) {
            int best = 0;
            for (int e = 1; e < n_experts; ++e) {
                if (p[e] > p[best]) best = e;
            }
            m.choice[r * top_k + k] = best;
            m.weight[r * top_k + k] = p[best];
            sum += p[best];
            p[best] = -1;  // taken
        }
        if (op.ints[1]) {
            for (int k = 0; k < top_k; ++k) m.weight[r * top_k + k] /= sum;
        }
    });
    team_.each(lane, 1, [&](int) {
        m.start.assign(n_experts + 1, 0);
        for (int i = 0; i < places; ++i) ++m.start[m.choice[i] + 1];
        for (int e = 0; e < n_experts; ++e) m.start[e + 1] += m.start[e];
        for (int i = 0; i < places; ++i) {
            const int at = m.start[m.choice[i]]++;
            m.place[i] = at;
            m.row[at] = i / top_k;
        }
        for (int e = n_experts; e > 0; --e) m.start[e] = m.start[e - 1];
        m.start[0] = 0;
        m.pieces.clear();
        m.downs.clear();
        for (int e = 0; e < n_experts; ++e) {
            if (m.start[e] == m.start[e + 1]) continue;
            const auto cut = [&](std::vector<Moe::Piece>& out, int panels) {
                const int step = pieces_of(panels, team_.size());
                for (int p = 0; p < panels; p += step) {
                    out.push_back({e, p, std::min(panels, p + step)});
                }
            };
            cut(m.pieces, expert(e, 0).n_panels);
            cut(m.downs, expert(e, 2).n_panels);
        }
        m.n_pieces = int(m.pieces.size());
        m.n_downs = int(m.downs.size());
    });
    const auto enter = [&](const Mat& w, const float* from, float* to, int width) {
        if (form_of(w) == FLOATS) {
            std::memcpy(to, from, sizeof(float) * width);
        } else {
            k_.narrow(from, to, width, form_of(w), 0, width);
        }
    };
    team_.each(lane, places, [&](int i) {
        const int e = int(std::upper_bound(m.start.begin(), m.start.end(), i) - m.start.begin()) - 1;
        enter(expert(e, 0), reg(x) + stride(x) * m.row[i], m.x.data() + ldx * i, d);
    });
    const auto multiply = [&](const Moe::Piece& p, int which, const float* from, std::size_t ld,
                              float* to, std::size_t ld_to) {
        const int first = m.start[p.expert], rows = m.start[p.expert + 1] - first;
        const Linear l{&expert(p.expert, which), nullptr, to + ld_to * first, ld_to};
        k_.linear(l, from + ld * first, ld * sizeof(float), rows, p.p0, p.p1);
    };
    team_.each_of_varying(lane, m.n_pieces, [&](int i) {
        multiply(m.pieces[i], 0, m.x.data(), ldx, m.gate.data(), ldh);
        multiply(m.pieces[i], 1, m.x.data(), ldx, m.up.data(), ldh);
    });
    team_.each(lane, places, [&](int i) {
        const int e = int(std::upper_bound(m.start.begin(), m.start.end(), i) - m.start.begin()) - 1;
        float* gate = m.gate.data() + ldh * i;
        k_.glu(gate, m.up.data() + ldh * i, gate, h, Act(op.ints[2]));
        enter(expert(e, 2), gate, m.hidden.data() + ldh * i, h);
    });
    team_.each_of_varying(lane, m.n_downs, [&](int i) {
        multiply(m.downs[i], 2, m.hidden.data(), ldh, m.y.data(), ldx);
    });
    team_.each(lane, n, [&](int r) {
        float* y = reg(op.out) + stride(op.out) * r;
        std::memset(y, 0, sizeof(float) * d);
        for (int k = 0; k < top_k; ++k) {
            const int i = r * top_k + k;
            k_.axpy(m.weight[i], m.y.data() + ldx * m.place[i], y, d);
        }
    });
}

}  // namespace ph
