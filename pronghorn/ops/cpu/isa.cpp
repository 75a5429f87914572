// Run-time choice of the instruction set. A set counts as supported only if the processor has every
// feature that its objects were compiled with (CMakeLists.txt) and the system saves its registers.
#include "isa.h"

#include <cstdlib>

#if defined(__x86_64__)
#include <cpuid.h>

#include <cstdint>
#elif defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace ph {
namespace {

struct Isa {
    const char* name;
    const Kernels* kernels;
    bool (*runs_here)();
};

bool has_baseline() { return true; }

#if defined(__x86_64__)

struct Cpu {
    std::uint32_t leaf1_c = 0, leaf7_b = 0, leaf7_c = 0, leaf7_1_a = 0;
    std::uint64_t saved = 0;  // XCR0: register files that the system saves on a context switch

    Cpu() {
        std::uint32_t a = 0, b = 0, c = 0, d = 0;
        if (__get_cpuid(1, &a, &b, &c, &d)) leaf1_c = c;
        std::uint32_t n_subleaves = 0;
        if (__get_cpuid_count(7, 0, &n_subleaves, &b, &c, &d)) {
            leaf7_b = b;
            leaf7_c = c;
            if (n_subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) leaf7_1_a = a;
        }
        constexpr std::uint32_t osxsave = 1u << 27;
        if (leaf1_c & osxsave) {
            std::uint32_t low = 0, high = 0;
            __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
            saved = (std::uint64_t{high} << 32) | low;
        }
    }
};

const Cpu& cpu() {
    static const Cpu found;
    return found;
}

template <typename T>
bool all(T have, T want) {
    return (have & want) == want;
}

bool has_avx2() {
    const Cpu& c = cpu();
    constexpr std::uint32_t fma = 1u << 12, avx = 1u << 28, f16c = 1u << 29, avx2 = 1u << 5;
    constexpr std::uint64_t xmm_ymm = 0x6;
    return all(c.saved, xmm_ymm) && all(c.leaf1_c, fma | avx | f16c) && all(c.leaf7_b, avx2);
}

bool has_avx512() {
    const Cpu& c = cpu();
    constexpr std::uint32_t f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31;
    constexpr std::uint32_t vnni = 1u << 11, bf16 = 1u << 5;
    constexpr std::uint64_t xmm_ymm_zmm_mask = 0xe6;
    return has_avx2() && all(c.saved, xmm_ymm_zmm_mask) && all(c.leaf7_b, f | dq | bw | vl) &&
           all(c.leaf7_c, vnni) && all(c.leaf7_1_a, bf16);
}

#else

bool has_dotprod() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
    return true;  // every Apple processor of this architecture that runs macOS has it
#else
    return false;
#endif
}

#endif

#define PH_ISA_ROW(name) Isa{#name, &name::table, has_##name},
constexpr Isa all_isas[] = {PH_FOR_EACH_ISA(PH_ISA_ROW)};
#undef PH_ISA_ROW

std::string joined(const std::vector<std::string>& names) {
    std::string out;
    for (const std::string& name : names) out += (out.empty() ? "" : ", ") + name;
    return out;
}

const Isa& named(const std::string& name, const std::string& what) {
    bool known = false;
    for (const Isa& candidate : all_isas) {
        if (name != candidate.name) continue;
        if (candidate.runs_here()) return candidate;
        known = true;
    }
    throw IsaError(what + name +
                   (known ? ": this machine lacks that instruction set"
                          : ": no such instruction set") +
                   "; set it to one of " + joined(supported_isas()) +
                   ", or unset it to use the best");
}

const Isa& pick() {
    const char* wanted = std::getenv("PRONGHORN_ISA");
    if (wanted && *wanted) return named(wanted, "PRONGHORN_ISA=");
    const Isa* best = &all_isas[0];
    for (const Isa& candidate : all_isas) {
        if (candidate.runs_here()) best = &candidate;
    }
    return *best;
}

struct Chosen {
    const Kernels& kernels;
    std::string name;
};

const Chosen& chosen() {
    // An exception leaves the static unset, so a corrected environment works in the same process.
    static const Chosen once = [] {
        const Isa& picked = pick();
        return Chosen{*picked.kernels, picked.name};
    }();
    return once;
}

}  // namespace

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const Isa& candidate : all_isas) {
        if (candidate.runs_here()) names.emplace_back(candidate.name);
    }
    return names;
}

const std::string& isa() { return chosen().name; }

const Kernels& kernels() { return chosen().kernels; }

const Kernels& kernels_named(const std::string& name) {
    return name.empty() ? kernels() : *named(name, "instruction set ").kernels;
}

}  // namespace ph
