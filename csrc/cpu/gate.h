// The activations of gates: of a WaveNet's layer, of an LSTM's cell.
#pragma once

#include "flowkern/math.h"

namespace flowkern::FK_ISA {

// tanh and sigmoid of the two halves of a gate. In float32 both follow from exp(x) - 1 of one argument each, by one
// division; beyond the bounds they are what they tend to, within half an ulp of 1.
template <class T>
struct Gate {
  Vec<T> tanh, sigmoid;
};
FK_INLINE Gate<float> gate(Vec<float> a, Vec<float> b) {
  const Vec<float> m = expm1(clamp(2 * a, 20)), n = expm1(clamp(-b, 60));
  const Vec<float> inverse = 1 / ((m + 2) * (n + 2));
  return {m * (n + 2) * inverse, (m + 2) * inverse};
}
FK_INLINE Gate<double> gate(Vec<double> a, Vec<double> b) {
  return {tanh_of(a), apply([](auto x) { return sigmoid(x); }, b)};
}

// Their product, tanh(a) sigmoid(b).
FK_INLINE Vec<float> gated(Vec<float> a, Vec<float> b) {
  const Vec<float> m = expm1(clamp(2 * a, 20)), n = expm1(clamp(-b, 60));
  return m / ((m + 2) * (n + 2));
}
FK_INLINE Vec<double> gated(Vec<double> a, Vec<double> b) {
  const Gate<double> g = gate(a, b);
  return g.tanh * g.sigmoid;
}

FK_INLINE Vec<float> sigmoid_of(Vec<float> b) { return 1 / (expm1(clamp(-b, 60)) + 2); }
FK_INLINE Vec<double> sigmoid_of(Vec<double> b) {
  return apply([](auto x) { return sigmoid(x); }, b);
}

}  // namespace flowkern::FK_ISA
