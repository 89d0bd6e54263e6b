// Convolutions of two and of three taps by fewer products, of every two outputs that are a dilation d apart: the
// minimal filtering algorithms F(2, 2) and F(2, 3) of Winograd (Arithmetic Complexity of Computations, 1980), by three
// products for four and four for six. With weights w0, w1, ... from the oldest on, of y(t) and y(t + d),
//   two taps:   m = (w0 + w1) x(t),                          y(t) = m + w0 (x(t - d) - x(t)),
//                                                            y(t + d) = m + w1 (x(t + d) - x(t));
//   three taps: m = (w0 + w1 + w2) / 2 (x(t) + x(t - d)),
//               n = (w0 - w1 + w2) / 2 (x(t) - x(t - d)),    y(t) = m + n + w0 (x(t - 2 d) - x(t)),
//                                                            y(t + d) = m - n + w2 (x(t + d) - x(t - d)).
// Transposed, time runs backwards: y(t + d) is the first of the two. No output depends on times that are not its taps',
// not even by rounding; but an infinite x(t) gives NaN.
#pragma once

#include "cpu/convolutions/times.h"
#include "cpu/products.h"

namespace flowkern::FK_ISA {

// The part that weight j has in the weight of product p: those that both outputs share, then their own.
FK_INLINE double pair_factor(int64_t taps, int64_t p, int64_t j) {
  if (p >= taps - 1) return j == (p == taps ? taps - 1 : 0) ? 1 : 0;
  return taps == 2 ? 1 : p == 1 && j == 1 ? -0.5 : 0.5;
}

// What the products read, of x at taps + 1 times from the oldest on.
template <class T>
FK_INLINE void pair_inputs(const Vec<T> (&x)[3], Vec<T> (&read)[3]) {
  read[0] = x[1], read[1] = x[0] - x[1], read[2] = x[2] - x[1];
}
template <class T>
FK_INLINE void pair_inputs(const Vec<T> (&x)[4], Vec<T> (&read)[4]) {
  read[0] = x[2] + x[1], read[1] = x[2] - x[1], read[2] = x[0] - x[2], read[3] = x[3] - x[1];
}

// The same of all inputs of a group in a turn, [tile of pairs][taps + 1][inputs][R].
template <class T, int Taps>
void gather_pairs(const Convolution& c, const Times<T>& times, const T* from, T* to) {
  constexpr int64_t W = kLanes<T>, R = kTileRows<T>;
  // Transposed, the first output and the oldest input are the latest.
  const int64_t step = c.transposed ? c.dilation : -c.dilation, oldest = (c.transposed ? Taps : Taps - 1) * step;
  times.with_order([&](auto order) {
    if constexpr (order != kInOrder) {
      const T* x = from;
      for (int64_t i = 0; i < c.inputs; ++i, x += c.time)
        for (int64_t v = 0; v < 2 * times.lane_tiles; ++v) {
          times.template prefetch<order>(x + kAhead * c.time, v);
          times.template prefetch<order>(x + kAhead * c.time + oldest, v);
          Vec<T> x_at[Taps + 1], read[Taps + 1];
          for (int j = 0; j <= Taps; ++j) x_at[j] = times.template read<order>(x, v, oldest - j * step).at[0];
          pair_inputs<T>(x_at, read);
          for (int p = 0; p <= Taps; ++p)
            store(to + v / 2 * c.columns() * R + (p * c.inputs + i) * R + v % 2 * W, read[p]);
        }
    }
  });
}

}  // namespace flowkern::FK_ISA
