// How weights are packed.
#pragma once

#include <cstdint>

namespace flowkern {

constexpr int64_t kChunkRows = 8;  // rows of one packed panel; a panel is [columns][kChunkRows]

}  // namespace flowkern
