// What kernels on tiles of times share: what a turn reads is copied to [tile][channel][R], multiplied by packed
// weights, and stored.
#pragma once

#include "cpu/convolutions/pairs.h"

namespace flowkern::FK_ISA {

// What the outputs of a group read in a turn, [tile][columns][R], of times or of pairs; x is the group's first channel.
template <class T>
void gather_taps(const Convolution& c, const Times<T>& times, const T* x, T* to) {
  if (c.paired) return c.taps == 2 ? gather_pairs<T, 2>(c, times, x, to) : gather_pairs<T, 3>(c, times, x, to);
  const int64_t tile = c.inputs * kTileRows<T>;
  for (int64_t j = 0; j < c.taps; ++j) {
    const int64_t lag = (c.taps - 1 - j) * c.dilation;
    gather(times, x, c.inputs, c.transposed ? lag : -lag, to + j * tile, c.taps * tile);
  }
}

// Calls f(i R + r, sums) with the products of rows i of a panel at the times r of a tile, a vector of them, no more
// than kSumTerms one after another: their error grows with the terms that are added so.
template <class T, class F>
FK_INLINE void panel_products(const T* w, int64_t rows, const T* a, int64_t columns, F f) {
  constexpr int64_t W = kLanes<T>, R = kTileRows<T>, kSumTerms = 128;
  constexpr int Rows = FK_VECTOR_REGISTERS >= 32 ? 8 : 4;
  for (int64_t i = 0; i < rows; i += Rows)
    with_count<Rows>(rows - i < Rows ? rows - i : Rows, [&](auto count) {
      for (int64_t k = 0; k < columns; k += kSumTerms) {
        Vec<T> sums[count][2] = {};
        panel_sums<T>(w + i + k * kChunkRows, a + k * R, columns - k < kSumTerms ? columns - k : kSumTerms, sums);
        for (int j = 0; j < count; ++j)
          for (int h = 0; h < 2; ++h) f((i + j) * R + h * W, sums[j][h]);
      }
    });
}

template <class T>
FK_INLINE void add_to(T* y, Vec<T> v) {
  store(y, load<Vec<T>>(y) + v);
}
template <class T>
void add_panel(const T* w, int64_t rows, const T* a, int64_t columns, T* y) {
  panel_products(w, rows, a, columns, [&](int64_t at, auto v) { add_to(y + at, v); });
}

// Calls f(o, rows, w) for the panels of a group's packed weights: of the outputs from o on.
template <class T, class F>
FK_INLINE void each_panel(const Convolution& c, const T* packed, F f) {
  for (int64_t o = 0; o < c.outputs; o += kChunkRows, packed += c.columns() * kChunkRows)
    f(o, c.outputs - o < kChunkRows ? c.outputs - o : kChunkRows, packed);
}

// y [outputs][R] += what the outputs of a group are at a tile of times.
template <class T>
void add_product(const Convolution& c, const T* packed, const T* read, T* y) {
  each_panel(c, packed,
             [&](int64_t o, int64_t rows, const T* w) { add_panel(w, rows, read, c.columns(), y + o * kTileRows<T>); });
}

// Adds to the rows of y [..][rows][R] what some outputs of a group, one panel, are in tile n of a turn: in a tile of
// times, or in both of a tile of pairs, which lie `second` apart.
template <class T>
void add_outputs(const Convolution& c, const Times<T>& times, const T* packed, int64_t rows, const T* read, int64_t n,
                 T* y, int64_t second) {
  constexpr int64_t R = kTileRows<T>;
  const int64_t columns = c.columns();
  if (!c.paired) {
    for (int64_t tile = n; tile < times.tiles; tile += times.lane_tiles, y += second)
      add_panel(packed, rows, read + tile * columns * R, columns, y);
    return;
  }
  read += n * columns * R;
  T *first = c.transposed ? y + second : y, *other = c.transposed ? y : y + second;
  const auto product = [&](int64_t p, auto f) {
    panel_products(packed + p * c.inputs * kChunkRows, rows, read + p * c.inputs * R, c.inputs, f);
  };
  product(0, [&](int64_t at, auto v) { add_to(first + at, v), add_to(other + at, v); });
  if (c.taps == 3) product(1, [&](int64_t at, auto v) { add_to(first + at, v), add_to(other + at, -v); });
  product(c.taps - 1, [&](int64_t at, auto v) { add_to(first + at, v); });
  product(c.taps, [&](int64_t at, auto v) { add_to(other + at, v); });
}

// The same of all outputs of a group.
template <class T>
void add_all_outputs(const Convolution& c, const Times<T>& times, const T* packed, const T* read, int64_t n, T* y,
                     int64_t second) {
  each_panel(c, packed, [&](int64_t o, int64_t rows, const T* w) {
    add_outputs(c, times, w, rows, read, n, y + o * kTileRows<T>, second);
  });
}

// The outputs of a group at the times of a turn: what they are added to and the bias, either of which may be null, and
// the product of what they read. `add` and y are those of the group's first output.
template <class T>
void store_outputs(const Convolution& c, const Times<T>& times, const T* packed, const T* read, const T* bias,
                   const T* add, T* y) {
  constexpr int64_t W = kLanes<T>, R = kTileRows<T>;
  times.with_order([&](auto order) {
    using Vectors = Lanes<T, order>;
    T sums[Vectors::kTimes][kChunkRows][R];
    each_panel(c, packed, [&](int64_t o, int64_t rows, const T* w) {
      for (int64_t n = 0; n < times.lane_tiles; ++n) {
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t h = 0; h < 2; ++h) {
            const int64_t channel = (o + i) * c.time, v = 2 * n + h;
            times.template prefetch<order, 1>(y + channel, v);
            if (add) times.template prefetch<order>(add + channel, v + 2);
            const Vec<T> start = Vec<T>{} + (bias ? bias[o + i] : T(0));
            const Vectors with = add ? times.template read<order>(add + channel, v) : Vectors{};
            for (int k = 0; k < Vectors::kTimes; ++k) store(&sums[k][i][h * W], start + with.at[k]);
          }
        add_outputs(c, times, w, rows, read, n, &sums[0][0][0], kChunkRows * R);
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t h = 0; h < 2; ++h) {
            Vectors v;
            for (int k = 0; k < Vectors::kTimes; ++k) v.at[k] = load<Vec<T>>(&sums[k][i][h * W]);
            times.template write<order>(v, 2 * n + h, y + (o + i) * c.time);
          }
      }
    });
  });
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

// The cotangents of some outputs in a turn, [tile][channels in whole tiles][R]. The channels that fill up the last of
// the whole tiles of them are zero.
template <class T>
struct Cotangents {
  int64_t channels, width;
  T *tiles, *transposed, *shared;  // of R channels: [tile][R times][R channels], and pairs' sums and differences

  FK_INLINE Cotangents(const Convolution& c, T*& scratch)
      : channels(c.outputs), width(whole_tiles(c.outputs, kTileRows<T>)), tiles(scratch) {
    constexpr int64_t R = kTileRows<T>;
    transposed = tiles + kTurnTiles * width * R;
    shared = transposed + kTurnTiles * R * R;
    scratch = tiles + cotangents_size(c, R);
    for (int64_t n = 0; n < kTurnTiles; ++n)
      for (int64_t i = channels * R; i < width * R; ++i) tile(n)[i] = 0;
  }
  FK_INLINE T* tile(int64_t n) const { return tiles + n * width * kTileRows<T>; }
  // From the first of these channels of a row of the batch.
  FK_INLINE void gather_from(const Times<T>& times, const T* from) const {
    gather(times, from, channels, 0, tiles, width * kTileRows<T>);
  }
};

// The sums over all times of R transposed channels.
template <class T>
void sum_times(const T* from, int64_t tiles, T* sums) {
  constexpr int64_t W = kLanes<T>, R = kTileRows<T>;
  Vec<T> total[2] = {};
  for (int64_t n = 0; n < tiles; ++n) {
    Vec<T> sum[2] = {};
    for (int64_t r = 0; r < R; ++r, from += R)
      for (int h = 0; h < 2; ++h) sum[h] += load<Vec<T>>(from + h * W);
    for (int h = 0; h < 2; ++h) total[h] += sum[h];
  }
  for (int h = 0; h < 2; ++h) store(sums + h * W, total[h]);
}

// Adds to the sums [columns][outputs] of a group, or begins them, what a turn contributes to the gradient of the
// weights, from cotangents and what was read, [tile][columns][R]. Writes the sums over its times of the cotangents to
// `biases` if it is not null.
template <class T>
void add_weight_gradient(const Convolution& c, const Times<T>& times, bool first, const Cotangents<T>& g, const T* read,
                         T* sums, T* biases = nullptr) {
  constexpr int64_t W = kLanes<T>, R = kTileRows<T>, Rows = FK_VECTOR_REGISTERS >= 32 ? 8 : 4;
  const int64_t columns = c.columns(), half = times.lane_tiles * R * R, products = c.paired ? c.taps + 1 : 1,
                part = columns / products, rows = (c.paired ? times.lane_tiles : times.tiles) * R;
  const T *own = g.transposed, *other = own + half;
  for (int64_t o = 0; o < g.width; o += R) {
    for (int64_t n = 0; n < times.tiles; ++n) transpose_tile(g.tile(n) + o * R, g.transposed + n * R * R);
    if (biases) sum_times(own, times.tiles, biases + o);
    const auto product = [&](int64_t p, const T* cotangents) {
      for (int64_t q = p * part; q < (p + 1) * part; q += Rows)
        with_count<Rows>((p + 1) * part - q < Rows ? (p + 1) * part - q : Rows, [&](auto count) {
          T* to = sums + q * g.width + o;
          if (c.outputs - o > W)
            outer_products<T, count, 2>(rows, first, cotangents, read + q * R, columns * R, to, g.width);
          else
            outer_products<T, count, 1>(rows, first, cotangents, read + q * R, columns * R, to, g.width);
        });
    };
    if (!c.paired) {
      product(0, own);
      continue;
    }
    for (int64_t i = 0; i < half; i += W) {
      const auto a = load<Vec<T>>(own + i), b = load<Vec<T>>(other + i);
      store(g.shared + i, a + b);
      if (c.taps == 3) store(g.shared + half + i, a - b);
    }
    for (int64_t p = 0; p < c.taps - 1; ++p) product(p, g.shared + p * half);
    product(c.taps - 1, own);
    product(c.taps, other);
  }
}

}  // namespace flowkern::FK_ISA
