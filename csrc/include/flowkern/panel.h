// How weights are packed.
#pragma once

#include <cstdint>

// Every instruction set's kernels include this header: a function that is not inlined there would be shared by all.
#define FK_ALWAYS_INLINE __attribute__((always_inline))

namespace flowkern {

constexpr int64_t kChunkRows = 8;  // rows of one packed panel; a panel is [columns][kChunkRows]

FK_ALWAYS_INLINE inline int64_t whole_tiles(int64_t n, int64_t tile) { return (n + tile - 1) / tile * tile; }

}  // namespace flowkern
