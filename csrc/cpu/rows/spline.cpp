// Splines of elements that bring their parameters along: a tile of elements is transposed, so that they lie in the
// lanes, and goes through the map's kernels.
#include "cpu/rows/kernels.h"
#include "cpu/tile_rows.h"

namespace flowkern::FK_ISA {

template <class T>
int64_t spline_scratch(int64_t parameters) {
  return 2 * parameters * kTileRows<T>;
}

// A tile's elements and parameters.
template <class T>
void gather(const SplineElements<T>& elements, TileRows rows, T* x, T* parameters) {
  constexpr int R = kTileRows<T>;
  gather<T, R>(elements.x, rows, nullptr, 1, x);
  for (int i = 0; i < elements.kinds; ++i) {
    gather<T, R>(elements.parameters[i], rows, nullptr, elements.counts[i], parameters);
    parameters += elements.counts[i] * R;
  }
}

template <class T>
void spline(const Map<T>& map, bool inverse, const SplineElements<T>& elements, T* z, T* log_slope, T* scratch,
            int64_t begin, int64_t end) {
  constexpr int64_t R = kTileRows<T>;
  const auto* kernels = inverse ? map.kernels->inverse : map.kernels->forward;
  for (int64_t b = begin; b < end; b += R) {
    const TileRows rows(b / R, R, end);
    T u[R], v[R];
    double log[R] = {};
    gather(elements, rows, u, scratch);
    kernels[kTileKind<T, R>](map.map, 1, u, scratch, v, log);
    for (int64_t r = 0; r < rows.count; ++r) {
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
    const TileRows rows(b / R, R, end);
    T u[R], g[R], g_log[R], g_u[R];
    gather(elements, rows, u, scratch);
    gather<T, R>(g_z, rows, nullptr, 1, g);
    gather<T, R>(g_log_slope, rows, nullptr, 1, g_log);
    if (inverse) {
      const T none[R] = {};
      for (T& value : g_log) value = -value;
      map.kernels->backward_of_inverse(map.map, 1, u, scratch, g, none, g_log, g_u, g_tile);
    } else {
      map.kernels->backward(map.map, 1, u, scratch, g, g_log, g_u, g_tile);
    }
    scatter<T, R>(g_u, rows, nullptr, 1, {g_x, 1, 1});
    const T* from = g_tile;
    for (int i = 0; i < elements.kinds; ++i) {
      scatter<T, R>(from, rows, nullptr, elements.counts[i], {g_parameters[i], elements.counts[i], 1});
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
