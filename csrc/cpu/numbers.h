// What kernels that evaluate elementary functions compute with, whatever lies in memory: vectors of doubles.
#pragma once

#include <type_traits>

#include "flowkern/math.h"

namespace flowkern::FK_ISA {

constexpr int64_t kStep = kLanes<double>;  // numbers in a vector

template <class T>
using Number = std::conditional_t<sizeof(T) == 8, Exact, VecD>;
// As many numbers in memory.
template <class T>
using Stored = typename VectorOf<T, kStep * sizeof(T)>::type;

template <class T>
FK_INLINE Number<T> number_of(Stored<T> v) {
  return Number<T>(__builtin_convertvector(v, VecD));
}
template <class T>
FK_INLINE Stored<T> stored(VecD v) {
  return __builtin_convertvector(v, Stored<T>);
}
FK_INLINE VecD lanes_of(VecD v) { return v; }
FK_INLINE VecD lanes_of(Exact v) { return v.lanes; }

template <class T>
FK_INLINE Number<T> widen(const T* p, int64_t n) {
  return number_of<T>(n == kStep ? load<Stored<T>>(p) : load_part<Stored<T>>(p, n));
}
template <class T>
FK_INLINE void narrow(T* p, Number<T> v, int64_t n) {
  const auto out = stored<T>(lanes_of(v));
  if (n == kStep)
    store(p, out);
  else
    store_part(p, out, n);
}

}  // namespace flowkern::FK_ISA
