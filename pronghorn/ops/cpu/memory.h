// Memory of the native runner: zeroed, on a cache line's boundary, in huge pages where it is large and
// the system lets us.
//
// A weight matrix is read from end to end at every step: with pages of 4 KiB the processor looks up an
// address 512 times as often. Huge pages are asked for with madvise, which most systems grant; where one
// does not, nothing else changes. On a machine of several memory nodes pages are dealt out to all of
// them, for any thread may come to read any part.
#pragma once

#include <cstddef>
#include <memory>

namespace ph {

// How memory goes back. mapped: bytes of a mapping of its own; slab: what it is a piece of.
struct FreeBytes {
    std::size_t mapped = 0;
    std::shared_ptr<void> slab;
    void operator()(void* p) const;
};
using Bytes = std::unique_ptr<void, FreeBytes>;

// n zeroed bytes. Throws std::bad_alloc.
Bytes zeroed(std::size_t n);

// The same for what lives as long as the model does. Pieces lie side by side in large mappings, so that
// small matrices share huge pages too; a mapping goes back with its last piece.
Bytes lasting(std::size_t n);

// Memory that is free but still held goes back to the system, where the C library can do that.
void give_back();

}  // namespace ph
