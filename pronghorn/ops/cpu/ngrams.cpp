#include "ngrams.h"

#include <algorithm>

namespace ph {

Ngrams::Ngrams(int longest, int shortest) {
    for (int n = longest; n >= shortest; --n) sizes_.push_back({n, 0, 0, std::vector<int>(64, 0)});
}

// Where the n-gram that ends before `end` is, or would go.
std::size_t Ngrams::slot(const Size& s, std::size_t end) const {
    const std::int32_t* gram = text_.data() + end - s.tokens;
    std::uint64_t x = 0;
    for (int i = 0; i < s.tokens; ++i) x = (x ^ std::uint32_t(gram[i])) * 0x9E3779B97F4A7C15ull, x ^= x >> 32;
    const std::size_t mask = s.table.size() - 1;
    for (std::size_t i = x & mask;; i = (i + 1) & mask) {
        const int at = s.table[i];
        if (!at || std::equal(gram, gram + s.tokens, text_.data() + at - s.tokens)) return i;
    }
}

// For n more: a long prompt comes at once, and to move what is there at each doubling takes as long as to read it.
void Ngrams::make_room(Size& s, std::size_t n) {
    if (2 * (s.held + n) <= s.table.size()) return;
    const std::vector<int> old = std::move(s.table);
    s.table.assign(std::max(2 * old.size(), std::bit_ceil(2 * (s.held + n))), 0);
    for (const int at : old) {
        if (at) s.table[slot(s, std::size_t(at))] = at;
    }
}

void Ngrams::extend(const std::int32_t* tokens, std::size_t n) {
    for (Size& s : sizes_) make_room(s, n);
    for (std::size_t i = 0; i < n; ++i) {
        const bool right = copied_ && text_[std::size_t(copied_)] == tokens[i];
        const int told = place();
        right_ = right_ << 1 | std::uint64_t(told && text_[std::size_t(told)] == tokens[i]);
        text_.push_back(tokens[i]);
        for (Size& s : sizes_) {
            if (text_.size() < std::size_t(s.tokens)) continue;
            int& at = s.table[slot(s, text_.size())];
            s.held += !at;
            s.last = at;
            at = int(text_.size());
        }
        copied_ = right ? copied_ + 1 : sizes_.front().last;
        run_ = right ? run_ + 1 : copied_ ? sizes_.front().tokens : 0;
    }
}

// What follows a place.
std::vector<std::int32_t> Ngrams::from(int place, std::size_t n) const {
    if (!place) return {};
    const std::size_t at = std::size_t(place), period = text_.size() - at;
    std::vector<std::int32_t> out(n);
    for (std::size_t i = 0; i < n; ++i) out[i] = text_[at + i % period];
    return out;
}

// Behind the latest earlier occurrence of the longest n-gram that the text ends with, 0 where there is none.
int Ngrams::place() const {
    for (const Size& s : sizes_) {
        if (s.last) return s.last;
    }
    return 0;
}

std::vector<std::int32_t> Ngrams::onward(std::size_t n) const { return from(place(), n); }

}  // namespace ph
