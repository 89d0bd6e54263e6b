// Splines of elements that bring their parameters along: a tile of elements is transposed, so that they lie in the
// lanes, and goes through the map's kernels.
#include "cpu/rows/kernels.h"
#include "flowkern/simd.h"

namespace flowkern::FK_ISA {

template <class T>
int64_t spline_scratch(int64_t parameters) {
  return 2 * parameters * kTileRows<T>;
}

// Rows [begin, begin + n) of a matrix as [column][R]; zeros beyond them.
template <class T>
void transposed(Matrix<const T> m, int64_t begin, int64_t n, int64_t columns, T* out) {
  constexpr int R = kTileRows<T>;
  for (int64_t r = 0; r < n; ++r)
    for (int64_t c = 0; c < columns; ++c) out[c * R + r] = m(begin + r, c);
  for (int64_t c = 0; c < columns && n < R; ++c)
    for (int64_t r = n; r < R; ++r) out[c * R + r] = 0;
}
template <class T>
void transposed_back(const T* tile, int64_t begin, int64_t n, int64_t columns, T* out) {
  constexpr int R = kTileRows<T>;
  for (int64_t r = 0; r < n; ++r)
    for (int64_t c = 0; c < columns; ++c) out[(begin + r) * columns + c] = tile[c * R + r];
}

// A tile's elements and parameters.
template <class T>
void gather(const SplineElements<T>& elements, int64_t begin, int64_t n, T* x, T* parameters) {
  transposed(elements.x, begin, n, 1, x);
  for (int i = 0; i < 3; ++i) {
    transposed(elements.parameters[i], begin, n, elements.counts[i], parameters);
    parameters += elements.counts[i] * kTileRows<T>;
  }
}

template <class T>
void spline(const Map<T>& map, bool inverse, const SplineElements<T>& elements, T* z, T* log_slope, T* scratch,
            int64_t begin, int64_t end) {
  constexpr int64_t R = kTileRows<T>;
  const auto* kernels = inverse ? map.kernels->inverse : map.kernels->forward;
  for (int64_t b = begin; b < end; b += R) {
    const int64_t n = end - b < R ? end - b : R;
    T u[R], v[R];
    double log[R] = {};
    gather(elements, b, n, u, scratch);
    kernels[kTileKind<T, R>](map.map, 1, u, scratch, v, log);
    for (int64_t r = 0; r < n; ++r) {
      z[b + r] = v[r];
      log_slope[b + r] = static_cast<T>(log[r]);
    }
  }
}

template <class T>
void spline_backward(const Map<T>& map, bool inverse, const SplineElements<T>& elements, Matrix<const T> g_z,
                     Matrix<const T> g_log_slope, T* g_x, T* const* g_parameters, T* scratch, int64_t begin,
                     int64_t end) {
  constexpr int64_t R = kTileRows<T>;
  T* const g_tile = scratch + map.map.count * R;
  for (int64_t b = begin; b < end; b += R) {
    const int64_t n = end - b < R ? end - b : R;
    T u[R], g[R], g_log[R], g_u[R];
    gather(elements, b, n, u, scratch);
    transposed(g_z, b, n, 1, g);
    transposed(g_log_slope, b, n, 1, g_log);
    if (inverse) {
      const T none[R] = {};
      for (T& value : g_log) value = -value;
      map.kernels->inverse_backward(map.map, 1, u, scratch, g, none, g_log, g_u, g_tile);
    } else {
      map.kernels->backward(map.map, 1, u, scratch, g, g_log, g_u, g_tile);
    }
    for (int64_t r = 0; r < n; ++r) g_x[b + r] = g_u[r];
    const T* from = g_tile;
    for (int i = 0; i < 3; ++i) {
      transposed_back(from, b, n, elements.counts[i], g_parameters[i]);
      from += elements.counts[i] * R;
    }
  }
}

#define FK_INSTANTIATE(T)                                                                                            \
  template int64_t spline_scratch<T>(int64_t);                                                                       \
  template void spline(const Map<T>&, bool, const SplineElements<T>&, T*, T*, T*, int64_t, int64_t);                 \
  template void spline_backward(const Map<T>&, bool, const SplineElements<T>&, Matrix<const T>, Matrix<const T>, T*, \
                                T* const*, T*, int64_t, int64_t);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
