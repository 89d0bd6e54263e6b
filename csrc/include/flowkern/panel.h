// How weights are packed.
#pragma once

#include <cstdint>

// Every instruction set's kernels include this header: a function that is not inlined there would be shared by all.
#define FK_ALWAYS_INLINE __attribute__((always_inline))

namespace flowkern {

constexpr int64_t kChunkRows = 8;  // rows of one packed panel; a panel is [columns][kChunkRows]

}  // namespace flowkern
