// Runs a tape: plans it once into phases, then executes all rows of a step in one call.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"
#include "matrix.h"
#include "look.h"
#include "profile.h"
#include "select.h"
#include "team.h"

namespace ph {

enum class Do { Embed, Wpe, Norm, Linear, Rope, Attend, Act, Glu, Add, Scale, Moe, Tap, Head,
                Narrow, Keep, Gated, Gather };  // the last four are the planner's own

// One op of the tape. Registers, matrices, vectors and tables are numbers; -1 is none.
struct TapeOp {
    Do what;
    std::vector<int> in;
    int out = -1;
    std::vector<int> mats;
    std::vector<int> vecs;
    std::vector<int> ints;      // Norm: group, centre; Rope: table, heads; Attend: layer, window;
                                // Act, Glu: fn; Moe: top_k, renorm, fn, width; Tap: number;
                                // Narrow: form; Gated: fn, form, width; Gather: order
    std::vector<float> floats;  // Embed, Scale: factor; Norm: eps; Attend: scale, softcap;
                                // Head: scale, softcap
};

inline std::size_t size_of(Kind kind) { return kind == F32 ? 4 : kind == BF16 ? 2 : 1; }  // not CODED

// Byte offsets of the fields of a page of one head.
struct Zone {
    Kind kind = F32;
    std::size_t member = 0;  // bytes of one head's page
    std::size_t k = 0, v = 0, ks = 0, vs = 0;  // ks, vs: factors of I8 and CODED
    Coding k_codes, v_codes;
    bool holds(int dim) const {  // its codes, and what lies beside them
        const std::size_t keys = code_keys(k_codes, dim), values = PAGE * code_row(v_codes, dim);
        return k + keys + code_more(k_codes, keys) <= member && ks + code_beside(k_codes, dim) <= member &&
               v + values + code_more(v_codes, values) <= member && vs + code_beside(v_codes, dim) <= member;
    }
};

// p: the page of a zone that lies at `base`, with n keys from number `at` on.
inline void zone_page(const Zone& zone, const char* base, const std::int32_t* pos, int n, int at, KvPage& p) {
    p = {base + zone.k, base + zone.v, nullptr, nullptr, pos, zone.kind, 0, n, at};
    if (zone.kind == I8) {
        p.ks = reinterpret_cast<const float*>(base + zone.ks);
        p.vs = reinterpret_cast<const float*>(base + zone.vs);
    } else if (zone.kind == CODED) {
        p.kf = reinterpret_cast<const std::uint16_t*>(base + zone.ks);
        p.vf = reinterpret_cast<const std::uint16_t*>(base + zone.vs);
    }
}

// Of pages of bfloat16 that lie on another head's, with factors (two, 16) of keys and of values in float32 beside
// them and then the rows that stand for some (KvPage::other).
struct Upon {
    std::vector<std::size_t> rows, beside;  // of (layer, head): where in a block; beside is 0 for those that don't
    int n_other = 0;
};

struct Shape {
    int n_vocab, n_layers, n_heads, n_kv, head_dim;
};

// Stored keys and values of one sequence.
struct SeqView {
    const std::uint64_t* open = nullptr;  // page addresses
    const std::int32_t* open_pos = nullptr;
    int n_open = 0;
    const std::int64_t* table = nullptr;  // per group: addresses, fills, positions, number of pages
    const std::int64_t* bias = nullptr;   // per group: where (member, 16 per page) numbers lie that are added to
                                          // scores of sealed rows, 0: none
    int row0 = 0, row1 = 0;               // its rows in the step
    std::int32_t* kept = nullptr;         // the choice that it keeps: see Executor::kept_ints; null: nothing
    std::uint8_t* seen = nullptr;         // (n_layers * n_kv, seen_ld), of sealed pages: MISSING before the step, 1
                                          // once one is read; null: not told
    std::size_t seen_ld = 0;
    void see(int member, int page) const {  // by any thread
        if (seen) __atomic_store_n(seen + std::size_t(member) * seen_ld + page, 1, __ATOMIC_RELAXED);
    }
    static constexpr std::uint8_t MISSING = 2;
    bool fetches(int member, int page) const {  // whether the page was missing so far; it is read then
        std::uint8_t* mark = seen + std::size_t(member) * seen_ld + page;
        return __atomic_load_n(mark, __ATOMIC_RELAXED) == MISSING &&
               __atomic_exchange_n(mark, 1, __ATOMIC_RELAXED) == MISSING;
    }
};

// One step. All arrays have n entries; they were checked.
struct StepIn {
    int n = 0;
    const std::int32_t *ids = nullptr, *pos = nullptr, *span = nullptr, *seq = nullptr, *parent = nullptr,
                       *want = nullptr;
    std::vector<SeqView> seqs;
    // Tables whose frequencies depend on the context: frequencies and, per row, which of them.
    std::vector<const float*> freqs;
    std::vector<const std::int32_t*> freq_of;
    float* logits = nullptr;
    std::vector<float*> taps;
};

// Queries that look at the stored rows of a layer; see look.h.
struct LookIn {
    SeqView seq;
    int layer, n_rows, window;
    float scale, softcap;
    const float* q;           // (n_heads, n_rows, head_dim)
    const std::int32_t* pos;  // (n_rows,)
    int what, n;
    float* out;  // (n_heads, n) or (n_heads, n_rows, n)
};

class Executor {
public:
    // beside: one whose threads this one uses too; the two then run in turns. Else null.
    Executor(const std::string& isa, int n_threads, Shape shape, std::vector<int> widths,
             const Executor* beside);

    ~Executor();

    int add_matrix(const Source& source);  // packed into panels
    int add_codes(const CodesSource& source);  // left where they lie
    int add_rows(const Source& source);    // left where it lies, contiguous
    int add_shared(const Executor& of, int mat);  // of another, which lives longer
    // Input i of a matrix of codes is order[i] of its inputs: each of them once.
    void set_order(int mat, std::vector<int> order);
    int add_vector(const float* values, int n);
    int add_table(const float* freq, int half, float gain);  // freq null: given with each step
    void add_op(TapeOp op);
    void set_zones(Zone open, Zone sealed, std::vector<int> group, std::vector<int> index);
    // Where sealed pages lie if some lie on others; block: bytes of all.
    void set_upon(Upon upon, std::size_t block);
    // sources: by which layer's choice each layer reads, -1: everything. turn, book: of codes, those of
    // `ScoreItem` for each layer and KV head; empty otherwise.
    void set_select(std::vector<int> sources, const Chooser& by, std::vector<float> turn, std::vector<float> book);
    void finish();  // plan; throws std::invalid_argument where the tape contradicts itself

    static constexpr int FUSED_ROWS = 16;  // most rows with which row ops give up their barriers

    void run(const StepIn& step);
    // Copy K and V of rows of the last step to row slot[i] of the open block at addr[i].
    void commit(int n, const std::int32_t* row, const std::uint64_t* addr,
                const std::int32_t* slot);

    void look(const LookIn& in);
    int stored(const SeqView& s, int layer, int head) const;  // rows of a KV head

    bool finished() const { return finished_; }
    int n_threads() const { return team_.size(); }
    const Shape& shape() const { return shape_; }
    int n_tables() const { return int(tables_.size()); }
    bool table_varies(int i) const { return tables_[i].freq.empty(); }
    int table_half(int i) const { return tables_[i].half; }
    int n_taps() const { return n_taps_; }
    int tap_width(int i) const;
    int n_groups() const { return n_groups_; }
    // Pages that a row of the last step read, by the last layer that chose; empty where it read all.
    std::vector<int> chosen(int row, int head) const;
    // Integers of a choice that a sequence keeps: whether there is one; for each layer and head how many pages and
    // which; for each layer the queries, as floats. 0: none is kept.
    std::size_t kept_ints() const {
        if (chooser_.keep == NOT) return 0;
        const std::size_t heads = std::size_t(shape_.n_layers) * shape_.n_kv;
        return 1 + heads * (1 + chooser_.pages) + std::size_t(shape_.n_layers) * shape_.n_heads * shape_.head_dim;
    }
    int positions() const { return positions_; }  // of learned position tables, -1: none
    std::size_t weight_bytes() const;
    // Of keys and values that attention read in the last step: pages that several rows read together once.
    std::size_t kv_bytes() const { return kv_bytes_; }

    // A part of the plan: its ops by name, and the matrices that they multiply with.
    struct Portion {
        std::vector<std::string> ops;
        std::vector<int> mats;
    };
    std::vector<Portion> portions() const;
    // Count from now on where steps spend their time: parts as in `portions`, and before them what comes
    // before the first.
    void start_profile() { profile_.start(team_.size(), int(parts_.size()) + 1); }
    Profile& profile() { return profile_; }

private:
    struct Vector {
        Bytes data;
        int n = 0;
    };
    struct Table {
        std::vector<float> freq;
        int half = 0;
        float gain = 1;
    };
    enum class Phase { Rows, Linears, Gated, Attend, Head, Moe };
    // Whether a phase is products whose items share one input, which row ops may lead to.
    static bool multiplies(Phase p) { return p == Phase::Linears || p == Phase::Gated || p == Phase::Head; }
    // Ops that run between two barriers. Those in `before` work row by row and are a phase of their own,
    // or run inside the items of this one: see fuse.cpp.
    struct Part {
        Phase phase;
        std::vector<int> ops;
        std::vector<int> before;
        std::vector<int> kept;   // registers made in `before` that later parts read
        float cost = 0;          // of `before`, about, in ns per row
    };
    // Rows for an attention kernel and blocks of keys that they read: rows of one sequence, or of several in
    // a row that have these blocks in common.
    struct Item {
        int seq;  // the first
        int row0, row1;
        int block0, block1;
        bool shared;       // blocks that come before the rows' own
        bool parts;        // results of its blocks are kept, to be merged
        std::size_t part;  // where they begin
    };
    struct Task {  // blocks [block0, block1) of an item
        int item, block0, block1;
    };
    struct Join {  // rows of an own item read blocks in a shared one
        int own, shared;
    };
    struct Merge {  // of an own item: first what it has in joins [join0, join1), then its own parts
        int item, join0, join1;
    };
    struct Live {  // a sequence with rows in the step, and its own items
        int seq, item0, item1;
    };
    // How attention is dealt out, of layers that read everything or of those that read chosen pages.
    struct Dealt {
        std::vector<Item> items;   // own ones, then shared ones
        std::vector<Join> joins;   // by own item, in the order of blocks
        std::vector<Task> tasks;
        std::vector<Merge> merges;
        std::atomic<int> n_tasks{0}, n_merges{0};
        std::atomic<bool> whole_seqs{false};  // each sequence is one task
    };
    struct Asked {  // some of the pages that a row chooses from
        int seq, row, part, parts;
        int first;  // where there are several parts: a number of the row
    };
    struct Stretch {  // sequences [from, to) of the live ones, which have shared `done` blocks so far
        int from, to, done;
    };
    struct ThreadScratch {
        Bytes bytes, own_bytes;
        std::size_t size = 0, own_size = 0;
        std::vector<KvPage> shared, own_keys;
        std::vector<KvRun> runs;
        std::vector<KvPart> parts;
        KvPage partial{};  // the open page that is not full
        std::size_t kv_bytes = 0;  // read in this step
        float* floats(std::size_t n);
        float* own(std::size_t n);
    };
    struct Moe;
    struct GatedCut {  // of a gated product: rows and pieces of columns of an item
        int tall, across;
        int unit;  // panels that must not be parted: one scale serves what they make
        int panel(int piece, int n_panels) const;  // the first of a piece
    };
    // Where row ops find the registers that `before` of a part makes: in a thread's own memory, or
    // (base null) where all find them.
    struct Own {
        float* base = nullptr;
        int part = -1;
    };

    int new_register(int width);
    using Made = std::map<std::pair<int, int>, int>;  // register, and form or order -> register
    int narrowed(int reg, int form, std::vector<TapeOp>& out, Made& of);
    int gathered(int reg, int order, std::vector<TapeOp>& out, Made& of);
    void check_op(const TapeOp& op) const;
    void plan();
    void gate_products();
    void merge_parts();
    bool by_head(const Part& part) const;
    void place_registers();
    void place_own();
    void look_ahead();
    void prepare(const StepIn& step);
    void work(Lane& lane);
    void execute(Lane& lane);
    void commit_head(int head) const;
    void look_head(int thread, int head);
    // Of a head's sealed rows, 16 per page; null: none.
    const float* bias_of(const SeqView& s, int member) const {
        const std::int64_t at = s.bias ? s.bias[group_[member]] : 0;
        return at ? reinterpret_cast<const float*>(at) + index_[member] * s.table[4 * group_[member] + 3] * PAGE
                  : nullptr;
    }
    void row_op(const TapeOp& op, int r, const Own& own);
    void keep(const TapeOp& op, int r, const Own& own);
    void keep_head(const TapeOp& op, int r, int head, const float* k, const float* v);
    void angles(int r);
    template <typename F>
    void rows(Lane& lane, const F& f);
    void row_ops(Lane& lane, const std::vector<int>& ops);
    bool fuses(const Part& part) const;
    Own before(int thread, int part);
    void hand_over(const Own& own);
    void before_head(const TapeOp& op, int r, int head);
    void linears(Lane& lane, int part);
    void gated(Lane& lane, int part);
    GatedCut gated_cut(const TapeOp& op, int n) const;
    std::size_t gated_scratch(int n) const;
    void head(Lane& lane, int part);
    void attend(Lane& lane, int part);
    void deal(const StepIn& step);
    void cut_rows(const StepIn& step, Dealt& d);
    int common_blocks(const SeqView& a, const SeqView& b) const;
    void share_blocks(const StepIn& step, Dealt& d);
    void share_items(Dealt& d, int from, int to, int block0, int block1);
    void cut_blocks(Dealt& d, int n_own);
    AttendItem asked(int thread, const TapeOp& op, const Item& item, int head) const;
    float* part_of(const Item& item, int head, int block) const;
    std::size_t page_bytes(const KvPage& p) const;
    void attend_item(int thread, const TapeOp& op, const Dealt& d, const Task& task, int head);
    void merge_item(int thread, const TapeOp& op, const Dealt& d, const Merge& merge, int head);
    void gather_shared(const TapeOp& op, const Item& item, const Task& task, int head,
                       ThreadScratch& t, AttendItem& a);
    void gather_own(const TapeOp& op, const Item& item, int head, ThreadScratch& t, AttendItem& a);
    void moe(Lane& lane, const TapeOp& op);
    void moe_room(const TapeOp& op, int n);
    void list_choices(const StepIn& step);
    std::size_t choice_scratch() const;
    void choose_pages(Lane& lane, const TapeOp& op);
    void choose_item(int thread, const TapeOp& op, const Asked& asked, int head);
    void score_keys(ThreadScratch& t, const TapeOp& op, const Asked& asked, int head, int from, int to,
                    float* scores, std::size_t ld);
    void choose(float* scores, std::int32_t* level, int n, int row, int head);
    // Whether a row of a sequence has to choose, of some head's pages.
    bool chooses(const SeqView& s) const {
        for (int g : group_) {
            if (s.table[4 * g + 3] > chooser_.pages) return true;
        }
        return false;
    }
    const Dealt& dealt_for(int layer) const {
        return dealt_[choosing_.load(std::memory_order_relaxed) && sources_[layer] >= 0];
    }
    struct Pages {  // that a row reads; null: all
        const std::int32_t* at;
        int n;
    };
    Pages chosen_by(const TapeOp& op, int head, const Item& item) const;
    // Whether a row of an answer, not of a prompt.
    bool answers(int row) const { return step_->pos[row] + 1 >= step_->span[row]; }
    // Whether a row keeps its choice: the first one of an answer behind a barrier.
    bool keeps(const SeqView& s, int row) const {
        return chooser_.keep && s.kept && row == s.row0 && step_->parent[row] < 0 && !s.n_open && answers(row);
    }
    bool reads_kept(const TapeOp& op, const SeqView& s, int row) const;
    std::int32_t* kept_pages(const SeqView& s, int layer, int head) const {
        return s.kept + 1 + (std::size_t(layer) * shape_.n_kv + head) * (1 + chooser_.pages);
    }
    float* kept_queries(const SeqView& s, int layer) const {
        return reinterpret_cast<float*>(s.kept + 1 + std::size_t(shape_.n_layers) * shape_.n_kv * (1 + chooser_.pages)) +
               std::size_t(layer) * shape_.n_heads * shape_.head_dim;
    }
    KvPage keys_of(const SeqView& s, int layer, int head, int page) const;
    void sealed_page(std::uint64_t addr, int member, const std::int32_t* pos, int n, int at, KvPage& p) const;

    float* reg(int r) const {
        return arena_floats_.load(std::memory_order_relaxed) + slot_at_[slot_[r]] * n_rows();
    }
    float* row(int r, int row, const Own& own) const {
        if (own.base && own_part_[r] == own.part) {
            return own.base + own_at_[r] * n_rows() + own_stride_[r] * row;
        }
        return reg(r) + stride(r) * row;
    }
    int n_rows() const { return n_rows_.load(std::memory_order_relaxed); }
    std::size_t stride(int r) const { return slot_stride_[slot_[r]]; }
    char* tail_page(int layer, int head, int page) const {
        return tail_bytes_ + (std::size_t(layer * shape_.n_kv + head) * tail_pages_ + page) * tail_.member;
    }

    const Kernels& k_;
    const std::string isa_;
    Shape shape_;
    std::vector<int> widths_;
    std::vector<PackedMatrix> mats_;
    std::vector<std::vector<int>> orders_;  // of inputs, all different
    std::vector<Vector> vecs_;
    std::vector<Table> tables_;
    std::vector<TapeOp> ops_;
    std::vector<Part> parts_;
    std::vector<int> slot_;                 // of each register
    std::vector<std::size_t> slot_stride_;  // floats of a row
    std::vector<std::size_t> slot_at_;      // sum of the strides before
    std::size_t row_floats_ = 0;
    std::vector<int> own_part_;             // of each register: the part in whose `before` it is made
    std::vector<std::size_t> own_at_, own_stride_;  // floats of a row before it, and of it
    std::size_t own_floats_ = 0;
    std::vector<const void*> then_;  // of (part, thread): weights that it reads first in the next part with any,
                                     // where rows are few
    int n_taps_ = 0, positions_ = -1, n_groups_ = 0;
    std::vector<int> tap_reg_;
    bool finished_ = false;

    Zone open_, sealed_, tail_;
    std::vector<int> group_, index_;  // of (layer, head)
    Upon upon_;                       // empty: none do
    std::vector<int> sources_;        // per layer: by whose choice it reads, -1: everything
    std::vector<char> chooses_;       // per layer: it is such a source
    bool any_select_ = false;
    Chooser chooser_;
    std::vector<float> turn_, book_;  // of codes
    std::vector<Asked> asked_;
    std::vector<std::int32_t> chosen_;    // pages of (row, KV head) by the last layer that chose, in rising order
    std::vector<int> n_chosen_;
    Bytes scores_;                        // of rows whose pages several items score
    std::size_t scores_size_ = 0, scores_ld_ = 0;  // floats in all, and for a head's pages
    std::unique_ptr<std::atomic<int>[]> left_;  // items that have not scored theirs
    std::size_t left_size_ = 0;

    const StepIn* step_ = nullptr;
    Bytes arena_;
    std::size_t arena_size_ = 0;
    Bytes tail_store_;
    std::size_t tail_size_ = 0;
    char* tail_bytes_ = nullptr;
    int tail_pages_ = 0, tail_rows_ = 0;
    std::vector<float> cos_, sin_;
    Bytes head_in_;
    std::size_t head_size_ = 0;
    std::vector<std::size_t> table_at_;  // offset of a table's angles in a row
    std::size_t angle_stride_ = 0;
    std::vector<int> run_, depth_, wanted_;
    std::vector<Live> live_;      // in the order of their rows
    std::vector<int> common_;     // blocks that a live sequence shares with the next
    std::vector<Stretch> stretches_;
    Dealt dealt_[2];              // all is read; pages are chosen
    int item_queries_ = 0;        // of the largest item
    std::size_t kv_bytes_ = 0;
    Bytes parts_of_items_;
    std::size_t parts_size_ = 0;
    std::vector<ThreadScratch> scratch_;
    std::unique_ptr<Moe> moe_;

    // What threads read outside of items (see team.h).
    enum class Job { Step, Commit, Pack, Look };
    std::atomic<Job> job_{Job::Step};
    std::atomic<int> n_rows_{0}, n_wanted_{0}, n_asked_{0};
    std::atomic<bool> angles_made_{false}, choosing_{false};  // some row has to choose pages
    std::atomic<float*> arena_floats_{nullptr}, head_floats_{nullptr}, logits_{nullptr};

    struct Commit {
        int n;
        const std::int32_t* row;
        const std::uint64_t* addr;
        const std::int32_t* slot;
    };
    Commit commit_{};
    const LookIn* look_ = nullptr;
    Source source_{};
    std::atomic<int> n_panels_{0};
    Profile profile_;
    // Last: no thread looks at the rest any more when it goes.
    std::shared_ptr<Team> threads_;
    Team& team_;
    const Team::Walk walk_;
};

}  // namespace ph
