// A square matrix times the channels of every pixel, or its inverse by two triangular systems. Tiles of pixels, of one
// image or several, are gathered as [channel][pixel], so that the pixels lie in the lanes whatever the memory's layout.
#include "cpu/channels/kernels.h"
#include "cpu/dot.h"
#include "cpu/products.h"

namespace flowkern::FK_ISA {

template <class T>
constexpr int64_t kPixels = kTileRows<T>;

template <class T>
int64_t sums_width(int64_t channels) {
  return whole_tiles(channels, kPixels<T>);
}

// Two tiles of channels, one with the pixels first, which are whole vectors of channels, and sums of products.
template <class T>
int64_t scratch(int64_t channels) {
  const int64_t width = sums_width<T>(channels);
  return (2 * whole_tiles(channels, kChunkRows) + width) * kPixels<T> + channels * width;
}

template <class T>
FK_INLINE void copy(const T* from, int64_t from_stride, T* to, int64_t n) {
  constexpr int W = kLanes<T>;
  int64_t i = 0;
  if (from_stride == 1)
    for (; i + W <= n; i += W) store(to + i, load<Vec<T>>(from + i));
  for (; i < n; ++i) to[i] = from[i * from_stride];
}

// Calls f(image, pixel, place in the tile, count) for the parts of a tile that lie in one image each.
template <class F>
FK_INLINE void parts_of(int64_t first, int64_t n, int64_t pixels, F f) {
  for (int64_t r = 0; r < n;) {
    const int64_t image = (first + r) / pixels, pixel = (first + r) % pixels;
    const int64_t count = n - r < pixels - pixel ? n - r : pixels - pixel;
    f(image, pixel, r, count);
    r += count;
  }
}

// Channel c goes to row order[c] of the tile; what is beyond n pixels is zero.
template <class T>
void gather(const ImageShape& shape, Images<T> x, int64_t first, int64_t n, const int64_t* order, T* tile) {
  constexpr int64_t R = kPixels<T>;
  if (n < R)
    for (int64_t i = 0; i < shape.channels * R; ++i) tile[i] = 0;
  parts_of(first, n, shape.pixels, [&](int64_t image, int64_t pixel, int64_t r, int64_t count) {
    const T* from = x.data + image * x.image_stride + pixel * x.pixel_stride;
    for (int64_t c = 0; c < shape.channels; ++c)
      copy(from + c * x.channel_stride, x.pixel_stride, tile + (order ? order[c] : c) * R + r, count);
  });
}

template <class T>
void scatter(const ImageShape& shape, const T* tile, int64_t first, int64_t n, const int64_t* order, T* z) {
  constexpr int64_t R = kPixels<T>;
  parts_of(first, n, shape.pixels, [&](int64_t image, int64_t pixel, int64_t r, int64_t count) {
    T* to = z + image * shape.channels * shape.pixels + pixel;
    for (int64_t c = 0; c < shape.channels; ++c)
      copy(tile + (order ? order[c] : c) * R + r, 1, to + c * shape.pixels, count);
  });
}

// NaN to the log-determinants of images that have a number in this tile which is not finite.
template <class T>
void show(const ImageShape& shape, const T* tile, int64_t first, int64_t n, T* log_det) {
  constexpr int64_t R = kPixels<T>, W = kLanes<T>;
  Vec<T> a = {}, b = {};
  for (int64_t c = 0; c < shape.channels; ++c) {
    const auto u = load<Vec<T>>(tile + c * R), v = load<Vec<T>>(tile + c * R + W);
    a += u - u;
    b += v - v;
  }
  T found[R];
  store(found, a);
  store(found + W, b);
  for (int64_t r = 0; r < n; ++r)
    if (found[r] != 0) log_det[(first + r) / shape.pixels] += found[r];
}

template <class T>
void pack(const T* matrix, int64_t row_stride, int64_t column_stride, int64_t channels, T sign, T* packed) {
  for (int64_t first = 0; first < channels; first += kChunkRows)
    for (int64_t k = 0; k < channels; ++k)
      for (int64_t i = 0; i < kChunkRows; ++i)
        *packed++ = first + i < channels ? sign * matrix[(first + i) * row_stride + k * column_stride] : T(0);
}

template <class T>
void multiply_tile(const T* packed, int64_t channels, const T* in, T* out) {
  constexpr int64_t R = kPixels<T>;
  for (int64_t first = 0; first < channels; first += kChunkRows) {
    const int64_t n = channels - first < kChunkRows ? channels - first : kChunkRows;
    for (int64_t i = 0; i < n * R; ++i) out[first * R + i] = 0;
    panel<T, R>(packed + first * channels, 0, n, in, channels, out + first * R);
  }
}

// tile[i] += w[i] tile[k] on all pixels.
template <class T>
FK_INLINE void add_row(T w, const T* from, T* to) {
  constexpr int W = kLanes<T>;
  for (int64_t r = 0; r < kPixels<T>; r += W) store(to + r, load<Vec<T>>(to + r) + w * load<Vec<T>>(from + r));
}
template <class T>
FK_INLINE void scale_row(T w, T* row) {
  constexpr int W = kLanes<T>;
  for (int64_t r = 0; r < kPixels<T>; r += W) store(row + r, w * load<Vec<T>>(row + r));
}

// In place: first the lower system from the top, then the upper one from the bottom. What rows of eight owe to rows
// outside of their block is a product.
template <class T>
void solve_tile(const Factors<T>& f, int64_t channels, T* tile) {
  constexpr int64_t R = kPixels<T>;
  for (int64_t first = 0; first < channels; first += kChunkRows) {
    const int64_t n = channels - first < kChunkRows ? channels - first : kChunkRows;
    const T* w = f.lower + first * channels;
    panel<T, R>(w, 0, n, tile, first, tile + first * R);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t k = 0; k < i; ++k)
        add_row(w[(first + k) * kChunkRows + i], tile + (first + k) * R, tile + (first + i) * R);
      scale_row(f.lower_scale[first + i], tile + (first + i) * R);
    }
  }
  for (int64_t first = (channels - 1) / kChunkRows * kChunkRows; first >= 0; first -= kChunkRows) {
    const int64_t n = channels - first < kChunkRows ? channels - first : kChunkRows, after = first + n;
    const T* w = f.upper + first * channels;
    panel<T, R>(w + after * kChunkRows, 0, n, tile + after * R, channels - after, tile + first * R);
    for (int64_t i = n - 1; i >= 0; --i) {
      for (int64_t k = i + 1; k < n; ++k)
        add_row(w[(first + k) * kChunkRows + i], tile + (first + k) * R, tile + (first + i) * R);
      scale_row(f.upper_scale[first + i], tile + (first + i) * R);
    }
  }
}

// Calls f(first, n) on the tiles of images [begin, end).
template <class T, class F>
FK_INLINE void tiles_of(const ImageShape& shape, int64_t begin, int64_t end, F f) {
  const int64_t last = end * shape.pixels;
  for (int64_t first = begin * shape.pixels; first < last; first += kPixels<T>)
    f(first, last - first < kPixels<T> ? last - first : kPixels<T>);
}

template <class T>
void mix(const ImageShape& shape, Images<T> x, const T* packed, const Factors<T>* factors, const int64_t* order,
         double value, T* z, T* log_det, T* memory, int64_t begin, int64_t end) {
  T* const out = memory + whole_tiles(shape.channels, kChunkRows) * kPixels<T>;
  for (int64_t b = begin; b < end; ++b) log_det[b] = static_cast<T>(value);
  tiles_of<T>(shape, begin, end, [&](int64_t first, int64_t n) {
    gather(shape, x, first, n, factors ? order : nullptr, memory);
    show(shape, memory, first, n, log_det);
    if (factors) {
      solve_tile(*factors, shape.channels, memory);
      scatter<T>(shape, memory, first, n, nullptr, z);
    } else {
      multiply_tile(packed, shape.channels, memory, out);
      scatter(shape, out, first, n, order, z);
    }
  });
}

// Tiles after which sums of products are put aside: their error grows with the tiles that are added one after another.
constexpr int64_t kSumTiles = 8;

// A tile of channels with the pixels first: [vectors of R channels][pixel][R].
template <class T>
void transpose_tile(const T* tile, int64_t channels, T* out) {
  constexpr int64_t R = kPixels<T>, W = kLanes<T>;
  for (int64_t c = 0; c < channels; c += W) {
    const int64_t n = channels - c < W ? channels - c : W;
    for (int64_t r = 0; r < R; r += W) {
      Vec<T> square[W] = {};
      for (int64_t i = 0; i < n; ++i) square[i] = load<Vec<T>>(tile + (c + i) * R + r);
      transpose<T>(square);
      for (int64_t i = 0; i < W; ++i) store(out + c / R * R * R + (r + i) * R + c % R, square[i]);
    }
  }
}

template <class T>
void mix_backward(const ImageShape& shape, Images<T> g_z, Images<T> a, const T* packed, const Factors<T>* factors,
                  const int64_t* order, T* g_x, T* totals, T* memory, int64_t begin, int64_t end) {
  constexpr int64_t R = kPixels<T>;
  constexpr int Rows = FK_VECTOR_REGISTERS >= 32 ? 8 : 4;
  const int64_t channels = shape.channels, width = sums_width<T>(channels);
  T* const other = memory + whole_tiles(channels, kChunkRows) * R;
  T* const inputs = other + whole_tiles(channels, kChunkRows) * R;
  if (channels % R)  // the lanes beyond the channels, whose sums nobody reads
    for (int64_t i = width / R - 1, r = 0; r < R * R; ++r) inputs[i * R * R + r] = 0;
  T* const sums = inputs + width * R;
  for (int64_t i = 0; i < channels * width; ++i) totals[i] = 0;
  int64_t tile = 0;
  tiles_of<T>(shape, begin, end, [&](int64_t first, int64_t n) {
    gather(shape, g_z, first, n, factors ? nullptr : order, memory);
    if (factors) {
      solve_tile(*factors, channels, memory);
      scatter(shape, memory, first, n, order, g_x);
    } else {
      multiply_tile(packed, channels, memory, other);
      scatter<T>(shape, other, first, n, nullptr, g_x);
    }
    gather<T>(shape, a, first, n, nullptr, other);
    transpose_tile(other, channels, inputs);
    const bool begins = tile++ % kSumTiles == 0;
    for (int64_t i = 0; i < channels; i += Rows)
      with_count<Rows>(channels - i < Rows ? channels - i : Rows, [&](auto count) {
        for (int64_t p = 0; p < width; p += R)
          outer_products<T, decltype(count)::value, 2>(n, begins, inputs + p * R, memory + i * R, 0,
                                                       sums + i * width + p, width);
      });
    if (tile % kSumTiles == 0 || first + n == end * shape.pixels)
      for (int64_t i = 0; i < channels * width; ++i) totals[i] += sums[i];
  });
}

template <class T>
void multiply(const T* lower, const T* upper, int64_t channels, T* product) {
  for (int64_t i = 0; i < channels; ++i) {
    T* __restrict row = product + i * channels;
    for (int64_t j = 0; j < channels; ++j) row[j] = j < i ? T(0) : upper[i * channels + j];
    for (int64_t k = 0; k < i; ++k) {
      const T w = lower[i * channels + k];
      const T* __restrict from = upper + k * channels;
      for (int64_t j = k; j < channels; ++j) row[j] += w * from[j];
    }
  }
}

template <class T>
void multiply_backward(const T* lower, const T* upper, const T* g, int64_t channels, T* g_lower, T* g_upper) {
  for (int64_t i = 0; i < channels; ++i)
    for (int64_t k = 0; k < channels; ++k) {
      const int64_t at = i * channels;
      g_lower[at + k] = k < i ? dot(g + at + k, upper + k * channels + k, channels - k) : T(0);
      g_upper[at + k] = k < i ? T(0) : g[at + k];
    }
  for (int64_t k = 0; k < channels; ++k) {
    T* __restrict row = g_upper + k * channels;
    for (int64_t i = k + 1; i < channels; ++i) {
      const T w = lower[i * channels + k];
      const T* __restrict from = g + i * channels;
      for (int64_t j = k; j < channels; ++j) row[j] += w * from[j];
    }
  }
}

#define FK_INSTANTIATE(T)                                                                                              \
  template int64_t sums_width<T>(int64_t);                                                                             \
  template int64_t scratch<T>(int64_t);                                                                                \
  template void pack(const T*, int64_t, int64_t, int64_t, T, T*);                                                      \
  template void mix(const ImageShape&, Images<T>, const T*, const Factors<T>*, const int64_t*, double, T*, T*, T*,     \
                    int64_t, int64_t);                                                                                 \
  template void mix_backward(const ImageShape&, Images<T>, Images<T>, const T*, const Factors<T>*, const int64_t*, T*, \
                             T*, T*, int64_t, int64_t);                                                                \
  template void multiply(const T*, const T*, int64_t, T*);                                                             \
  template void multiply_backward(const T*, const T*, const T*, int64_t, T*, T*);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
