// Row reductions in double, in an order that does not depend on the number of threads.
#pragma once

#include "cpu/kernels.h"
#include "flowkern/math.h"

namespace flowkern::FK_ISA {

// sum_c f(m(r, c)), f written for vectors of doubles.
template <class T, class F>
FK_INLINE double row_sum(Matrix<const T> m, int64_t r, int64_t columns, F f) {
  constexpr int W = kLanes<double>;
  typedef T Part __attribute__((vector_size(W * sizeof(T))));
  VecD sum = {};
  int64_t c = 0;
  for (; c + W <= columns; c += W) {
    const T* p = &m(r, c);
    Part v;
    if (m.column_stride == 1) v = load<Part>(p);
    else
      for (int i = 0; i < W; ++i) v[i] = p[i * m.column_stride];
    sum += f(__builtin_convertvector(v, VecD));
  }
  double total = 0;
  for (int i = 0; i < W; ++i) total += sum[i];
  for (; c < columns; ++c) total += f(static_cast<double>(m(r, c)));
  return total;
}

}  // namespace flowkern::FK_ISA
