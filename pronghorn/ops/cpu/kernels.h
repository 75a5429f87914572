// What every instruction set offers: one table of function pointers per set, and the same table type.
//
// To add a kernel: declare a pointer here, write it in a kernels*.cpp inside namespace ph::PH_ISA
// (those files are compiled once per set), and name it in the table of kernels.cpp. Code that runs
// kernels calls through `ph::kernels()` of isa.h, never through a set's namespace.
//
// One promise holds for all of them: a row's result does not depend on which other rows are there.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ph {

constexpr int PAGE = 16;  // rows of a KV page, and outputs of a weight panel

enum Kind : int { F32 = 0, BF16 = 1, I8 = 2, CODED = 3 };  // of stored KV
enum Weights : int { IN_F32 = 0, IN_BF16 = 1, IN_F16 = 2, IN_F8 = 3, IN_CODES = 4 };  // F8 is E4M3

enum Act : int { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3 };

// How codes become values: ops/codes.py has the meaning, ops/panels.py the layout.
enum Scales : int { BY_HALF = 0, BY_BRAIN = 1, BY_ROW = 2, BY_TWO = 3 };
enum Offsets : int { NO_OFFSET = 0, OF_VALUE = 1, OF_ZERO = 2, OF_TWO = 3 };
constexpr int SUPER = 256, UNIT = 32;  // inputs of a block, and of a unit of codes
struct Grid {
    int bits, group;
    int zero;      // the code whose level is 0; 128 where there is a table
    bool table;
    Scales scale;
    Offsets offset;
    int act;       // bits of the inputs: 8 or 16
    std::uint8_t level[16];  // the table, 128 added
};

inline int groups_of(int n, int group) { return group ? (n + group - 1) / group : 0; }

// Bytes of a block before its codes.
inline std::size_t before_codes(const Grid& g, int n_groups) {
    const int wide = g.scale == BY_TWO ? 1 : 2;
    std::size_t n = std::size_t(n_groups) * wide;
    if (g.offset) n += std::size_t(n_groups) * (g.offset == OF_VALUE ? 2 : 1);
    if (g.scale == BY_TWO) n += 2;
    if (g.offset == OF_TWO) n += 2;
    return n_groups ? (n * PAGE + 63) / 64 * 64 : 0;
}

// Bytes of some inputs of a panel, from the start of a block; of all of them: the panel, without what
// lies between panels.
inline std::size_t codes_bytes(const Grid& g, int n_in) {
    const auto block = [&](int n) {
        return before_codes(g, groups_of(n, g.group)) + std::size_t((n + UNIT - 1) / UNIT) * 64 * g.bits;
    };
    return n_in / SUPER * block(SUPER) + (n_in % SUPER ? block(n_in % SUPER) : 0);
}

// A matrix (n_out, n_in) in panels of 16 outputs: [n_out/16][step][16] for float32, float16 and E4M3, a step being
// one input; [n_out/16][step][16][2] for bfloat16, a step being a pair of inputs; for codes as
// ops/panels.py says. Zeros fill up. A matrix that is only read by rows has n_panels 0 and w (n_out, n_in)
// as it came.
struct Mat {
    Weights kind;
    int n_out, n_in;
    int n_panels, n_steps;
    std::size_t panel;   // bytes from panel to panel
    const void* w;
    const float* scale;  // E4M3, codes with one scale a row: a factor per output, padded to 16; else null
    Grid grid;           // of codes
};

// How a matrix takes its inputs: as float, as bfloat16, or as integers with a scale for each group.
constexpr int FLOATS = 0, BRAINS = 1, FIRST_CODES = 2, FORMS = 10;
inline int sum_group(const Grid& g) { return g.group ? g.group : 128; }
inline int form_of(const Mat& m) {
    if (m.kind == IN_BF16) return BRAINS;
    if (m.kind != IN_CODES) return FLOATS;
    const int group = sum_group(m.grid);
    return FIRST_CODES + (m.grid.act == 16 ? 4 : 0) +
           (group == 16 ? 0 : group == 32 ? 1 : group == 64 ? 2 : 3);
}

// A row of integer inputs: n_in of them filled up to a unit, then the scale of each group (of 32 where
// sums are of 16), the sum of the integers of each group, and that sum times the scale.
struct CodesRow {
    int act, group, per_scale;    // bits, inputs of a sum, inputs of a scale
    std::size_t scale, sum, part;  // bytes from the start of the row
    std::size_t bytes;
};
inline CodesRow codes_row(int form, int n_in) {
    const auto lines = [](std::size_t n) { return (n + 63) / 64 * 64; };
    CodesRow r;
    r.act = form >= FIRST_CODES + 4 ? 16 : 8;
    r.group = 16 << ((form - FIRST_CODES) & 3);
    r.per_scale = r.group < 32 ? 32 : r.group;
    const std::size_t sums = lines(sizeof(float) * ((n_in + r.group - 1) / r.group));
    r.scale = lines(std::size_t((n_in + UNIT - 1) / UNIT) * UNIT * (r.act / 8));
    r.sum = r.scale + lines(sizeof(float) * ((n_in + r.per_scale - 1) / r.per_scale));
    r.part = r.sum + sums;
    r.bytes = r.part + sums;
    return r;
}
// Floats that a row of inputs takes in a form, BRAINS as bfloat16 where `packs`.
inline int form_floats(int form, int n_in, bool packs) {
    if (form == FLOATS) return n_in;
    if (form == BRAINS) return packs ? (n_in + 1) / 2 : (n_in + 1) / 2 * 2;
    return int(codes_row(form, n_in).bytes / sizeof(float));
}

// Output column 0 of row 0, and what is applied to a finished sum: times scale, plus bias.
struct Linear {
    const Mat* mat;
    const float* bias;  // padded to 16, or null
    float* y;
    std::size_t ldy;  // floats from row to row
    const void* then = nullptr;  // weights that the thread will read next, where it is known
};

// Up to 16 rows of weights for which codes are looked for (kernels_fit.cpp), on a grid without "two" and
// without zeros. Elements lie `row` and `column` bytes apart, codes n_in, factors n_groups.
struct Fit {
    Grid grid;
    int n_rows, n_in, n_groups;
    Weights kind;  // IN_F32, IN_BF16 or IN_F16
    const void* w;
    std::ptrdiff_t row, column;
    const float* weight;  // (n_in,) of each input's squared error; null: all count alike
    float* scratch;       // fit_scratch floats
    std::uint8_t* code;
    void* scale;
    void* offset;
};
inline std::size_t fit_scratch(const Grid& g, int n_in) {
    return std::size_t(g.group ? g.group : n_in) * 20 + 16;  // 16 floats and 16 bytes for each input
}

enum Ending : int { FITTED = 0, NOT_FINITE = 1, TOO_LARGE = 2 };
struct Fitted {
    Ending ending;
    float size;  // TOO_LARGE: the magnitude of a factor that its dtype does not hold
};

// What codes of keys, or of values, mean (types.Codes; kv/layout.py says how they lie): a value is
// level * scale + offset, times its channel's factor where there are such, or with a product of low rank added.
enum Levels : int { NUMBERS = 0, TABLE = 1, E4M3 = 2, PLANES = 3 };  // PLANES: numbers, some of more bits
struct Coding {
    int bits = 0;   // 2, 4 or 8; 16: bfloat16 numbers, without factors
    int group = 0;  // channels of a row with factors in common, a multiple of 32; 0: a channel's factors are
                    // those of all rows of the page
    bool offset = false, channels = false;
    bool turn = false;  // it is a value of a row that was turned by `turn` (attend_codes.h)
    Levels levels = NUMBERS;
    float table[16] = {};
    int rank = 0;    // of what is added: rows' factors and channels' lie behind those of codes
    int spikes = 0;  // numbers of the page that stand by themselves, at the next line behind all factors
    int kept = 0;    // channels that a page has, of 16 bits; where they are not all, a bit for each in place of factors
    // Rows of a page whose codes, of 2 bits, have 2 more, the lower ones; a level is 4 * code + those, and 5 * code
    // in other rows. They lie behind all codes, for these rows in turn, and then a bit for each row of the page.
    int salient = 0;
};
constexpr int RANKS = 2;  // at most
[[gnu::always_inline]] inline int code_groups(const Coding& c, int dim) {
    return c.group ? (dim + c.group - 1) / c.group : 0;
}
[[gnu::always_inline]] inline std::size_t code_row(const Coding& c, int dim) {  // of values, in bytes
    return c.bits == 16 ? std::size_t(dim) * 2 : std::size_t(dim + 31) / 32 * 4 * c.bits;
}
[[gnu::always_inline]] inline std::size_t code_keys(const Coding& c, int dim) {
    return c.bits == 16 ? std::size_t(c.kept) * PAGE * 2 : (std::size_t(dim) * c.bits + 31) / 32 * 64;
}
// Of a second plane, in bytes; all: what the first one takes.
[[gnu::always_inline]] inline std::size_t code_more(const Coding& c, std::size_t all) {
    return c.salient ? all / PAGE * c.salient + 2 : 0;
}
[[gnu::always_inline]] inline std::size_t code_low(const Coding& c, int dim) {  // factors before those of low rank
    return std::size_t(c.group ? code_groups(c, dim) * PAGE : dim) * (c.offset ? 2 : 1);
}
[[gnu::always_inline]] inline std::size_t code_factors(const Coding& c, int dim) {  // of a page, in bytes
    if (c.bits == 16) return c.kept < dim ? std::size_t(dim + 7) / 8 : 0;
    return 2 * (code_low(c, dim) + std::size_t(c.rank) * (PAGE + dim) + (c.channels ? dim : 0));
}
[[gnu::always_inline]] inline std::size_t code_spikes(const Coding& c, int dim) {  // where they begin, in bytes
    return (code_factors(c, dim) + 63) / 64 * 64;
}
[[gnu::always_inline]] inline std::size_t code_beside(const Coding& c, int dim) {  // factors and spikes, in bytes
    return c.spikes ? code_spikes(c, dim) + 4 * std::size_t(c.spikes) : code_factors(c, dim);
}

constexpr int KEYS = 256;  // of a block of attention: those whose numbers share a quotient by KEYS

// A page of keys and values of one head. Lanes [lo, hi) hold keys number `at`, `at` + 1, ...
struct KvPage {
    const void* k;         // (dim, 16)
    const void* v;         // (16, dim); both in codes where the page is CODED
    const float* ks;       // I8: factors (16,)
    const float* vs;
    const std::int32_t* pos;   // (16,) logical positions
    Kind kind;
    int lo, hi, at;
    const float* bias = nullptr;  // (16,) added to scores, of a page whose keys begin in lane 0; null: none
    const std::uint16_t *kf = nullptr, *vf = nullptr;  // CODED: factors, bfloat16
    // BF16 with factors: what stands for the lanes whose factor is below zero, in their order: (n_other, dim)
    // keys, then as many values; null: none.
    const std::uint16_t* other = nullptr;
    int n_other = 0;
};

// Rows [row0, row1) of an item, a chain: the last key of row r is number n_keys - (row1 - r).
struct KvRun {
    int row0, row1;
    int n_keys;
    int page0, page1;  // of the item's own pages: keys from number n_shared_keys on, none left out
};

// The result of a block for n queries, of which an item's begin with number `first`.
struct KvPart {
    const float* at;
    int n, first;
};

// Attention of some rows over one KV head, with g query heads.
struct AttendItem {
    int dim, g, n_rows, window;
    float scale, softcap;
    const float* q;  // row r, head h: q + r * ldq + h * dim
    std::size_t ldq;
    float* out;
    std::size_t ldo;
    const std::int32_t* pos;  // of the rows
    bool pairs;               // products in bfloat16 where the set has them (packs_input)
    bool factors;             // whether some pages may be I8
    bool bias;                // whether some pages have one
    const Coding *k_codes, *v_codes;  // of CODED pages
    const KvPage* shared;     // pages that every row sees, `at` rising, multiples of 16
    int n_shared;
    int n_shared_keys;  // a multiple of 16; keys of pages that are left out count
    const KvPage* own;
    const KvRun* runs;
    int n_runs;
    int block0, block1;  // of keys, what the item reads
    float* parts;        // attend_part floats for each block: where a block's result goes, for
                         // attend_merge; or null: the item reads all its blocks and writes `out`
    const KvPart* done;  // attend_merge: results of all blocks, in their order
    int n_done;
    float* scratch;      // attend_scratch floats
};

struct Kernels {
    // Inner product of n floats; the order of additions is fixed per set and independent of n's use.
    float (*dot)(const float* a, const float* b, std::size_t n);

    bool packs_input;  // BRAINS are bfloat16, else floats rounded to it
    // Inputs [from, to) of a row of n_in, which x begins with, in a form other than FLOATS. `from` begins a
    // group of the form, `to` ends one or the row.
    void (*narrow)(const float* x, void* out, int n_in, int form, int from, int to);
    // Panels [p0, p1) of n rows; x in the matrix's form, ldx bytes from row to row.
    void (*linear)(const Linear& l, const void* x, std::size_t ldx, int n, int p0, int p1);

    void (*to_kv)(const float* x, void* out, int n, Kind kind);     // F32 or BF16
    void (*embed)(const Mat& m, int row, float scale, float* out);  // a row of a matrix
    void (*norm)(const float* x, const float* w, const float* b, float* y, int width, int group,
                 float eps, bool centre);
    void (*rotate)(const float* x, const float* cos, const float* sin, float* y, int heads, int dim,
                   int half);
    void (*act)(const float* x, float* y, int n, Act fn);
    void (*glu)(const float* gate, const float* up, float* y, int n, Act fn);
    void (*add)(const float* a, const float* b, float* y, int n);
    void (*scale)(const float* x, float by, float* y, int n);
    void (*axpy)(float a, const float* x, float* y, int n);  // y += a * x
    void (*softcap)(float* x, int n, float scale, float cap);
    void (*softmax)(float* x, int n);
    float (*largest)(const float* x, int n);  // n > 0, no NaN among them
    // y[i] = exp((x[i] - top) * by); their sum.
    float (*weigh)(const float* x, float* y, int n, float top, float by);
    void (*attend)(const AttendItem& item);
    // `out` from the parts that are done.
    void (*attend_merge)(const AttendItem& item);

    Fitted (*fit)(const Fit& f);
};

// Floats from row to row for rows of `width` values. Rows of wide matrices must not start a power of two
// apart: they would share the same few sets of the first-level cache.
inline std::size_t row_stride(int width) {
    std::size_t lines = (std::size_t(width) + 16) / 16;  // room for one value more: pairs fill up
    while (lines > 32 && lines % 8 != 5) ++lines;
    return lines * 16;
}

// The same for inputs in any form: integers of 16 bits with sums for each 16 of them are the longest.
inline std::size_t any_form_stride(int n_in) { return row_stride(n_in + 64); }

// Floats for the result of a block of keys for n queries.
inline std::size_t attend_part(std::size_t n, int dim) {
    return 2 * ((n + 15) / 16 * 16) + n * ((std::size_t(dim) + 31) / 32 * 32);
}

// Floats of scratch for an item of n queries.
inline std::size_t attend_scratch(std::size_t n, int dim) {
    const std::size_t padded = (std::size_t(dim) + 31) / 32 * 32;
    const std::size_t groups = padded / 32;
    return n * (3 * padded + KEYS + 16 + (KEYS / 2 + 16 + KEYS / 4 + 16) * groups + padded / 4 + 2 * groups) +
           2 * attend_part(n, dim) + KEYS * (2 * padded + 2 * groups) + padded;
}

#if defined(__x86_64__)
#define PH_FOR_EACH_ISA(X) X(baseline) X(avx2) X(avx512)
#elif defined(__aarch64__)
#define PH_FOR_EACH_ISA(X) X(baseline) X(dotprod)
#else
#error "Pronghorn has no kernels for this architecture"
#endif

// What the kernels*.cpp of a set give to its table.
#define PH_DECLARE_TABLE(name)                                                                    \
    namespace name {                                                                              \
    extern const Kernels table;                                                                   \
    void narrow_codes(const float*, void*, int, int, int, int);                                   \
    void embed_codes(const Mat&, int, float, float*);                                             \
    void linear_codes(const Linear&, const void*, std::size_t, int, int, int);                    \
    void linear_rare(const Linear&, const void*, std::size_t, int, int, int);                     \
    void narrow(const float*, void*, int, int, int, int);                                         \
    void linear(const Linear&, const void*, std::size_t, int, int, int);                          \
    void attend(const AttendItem&);                                                               \
    void attend_merge(const AttendItem&);                                                         \
    Fitted fit(const Fit&);                                                                       \
    }
PH_FOR_EACH_ISA(PH_DECLARE_TABLE)
#undef PH_DECLARE_TABLE

}  // namespace ph
