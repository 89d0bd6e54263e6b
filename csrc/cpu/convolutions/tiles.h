// What kernels on tiles of times share: a tile is copied to [channel][time], multiplied by packed weights, and stored.
#pragma once

#include "cpu/convolutions/kernels.h"
#include "cpu/products.h"

namespace flowkern::FK_ISA {

// Some channels at the times of some tiles from `from` on, zero outside of the sequence, to [tile][channel][R] where
// the tiles lie `stride` apart.
template <class T>
void gather_times(const T* x, int64_t channels, int64_t times, int64_t from, int64_t tiles, T* to, int64_t stride) {
  constexpr int64_t R = kTileRows<T>;
  for (int64_t i = 0; i < channels; ++i, x += times)
    for (int64_t n = 0; n < tiles; ++n) {
      const int64_t at = from + n * R;
      T* tile = to + n * stride + i * R;
      // The next turn's: a channel is pages of its own, where no hardware looks ahead.
      for (int64_t r = 0; r < R; r += 64 / sizeof(T)) __builtin_prefetch(x + at + tiles * R + r);
      if (at >= 0 && at + R <= times)
        __builtin_memcpy(tile, x + at, R * sizeof(T));
      else
        for (int64_t r = 0; r < R; ++r) tile[r] = at + r >= 0 && at + r < times ? x[at + r] : T(0);
    }
}

// What the outputs of a group read at the times of a turn, [tile][columns][R]; x is the group's first channel.
template <class T>
void gather_taps(const Convolution& c, const T* x, Turn turn, T* to) {
  const int64_t tile = c.inputs * kTileRows<T>;
  for (int64_t j = 0; j < c.taps; ++j) {
    const int64_t lag = (c.taps - 1 - j) * c.dilation, from = c.transposed ? turn.time + lag : turn.time - lag;
    gather_times(x, c.inputs, c.time, from, turn.tiles, to + j * tile, c.taps * tile);
  }
}

// sums[o] += the product of packed weights with what the outputs of a group read of a tile, for all outputs o of it.
template <class T>
void add_product(const Convolution& c, const T* packed, const T* read, T* sums) {
  const int64_t columns = c.columns();
  for (int64_t o = 0; o < c.outputs; o += kChunkRows, packed += columns * kChunkRows, sums += kChunkRows * kTileRows<T>)
    panel<T, kTileRows<T>>(packed, 0, c.outputs - o < kChunkRows ? c.outputs - o : kChunkRows, read, columns, sums);
}

// Channels of the tiles of a turn, which lie `stride` apart, to where they belong.
template <class T>
void store_turn(const T* from, int64_t stride, int64_t channels, int64_t times, Turn turn, T* y) {
  constexpr int64_t R = kTileRows<T>;
  for (int64_t i = 0; i < channels; ++i, y += times, from += R)
    for (int64_t n = 0; n < turn.tiles; ++n) {
      const int64_t time = turn.time + n * R;
      const T* tile = from + n * stride;
      if (times - time >= R)
        __builtin_memcpy(y + time, tile, R * sizeof(T));
      else
        for (int64_t r = 0; r < times - time; ++r) y[time + r] = tile[r];
    }
}

// y [rows][R] += the products of a panel, no more than kSumTerms of them one after another: their error grows with
// the terms that are added so.
template <class T>
void add_products(const T* w, int64_t rows, const T* a, int64_t columns, T* y) {
  constexpr int64_t R = kTileRows<T>, kSumTerms = 128;
  panel<T, R>(w, 0, rows, a, columns < kSumTerms ? columns : kSumTerms, y);
  for (int64_t k = kSumTerms; k < columns; k += kSumTerms) {
    T part[kChunkRows * R] = {};
    panel<T, R>(w + k * kChunkRows, 0, rows, a + k * R, columns - k < kSumTerms ? columns - k : kSumTerms, part);
    for (int64_t i = 0; i < rows * R; ++i) y[i] += part[i];
  }
}

// The outputs of a group at the times of a turn: what they are added to and the bias, either of which may be null, and
// the product of what they read. `add` and y are those of the group's first output.
template <class T>
void store_outputs(const Convolution& c, const T* packed, const T* read, const T* bias, const T* add, Turn turn, T* y) {
  constexpr int64_t R = kTileRows<T>;
  const int64_t columns = c.columns();
  T sums[kChunkRows * R];
  for (int64_t o = 0; o < c.outputs; o += kChunkRows, packed += columns * kChunkRows) {
    const int64_t rows = c.outputs - o < kChunkRows ? c.outputs - o : kChunkRows;
    for (int64_t n = 0; n < turn.tiles; ++n) {
      const int64_t time = turn.time + n * R;
      if (add)
        gather_times(add + o * c.time, rows, c.time, time, 1, sums, 0);
      else
        for (int64_t i = 0; i < rows * R; ++i) sums[i] = 0;
      if (bias)
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t r = 0; r < R; ++r) sums[i * R + r] += bias[o + i];
      add_products(packed, rows, read + n * columns * R, columns, sums);
      store_turn(sums, 0, rows, c.time, {turn.row, time, 1}, y + o * c.time);
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

// The cotangents of some outputs in a turn, [tile][channels in whole tiles][R], and transposed, [channels / R][tile]
// [R times][R channels]. The channels that fill up the last of the whole tiles of them are zero.
template <class T>
struct Cotangents {
  int64_t channels, width;
  T *tiles, *transposed;

  FK_INLINE Cotangents(const Convolution& c, T*& scratch)
      : channels(c.outputs), width(whole_tiles(c.outputs, kTileRows<T>)), tiles(scratch) {
    constexpr int64_t R = kTileRows<T>;
    transposed = tiles + kTurnTiles * width * R;
    scratch = transposed + kTurnTiles * width * R;
    for (int64_t n = 0; n < kTurnTiles; ++n)
      for (int64_t i = channels * R; i < width * R; ++i) tile(n)[i] = 0;
  }
  FK_INLINE T* tile(int64_t n) const { return tiles + n * width * kTileRows<T>; }
  // From the first of these channels of a row of the batch.
  FK_INLINE void gather(const T* from, int64_t times, Turn turn) const {
    gather_times(from, channels, times, turn.time, turn.tiles, tiles, width * kTileRows<T>);
  }
  FK_INLINE void transpose(int64_t count) const {
    constexpr int64_t R = kTileRows<T>;
    T* to = transposed;
    for (int64_t o = 0; o < width; o += R)
      for (int64_t n = 0; n < count; ++n, to += R * R) transpose_tile(tile(n) + o * R, to);
  }
};

// Adds to the sums [columns][outputs] of a group, or begins them, what the tiles of a turn contribute to the gradient
// of the weights in the columns [begin, end): transposed cotangents, and what was read [tiles][columns][R].
template <class T>
void add_weight_gradient(const Convolution& c, int64_t tiles, bool first, const T* cotangents, const T* read, T* sums,
                         int64_t begin, int64_t end) {
  constexpr int64_t R = kTileRows<T>, Rows = FK_VECTOR_REGISTERS >= 32 ? 8 : 4;
  const int64_t columns = c.columns(), width = whole_tiles(c.outputs, R);
  for (int64_t o = 0; o < width; o += R, cotangents += tiles * R * R)
    for (int64_t q = begin; q < end; q += Rows)
      with_count<Rows>(end - q < Rows ? end - q : Rows, [&](auto rows) {
        constexpr int N = decltype(rows)::value;
        T* to = sums + q * width + o;
        if (c.outputs - o > kLanes<T>)
          outer_products<T, N, 2>(tiles * R, first, cotangents, read + q * R, columns * R, to, width);
        else
          outer_products<T, N, 1>(tiles * R, first, cotangents, read + q * R, columns * R, to, width);
      });
}

}  // namespace flowkern::FK_ISA
