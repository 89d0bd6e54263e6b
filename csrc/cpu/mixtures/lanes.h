// Neighbouring elements of a matrix in the lanes of a number.
#pragma once

#include "cpu/mixtures/kernels.h"
#include "cpu/numbers.h"

namespace flowkern::FK_ISA {

// The elements [begin, begin + count) of a matrix; lanes beyond them repeat the last one.
template <class T>
struct Lanes {
  int64_t begin, count, row[kStep<T>], column[kStep<T>];

  FK_INLINE Lanes(int64_t begin, int64_t end, int64_t columns)
      : begin(begin), count(end - begin < kStep<T> ? end - begin : kStep<T>) {
    int64_t r = begin / columns, c = begin % columns;
    for (int64_t i = 0; i < kStep<T>; ++i) {
      row[i] = r, column[i] = c;
      if (i + 1 < count && ++c == columns) ++r, c = 0;
    }
  }
};

// Where the lanes are in a matrix with these strides.
template <class T>
struct Places {
  const T* at[kStep<T>];

  FK_INLINE Places(const Lanes<T>& lanes, const T* data, int64_t row_stride, int64_t column_stride) {
    for (int64_t i = 0; i < kStep<T>; ++i) at[i] = data + lanes.row[i] * row_stride + lanes.column[i] * column_stride;
  }
  FK_INLINE Places(const Lanes<T>& lanes, Matrix<const T> m) : Places(lanes, m.data, m.row_stride, m.column_stride) {}
  FK_INLINE Places(const Lanes<T>& lanes, const Components<T>& c)
      : Places(lanes, c.data, c.row_stride, c.column_stride) {}

  FK_INLINE Number<T> load(int64_t offset = 0) const {
    if constexpr (sizeof(T) == 8) {
      return at[0][offset];
    } else {
      detail::HalfF v = {};
      for (int64_t i = 0; i < kStep<T>; ++i) v[i] = at[i][offset];
      return __builtin_convertvector(v, VecD);
    }
  }
};

// Writes the lanes to an array with so many numbers for every element.
FK_INLINE void put(const Lanes<float>& lanes, float* out, int64_t numbers, VecD v) {
  const auto half = __builtin_convertvector(v, detail::HalfF);
  float* p = out + lanes.begin * numbers;
  if (lanes.count == kStep<float>)
    for (int64_t i = 0; i < kStep<float>; ++i) p[i * numbers] = half[i];
  else
    for (int64_t i = 0; i < lanes.count; ++i) p[i * numbers] = half[i];
}
FK_INLINE void put(const Lanes<double>& lanes, double* out, int64_t numbers, double v) {
  out[lanes.begin * numbers] = v;
}

}  // namespace flowkern::FK_ISA
