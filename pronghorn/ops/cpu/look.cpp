// Which pages a policy's queries look at.
#include "look.h"

#include <algorithm>
#include <stdexcept>

#include "executor.h"
#include "isa.h"

namespace ph {

Looks looks_named(const std::string& isa_name) {
    const std::string& name = isa_name.empty() ? isa() : isa_name;
#define PH_LOOK_OF(set) \
    if (name == #set) return set::look;
    PH_FOR_EACH_ISA(PH_LOOK_OF)
#undef PH_LOOK_OF
    return baseline::look;
}

// A sealed page, to be looked at.
KvPage Executor::keys_of(const SeqView& s, int layer, int head, int page) const {
    const int member = layer * shape_.n_kv + head;
    const std::int64_t* row = s.table + 4 * group_[member];
    const std::uint64_t addr = reinterpret_cast<const std::uint64_t*>(row[0])[page];
    const float* bias = bias_of(s, member);
    const auto* where = reinterpret_cast<const std::int32_t*>(row[2]) + page * PAGE;
    KvPage p{};
    sealed_page(addr, member, where, std::clamp(reinterpret_cast<const std::int32_t*>(row[1])[page], 0, PAGE), page * PAGE, p);
    if (bias) p.bias = bias + page * PAGE;
    return p;
}

int Executor::stored(const SeqView& s, int layer, int head) const {
    const std::int64_t* row = s.table + 4 * group_[layer * shape_.n_kv + head];
    const auto* fill = reinterpret_cast<const std::int32_t*>(row[1]);
    int n = s.n_open;
    for (int i = 0; i < int(row[3]); ++i) n += std::clamp(fill[i], 0, PAGE);
    return n;
}

void Executor::look(const LookIn& in) {
    look_ = &in;
    const SeqView& s = in.seq;
    std::size_t floats = 0;
    for (int head = 0; head < shape_.n_kv; ++head) {
        const std::int64_t sealed = s.table[4 * group_[in.layer * shape_.n_kv + head] + 3];
        floats = std::max(floats, look_scratch(int(sealed) + (s.n_open + PAGE - 1) / PAGE,
                                             shape_.head_dim));
    }
    for (ThreadScratch& t : scratch_) t.floats(floats);
    job_ = Job::Look;
    team_.run(walk_);
}

void Executor::look_head(int thread, int head) {
    const LookIn& in = *look_;
    const SeqView& s = in.seq;
    ThreadScratch& t = scratch_[thread];
    const int kv_head = head / (shape_.n_heads / shape_.n_kv), member = in.layer * shape_.n_kv + kv_head;
    const std::int64_t* row = s.table + 4 * group_[member];
    t.shared.clear();
    for (int i = 0; i < int(row[3]); ++i) t.shared.push_back(keys_of(s, in.layer, kv_head, i));
    for (int i = 0; i * PAGE < s.n_open; ++i) {
        const char* base = reinterpret_cast<const char*>(s.open[i]) + member * open_.member;
        const int at = int(t.shared.size()) * PAGE;
        zone_page(open_, base, s.open_pos + i * PAGE, std::min(s.n_open - i * PAGE, PAGE), at, t.shared.emplace_back());
    }
    const std::size_t queries = std::size_t(in.n_rows) * shape_.head_dim;
    const LookItem item{shape_.head_dim, in.n_rows, in.window, in.scale, in.softcap, in.q + queries * head, in.pos,
                        t.shared.data(), int(t.shared.size()), &sealed_.k_codes, Look(in.what), in.n,
                        in.out + std::size_t(head) * (in.what == SUMS ? 1 : in.n_rows) * in.n,
                        static_cast<float*>(t.bytes.get())};
    looks_named(isa_)(item);
}

}  // namespace ph
