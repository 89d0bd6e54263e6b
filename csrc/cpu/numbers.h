// What kernels that evaluate elementary functions compute with: vectors of doubles for rows of floats, a double for
// rows of doubles.
#pragma once

#include <type_traits>

#include "flowkern/math.h"

namespace flowkern::FK_ISA {

// float rows are converted to vectors of doubles and back; double rows go one by one.
template <class T>
using Number = std::conditional_t<sizeof(T) == 8, double, VecD>;
template <class T>
constexpr int64_t kStep = sizeof(T) == 4 ? kLanes<double> : 1;

FK_INLINE VecD widen(const float* p, int64_t n) {
  return __builtin_convertvector(n == kStep<float> ? load<detail::HalfF>(p) : load_part<detail::HalfF>(p, n), VecD);
}
FK_INLINE double widen(const double* p, int64_t) { return *p; }

FK_INLINE void narrow(float* p, VecD v, int64_t n) {
  const auto half = __builtin_convertvector(v, detail::HalfF);
  if (n == kStep<float>)
    store(p, half);
  else
    store_part(p, half, n);
}
FK_INLINE void narrow(double* p, double v, int64_t) { *p = v; }

}  // namespace flowkern::FK_ISA
