// Every family of univariate maps, on tiles and on rows of matrices; see include/flowkern/univariate.h.
#include "flowkern/maps.h"  // written by CMake: includes the families and lists them

#include "cpu/maps/kernels.h"
#include "cpu/numbers.h"
#include "cpu/row_sum.h"
#include "flowkern/simd.h"

namespace flowkern::FK_ISA {

template <class X>
FK_INLINE void add(double* sum, X v, int64_t n) {
  if (n == kStep)
    store(sum, load<VecD>(sum) + lanes_of(v));
  else
    store_part(sum, load_part<VecD>(sum, n) + lanes_of(v), n);
}

// -- tiles

// Calls f(get, put, r, n) for each group of rows [r, r + n) of a tile that fits into a number X: get(p) reads the group
// of a row of the tile, and put(p, v) writes one.
template <class T, int R, class F>
FK_INLINE void for_row_groups(F f) {
  constexpr int64_t kGroup = R < kStep ? R : kStep;
  for (int64_t r = 0; r < R; r += kGroup)
    f([=](const T* p) { return widen(p + r, kGroup); }, [=](T* p, Number<T> v) { narrow(p + r, v, kGroup); }, r,
      kGroup);
}

template <class T, int R, class Family, bool Inverse>
void tile(const UnivariateMap& description, int64_t features, const T* u, const T* parameters, T* v,
          double* log_slope) {
  const int count = description.count;
  Family::specialised(description, [=](auto map) {
    for (int64_t f = 0; f < features; ++f) {
      const T *in = u + f * R, *parameter = parameters + f * count * R;
      for_row_groups<T, R>([&](auto get, auto put, int64_t r, int64_t n) {
        const auto p = [&](int i) { return get(parameter + i * R); };
        const auto m = Inverse ? map.inverse(get(in), p) : map.forward(get(in), p);
        put(v + f * R, m.value);
        add(log_slope + r, m.log_slope, n);
      });
    }
  });
}

template <class T, class Family>
void tile_backward(const UnivariateMap& description, int64_t features, const T* u, const T* parameters, const T* g_v,
                   const T* g_log_slope, T* g_u, T* g_parameters) {
  constexpr int R = kTileRows<T>;
  const int count = description.count;
  Family::specialised(description, [=](auto map) {
    for (int64_t f = 0; f < features; ++f) {
      const T* parameter = parameters + f * count * R;
      T* g_parameter = g_parameters + f * count * R;
      for_row_groups<T, R>([&](auto get, auto put, int64_t, int64_t) {
        const auto p = [&](int i) { return get(parameter + i * R); };
        put(g_u + f * R, map.backward(get(u + f * R), p, get(g_v + f * R), get(g_log_slope),
                                      [&](int i, Number<T> g) { put(g_parameter + i * R, g); }));
      });
    }
  });
}

// FromInput: u is what the inverse was of.
template <class T, class Family, bool FromInput>
void tile_inverse_backward(const UnivariateMap& description, int64_t features, const T* u, const T* parameters,
                           const T* g, const T* network, const T* g_log_slope, T* g_v, T* g_parameters) {
  constexpr int R = kTileRows<T>;
  const int count = description.count;
  Family::specialised(description, [=](auto map) {
    for (int64_t f = 0; f < features; ++f) {
      const T *at = u + f * R, *parameter = parameters + f * count * R;
      T *g_out = g_v + f * R, *g_parameter = g_parameters + f * count * R;
      for_row_groups<T, R>([&](auto get, auto put, int64_t, int64_t) {
        const auto p = [&](int i) { return get(parameter + i * R); };
        const auto put_parameter = [&](int i, Number<T> v) { put(g_parameter + i * R, v); };
        const Number<T> in = get(at), of_u = get(g + f * R) + get(network + f * R), of_log = get(g_log_slope);
        put(g_out, FromInput ? map.backward_of_inverse(in, p, of_u, of_log, put_parameter)
                             : map.inverse_backward(in, p, of_u, of_log, put_parameter));
      });
    }
  });
}

// -- rows of matrices

// Columns [c, c + n) of a row: n is at most the lanes of X; missing lanes are zero.
template <class T>
FK_INLINE Number<T> columns_of(Matrix<const T> m, int64_t r, int64_t c, int64_t n) {
  const T* p = &m(r, c);
  if (m.column_stride == 1) return widen(p, n);
  Stored<T> v = {};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i * m.column_stride];
  return number_of<T>(v);
}

template <class X>
FK_INLINE double partial_sum(X v, int64_t n) {
  double s = 0;
  for (int64_t i = 0; i < n; ++i) s += lanes_of(v)[i];
  return s;
}

template <class T, class Family>
void rows(const UnivariateMap& description, bool inverse, Matrix<const T> x, const Matrix<const T>* parameters,
          int64_t columns, T* z, T* log_det, int64_t row_begin, int64_t row_end) {
  Family::specialised(description, [=](auto map) {
    for (int64_t r = row_begin; r < row_end; ++r) {
      CompensatedSum total;
      for (int64_t begin = 0; begin < columns; begin += kSumBlock) {
        Number<T> lanes = {};
        const int64_t end = columns - begin < kSumBlock ? columns : begin + kSumBlock;
        for (int64_t c = begin; c < end; c += kStep) {
          const int64_t n = end - c < kStep ? end - c : kStep;
          const auto p = [&](int i) { return columns_of(parameters[i], r, c, n); };
          const Number<T> u = columns_of(x, r, c, n);
          const auto m = inverse ? map.inverse(u, p) : map.forward(u, p);
          narrow(z + r * columns + c, m.value, n);
          if (n == kStep)
            lanes += m.log_slope;
          else
            total.add(partial_sum(m.log_slope, n));
        }
        total.add(partial_sum(lanes, kStep));
      }
      log_det[r] = static_cast<T>(total.total());
    }
  });
}

template <class T, class Family>
void rows_backward(const UnivariateMap& description, bool rebuild, bool inverse, Matrix<const T> x,
                   const Matrix<const T>* parameters, Matrix<const T> g_z, Matrix<const T> g_log_det, int64_t columns,
                   T* g_x, T* const* g_parameters, int64_t row_begin, int64_t row_end) {
  Family::specialised(description, [=](auto map) {
    for (int64_t r = row_begin; r < row_end; ++r) {
      const Number<T> g_log = Number<T>{} + static_cast<double>(g_log_det(r, 0));
      for (int64_t c = 0; c < columns; c += kStep) {
        const int64_t n = columns - c < kStep ? columns - c : kStep, at = r * columns + c;
        const auto p = [&](int i) { return columns_of(parameters[i], r, c, n); };
        const auto put = [&](int i, Number<T> v) { narrow(g_parameters[i] + at, v, n); };
        const Number<T> g = columns_of(g_z, r, c, n);
        Number<T> v = columns_of(x, r, c, n);
        if (rebuild) v = inverse ? map.forward(v, p).value : map.inverse(v, p).value;
        if (inverse) {  // implicit differentiation of v = f(u; parameters) at u = f^-1(v)
          narrow(g_x + at, map.backward_of_inverse(v, p, g, -g_log, put), n);
        } else {
          narrow(g_x + at, map.backward(v, p, g, g_log, put), n);
        }
      }
    }
  });
}

// -- the table

template <class T, class Family>
constexpr MapKernels<T> kFamily = {
    .kind = Family::kKind,
    .forward = {&tile<T, 1, Family, false>, &tile<T, kSmallRows<T>, Family, false>,
                &tile<T, kTileRows<T>, Family, false>},
    .inverse = {&tile<T, 1, Family, true>, &tile<T, kSmallRows<T>, Family, true>, &tile<T, kTileRows<T>, Family, true>},
    .backward = &tile_backward<T, Family>,
    .inverse_backward = &tile_inverse_backward<T, Family, false>,
    .backward_of_inverse = &tile_inverse_backward<T, Family, true>,
    .rows = &rows<T, Family>,
    .rows_backward = &rows_backward<T, Family>,
};

#define FK_LIST(NAME) kFamily<T, maps::NAME<double>>,
template <class T>
constexpr MapKernels<T> kFamilies[] = {FK_MAPS(FK_LIST)};

template <class T>
const MapFamilies<T>& map_families() {
  static constexpr MapFamilies<T> kAll = {kFamilies<T>,
                                          static_cast<int>(sizeof(kFamilies<T>) / sizeof(kFamilies<T>[0]))};
  return kAll;
}
template const MapFamilies<float>& map_families<float>();
template const MapFamilies<double>& map_families<double>();

}  // namespace flowkern::FK_ISA
