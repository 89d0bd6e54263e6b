// A causal convolution as a product with packed weights: what its taps read is laid out once for a tile of times,
// [taps][inputs][time], and all output channels are computed while that is in the cache. The lanes are times.
#include "cpu/convolutions/pairs.h"
#include "cpu/row_sum.h"

namespace flowkern::FK_ISA {

template <class T>
void pack(const Convolution& c, const T* weight, T* packed, int64_t chunk) {
  const int64_t row_stride = c.transposed ? c.taps : c.taps * c.inputs;
  const int64_t input_stride = c.transposed ? c.outputs * c.taps : c.taps;
  const int64_t first = chunk % c.chunks() * kChunkRows;
  weight += chunk / c.chunks() * c.outputs * c.taps * c.inputs + first * row_stride;
  packed += chunk * c.columns() * kChunkRows;
  // The products of pairs: of the sum, of what first times have to themselves, of what second times have.
  const auto factor = [&](const T* w, int64_t j) {
    if (!c.paired) return w[j];
    return j == 0 ? w[0] + w[1] : w[(j == 1) == c.transposed];
  };
  for (int64_t j = 0; j * c.inputs < c.columns(); ++j)
    for (int64_t i = 0; i < c.inputs; ++i)
      for (int64_t r = 0; r < kChunkRows; ++r)
        *packed++ = first + r < c.outputs ? factor(weight + r * row_stride + i * input_stride, j) : T(0);
}

template <class T>
void causal_conv1d(const Convolution& c, const T* x, const T* packed, const T* bias, const T* add, T* y, Turn turn,
                   T* scratch) {
  const int64_t from = turn.row * c.groups * c.inputs * c.time, to = turn.row * c.groups * c.outputs * c.time;
  for (int64_t g = 0; g < c.groups; ++g) {
    const int64_t at = to + g * c.outputs * c.time;
    const T *read = x + from + g * c.inputs * c.time, *w = packed + g * c.chunks() * c.columns() * kChunkRows,
            *b = bias ? bias + g * c.outputs : nullptr, *with = add ? add + at : nullptr;
    if (!c.paired) {
      gather_taps(c, read, turn, scratch);
      store_outputs(c, w, scratch, b, with, turn, y + at);
      continue;
    }
    with_spacing<T>(c.dilation, [&](auto step) {
      const PairTimes<T, decltype(step)::value> times(c, turn);
      gather_pairs(c, times, read, turn.tiles, scratch);
      store_pairs(c, times, w, scratch, b, with, turn.tiles, y + at);
    });
  }
}

template <class T>
void weight_gradient_of_pairs(const Convolution& c, const T* x, const T* g_y, int64_t begin, int64_t end, T* sums,
                              T* scratch) {
  constexpr int64_t R = kTileRows<T>;
  const PairCotangents<T> cotangents(c, scratch);
  T* read = scratch;
  for (int64_t i = begin; i < end; ++i) {
    const Turn turn = c.turn(i, R);
    with_spacing<T>(c.dilation, [&](auto step) {
      const PairTimes<T, decltype(step)::value> times(c, turn);
      for (int64_t g = 0; g < c.groups; ++g) {
        const int64_t group = turn.row * c.groups + g;
        cotangents.gather(times, g_y + group * c.outputs * c.time, turn.tiles);
        gather_pairs(c, times, x + group * c.inputs * c.time, turn.tiles, read);
        const T* const of[] = {cotangents.sum, cotangents.first.transposed, cotangents.second.transposed};
        for (int64_t p = 0; p < 3; ++p)
          add_weight_gradient(c, turn.tiles, i == begin, of[p], read, sums + g * c.columns() * cotangents.first.width,
                              p * c.inputs, (p + 1) * c.inputs);
      }
    });
  }
}

template <class T>
void weight_gradient(const Convolution& c, const T* x, const T* g_y, int64_t begin, int64_t end, T* sums, T* scratch) {
  if (c.paired) return weight_gradient_of_pairs(c, x, g_y, begin, end, sums, scratch);
  constexpr int64_t R = kTileRows<T>;
  const Cotangents<T> cotangents(c, scratch);
  T* read = scratch;
  for (int64_t i = begin; i < end; ++i) {
    const Turn turn = c.turn(i, R);
    for (int64_t g = 0; g < c.groups; ++g) {
      const int64_t group = turn.row * c.groups + g;
      cotangents.gather(g_y + group * c.outputs * c.time, c.time, turn);
      cotangents.transpose(turn.tiles);
      gather_taps(c, x + group * c.inputs * c.time, turn, read);
      add_weight_gradient(c, turn.tiles, i == begin, cotangents.transposed, read,
                          sums + g * c.columns() * cotangents.width, 0, c.columns());
    }
  }
}

template <class T>
void unpack(const Convolution& c, const T* sums, int64_t parts, int64_t column, T* g_weight) {
  constexpr int64_t R = kTileRows<T>;
  const int64_t width = whole_tiles(c.outputs, R), size = gradient_sums(c, R), columns = c.taps * c.inputs,
                group = column / columns, q = column % columns;
  sums += (group * c.columns() + q) * width;
  const T* common = sums - q / c.inputs * c.inputs * width;  // of pairs: the product that belongs to both taps
  if (c.paired) sums += c.inputs * width;
  g_weight += group * c.outputs * columns + q % c.inputs * c.taps + q / c.inputs;
  for (int64_t o = 0; o < c.outputs; o += R) {
    double total[R] = {};
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t i = 0; i < R; ++i)
        total[i] += sums[part * size + o + i] + (c.paired ? double{common[part * size + o + i]} : 0.0);
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
