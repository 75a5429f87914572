// Where the end of a growing text of tokens stood before in it.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace ph {

// Of every n-gram of `longest` down to `shortest` tokens, the place behind its latest occurrence.
class Ngrams {
public:
    Ngrams(int longest, int shortest);

    void extend(const std::int32_t* tokens, std::size_t n);
    std::size_t size() const { return text_.size(); }

    // Up to n tokens that came after the latest earlier occurrence of the longest n-gram that the text ends with and
    // that has one. Where that runs into the text's end, the text repeats itself, and is taken to go on so. Empty
    // where there is none.
    std::vector<std::int32_t> onward(std::size_t n) const;

    // How many of the text's last n tokens, 64 at most, `onward` would have told one before they came.
    int right(int n) const { return std::popcount(right_ & (n < 64 ? (std::uint64_t(1) << n) - 1 : ~std::uint64_t(0))); }

    // Up to n tokens that follow the place of the text that is being copied, and how many in a row it had right: it is
    // found by an n-gram of `longest`, which counts, and kept for as long as its next token is the one that comes.
    std::vector<std::int32_t> copied(std::size_t n) const { return from(copied_, n); }
    int run() const { return run_; }

private:
    struct Size {
        int tokens;
        int last = 0;              // place behind the last n-gram's occurrence before; 0: it is new
        std::size_t held = 0;      // different n-grams
        std::vector<int> table{};  // by hash: place behind the latest occurrence, 0: free
    };

    int place() const;
    std::vector<std::int32_t> from(int place, std::size_t n) const;
    std::size_t slot(const Size& s, std::size_t end) const;
    void make_room(Size& s, std::size_t n);

    std::vector<std::int32_t> text_;
    std::vector<Size> sizes_;  // the longest first
    int copied_ = 0, run_ = 0;  // 0: nothing is copied
    std::uint64_t right_ = 0;   // bit i: the token i before the last was told
};

}  // namespace ph
