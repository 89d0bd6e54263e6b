// A coupling layer's map: the transformed features of a row are gathered, mapped as in affine.cpp, and scattered.
#include "cpu/affine.h"

namespace flowkern::FK_ISA {

template <class T>
Matrix<const T> row(Matrix<const T> m, int64_t r) {
  return {m.data + r * m.row_stride, 0, m.column_stride};
}

template <class T>
void coupling(const UnivariateMap& map, bool inverse, Matrix<const T> x, Matrix<const T> shift, Matrix<const T> raw,
              const Transformed& transformed, T* z, T* log_det, T* scratch, int64_t row_begin, int64_t row_end) {
  const auto [features, count, width] = transformed;
  T *u = scratch, *v = scratch + count;
  for (int64_t r = row_begin; r < row_end; ++r) {
    T *out = z + r * width, finite = 0;  // NaN where a feature that passes is not finite
    for (int64_t c = 0; c < width; ++c) {
      out[c] = x(r, c);
      finite += out[c] - out[c];
    }
    for (int64_t j = 0; j < count; ++j) u[j] = out[features[j]];
    affine<T>(map, inverse, {u, 0, 1}, row(shift, r), row(raw, r), count, v, log_det + r, 0, 1);
    log_det[r] += finite;
    for (int64_t j = 0; j < count; ++j) out[features[j]] = v[j];
  }
}

template <class T>
void coupling_backward(const UnivariateMap& map, bool rebuild, bool inverse, Matrix<const T> x, Matrix<const T> shift,
                       Matrix<const T> raw, Matrix<const T> g_z, Matrix<const T> g_log_det,
                       const Transformed& transformed, T* g_x, T* g_shift, T* g_raw, T* scratch, int64_t row_begin,
                       int64_t row_end) {
  const auto [features, count, width] = transformed;
  T *u = scratch, *g = scratch + count, *g_u = scratch + 2 * count;
  for (int64_t r = row_begin; r < row_end; ++r) {
    T* out = g_x + r * width;
    for (int64_t c = 0; c < width; ++c) out[c] = g_z(r, c);
    for (int64_t j = 0; j < count; ++j) {
      u[j] = x(r, features[j]);
      g[j] = out[features[j]];
    }
    affine_backward<T>(map, rebuild, inverse, {u, 0, 1}, row(shift, r), row(raw, r), {g, 0, 1}, row(g_log_det, r),
                       count, g_u, g_shift + r * count, g_raw + r * count, 0, 1);
    for (int64_t j = 0; j < count; ++j) out[features[j]] = g_u[j];
  }
}

#define FK_INSTANTIATE(T)                                                                                              \
  template void coupling(const UnivariateMap&, bool, Matrix<const T>, Matrix<const T>, Matrix<const T>,                \
                         const Transformed&, T*, T*, T*, int64_t, int64_t);                                            \
  template void coupling_backward(const UnivariateMap&, bool, bool, Matrix<const T>, Matrix<const T>, Matrix<const T>, \
                                  Matrix<const T>, Matrix<const T>, const Transformed&, T*, T*, T*, T*, int64_t,       \
                                  int64_t);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
