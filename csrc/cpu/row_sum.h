// Row reductions in double, in an order that does not depend on the number of threads.
#pragma once

#include "cpu/matrix.h"
#include "flowkern/math.h"

namespace flowkern::FK_ISA {

constexpr int64_t kSumBlock = 64;  // elements summed one after another; the sums of blocks are compensated

// Neumaier's sum: the rounding error of every addition is kept and added at the end.
struct CompensatedSum {
  double value = 0, error = 0;
  FK_INLINE void add(double x) {
    const double t = value + x;
    // A sum that is not finite has no error to keep.
    if (t - t == 0) error += (value < 0 ? -value : value) >= (x < 0 ? -x : x) ? (value - t) + x : (x - t) + value;
    value = t;
  }
  FK_INLINE double total() const { return value + error; }
};

// sum_c f(m(r, c)), f written for vectors of doubles.
template <class T, class F>
FK_INLINE double row_sum(Matrix<const T> m, int64_t r, int64_t columns, F f) {
  constexpr int W = kLanes<double>;
  typedef T Part __attribute__((vector_size(W * sizeof(T))));
  CompensatedSum total;
  int64_t c = 0;
  while (c + W <= columns) {
    VecD sum = {};
    const int64_t end = columns - c < kSumBlock ? columns : c + kSumBlock;
    for (; c + W <= end; c += W) {
      const T* p = &m(r, c);
      Part v = {};
      if (m.column_stride == 1)
        v = load<Part>(p);
      else
        for (int i = 0; i < W; ++i) v[i] = p[i * m.column_stride];
      sum += f(__builtin_convertvector(v, VecD));
    }
    total.add(lane_sum<double>(sum));
  }
  for (; c < columns; ++c) total.add(f(static_cast<double>(m(r, c))));
  return total.total();
}

}  // namespace flowkern::FK_ISA
