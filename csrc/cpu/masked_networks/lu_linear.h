// A linear map whose matrix is the product of triangular ones, L of ones on its diagonal and U, plus a bias; its
// inverse and the gradients of both, on one tile.
#pragma once

#include "cpu/masked_networks/kernels.h"
#include "cpu/tile_rows.h"

namespace flowkern::FK_ISA {

// The entries of a step, row by row. Row i of L has i entries, that of U n - 1 - i and the diagonal's.
template <class T>
struct Triangles {
  FK_INLINE Triangles(const T* entries, int64_t n)
      : below(entries), above(below + n * (n - 1) / 2), diagonal(above + n * (n - 1) / 2), bias(diagonal + n), n(n) {}
  FK_INLINE T l(int64_t i, int64_t j) const { return below[place_below(i, j)]; }
  FK_INLINE T u(int64_t i, int64_t j) const { return above[place_above(i, j)]; }
  FK_INLINE int64_t place_below(int64_t i, int64_t j) const { return i * (i - 1) / 2 + j; }
  FK_INLINE int64_t place_above(int64_t i, int64_t j) const { return i * (2 * n - i - 1) / 2 + j - i - 1; }

  const T *below, *above, *diagonal, *bias;
  int64_t n;
};

// to += a from, rows of a tile.
template <class T, int R>
FK_INLINE void add_row(T a, const T* from, T* to) {
  for (int r = 0; r < R; ++r) to[r] += a * from[r];
}

// The rows of the state in the order of its features -> U of them.
template <class T, int R>
void times_u(const Triangles<T>& m, const T* x, T* y) {
  for (int64_t i = 0; i < m.n; ++i) {
    for (int r = 0; r < R; ++r) y[i * R + r] = m.diagonal[i] * x[i * R + r];
    for (int64_t j = i + 1; j < m.n; ++j) add_row<T, R>(m.u(i, j), x + j * R, y + i * R);
  }
}

template <class T, int R>
void lu_linear(const ChainStep<T>& step, int64_t n, const T* state, T* next, double* log_det, T* scratch) {
  const Triangles<T> m(step.entries, n);
  const bool inverse = step.kind == StepKind::lu_linear_inverse;
  T *x = scratch, *y = x + n * R;
  gather_rows<T, R>(state, step.order, n, x);
  double constant = 0;
  for (int64_t i = 0; i < n; ++i) constant += log(abs(static_cast<double>(m.diagonal[i])));
  for (int r = 0; r < R; ++r) log_det[r] += inverse ? -constant : constant;
  if (!inverse) {
    times_u<T, R>(m, x, y);
    for (int64_t i = 0; i < n; ++i) {
      for (int r = 0; r < R; ++r) next[i * R + r] = y[i * R + r] + m.bias[i];
      for (int64_t j = 0; j < i; ++j) add_row<T, R>(m.l(i, j), y + j * R, next + i * R);
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int r = 0; r < R; ++r) y[i * R + r] = x[i * R + r] - m.bias[i];
    for (int64_t j = 0; j < i; ++j) add_row<T, R>(-m.l(i, j), y + j * R, y + i * R);
  }
  for (int64_t i = n - 1; i >= 0; --i) {
    T* to = next + i * R;
    __builtin_memcpy(to, y + i * R, R * sizeof(T));
    for (int64_t j = i + 1; j < n; ++j) add_row<T, R>(-m.u(i, j), next + j * R, to);
    for (int r = 0; r < R; ++r) to[r] /= m.diagonal[i];
  }
}

// The sum over the rows of a tile of sign * a * b.
template <class T>
FK_INLINE T row_product(T sign, const T* a, const T* b) {
  Vec<T> sum = {};
  for (int r = 0; r < kTileRows<T>; r += kLanes<T>) sum += load<Vec<T>>(a + r) * load<Vec<T>>(b + r);
  return sign * lane_sum<T>(sum);
}

// From the cotangent g [feature][R] of the next state to that of the state, which may be one buffer; `sums` are the
// cotangents of the entries. With y = U x, a the cotangent of L's result and b that of y: of L they are a y, of U b x,
// and the inverse's the same with the other sign.
template <class T>
void lu_linear_backward(const ChainStep<T>& step, int64_t n, const T* state, const T* next, const T* g,
                        const T* g_log_det, T* g_state, T* sums, T* scratch) {
  constexpr int R = kTileRows<T>;
  const Triangles<T> m(step.entries, n);
  const bool inverse = step.kind == StepKind::lu_linear_inverse;
  T *x = scratch, *y = x + n * R, *a = y + n * R, *b = a + n * R, *out = b + n * R;
  if (inverse)
    __builtin_memcpy(x, next, n * R * sizeof(T));
  else
    gather_rows<T, R>(state, step.order, n, x);
  times_u<T, R>(m, x, y);
  if (!inverse) {
    __builtin_memcpy(a, g, n * R * sizeof(T));
    for (int64_t j = 0; j < n; ++j) {
      __builtin_memcpy(b + j * R, a + j * R, R * sizeof(T));
      for (int64_t i = j + 1; i < n; ++i) add_row<T, R>(m.l(i, j), a + i * R, b + j * R);
    }
    for (int64_t j = 0; j < n; ++j) {
      for (int r = 0; r < R; ++r) out[j * R + r] = m.diagonal[j] * b[j * R + r];
      for (int64_t i = 0; i < j; ++i) add_row<T, R>(m.u(i, j), b + i * R, out + j * R);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      T* to = b + i * R;
      __builtin_memcpy(to, g + i * R, R * sizeof(T));
      for (int64_t j = 0; j < i; ++j) add_row<T, R>(-m.u(j, i), b + j * R, to);
      for (int r = 0; r < R; ++r) to[r] /= m.diagonal[i];
    }
    for (int64_t j = n - 1; j >= 0; --j) {
      __builtin_memcpy(a + j * R, b + j * R, R * sizeof(T));
      for (int64_t i = j + 1; i < n; ++i) add_row<T, R>(-m.l(i, j), a + i * R, a + j * R);
    }
    out = a;
  }
  const T sign = inverse ? T(-1) : T(1);
  T *below = sums, *above = below + n * (n - 1) / 2, *diagonal = above + n * (n - 1) / 2, *bias = diagonal + n;
  T of_log = 0;
  for (int r = 0; r < R; ++r) of_log += g_log_det[r];
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < i; ++j) below[m.place_below(i, j)] = row_product<T>(sign, a + i * R, y + j * R);
    for (int64_t j = i + 1; j < n; ++j) above[m.place_above(i, j)] = row_product<T>(sign, b + i * R, x + j * R);
    diagonal[i] = row_product<T>(sign, b + i * R, x + i * R) + sign * of_log / m.diagonal[i];
    T sum = 0;
    for (int r = 0; r < R; ++r) sum += a[i * R + r];
    bias[i] = sign * sum;
  }
  scatter_rows<T, R>(out, step.order, n, g_state);
}

}  // namespace flowkern::FK_ISA
