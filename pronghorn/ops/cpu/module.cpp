// Python bindings of the native extension; _native.pyi gives their types.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "codes.h"
#include "executor.h"
#include "isa.h"
#include "look.h"
#include "module.h"
#include "probe.h"
#include "sample.h"

namespace {

float dot(const Floats& a, const Floats& b) {
    if (a.shape(0) != b.shape(0)) throw nb::value_error("dot: the lengths differ");
    return ph::kernels().dot(a.data(), b.data(), a.shape(0));
}

int draw(const Floats& logits, float temperature, double u) {
    return ph::draw(ph::kernels(), logits.data(), int(logits.shape(0)), temperature, u);
}

std::tuple<std::vector<std::int32_t>, std::vector<std::int32_t>, bool> walk(
    const Flat<float, 2>& logits, int n, const Ints& tokens, const Ints& parents, double temperature,
    std::uint64_t seed, std::uint64_t branch, std::uint64_t pos) {
    const std::size_t n_nodes = tokens.shape(0);
    need(parents.shape(0) == n_nodes && logits.shape(0) == n_nodes + 1, "a row of logits for each node, and one more");
    need(n >= 0 && std::size_t(n) <= logits.shape(1), "no more tokens than logits");
    ph::Walk w = ph::walk(ph::kernels(), logits.data(), logits.shape(1), n, tokens.data(), parents.data(),
                          int(n_nodes), temperature, {seed, branch, 0}, pos);
    return {std::move(w.row), std::move(w.token), w.whole};
}

// The user's errors are pronghorn.errors; that module is imported only when one is raised.
void translate_isa_error(const std::exception_ptr& error, void*) {
    try {
        std::rethrow_exception(error);
    } catch (const ph::IsaError& e) {
        const nb::object type = nb::module_::import_("pronghorn.errors").attr("UnsupportedError");
        PyErr_SetString(type.ptr(), e.what());
    }
}

ph::Do kind_of(const std::string& name) {
    using ph::Do;
    static const std::map<std::string, Do> kinds = {
        {"embed", Do::Embed}, {"wpe", Do::Wpe},       {"norm", Do::Norm}, {"linear", Do::Linear},
        {"rope", Do::Rope},   {"attend", Do::Attend}, {"act", Do::Act},   {"glu", Do::Glu},
        {"add", Do::Add},     {"scale", Do::Scale},   {"moe", Do::Moe},   {"tap", Do::Tap},
        {"head", Do::Head}};
    const auto found = kinds.find(name);
    if (found == kinds.end()) throw nb::value_error(("no op " + name).c_str());
    return found->second;
}

ph::Source source_of(int kind, const nb::ndarray<nb::ndim<2>, nb::device::cpu, nb::ro>& w,
                     const Floats& scale) {
    need(kind == ph::IN_F32 || kind == ph::IN_BF16 || kind == ph::IN_F16 || kind == ph::IN_F8,
         "a kind that does not exist");
    const std::size_t size = kind == ph::IN_F32 ? 4 : kind == ph::IN_F8 ? 1 : 2;
    need(w.itemsize() == size && w.shape(0) > 0 && w.shape(1) > 0 && w.shape(0) < (1u << 28) &&
             w.shape(1) < (1u << 30),
         "a matrix whose dtype or shape does not fit its kind");
    need(kind != ph::IN_F8 || scale.shape(0) == w.shape(0), "one scale per output");
    return {ph::Weights(kind),
            int(w.shape(0)),
            int(w.shape(1)),
            w.data(),
            std::ptrdiff_t(w.stride(0) * std::int64_t(size)),
            std::ptrdiff_t(w.stride(1) * std::int64_t(size)),
            kind == ph::IN_F8 ? scale.data() : nullptr};
}

// numbers: bits, group, centred, scale, offset, activations; table: 16 levels, or none.
ph::Grid grid_of(const std::vector<int>& numbers, const std::vector<int>& table) {
    need(numbers.size() == 6 && (table.empty() || table.size() == 16), "a grid");
    const int bits = numbers[0], group = numbers[1], scale = numbers[3], offset = numbers[4];
    ph::Grid g{bits, group, 0, !table.empty(), ph::Scales(scale), ph::Offsets(offset), numbers[5], {}};
    g.zero = g.table ? 128 : numbers[2] ? 1 << (bits - 1) : 0;
    need((bits == 2 || bits == 3 || bits == 4 || bits == 5 || bits == 6 || bits == 8) &&
             (group == 0 || group == 16 || group == 32 || group == 64 || group == 128) &&
             (!g.table || bits == 4) && scale >= ph::BY_HALF && scale <= ph::BY_TWO &&
             offset >= ph::NO_OFFSET && offset <= ph::OF_TWO && (g.act == 8 || (g.act == 16 && group != 16)) &&
             (group == 0) == (g.scale == ph::BY_ROW) && (group || !g.offset) &&
             (g.offset != ph::OF_TWO || g.scale == ph::BY_TWO) &&
             (g.offset != ph::OF_VALUE || g.scale != ph::BY_TWO),
         "a grid that does not exist");
    for (std::size_t i = 0; i < table.size(); ++i) {
        need(table[i] >= -128 && table[i] <= 127, "a level out of range");
        g.level[i] = std::uint8_t(table[i] + 128);
    }
    return g;
}

using Bytes = Flat<std::uint8_t, 2>;

void need_panels(const ph::Grid& g, int n_out, int n_in, std::size_t n_panels, std::size_t panel) {
    need(n_out > 0 && n_in > 0 && n_out < (1 << 28) && n_in < (1 << 28), "a matrix's shape");
    need(n_panels == std::size_t(n_out + ph::PAGE - 1) / ph::PAGE && panel >= ph::codes_bytes(g, n_in) &&
             panel % 64 == 0,
         "panels that do not fit the matrix");
}

ph::CodesSource codes_of(const Bytes& panels, const Floats& scale, int n_out, int n_in,
                         const std::vector<int>& grid, const std::vector<int>& table) {
    const ph::Grid g = grid_of(grid, table);
    need_panels(g, n_out, n_in, panels.shape(0), panels.shape(1));
    need(scale.shape(0) == (g.group ? 0 : std::size_t(n_out)), "one scale per output where groups are rows");
    return {g, n_out, n_in, panels.data(), panels.shape(1), g.group ? nullptr : scale.data()};
}

using BytesOut = nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Factors are bytes, (n_out, n factors of their size).
void pack_codes(const Bytes& code, const Bytes& scale, const Bytes& offset, const Bytes& over,
                const Bytes& under, const std::vector<int>& grid, const std::vector<int>& table,
                const BytesOut& panels) {
    const ph::Grid g = grid_of(grid, table);
    const std::size_t n_out = code.shape(0), n_in = code.shape(1);
    need(n_out < (1u << 28) && n_in < (1u << 28), "a matrix's shape");
    need_panels(g, int(n_out), int(n_in), panels.shape(0), panels.shape(1));
    const std::size_t n_groups = ph::groups_of(int(n_in), g.group);
    const std::size_t n_supers = (n_in + ph::SUPER - 1) / ph::SUPER;
    const std::size_t wide = g.scale == ph::BY_TWO ? 1 : 2;
    const auto fits = [&](const Bytes& a, bool there, std::size_t n) {
        need(!there || (a.shape(0) == n_out && a.shape(1) == n), "factors that do not fit the codes");
    };
    fits(scale, g.group, n_groups * wide);
    fits(offset, g.offset, n_groups * (g.offset == ph::OF_VALUE ? wide : 1));
    fits(over, g.scale == ph::BY_TWO, n_supers * 2);
    fits(under, g.offset == ph::OF_TWO, n_supers * 2);
    const ph::Codes c{g, int(n_out), int(n_in), code.data(), scale.data(), offset.data(), over.data(),
                      under.data()};
    const nb::gil_scoped_release release;
    ph::pack(c, panels.data(), panels.shape(1));
}

nb::tuple fit_codes(int kind, const nb::ndarray<nb::ndim<2>, nb::device::cpu, nb::ro>& w, const Floats& weight,
                    const std::vector<int>& grid, const std::vector<int>& table, const BytesOut& code,
                    const BytesOut& scale, const BytesOut& offset) {
    const ph::Grid g = grid_of(grid, table);
    need(kind != ph::IN_F8, "weights that are floats");
    const ph::Source s = source_of(kind, w, weight);
    need(s.n_in < (1 << 28) && g.scale != ph::BY_TWO && g.offset != ph::OF_ZERO,
         "a grid whose factors are floats");
    for (int i = 1; i < (g.table ? 16 : 0); ++i) need(g.level[i - 1] <= g.level[i], "levels in their order");
    const std::size_t n_out = s.n_out, n_in = s.n_in;
    const std::size_t n = (g.group ? std::size_t(ph::groups_of(s.n_in, g.group)) * 2 : 4);
    need(weight.shape(0) == 0 || weight.shape(0) == n_in, "one weight per input");
    need(code.shape(0) == n_out && code.shape(1) == n_in && scale.shape(0) == n_out && scale.shape(1) == n &&
             (!g.offset || (offset.shape(0) == n_out && offset.shape(1) == n)),
         "room for codes and factors");
    ph::Fitted got;
    {
        const nb::gil_scoped_release release;
        got = ph::fit(s, g, weight.shape(0) ? weight.data() : nullptr, code.data(), scale.data(),
                      offset.data());
    }
    return nb::make_tuple(int(got.ending), got.size);
}

ph::Zone zone_of(int kind, std::size_t member, const std::vector<std::size_t>& at) {
    need(at.size() == 4 && kind >= ph::F32 && kind <= ph::CODED, "a zone: offsets of k, v, ks, vs");
    return {ph::Kind(kind), member, at[0], at[1], at[2], at[3], {}, {}};
}

ph::Coding coding_of(const std::vector<int>& about, const std::vector<float>& table, int dim) {
    need(about.size() == 10, "codes: bits, group, offset, channels, turn, levels, rank, spikes, kept, salient");
    ph::Coding c{about[0], about[1], about[2] != 0, about[3] != 0, about[4] != 0, ph::Levels(about[5]), {}};
    c.rank = about[6], c.spikes = about[7], c.kept = about[8], c.salient = about[9];
    need(c.salient == 0 || (c.salient > 0 && c.salient < ph::PAGE && c.bits == 2 && c.levels == ph::NUMBERS &&
                            !c.turn && !c.rank && !c.spikes),
         "more bits for some rows: of numbers of 2");
    if (c.bits == 16) {
        need(!c.group && !c.offset && !c.channels && !c.turn && !c.levels && !c.rank && !c.spikes && c.kept > 0 &&
                 c.kept <= dim,
             "numbers of 16 bits: as they are, some channels or all");
        return c;
    }
    need(c.bits == 2 || c.bits == 4 || c.bits == 8, "codes of 2, 4, 8 or 16 bits");
    need(c.kept == dim, "codes of all channels");
    need(c.rank >= 0 && c.rank <= ph::RANKS && c.spikes >= 0 && c.spikes <= ph::PAGE * dim &&
             (!(c.rank || c.spikes) || (!c.channels && !c.turn && c.levels == ph::NUMBERS)),
         "a low rank and spikes: beside numbers");
    need(c.group >= 0 && c.group % 32 == 0, "groups of a multiple of 32 channels");
    need((about[5] == ph::E4M3) == (c.bits == 8) && about[5] >= ph::NUMBERS && about[5] <= ph::E4M3,
         "levels: numbers or a table of up to 4 bits, E4M3 of 8");
    need(table.size() == (c.levels == ph::TABLE ? std::size_t(1) << c.bits : 0), "a level for each code");
    std::copy(table.begin(), table.end(), c.table);
    return c;
}

class Native : public ph::Executor {
public:
    Native(const std::string& isa, int n_threads, ph::Shape shape, std::vector<int> widths, const Native* beside)
        : ph::Executor(isa, n_threads, shape, std::move(widths), beside),
          busy_(beside ? beside->busy_ : std::make_shared<std::atomic<bool>>(false)) {}

    // One call at a time: while one works without the GIL, another thread would write over what it reads.
    class Turn {
    public:
        explicit Turn(Native& of) : of_(of) {
            if (of.busy_->exchange(true)) {
                throw std::runtime_error("this runner is at work: one step at a time");
            }
        }
        ~Turn() { *of_.busy_ = false; }
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;

    private:
        Native& of_;
    };

    void keep_alive(nb::object o) { kept_.push_back(std::move(o)); }

    void run(const Ints& ids, const Ints& pos, const Ints& span, const Ints& seq, const Ints& parent,
             const Ints& want, const nb::list& kvs, const std::vector<Flat<float, 2>>& freqs,
             const std::vector<Ints>& freq_of,
             const nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>& logits,
             const std::vector<nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>>& taps,
             const std::vector<nb::ndarray<std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>>& kept,
             const std::vector<nb::ndarray<std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>>& seen) {
        const Turn turn(*this);
        need(finished(), "run before finish");
        ph::StepIn s;
        const std::size_t n = ids.shape(0);
        for (const Ints* a : {&pos, &span, &seq, &parent, &want}) {
            need(a->shape(0) == n, "rows: arrays of different lengths");
        }
        need(n <= (1u << 20), "too many rows in a step");
        s.n = int(n);
        s.ids = ids.data();
        s.pos = pos.data();
        s.span = span.data();
        s.seq = seq.data();
        s.parent = parent.data();
        s.want = want.data();
        const std::vector<Arrays> held = sequences(s, kvs);
        need(kept.empty() || kept.size() == s.seqs.size(), "what each sequence keeps, or nothing");
        for (std::size_t i = 0; i < kept.size(); ++i) {
            need(kept[i].shape(0) == 0 || kept[i].shape(0) == kept_ints(), "what a sequence keeps: another size");
            if (kept[i].shape(0)) s.seqs[i].kept = kept[i].data();
        }
        need(seen.empty() || seen.size() == s.seqs.size(), "where each sequence's pages are marked, or nothing");
        for (std::size_t i = 0; i < seen.size(); ++i) {
            ph::SeqView& q = s.seqs[i];
            need(seen[i].shape(0) == std::size_t(shape().n_layers) * shape().n_kv, "marks: a row for each KV head");
            for (int g = 0; g < n_groups(); ++g) {
                need(q.table[4 * g + 3] <= std::int64_t(seen[i].shape(1)), "marks: fewer than pages");
            }
            q.seen = seen[i].data();
            q.seen_ld = seen[i].shape(1);
        }
        rows(s);
        std::size_t n_want = 0;
        for (std::size_t i = 0; i < n; ++i) n_want += s.want[i] != 0;
        need(logits.shape(0) == n_want && logits.shape(1) == std::size_t(shape().n_vocab),
             "logits: one row per wanted row");
        s.logits = logits.data();
        tables(s, freqs, freq_of);
        need(taps.empty() || int(taps.size()) == n_taps(), "one array per tap, or none");
        for (int i = 0; i < int(taps.size()); ++i) {
            need(taps[i].shape(0) == n && taps[i].shape(1) == std::size_t(tap_width(i)),
                 "a tap's array: a row per row");
            s.taps.push_back(taps[i].data());
        }
        if (!n) return;
        const nb::gil_scoped_release release;
        ph::Executor::run(s);
    }

    void commit(const Ints& row, const Flat<std::uint64_t, 1>& addr, const Ints& slot) {
        const Turn turn(*this);
        need(row.shape(0) == addr.shape(0) && row.shape(0) == slot.shape(0),
             "commit: arrays of different lengths");
        const nb::gil_scoped_release release;
        ph::Executor::commit(int(row.shape(0)), row.data(), addr.data(), slot.data());
    }

    // out: (n_heads, n) for sums, else (n_heads * n_rows, n)
    void look(const nb::object& kv, int layer, const Flat<float, 3>& q, const Ints& pos, float scale, float softcap,
              int window, int what,
              const nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>& out) {
        const Turn turn(*this);
        need(finished(), "look before finish");
        need(layer >= 0 && layer < shape().n_layers, "a layer that does not exist");
        ph::StepIn s;
        nb::list one;
        one.append(kv);
        const std::vector<Arrays> held = sequences(s, one);
        const std::size_t heads = shape().n_heads, n_rows = q.shape(1);
        need(q.shape(0) == heads && q.shape(2) == std::size_t(shape().head_dim) && pos.shape(0) == n_rows &&
                 n_rows < (1u << 20) && window >= 0,
             "queries (n_heads, rows, head_dim) and their positions");
        need(what >= ph::SUMS && what <= ph::LOGITS && out.shape(1) < (1u << 28) &&
                 out.shape(0) == heads * (what == ph::SUMS ? 1 : n_rows),
             "room for what queries look at");
        for (int head = 0; head < shape().n_kv; ++head) {
            need(std::size_t(stored(s.seqs[0], layer, head)) <= out.shape(1), "room for every stored row");
        }
        const ph::LookIn in{s.seqs[0],      layer, int(n_rows),       window,    scale, softcap, q.data(),
                            pos.data(), what,  int(out.shape(1)), out.data()};
        if (!n_rows) return;
        const nb::gil_scoped_release release;
        ph::Executor::look(in);
    }

private:
    // What a step reads of a sequence, held: another thread may give the sequence new arrays meanwhile.
    struct Arrays {
        Flat<std::uint64_t, 1> open;
        Ints pos;
        Flat<std::int64_t, 2> table;
        Flat<std::int64_t, 1> bias;
    };

    // Without conversion, which would point to a copy that is gone when the step begins.
    template <typename T>
    static T array_of(nb::handle kv, const char* name) {
        T out;
        need(nb::try_cast(kv.attr(name), out, false),
             std::string("a sequence's ") + name + ": another dtype or layout");
        return out;
    }

    std::vector<Arrays> sequences(ph::StepIn& s, const nb::list& kvs) const {
        std::vector<Arrays> held;
        for (const nb::handle kv : kvs) {
            held.push_back({array_of<Flat<std::uint64_t, 1>>(kv, "open_addr"),
                            array_of<Ints>(kv, "open_pos"),
                            array_of<Flat<std::int64_t, 2>>(kv, "table"),
                            array_of<Flat<std::int64_t, 1>>(kv, "bias")});
            const auto& [open, pos, table, bias] = held.back();
            const int n_open = nb::cast<int>(kv.attr("n_open"));
            need(n_open >= 0 && std::size_t(n_open) <= open.shape(0) * ph::PAGE &&
                     std::size_t(n_open) <= pos.shape(0),
                 "a sequence with fewer open pages than open rows");
            need(int(table.shape(0)) == n_groups() && table.shape(1) == 4 &&
                     int(bias.shape(0)) == n_groups(),
                 "a sequence of another store");
            for (int i = 0; i < (n_open + ph::PAGE - 1) / ph::PAGE; ++i) {
                need(open(i) != 0, "a sequence with an open page that does not exist");
            }
            for (int g = 0; g < n_groups(); ++g) {
                const std::int64_t n = table(g, 3);
                need(n >= 0 && n < (1 << 26) && (!n || (table(g, 0) && table(g, 1) && table(g, 2))),
                     "a sequence with sealed pages that do not exist");
            }
            ph::SeqView view;
            view.open = open.data();
            view.open_pos = pos.data();
            view.n_open = n_open;
            view.table = table.data();
            view.bias = bias.data();
            s.seqs.push_back(view);
        }
        return held;
    }

    void rows(ph::StepIn& s) const {
        const auto at = [&](int i, const char* what) {
            return "row " + std::to_string(i) + " of " + std::to_string(s.n) + ": " + what;
        };
        for (int i = 0; i < s.n; ++i) {
            need(s.ids[i] >= 0 && s.ids[i] < shape().n_vocab, at(i, "token id out of range"));
            need(s.pos[i] >= 0 && (positions() < 0 || s.pos[i] < positions()),
                 at(i, "position out of range"));
            need(s.seq[i] >= 0 && s.seq[i] < int(s.seqs.size()), at(i, "sequence out of range"));
            need(s.parent[i] >= -1 && s.parent[i] < i, at(i, "parent out of range"));
            need(s.parent[i] < 0 || s.seq[s.parent[i]] == s.seq[i],
                 at(i, "parent's sequence out of range"));
            ph::SeqView& q = s.seqs[s.seq[i]];
            need(q.row0 == q.row1 || q.row1 == i, at(i, "rows of a sequence are not contiguous"));
            if (q.row0 == q.row1) q.row0 = i;
            q.row1 = i + 1;
        }
    }

    void tables(ph::StepIn& s, const std::vector<Flat<float, 2>>& freqs,
                const std::vector<Ints>& freq_of) const {
        std::size_t given = 0;
        for (int t = 0; t < n_tables(); ++t) {
            s.freqs.push_back(nullptr);
            s.freq_of.push_back(nullptr);
            if (!table_varies(t)) continue;
            need(given < freqs.size() && given < freq_of.size(), "a table without frequencies");
            const auto& f = freqs[given];
            const Ints& of = freq_of[given++];
            need(f.shape(1) == std::size_t(table_half(t)) && of.shape(0) == std::size_t(s.n),
                 "a table's frequencies");
            for (int i = 0; i < s.n; ++i) {
                need(of(i) >= 0 && std::size_t(of(i)) < f.shape(0), "a table's frequencies");
            }
            s.freqs.back() = f.data();
            s.freq_of.back() = of.data();
        }
    }

    std::vector<nb::object> kept_;
    std::shared_ptr<std::atomic<bool>> busy_;  // of all that have the same threads
};

}  // namespace

constexpr size_t SKIM = 64;  // values that are looked at together

// The n largest of each row, by insertion: n is small, and few values pass the least one held.
void top(nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu> logits,
         nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> out) {
    const size_t rows = logits.shape(0), n_vocab = logits.shape(1), n = out.shape(1);
    if (out.shape(0) != rows) throw nb::value_error("logits and out differ in rows");
    if (n == 0) return;
    std::vector<float> best(n);
    for (size_t r = 0; r < rows; ++r) {
        const float* x = logits.data() + r * n_vocab;
        int32_t* ids = out.data() + r * n;
        size_t held = 0;
        for (size_t i = 0; i < n_vocab; ++i) {
            for (; held == n && i % SKIM == 0 && i + SKIM <= n_vocab; i += SKIM) {
                int more = 0;
                for (size_t j = i; j < i + SKIM; ++j) more |= x[j] > best[n - 1];
                if (more) break;
            }
            if (i == n_vocab || (held == n ? !(x[i] > best[n - 1]) : std::isnan(x[i]))) continue;
            size_t at = held < n ? held++ : n - 1;
            for (; at > 0 && x[i] > best[at - 1]; --at) {
                best[at] = best[at - 1];
                ids[at] = ids[at - 1];
            }
            best[at] = x[i];
            ids[at] = static_cast<int32_t>(i);
        }
        for (; held < n; ++held) ids[held] = -1;
    }
}

NB_MODULE(_native, m) {
    nb::register_exception_translator(translate_isa_error);
    bind_drafts(m);
    m.def("isas", &ph::supported_isas);
    m.def("isa", &ph::isa);
    m.def("top", &top, nb::arg("logits").noconvert(), nb::arg("out").noconvert());
    m.def("draw", &draw, nb::arg("logits").noconvert(), nb::arg("temperature"), nb::arg("u"));
    m.def("walk", &walk, nb::arg("logits").noconvert(), nb::arg("n"), nb::arg("tokens").noconvert(),
          nb::arg("parents").noconvert(), nb::arg("temperature"), nb::arg("seed"), nb::arg("branch"),
          nb::arg("pos"));
    m.def("uniform",
          [](std::uint64_t seed, std::uint64_t branch, std::uint64_t pos, std::uint64_t purpose) {
              return ph::uniform({seed, branch, purpose}, pos);
          },
          nb::arg("seed"), nb::arg("branch"), nb::arg("pos"), nb::arg("purpose"));
    m.def("room", [](std::size_t n_rows, std::size_t n_bytes) {
        need(!n_rows || n_bytes <= SIZE_MAX / n_rows, "room for more than there can be");
        auto held = std::make_unique<ph::Bytes>(ph::lasting(n_rows * n_bytes));
        void* const at = held->get();
        nb::capsule owner(held.get(), [](void* p) noexcept { delete static_cast<ph::Bytes*>(p); });
        static_cast<void>(held.release());
        return nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<2>>(at, {n_rows, n_bytes}, owner);
    });
    m.def("pack", &pack_codes, nb::arg("code").noconvert(), nb::arg("scale").noconvert(),
          nb::arg("offset").noconvert(), nb::arg("over").noconvert(), nb::arg("under").noconvert(),
          nb::arg("grid"), nb::arg("table"), nb::arg("panels").noconvert());
    m.def("fit", &fit_codes, nb::arg("kind"), nb::arg("w").noconvert(), nb::arg("weight").noconvert(),
          nb::arg("grid"), nb::arg("table"), nb::arg("code").noconvert(), nb::arg("scale").noconvert(),
          nb::arg("offset").noconvert());
    m.def("dot", &dot, nb::arg("a").noconvert(), nb::arg("b").noconvert());

    nb::class_<ph::Probe>(m, "Probe")
        .def(nb::init<int, std::size_t>())
        .def("read", &ph::Probe::read, nb::call_guard<nb::gil_scoped_release>())
        .def("peak", &ph::Probe::peak, nb::call_guard<nb::gil_scoped_release>())
        .def_static("round_trip", &ph::Probe::round_trip, nb::call_guard<nb::gil_scoped_release>());

    using Matrix = nb::ndarray<nb::ndim<2>, nb::device::cpu, nb::ro>;
    nb::class_<Native>(m, "Executor")
        .def("__init__",
             [](Native* self, const std::string& isa, int n_threads, int n_vocab, int n_layers,
                int n_heads, int n_kv, int head_dim, const std::vector<int>& widths,
                const Native* beside) {
                 need(n_threads >= 1 && n_threads <= 1024, "threads: 1 to 1024");
                 new (self) Native(isa, n_threads,
                                   ph::Shape{n_vocab, n_layers, n_heads, n_kv, head_dim}, widths, beside);
             },
             nb::arg("isa"), nb::arg("n_threads"), nb::arg("n_vocab"), nb::arg("n_layers"),
             nb::arg("n_heads"), nb::arg("n_kv"), nb::arg("head_dim"), nb::arg("widths"),
             nb::arg("beside").none() = nb::none())
        .def("add_matrix",
             [](Native& self, int kind, const Matrix& w, const Floats& scale) {
                 const Native::Turn turn(self);
                 const ph::Source s = source_of(kind, w, scale);
                 const nb::gil_scoped_release release;
                 return self.add_matrix(s);
             })
        .def("add_codes",
             [](Native& self, const Bytes& panels, const Floats& scale, int n_out, int n_in,
                const std::vector<int>& grid, const std::vector<int>& table) {
                 const Native::Turn turn(self);
                 const ph::CodesSource s = codes_of(panels, scale, n_out, n_in, grid, table);
                 if (s.in_place()) self.keep_alive(nb::cast(panels));
                 return self.add_codes(s);
             })
        .def("set_order",
             [](Native& self, int mat, const Ints& order) {
                 const Native::Turn turn(self);
                 self.set_order(mat, {order.data(), order.data() + order.shape(0)});
             })
        .def("add_rows",
             [](Native& self, int kind, const Matrix& w, const Floats& scale) {
                 const ph::Source s = source_of(kind, w, scale);
                 need(w.stride(1) == 1 && w.stride(0) == std::int64_t(w.shape(1)),
                      "a matrix that is read by rows lies contiguous");
                 self.keep_alive(nb::cast(w));
                 self.keep_alive(nb::cast(scale));
                 return self.add_rows(s);
             })
        .def("add_shared",
             [](Native& self, const nb::object& of, int mat) {
                 self.keep_alive(of);
                 return self.add_shared(nb::cast<const Native&>(of), mat);
             })
        .def("add_vector",
             [](Native& self, const Floats& v) { return self.add_vector(v.data(), int(v.shape(0))); })
        .def("add_table",
             [](Native& self, const Floats& freq, int half, float gain) {
                 need(half > 0 && (freq.shape(0) == std::size_t(half) || freq.shape(0) == 0),
                      "a table's frequencies");
                 return self.add_table(freq.shape(0) ? freq.data() : nullptr, half, gain);
             })
        .def("add_op",
             [](Native& self, const std::string& kind, std::vector<int> in, int out,
                std::vector<int> mats, std::vector<int> vecs, std::vector<int> ints,
                std::vector<float> floats) {
                 self.add_op({kind_of(kind), std::move(in), out, std::move(mats), std::move(vecs),
                              std::move(ints), std::move(floats)});
             })
        .def("set_zones",
             [](Native& self, int open_kind, std::size_t open_member,
                const std::vector<std::size_t>& open, int sealed_kind, std::size_t sealed_member,
                const std::vector<std::size_t>& sealed, const std::vector<std::vector<int>>& codes,
                const std::vector<std::vector<float>>& tables, const std::vector<int>& group,
                const std::vector<int>& index) {
                 ph::Zone zone = zone_of(sealed_kind, sealed_member, sealed);
                 const std::size_t n = sealed_kind == ph::CODED ? 2 : 0;
                 need(codes.size() == n && tables.size() == n, "what keys' and values' codes mean");
                 if (n) {
                     const int dim = self.shape().head_dim;
                     zone.k_codes = coding_of(codes[0], tables[0], dim);
                     zone.v_codes = coding_of(codes[1], tables[1], dim);
                     need(zone.v_codes.bits == 16 ? zone.v_codes.kept == dim : zone.v_codes.group > 0,
                          "values of all channels, whose factors belong to rows");
                     need(zone.holds(dim), "a page that holds its codes");
                 }
                 self.set_zones(zone_of(open_kind, open_member, open), zone, group, index);
             })
        .def("set_upon",
             [](Native& self, std::vector<std::size_t> rows, std::vector<std::size_t> beside, int n_other,
                std::size_t block) {
                 self.set_upon({std::move(rows), std::move(beside), n_other}, block);
             })
        .def_prop_ro("kept_ints", [](const Native& self) { return self.kept_ints(); })
        .def("chosen",
             [](Native& self, int row, int head) {
                 const Native::Turn turn(self);
                 return self.chosen(row, head);
             })
        .def("set_select",
             [](Native& self, std::vector<int> sources, int score, int heads, const std::vector<int>& pages,
                float cover, int keep, float like, int n, const std::vector<std::size_t>& at, std::size_t stride,
                std::size_t block, std::size_t bytes, int part, const Flat<float, 1>& turn,
                const Flat<float, 1>& book) {
                 need(pages.size() == 4 && at.size() == 3, "pages: read, first, last, span; three offsets");
                 self.set_select(std::move(sources),
                                 {ph::Score(score), ph::Heads(heads), pages[0], pages[1], pages[2], pages[3],
                                  cover, ph::Keep(keep), like, n,
                                  {at[0], at[1], at[2]}, stride, block, bytes, part},
                                 std::vector<float>(turn.data(), turn.data() + turn.size()),
                                 std::vector<float>(book.data(), book.data() + book.size()));
             })
        .def("finish", &Native::finish)
        // Without conversion: results written to a converted copy would be lost.
        .def("run", &Native::run, nb::arg("ids").noconvert(), nb::arg("pos").noconvert(),
             nb::arg("span").noconvert(), nb::arg("seq").noconvert(), nb::arg("parent").noconvert(), nb::arg("want").noconvert(),
             nb::arg("kvs"), nb::arg("freqs").noconvert(), nb::arg("freq_of").noconvert(),
             nb::arg("logits").noconvert(), nb::arg("taps").noconvert(),
             nb::arg("kept").noconvert(), nb::arg("seen").noconvert())
        .def("commit", &Native::commit, nb::arg("row").noconvert(), nb::arg("addr").noconvert(),
             nb::arg("slot").noconvert())
        .def("look", &Native::look, nb::arg("kv"), nb::arg("layer"), nb::arg("q").noconvert(),
             nb::arg("pos").noconvert(), nb::arg("scale"), nb::arg("softcap"), nb::arg("window"), nb::arg("what"),
             nb::arg("out").noconvert())
        .def("portions",
             [](const Native& self) {
                 nb::list out;
                 for (const auto& p : self.portions()) out.append(nb::make_tuple(p.ops, p.mats));
                 return out;
             })
        .def("start_profile", &Native::start_profile)
        .def("stop_profile",
             [](Native& self) {
                 ph::Profile& p = self.profile();
                 p.stop();
                 nb::list threads;
                 for (int t = 0; t < p.n_threads(); ++t) {
                     nb::list parts;
                     for (int i = 0; i < p.n_parts(); ++i) {
                         parts.append(nb::make_tuple(p.time(t, i), p.wait(t, i)));
                     }
                     threads.append(parts);
                 }
                 return threads;
             })
        .def_prop_ro("n_threads", [](const Native& self) { return self.n_threads(); })
        .def_prop_ro("weight_bytes", [](const Native& self) { return self.weight_bytes(); })
        .def_prop_ro("kv_bytes", [](const Native& self) { return self.kv_bytes(); });
}
