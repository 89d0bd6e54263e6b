#pragma once

#include "cpu/kernels.h"

namespace flowkern {

// "avx512", "avx2" or "baseline": what the kernels run with in this process.
const char* instruction_set();

}  // namespace flowkern
