// Row reductions in double, in an order that does not depend on the number of threads.
#pragma once

#include "cpu/kernels.h"
#include "flowkern/math.h"

namespace flowkern::FK_ISA {

constexpr int64_t kSumBlock = 512;  // elements summed one after another; blocks are summed on top, so errors stay small

// sum_c f(m(r, c)), f written for vectors of doubles.
template <class T, class F>
FK_INLINE double row_sum(Matrix<const T> m, int64_t r, int64_t columns, F f) {
  constexpr int W = kLanes<double>;
  typedef T Part __attribute__((vector_size(W * sizeof(T))));
  double total = 0;
  int64_t c = 0;
  while (c + W <= columns) {
    VecD sum = {};
    const int64_t end = columns - c < kSumBlock ? columns : c + kSumBlock;
    for (; c + W <= end; c += W) {
      const T* p = &m(r, c);
      Part v = {};
      if (m.column_stride == 1) v = load<Part>(p);
      else
        for (int i = 0; i < W; ++i) v[i] = p[i * m.column_stride];
      sum += f(__builtin_convertvector(v, VecD));
    }
    total += lane_sum<double>(sum);
  }
  for (; c < columns; ++c) total += f(static_cast<double>(m(r, c)));
  return total;
}

}  // namespace flowkern::FK_ISA
