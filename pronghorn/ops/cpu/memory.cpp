#include "memory.h"

#if defined(__linux__)
#include <malloc.h>
#endif

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>

#if defined(__has_feature)
#define PH_FEATURE(x) __has_feature(x)
#else
#define PH_FEATURE(x) 0
#endif

namespace ph {
namespace {

// AddressSanitizer watches the ends of what the C library gives, not those of mappings.
#if defined(__SANITIZE_ADDRESS__) || PH_FEATURE(address_sanitizer)
constexpr bool MAPS = false;
#else
constexpr bool MAPS = true;
#endif

constexpr std::size_t LINE = 64, SMALL_PAGE = 4096, HUGE_PAGE = std::size_t(2) << 20;
constexpr std::size_t SLAB = 16 * HUGE_PAGE;

std::size_t up(std::size_t n, std::size_t to) {
    if (n > SIZE_MAX - to) throw std::bad_alloc();
    return (n + to - 1) / to * to;
}

// The highest memory node of the machine, from "0" or "0-3".
int last_node() {
    std::FILE* file = std::fopen("/sys/devices/system/node/online", "r");
    if (!file) return 0;
    int first = 0, last = 0;
    const int n = std::fscanf(file, "%d-%d", &first, &last);
    std::fclose(file);
    return n == 2 ? last : 0;
}

// All of these are requests: a system that refuses one still gives the memory.
void advise(void* p, std::size_t n) {
#if defined(MADV_HUGEPAGE)
    madvise(p, n, MADV_HUGEPAGE);
#endif
#if defined(SYS_mbind)
    static const int last = last_node();
    if (last > 0 && last < 64) {
        constexpr int INTERLEAVE = 3;  // MPOL_INTERLEAVE of the kernel's interface
        const unsigned long nodes = last == 63 ? ~0ul : (1ul << (last + 1)) - 1;
        syscall(SYS_mbind, p, n, INTERLEAVE, &nodes, 8 * sizeof nodes + 1, 0u);
    }
#endif
}

// n bytes, a multiple of the small page, from the boundary of a huge one.
void* map(std::size_t n) {
    const std::size_t whole = n + HUGE_PAGE - SMALL_PAGE;
    void* got = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got == MAP_FAILED) throw std::bad_alloc();
    char* from = static_cast<char*>(got);
    const std::size_t skip = (HUGE_PAGE - reinterpret_cast<std::uintptr_t>(from) % HUGE_PAGE) % HUGE_PAGE;
    char* p = from + skip;
    if (skip) munmap(from, skip);
    if (whole - skip > n) munmap(p + n, whole - skip - n);
    advise(p, n);
    return p;
}

struct Slab {
    std::mutex lock;
    std::weak_ptr<void> memory;  // its pieces own it
    std::size_t used = 0;
};

Slab& slab() {
    static Slab* const one = new Slab;  // never torn down: pieces may outlive static objects
    return *one;
}

}  // namespace

void FreeBytes::operator()(void* p) const {
    if (mapped) {
        munmap(p, mapped);
    } else if (!slab) {
        std::free(p);
    }
}

Bytes zeroed(std::size_t n) {
    if (MAPS && n >= HUGE_PAGE) {
        const std::size_t whole = up(n, SMALL_PAGE);
        return Bytes(map(whole), FreeBytes{whole, nullptr});
    }
    const std::size_t whole = up(n ? n : 1, LINE);
    void* p = std::aligned_alloc(LINE, whole);
    if (!p) throw std::bad_alloc();
    std::memset(p, 0, whole);
    return Bytes(p);
}

Bytes lasting(std::size_t n) {
    if (!MAPS || n >= SLAB / 2) return zeroed(n);
    const std::size_t whole = up(n ? n : 1, LINE);
    Slab& s = slab();
    const std::lock_guard<std::mutex> hold(s.lock);
    std::shared_ptr<void> memory = s.memory.lock();
    if (!memory || s.used + whole > SLAB) {
        memory = std::shared_ptr<void>(map(SLAB), [](void* p) { munmap(p, SLAB); });
        s.memory = memory;
        s.used = 0;
    }
    void* p = static_cast<char*>(memory.get()) + s.used;
    s.used += whole;
    return Bytes(p, FreeBytes{0, std::move(memory)});
}

void give_back() {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

}  // namespace ph
