#pragma once

#include <cstdint>

namespace flowkern {

// A matrix of T with strides in elements; `data` is null where there is none.
template <class T>
struct Matrix {
  T* data = nullptr;
  int64_t row_stride = 0, column_stride = 0;
  T& operator()(int64_t r, int64_t c) const { return data[r * row_stride + c * column_stride]; }
};

}  // namespace flowkern
