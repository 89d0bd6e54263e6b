// An affine univariate map and its log-determinant from given parameters: one read, one write, one reduction.
#include "cpu/affine.h"
#include "cpu/row_sum.h"
#include "flowkern/univariate.h"

namespace flowkern::FK_ISA {

// Columns [c, c + n) of a row as numbers X: n is at most the lanes of X; missing lanes are zero.
FK_INLINE VecD get(Matrix<const float> m, int64_t r, int64_t c, int64_t n) {
  typedef float Half __attribute__((vector_size(FK_VECTOR_BYTES / 2)));
  const float* p = &m(r, c);
  Half v = {};
  if (m.column_stride == 1 && n == kLanes<double>)
    v = load<Half>(p);
  else
    for (int64_t i = 0; i < n; ++i) v[i] = p[i * m.column_stride];
  return __builtin_convertvector(v, VecD);
}
FK_INLINE double get(Matrix<const double> m, int64_t r, int64_t c, int64_t) { return m(r, c); }

FK_INLINE void put(float* p, VecD v, int64_t n) {
  typedef float Half __attribute__((vector_size(FK_VECTOR_BYTES / 2)));
  const Half h = __builtin_convertvector(v, Half);
  if (n == kLanes<double>)
    store(p, h);
  else
    store_part(p, h, n);
}
FK_INLINE void put(double* p, double v, int64_t) { *p = v; }

FK_INLINE double masked_sum(VecD v, int64_t n) {
  double s = 0;
  for (int64_t i = 0; i < n; ++i) s += v[i];
  return s;
}
FK_INLINE double masked_sum(double v, int64_t) { return v; }

template <class T>
constexpr int64_t kStep = sizeof(T) == 4 ? kLanes<double> : 1;

template <class T>
void affine(const UnivariateMap& map, bool inverse, Matrix<const T> x, Matrix<const T> shift, Matrix<const T> raw,
            int64_t columns, T* z, T* log_det, int64_t row_begin, int64_t row_end) {
  using X = decltype(get(x, 0, 0, 0));
  for (int64_t r = row_begin; r < row_end; ++r) {
    CompensatedSum total;
    for (int64_t begin = 0; begin < columns; begin += kSumBlock) {
      X lanes = {};
      const int64_t end = columns - begin < kSumBlock ? columns : begin + kSumBlock;
      for (int64_t c = begin; c < end; c += kStep<T>) {
        const int64_t n = end - c < kStep<T> ? end - c : kStep<T>;
        const X u = get(x, r, c, n), t = get(shift, r, c, n), a = get(raw, r, c, n);
        const auto m = inverse ? map_inverse(map, u, t, a) : map_forward(map, u, t, a);
        put(z + r * columns + c, m.v, n);
        if (n == kStep<T>)
          lanes += m.log_slope;
        else
          total.add(masked_sum(m.log_slope, n));
      }
      total.add(masked_sum(lanes, kStep<T>));
    }
    log_det[r] = static_cast<T>(total.total());
  }
}

template <class T>
void affine_backward(const UnivariateMap& map, bool rebuild, bool inverse, Matrix<const T> x, Matrix<const T> shift,
                     Matrix<const T> raw, Matrix<const T> g_z, Matrix<const T> g_log_det, int64_t columns, T* g_x,
                     T* g_shift, T* g_raw, int64_t row_begin, int64_t row_end) {
  using X = decltype(get(x, 0, 0, 0));
  for (int64_t r = row_begin; r < row_end; ++r) {
    const X gl = X{} + static_cast<double>(g_log_det(r, 0));
    for (int64_t c = 0; c < columns; c += kStep<T>) {
      const int64_t n = columns - c < kStep<T> ? columns - c : kStep<T>, at = r * columns + c;
      X v = get(x, r, c, n);
      const X t = get(shift, r, c, n), a = get(raw, r, c, n), g = get(g_z, r, c, n);
      if (rebuild) v = inverse ? map_forward(map, v, t, a).v : map_inverse(map, v, t, a).v;
      if (inverse) {  // implicit differentiation of v = f(u; t, a) at u = f^-1(v)
        const X w = g / map_slope(map, a);
        const auto d = map_backward(map, map_inverse(map, v, t, a).v, t, a, -w, -gl);
        put(g_x + at, w, n), put(g_shift + at, d.t, n), put(g_raw + at, d.a, n);
      } else {
        const auto d = map_backward(map, v, t, a, g, gl);
        put(g_x + at, d.u, n), put(g_shift + at, d.t, n), put(g_raw + at, d.a, n);
      }
    }
  }
}

#define FK_INSTANTIATE(T)                                                                                              \
  template void affine(const UnivariateMap&, bool, Matrix<const T>, Matrix<const T>, Matrix<const T>, int64_t, T*, T*, \
                       int64_t, int64_t);                                                                              \
  template void affine_backward(const UnivariateMap&, bool, bool, Matrix<const T>, Matrix<const T>, Matrix<const T>,   \
                                Matrix<const T>, Matrix<const T>, int64_t, T*, T*, T*, int64_t, int64_t);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
