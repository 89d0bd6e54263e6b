// The inner product of two rows of numbers.
#pragma once

#include "flowkern/simd.h"

namespace flowkern::FK_ISA {

template <class T>
FK_INLINE T dot(const T* a, const T* b, int64_t n) {
  constexpr int W = kLanes<T>;
  Vec<T> sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * W <= n; i += 2 * W)
    for (int h = 0; h < 2; ++h) sums[h] += load<Vec<T>>(a + i + h * W) * load<Vec<T>>(b + i + h * W);
  T rest = 0;
  for (; i < n; ++i) rest += a[i] * b[i];
  return lane_sum<T>(sums[0] + sums[1]) + rest;
}

}  // namespace flowkern::FK_ISA
