// Weights as they are stored, and values rounded to their precision.
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

template <class T>
FK_INLINE T at(const void* data, long long index) {
  return static_cast<const T*>(data)[index];
}

}  // namespace flowkern::FK_ISA
