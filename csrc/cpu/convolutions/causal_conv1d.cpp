// A causal convolution as a product with packed weights: what its taps read is laid out once for a tile of times,
// [taps][inputs][time], and all output channels are computed while that is in the cache. The lanes are times.
#include "cpu/convolutions/kernels.h"
#include "cpu/products.h"
#include "cpu/row_sum.h"

namespace flowkern::FK_ISA {

template <class T>
void pack(const Convolution& c, const T* weight, T* packed, int64_t chunk) {
  const int64_t row_stride = c.transposed ? c.taps : c.columns();
  const int64_t input_stride = c.transposed ? c.outputs * c.taps : c.taps;
  const int64_t first = chunk % c.chunks() * kChunkRows;
  weight += chunk / c.chunks() * c.outputs * c.columns() + first * row_stride;
  packed += chunk * c.columns() * kChunkRows;
  for (int64_t j = 0; j < c.taps; ++j)
    for (int64_t i = 0; i < c.inputs; ++i)
      for (int64_t r = 0; r < kChunkRows; ++r)
        *packed++ = first + r < c.outputs ? weight[r * row_stride + i * input_stride + j] : T(0);
}

// Some channels at the times [from, from + R), zero outside of the sequence.
template <class T>
void gather_times(const T* x, int64_t channels, int64_t times, int64_t from, T* to) {
  constexpr int64_t R = kTileRows<T>;
  const bool inside = from >= 0 && from + R <= times;
  for (int64_t i = 0; i < channels; ++i, x += times, to += R) {
    // The next tile's: a channel is a page of its own, where no hardware looks ahead.
    for (int64_t r = 0; r < R; r += 64 / sizeof(T)) __builtin_prefetch(x + from + R + r);
    if (inside)
      __builtin_memcpy(to, x + from, R * sizeof(T));
    else
      for (int64_t r = 0; r < R; ++r) to[r] = from + r >= 0 && from + r < times ? x[from + r] : T(0);
  }
}

// What the outputs of a group read at the times of a tile; x is the group's first channel.
template <class T>
void gather_taps(const Convolution& c, const T* x, int64_t time, T* to) {
  for (int64_t j = 0; j < c.taps; ++j, to += c.inputs * kTileRows<T>) {
    const int64_t lag = (c.taps - 1 - j) * c.dilation;
    gather_times(x, c.inputs, c.time, c.transposed ? time + lag : time - lag, to);
  }
}

template <class T>
void causal_conv1d(const Convolution& c, const T* x, const T* packed, const T* bias, T* y, int64_t row, int64_t time,
                   T* scratch) {
  constexpr int64_t R = kTileRows<T>;
  const int64_t columns = c.columns(), count = c.time - time < R ? c.time - time : R;
  T *read = scratch, *sums = scratch + columns * R;
  x += row * c.groups * c.inputs * c.time;
  y += row * c.groups * c.outputs * c.time + time;
  for (int64_t g = 0; g < c.groups; ++g, x += c.inputs * c.time) {
    gather_taps(c, x, time, read);
    for (int64_t o = 0; o < c.outputs; o += kChunkRows, packed += columns * kChunkRows) {
      const int64_t rows = c.outputs - o < kChunkRows ? c.outputs - o : kChunkRows;
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t r = 0; r < R; ++r) sums[i * R + r] = bias ? bias[g * c.outputs + o + i] : T(0);
      panel<T, R>(packed, 0, rows, read, columns, sums);
      for (int64_t i = 0; i < rows; ++i, y += c.time) {
        for (int64_t r = 0; r < R; r += 64 / sizeof(T)) __builtin_prefetch(y + R + r, 1);  // the next tile's
        if (count == R)
          __builtin_memcpy(y, sums + i * R, R * sizeof(T));
        else
          for (int64_t r = 0; r < count; ++r) y[r] = sums[i * R + r];
      }
    }
  }
}

// [columns][time] to [time][columns], in squares of a vector.
template <class T>
void transpose_tile(const T* from, T* to) {
  constexpr int W = kLanes<T>, R = kTileRows<T>;
  for (int64_t c = 0; c < R; c += W)
    for (int64_t r = 0; r < R; r += W) {
      Vec<T> v[W];
      for (int i = 0; i < W; ++i) v[i] = load<Vec<T>>(from + (c + i) * R + r);
      transpose<T>(v);
      for (int i = 0; i < W; ++i) store(to + (r + i) * R + c, v[i]);
    }
}

template <class T>
void weight_gradient(const Convolution& c, const T* x, const T* g_y, int64_t begin, int64_t end, T* sums, T* scratch) {
  constexpr int64_t R = kTileRows<T>, Rows = FK_VECTOR_REGISTERS >= 32 ? 8 : 4;
  const int64_t columns = c.columns(), width = whole_tiles(c.outputs, R), row_tiles = whole_tiles(c.time, R) / R;
  T *cotangents = scratch, *transposed = cotangents + width * R, *read = transposed + kTurnTiles * width * R;
  for (int64_t i = c.outputs * R; i < width * R; ++i) cotangents[i] = 0;
  for (int64_t first = begin; first < end; first += kTurnTiles) {
    const int64_t tiles = end - first < kTurnTiles ? end - first : kTurnTiles;
    for (int64_t g = 0; g < c.groups; ++g) {
      for (int64_t n = 0; n < tiles; ++n) {
        const int64_t row = (first + n) / row_tiles, time = (first + n) % row_tiles * R;
        gather_times(g_y + (row * c.groups + g) * c.outputs * c.time, c.outputs, c.time, time, cotangents);
        for (int64_t o = 0; o < width; o += R) transpose_tile(cotangents + o * R, transposed + (o * tiles + n * R) * R);
        gather_taps(c, x + (row * c.groups + g) * c.inputs * c.time, time, read + n * columns * R);
      }
      T* to = sums + g * columns * width;
      for (int64_t o = 0; o < width; o += R)
        for (int64_t q = 0; q < columns; q += Rows)
          with_count<Rows>(columns - q < Rows ? columns - q : Rows, [&](auto rows) {
            constexpr int N = decltype(rows)::value;
            const T *in = transposed + o * tiles * R, *d = read + q * R;
            if (c.outputs - o > kLanes<T>)
              outer_products<T, N, 2>(tiles * R, first == begin, in, d, columns * R, to + q * width + o, width);
            else
              outer_products<T, N, 1>(tiles * R, first == begin, in, d, columns * R, to + q * width + o, width);
          });
    }
  }
}

template <class T>
void unpack(const Convolution& c, const T* sums, int64_t parts, int64_t output, T* g_weight) {
  const int64_t width = whole_tiles(c.outputs, kTileRows<T>), size = gradient_sums(c, kTileRows<T>);
  sums += output / c.outputs * c.columns() * width + output % c.outputs;
  g_weight += output * c.columns();
  for (int64_t q = 0; q < c.columns(); ++q) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += sums[part * size + q * width];
    g_weight[q % c.inputs * c.taps + q / c.inputs] = static_cast<T>(sum);
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

#define FK_INSTANTIATE(T)                                                                                     \
  template void pack<T>(const Convolution&, const T*, T*, int64_t);                                           \
  template void causal_conv1d<T>(const Convolution&, const T*, const T*, const T*, T*, int64_t, int64_t, T*); \
  template void weight_gradient<T>(const Convolution&, const T*, const T*, int64_t, int64_t, T*, T*);         \
  template void unpack<T>(const Convolution&, const T*, int64_t, int64_t, T*);                                \
  template void bias_gradient<T>(const Convolution&, const T*, int64_t, T*);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
