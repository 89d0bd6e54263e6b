// A causal convolution as a product with packed weights: what its taps read is laid out once for a tile of times,
// [taps][inputs][time], and all output channels are computed while that is in the cache. The lanes are times.
#include "cpu/convolutions/tiles.h"
#include "cpu/row_sum.h"

namespace flowkern::FK_ISA {

template <class T>
void pack(const Convolution& c, const T* weight, T* packed, int64_t chunk) {
  const int64_t row_stride = c.transposed ? c.taps : c.taps * c.inputs;
  const int64_t input_stride = c.transposed ? c.outputs * c.taps : c.taps;
  const int64_t first = chunk % c.chunks() * kChunkRows;
  weight += chunk / c.chunks() * c.outputs * c.taps * c.inputs + first * row_stride;
  packed += chunk * c.columns() * kChunkRows;
  const auto of_product = [&](const T* w, int64_t p) {
    if (!c.paired) return w[p];
    double sum = 0;
    for (int64_t j = 0; j < c.taps; ++j) sum += pair_factor(c.taps, p, j) * w[j];
    return static_cast<T>(sum);
  };
  for (int64_t p = 0; p * c.inputs < c.columns(); ++p)
    for (int64_t i = 0; i < c.inputs; ++i)
      for (int64_t r = 0; r < kChunkRows; ++r)
        *packed++ = first + r < c.outputs ? of_product(weight + r * row_stride + i * input_stride, p) : T(0);
}

template <class T>
void causal_conv1d(const Convolution& c, const T* x, const T* packed, const T* bias, const T* add, T* y, Turn turn,
                   T* scratch) {
  const Times<T> times(c, turn);
  const int64_t from = turn.row * c.groups * c.inputs * c.time, to = turn.row * c.groups * c.outputs * c.time;
  for (int64_t g = 0; g < c.groups; ++g) {
    const int64_t at = to + g * c.outputs * c.time;
    gather_taps(c, times, x + from + g * c.inputs * c.time, scratch);
    store_outputs(c, times, packed + g * c.chunks() * c.columns() * kChunkRows, scratch,
                  bias ? bias + g * c.outputs : nullptr, add ? add + at : nullptr, y + at);
  }
}

template <class T>
void weight_gradient(const Convolution& c, const T* x, const T* g_y, int64_t begin, int64_t end, T* sums, T* scratch) {
  constexpr int64_t R = kTileRows<T>;
  const Cotangents<T> cotangents(c, scratch);
  T* read = scratch;
  for (int64_t i = begin; i < end; ++i) {
    const Turn turn = c.turn(i, R);
    const Times<T> times(c, turn);
    for (int64_t g = 0; g < c.groups; ++g) {
      const int64_t group = turn.row * c.groups + g;
      cotangents.gather_from(times, g_y + group * c.outputs * c.time);
      gather_taps(c, times, x + group * c.inputs * c.time, read);
      add_weight_gradient(c, times, i == begin, cotangents, read, sums + g * c.columns() * cotangents.width);
    }
  }
}

template <class T>
void unpack(const Convolution& c, const T* sums, int64_t parts, int64_t column, T* g_weight) {
  constexpr int64_t R = kTileRows<T>;
  const int64_t width = whole_tiles(c.outputs, R), size = gradient_sums(c, R), columns = c.taps * c.inputs,
                group = column / columns, tap = column % columns / c.inputs, input = column % c.inputs;
  sums += (group * c.columns() + input) * width;
  g_weight += group * c.outputs * columns + input * c.taps + tap;
  for (int64_t o = 0; o < c.outputs; o += R) {
    double total[R] = {};
    for (int64_t p = 0; p * c.inputs < c.columns(); ++p) {
      const double factor = c.paired ? pair_factor(c.taps, p, tap) : p == tap;
      if (factor == 0) continue;
      for (int64_t part = 0; part < parts; ++part)
        for (int64_t i = 0; i < R; ++i) total[i] += factor * sums[part * size + p * c.inputs * width + o + i];
    }
    for (int64_t i = 0; i < R && o + i < c.outputs; ++i) g_weight[(o + i) * columns] = static_cast<T>(total[i]);
  }
}

template <class T>
void bias_gradient(const Convolution& c, const T* g_y, int64_t output, T* g_bias) {
  const int64_t channels = c.groups * c.outputs;
  CompensatedSum sum;
  for (int64_t row = 0; row < c.batch; ++row)
    sum.add(row_sum<T>({g_y, c.time, 1}, row * channels + output, c.time, [](auto v) { return v; }));
  g_bias[output] = static_cast<T>(sum.total());
}

template <class T>
T sum_of_turns(const T* sums, int64_t turns, int64_t stride) {
  return static_cast<T>(row_sum<T>({sums, 0, stride}, 0, turns, [](auto v) { return v; }));
}

#define FK_INSTANTIATE(T)                                                                                   \
  template void pack<T>(const Convolution&, const T*, T*, int64_t);                                         \
  template void causal_conv1d<T>(const Convolution&, const T*, const T*, const T*, const T*, T*, Turn, T*); \
  template void weight_gradient<T>(const Convolution&, const T*, const T*, int64_t, int64_t, T*, T*);       \
  template void unpack<T>(const Convolution&, const T*, int64_t, int64_t, T*);                              \
  template void bias_gradient<T>(const Convolution&, const T*, int64_t, T*);                                \
  template T sum_of_turns<T>(const T*, int64_t, int64_t);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
