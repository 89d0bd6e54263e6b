// A coupling layer's map: the transformed features of a row are gathered, mapped as rows of their own, and scattered.
#include "cpu/rows/kernels.h"
#include "flowkern/simd.h"

namespace flowkern::FK_ISA {

template <class T>
Matrix<const T> row(Matrix<const T> m, int64_t r) {
  return {m.data + r * m.row_stride, 0, m.column_stride};
}

template <class T>
void coupling(const Map<T>& map, bool inverse, Matrix<const T> x, const Matrix<const T>* parameters,
              const Transformed& transformed, T* z, T* log_det, const CouplingScratch<T>& scratch, int64_t row_begin,
              int64_t row_end) {
  const auto [features, count, width] = transformed;
  T *u = scratch.values, *v = u + count;
  for (int64_t r = row_begin; r < row_end; ++r) {
    T *out = z + r * width, finite = 0;  // NaN where a feature that passes is not finite
    for (int64_t c = 0; c < width; ++c) {
      out[c] = x(r, c);
      finite += out[c] - out[c];
    }
    for (int64_t j = 0; j < count; ++j) u[j] = out[features[j]];
    for (int i = 0; i < map.map.count; ++i) scratch.parameters[i] = row(parameters[i], r);
    map.kernels->rows(map.map, inverse, {u, 0, 1}, scratch.parameters, count, v, log_det + r, 0, 1);
    log_det[r] += finite;
    for (int64_t j = 0; j < count; ++j) out[features[j]] = v[j];
  }
}

template <class T>
void coupling_backward(const Map<T>& map, bool rebuild, bool inverse, Matrix<const T> x,
                       const Matrix<const T>* parameters, Matrix<const T> g_z, Matrix<const T> g_log_det,
                       const Transformed& transformed, T* g_x, T* const* g_parameters,
                       const CouplingScratch<T>& scratch, int64_t row_begin, int64_t row_end) {
  const auto [features, count, width] = transformed;
  T *u = scratch.values, *g = u + count, *g_u = g + count;
  for (int64_t r = row_begin; r < row_end; ++r) {
    T* out = g_x + r * width;
    for (int64_t c = 0; c < width; ++c) out[c] = g_z(r, c);
    for (int64_t j = 0; j < count; ++j) {
      u[j] = x(r, features[j]);
      g[j] = out[features[j]];
    }
    for (int i = 0; i < map.map.count; ++i) {
      scratch.parameters[i] = row(parameters[i], r);
      scratch.gradients[i] = g_parameters[i] + r * count;
    }
    map.kernels->rows_backward(map.map, rebuild, inverse, {u, 0, 1}, scratch.parameters, {g, 0, 1}, row(g_log_det, r),
                               count, g_u, scratch.gradients, 0, 1);
    for (int64_t j = 0; j < count; ++j) out[features[j]] = g_u[j];
  }
}

#define FK_INSTANTIATE(T)                                                                                              \
  template void coupling(const Map<T>&, bool, Matrix<const T>, const Matrix<const T>*, const Transformed&, T*, T*,     \
                         const CouplingScratch<T>&, int64_t, int64_t);                                                 \
  template void coupling_backward(const Map<T>&, bool, bool, Matrix<const T>, const Matrix<const T>*, Matrix<const T>, \
                                  Matrix<const T>, const Transformed&, T*, T* const*, const CouplingScratch<T>&,       \
                                  int64_t, int64_t);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
