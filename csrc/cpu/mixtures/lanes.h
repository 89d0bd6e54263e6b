// Neighbouring elements of a matrix in the lanes of a number.
#pragma once

#include "cpu/mixtures/kernels.h"
#include "cpu/numbers.h"

namespace flowkern::FK_ISA {

// The elements [begin, begin + count) of a matrix; lanes beyond them repeat the last one.
template <class T>
struct Lanes {
  int64_t begin, count, row[kStep], column[kStep];

  FK_INLINE Lanes(int64_t begin, int64_t end, int64_t columns)
      : begin(begin), count(end - begin < kStep ? end - begin : kStep) {
    int64_t r = begin / columns, c = begin % columns;
    for (int64_t i = 0; i < kStep; ++i) {
      row[i] = r, column[i] = c;
      if (i + 1 < count && ++c == columns) ++r, c = 0;
    }
  }
};

// Where the lanes are in a matrix with these strides.
template <class T>
struct Places {
  const T* at[kStep];

  FK_INLINE Places(const Lanes<T>& lanes, const T* data, int64_t row_stride, int64_t column_stride) {
    for (int64_t i = 0; i < kStep; ++i) at[i] = data + lanes.row[i] * row_stride + lanes.column[i] * column_stride;
  }
  FK_INLINE Places(const Lanes<T>& lanes, Matrix<const T> m) : Places(lanes, m.data, m.row_stride, m.column_stride) {}
  FK_INLINE Places(const Lanes<T>& lanes, const Components<T>& c)
      : Places(lanes, c.data, c.row_stride, c.column_stride) {}

  FK_INLINE Number<T> load(int64_t offset = 0) const {
    Stored<T> v = {};
    for (int64_t i = 0; i < kStep; ++i) v[i] = at[i][offset];
    return number_of<T>(v);
  }
};

// Writes the lanes to an array with so many numbers for every element.
template <class T>
FK_INLINE void put(const Lanes<T>& lanes, T* out, int64_t numbers, Number<T> v) {
  const auto values = stored<T>(lanes_of(v));
  T* p = out + lanes.begin * numbers;
  if (lanes.count == kStep)
    for (int64_t i = 0; i < kStep; ++i) p[i * numbers] = values[i];
  else
    for (int64_t i = 0; i < lanes.count; ++i) p[i * numbers] = values[i];
}

}  // namespace flowkern::FK_ISA
