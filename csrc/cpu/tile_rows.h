// Tiles of rows of a matrix, as [column][R rows]: a group of rows fills the lanes.
#pragma once

#include "cpu/matrix.h"
#include "flowkern/simd.h"

namespace flowkern::FK_ISA {

// Which rows of the batch a tile holds.
struct TileRows {
  int64_t first, count;
  FK_INLINE TileRows(int64_t tile, int64_t size, int64_t batch)
      : first(tile * size), count(batch - first < size ? batch - first : size) {}
};

// dst[i] = m[rows of the tile, order[i]], or i itself where there is no order. Lanes beyond the batch repeat its last
// row: whatever they compute is as finite as that row, so that a cotangent of zero stays zero.
template <class T, int R>
void gather(Matrix<const T> m, TileRows rows, const int64_t* order, int64_t n, T* dst) {
  for (int64_t i = 0; i < n; ++i, dst += R) {
    const T* src = m.data + rows.first * m.row_stride + (order ? order[i] : i) * m.column_stride;
    for (int64_t r = 0; r < rows.count; ++r) dst[r] = src[r * m.row_stride];
    for (int64_t r = rows.count; r < R; ++r) dst[r] = dst[rows.count - 1];
  }
}
template <class T, int R>
void scatter(const T* src, TileRows rows, const int64_t* order, int64_t n, Matrix<T> m) {
  for (int64_t i = 0; i < n; ++i, src += R) {
    T* dst = m.data + rows.first * m.row_stride + (order ? order[i] : i) * m.column_stride;
    for (int64_t r = 0; r < rows.count; ++r) dst[r * m.row_stride] = src[r];
  }
}

// Rows of a tile in another order: dst[i] = src[order[i]], and back.
template <class T, int R>
FK_INLINE void gather_rows(const T* src, const int64_t* order, int64_t n, T* dst) {
  for (int64_t i = 0; i < n; ++i) __builtin_memcpy(dst + i * R, src + order[i] * R, R * sizeof(T));
}
template <class T, int R>
FK_INLINE void scatter_rows(const T* src, const int64_t* order, int64_t n, T* dst) {
  for (int64_t i = 0; i < n; ++i) __builtin_memcpy(dst + order[i] * R, src + i * R, R * sizeof(T));
}

}  // namespace flowkern::FK_ISA
