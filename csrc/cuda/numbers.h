// Weights as they are stored, values rounded to their precision, and sums over lanes.
#pragma once

#include "cuda/device.h"

namespace flowkern::FK_ISA {

struct Bf16 {
  unsigned short bits;
};
struct Half {
  unsigned short bits;
};
FK_INLINE float load(float w) { return w; }
FK_INLINE double load(double w) { return w; }
FK_INLINE float load(Bf16 w) { return bits_to_float(static_cast<unsigned>(w.bits) << 16); }
FK_INLINE float load(Half w) { return half_to_float(w.bits); }
// A value as the weights' number would hold it; the first argument only says which.
FK_INLINE float rounded(float, float value) { return value; }
FK_INLINE double rounded(double, double value) { return value; }
FK_INLINE float rounded(Half, float value) { return half_to_float(float_to_half(value)); }
FK_INLINE float rounded(Bf16, float value) {
  const unsigned bits = float_to_bits(value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return value;  // NaN
  return bits_to_float((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000);
}

// Adds up what kParts lanes hold, each kSums sums: lanes kFirst apart, from a multiple of kFirst kParts on. While a
// lane holds several it hands on half of them, and keeps the others. f(i, sum) is called for each sum in one of the
// lanes.
template <int kSums, int kParts, int kFirst, class T, class F>
FK_INLINE void combine(T (&sums)[kSums], int lane, F f) {
  constexpr int kLeft = kSums > kParts ? kSums / kParts : 1;
  int first = 0;
  FK_UNROLL
  for (int level = 0; 1 << level < kParts; ++level) {
    const int half = kSums >> (level + 1), mask = kFirst << level;
    const bool upper = lane & mask;
    if (half == 0) sums[0] += shuffle_xor(sums[0], mask);
    first += upper ? half : 0;
    FK_UNROLL
    for (int j = 0; j < kSums / 2; ++j)
      if (j < half) {
        const T low = sums[j], high = sums[j + half];
        sums[j] = (upper ? high : low) + shuffle_xor(upper ? low : high, mask);
      }
  }
  if (lane / kFirst % kParts >= kSums) return;  // others hold the same
  FK_UNROLL
  for (int j = 0; j < kLeft; ++j) f(first + j, sums[j]);
}

template <class T>
FK_INLINE T at(const void* data, long long index) {
  return static_cast<const T*>(data)[index];
}

}  // namespace flowkern::FK_ISA
