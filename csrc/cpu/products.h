// The inner products of everything that multiplies by packed weights, at the peak of the multiply-add units
// (docs/measured.md): with weights, and of the gradients of weights.
#pragma once

#include "flowkern/panel.h"
#include "flowkern/simd.h"

namespace flowkern::FK_ISA {

// sums[i] += sum_k w[k][i] a[k] for N rows i of a panel, one row of the batch per lane.
template <class T, int N>
FK_INLINE void panel_sums(const T* w, const T* a, int64_t columns, Vec<T> (&sums)[N][2]) {
  constexpr int W = kLanes<T>;
  for (int64_t k = 0; k < columns; ++k, w += kChunkRows, a += 2 * W) {
    const auto a0 = load<Vec<T>>(a), a1 = load<Vec<T>>(a + W);
    for (int i = 0; i < N; ++i) {
      sums[i][0] += w[i] * a0;
      sums[i][1] += w[i] * a1;
    }
  }
}

// The same with the sums in memory, [N][R].
template <class T, int N>
FK_INLINE void panel_rows(const T* w, const T* a, int64_t columns, T* p) {
  constexpr int W = kLanes<T>;
  Vec<T> sums[N][2];
  for (int i = 0; i < N; ++i)
    for (int h = 0; h < 2; ++h) sums[i][h] = load<Vec<T>>(p + (2 * i + h) * W);
  panel_sums(w, a, columns, sums);
  for (int i = 0; i < N; ++i)
    for (int h = 0; h < 2; ++h) store(p + (2 * i + h) * W, sums[i][h]);
}

// The same with the eight units in the lanes; lanes outside [first, first + n) are dropped.
template <class T, int R>
void panel_units(const T* w, const T* a, int64_t columns, T* p, int64_t first, int64_t n) {
  using P = Panel8<T>;
  constexpr int Unroll = R == 1 ? 4 : 2;  // independent sums hide the latency of the additions
  P acc[Unroll][R] = {};
  int64_t k = 0;
  for (; k + Unroll <= columns; k += Unroll)
    for (int u = 0; u < Unroll; ++u) {
      const P column = load<P>(w + (k + u) * kChunkRows);
      for (int r = 0; r < R; ++r) acc[u][r] += a[(k + u) * R + r] * column;
    }
  for (; k < columns; ++k)
    for (int r = 0; r < R; ++r) acc[0][r] += a[k * R + r] * load<P>(w + k * kChunkRows);
  for (int r = 0; r < R; ++r) {
    P sum = acc[0][r];
    for (int u = 1; u < Unroll; ++u) sum += acc[u][r];
    for (int64_t i = 0; i < n; ++i) p[i * R + r] += sum[first + i];
  }
}

// Rows [first, first + n) of a panel whose first stored column is w.
template <class T, int R>
void panel(const T* w, int64_t first, int64_t n, const T* a, int64_t columns, T* p) {
  if constexpr (R < kTileRows<T>) {
    panel_units<T, R>(w, a, columns, p, first, n);
  } else {
    w += first;
    // Sixteen sums of two vectors need 32 registers; with 16, four rows at a time.
    constexpr int Rows = FK_VECTOR_REGISTERS >= 32 ? 8 : 4;
    for (; n >= Rows; n -= Rows, w += Rows, p += Rows * R) panel_rows<T, Rows>(w, a, columns, p);
    if (n > 0) with_count<Rows - 1>(n, [&](auto count) { panel_rows<T, decltype(count)::value>(w, a, columns, p); });
  }
}

// acc[i][v] += sum_k a[i][k a_stride] w[k w_stride][v] for N numbers and V vectors: the lanes are what w holds. Of the
// one vector of a part `lanes` are read.
template <class T, int N, int V, bool Part = false>
FK_INLINE void lane_products(const T* const (&a)[N], int64_t a_stride, const T* w, int64_t w_stride, int64_t columns,
                             Vec<T> (&acc)[N][V], int64_t lanes = 0) {
  for (int64_t k = 0; k < columns; ++k, w += w_stride) {
    Vec<T> row[V];
    for (int v = 0; v < V; ++v) row[v] = Part ? load_part<Vec<T>>(w, lanes) : load<Vec<T>>(w + v * kLanes<T>);
    for (int i = 0; i < N; ++i)
      for (int v = 0; v < V; ++v) acc[i][v] += a[i][k * a_stride] * row[v];
  }
}

// Rows after which sums are put aside: their error grows with the rows that are added one after another.
constexpr int64_t kSumRows = 32;

// sums[i][lane] += over so many rows of N deltas i times V vectors of the R inputs of a panel, [tile][row][R]; `first`
// begins them.
template <class T, int N, int V>
FK_INLINE void outer_products(int64_t rows, bool first, const T* inputs, const T* d, int64_t stride, T* sums,
                              int64_t sums_stride) {
  constexpr int W = kLanes<T>, R = kTileRows<T>;
  Vec<T> acc[N][V] = {}, total[N][V] = {};
  for (int64_t tile = 0; tile * R < rows; ++tile, d += stride) {
    if (tile > 0 && tile % (kSumRows / R) == 0)
      for (int i = 0; i < N; ++i)
        for (int h = 0; h < V; ++h) {
          total[i][h] += acc[i][h];
          acc[i][h] = Vec<T>{};
        }
    for (int i = 0; i < N; ++i)  // the next tile's deltas lie on other pages, where no hardware looks ahead
      for (int r = 0; r < R; r += 64 / sizeof(T)) __builtin_prefetch(d + stride + i * R + r);
    const int64_t here = rows - tile * R < R ? rows - tile * R : R;
    for (int64_t r = 0; r < here; ++r, inputs += R) {
      Vec<T> a[V];
      for (int h = 0; h < V; ++h) a[h] = load<Vec<T>>(inputs + h * W);
      for (int i = 0; i < N; ++i)
        for (int h = 0; h < V; ++h) acc[i][h] += d[i * R + r] * a[h];
    }
  }
  for (int i = 0; i < N; ++i, sums += sums_stride)
    for (int h = 0; h < V; ++h) {
      total[i][h] += acc[i][h];
      store(sums + h * W, first ? total[i][h] : load<Vec<T>>(sums + h * W) + total[i][h]);
    }
}

}  // namespace flowkern::FK_ISA
