// Convolutions of two taps with three products for every two outputs, which are a dilation d apart: the minimal
// filtering algorithm F(2, 2) of Winograd (Arithmetic Complexity of Computations, 1980). With weights w0 and w1
//   y(t) = (w0 + w1) x(t) + w0 (x(t - d) - x(t)),   y(t + d) = (w0 + w1) x(t) + w1 (x(t + d) - x(t)).
// A pair is a time t and its other, t + d; the lanes are pairs. Transposed, the centre x(t) is that of the other time.
// No output depends on times that are not its taps', not even by rounding; but an infinite x(t) gives NaN.
#pragma once

#include "cpu/convolutions/tiles.h"

namespace flowkern::FK_ISA {

// Calls f with a dilation that is less than a vector as a constant, and with 0 for others: these are whole vectors.
template <class T, int Step = kLanes<T> / 2, class F>
FK_INLINE void with_spacing(int64_t dilation, F f) {
  if (dilation == Step) return f(std::integral_constant<int, Step>{});
  if constexpr (Step > 1)
    with_spacing<T, Step / 2>(dilation, f);
  else
    f(std::integral_constant<int, 0>{});
}

// A vector of x from a time on, zero outside of the sequence.
template <class T>
FK_INLINE Vec<T> vector_at(const T* x, int64_t time, int64_t times) {
  constexpr int W = kLanes<T>;
  if (time >= 0 && time + W <= times) return load<Vec<T>>(x + time);
  Vec<T> v = {};
  for (int i = 0; i < W; ++i)
    if (time + i >= 0 && time + i < times) v[i] = x[time + i];
  return v;
}

// Some pairs, or what lies at their times, in two vectors.
template <class T>
struct Pair {
  Vec<T> first, second;
};

// The pairs of a turn, of which `begin` is the first. A vector of them begins at a time of its own.
template <class T, int Step>
struct PairTimes {
  static constexpr int64_t W = kLanes<T>, kVectors = 2 * kTurnTiles;
  using Lanes = std::make_integer_sequence<int, kLanes<T>>;
  int64_t dilation, times, second, starts[2 * kVectors];  // those of this turn and of the next

  FK_INLINE PairTimes(const Convolution& c, Turn turn)
      : dilation(c.dilation), times(c.time), second(Step > 0 ? W : c.dilation) {
    for (int64_t i = 0; i < 2 * kVectors; ++i) {
      const int64_t pair = turn.time + i * W;
      starts[i] = Step > 0 ? 2 * pair : pair / dilation * 2 * dilation + pair % dilation;
      if (pair >= c.lanes()) starts[i] = times + 2 * dilation;
    }
  }
  // Two vectors in memory are two vectors of pairs with their lanes exchanged, and the other way round.
  static FK_INLINE Pair<T> exchange(Pair<T> p) {
    if constexpr (Step == 0)
      return p;
    else
      return {detail::interleave_low<Step>(p.first, p.second, Lanes{}),
              detail::interleave_high<Step>(p.first, p.second, Lanes{})};
  }
  // x at the times of a vector of pairs, `lag` later.
  FK_INLINE Pair<T> read(const T* x, int64_t vector, int64_t lag = 0) const {
    const int64_t at = starts[vector] + lag;
    return exchange({vector_at(x, at, times), vector_at(x, at + second, times)});
  }
  template <int Write = 0, class N>
  FK_INLINE void prefetch(N* x, int64_t vector) const {
    __builtin_prefetch(x + starts[vector], Write);
    __builtin_prefetch(x + starts[vector] + second, Write);
  }
  FK_INLINE void write(Pair<T> p, int64_t vector, T* y) const {
    const Pair<T> in_order = exchange(p);
    store_at(in_order.first, starts[vector], y);
    store_at(in_order.second, starts[vector] + second, y);
  }
  FK_INLINE void store_at(Vec<T> v, int64_t time, T* y) const {
    if (time + W <= times)
      store(y + time, v);
    else if (time < times)
      store_part(y + time, v, times - time);
  }
};

// What the products of a group read in a turn, [tile][centre, first, second][inputs][R].
template <class T, int Step>
void gather_pairs(const Convolution& c, const PairTimes<T, Step>& times, const T* x, int64_t tiles, T* to) {
  constexpr int64_t W = kLanes<T>, R = kTileRows<T>;
  const int64_t product = c.inputs * R;
  for (int64_t i = 0; i < c.inputs; ++i, x += c.time)
    for (int64_t n = 0; n < 2 * tiles; ++n) {
      T* at = to + n / 2 * 3 * product + i * R + n % 2 * W;
      times.prefetch(x, n + 2 * kTurnTiles);
      const auto [first, second] = times.read(x, n);
      const Vec<T> centre = c.transposed ? second : first;
      store(at, centre);
      store(at + product, (c.transposed ? first : times.read(x, n, -c.dilation).first) - centre);
      store(at + 2 * product, (c.transposed ? times.read(x, n, c.dilation).second : second) - centre);
    }
}

// y, of the first times and of the second, [2][kChunkRows][R] += the products of N rows, each summed up alone: sums of
// fewer terms are more exact.
template <class T, int N>
void pair_rows(const T* w, const T* a, int64_t columns, T* y) {
  constexpr int W = kLanes<T>, R = kTileRows<T>;
  T centre[N * R] = {};
  panel_rows<T, N>(w, a, columns, centre);
  for (int64_t p = 1; p <= 2; ++p, y += kChunkRows * R) {
    T own[N * R] = {};
    panel_rows<T, N>(w + p * columns * kChunkRows, a + p * columns * R, columns, own);
    for (int i = 0; i < N * R; i += W)
      store(y + i, load<Vec<T>>(y + i) + (load<Vec<T>>(centre + i) + load<Vec<T>>(own + i)));
  }
}

template <class T>
void pair_panel(const T* w, int64_t n, const T* a, int64_t columns, T* y) {
  constexpr int Rows = FK_VECTOR_REGISTERS >= 32 ? 8 : 4;
  for (; n >= Rows; n -= Rows, w += Rows, y += Rows * kTileRows<T>) pair_rows<T, Rows>(w, a, columns, y);
  if (n > 0) with_count<Rows - 1>(n, [&](auto count) { pair_rows<T, decltype(count)::value>(w, a, columns, y); });
}

// As store_outputs, of pairs.
template <class T, int Step>
void store_pairs(const Convolution& c, const PairTimes<T, Step>& times, const T* packed, const T* read, const T* bias,
                 const T* add, int64_t tiles, T* y) {
  constexpr int64_t W = kLanes<T>, R = kTileRows<T>;
  T sums[2][kChunkRows][R];
  for (int64_t o = 0; o < c.outputs; o += kChunkRows, packed += c.columns() * kChunkRows) {
    const int64_t rows = c.outputs - o < kChunkRows ? c.outputs - o : kChunkRows;
    const auto each = [&](int64_t n, auto f) {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t h = 0; h < 2; ++h) f(o + i, 2 * n + h, &sums[0][i][h * W], &sums[1][i][h * W]);
    };
    for (int64_t n = 0; n < tiles; ++n) {
      each(n, [&](int64_t output, int64_t vector, T* first, T* second) {
        times.template prefetch<1>(y + output * c.time, vector);
        const Vec<T> start = Vec<T>{} + (bias ? bias[output] : T(0));
        const Pair<T> with = add ? times.read(add + output * c.time, vector) : Pair<T>{};
        store(first, start + with.first);
        store(second, start + with.second);
      });
      pair_panel(packed, rows, read + n * c.columns() * R, c.inputs, &sums[0][0][0]);
      each(n, [&](int64_t output, int64_t vector, const T* first, const T* second) {
        times.write({load<Vec<T>>(first), load<Vec<T>>(second)}, vector, y + output * c.time);
      });
    }
  }
}

// The cotangents of a group at both times of the pairs of a turn, transposed, and their sum.
template <class T>
struct PairCotangents {
  Cotangents<T> first, second;
  T* sum;

  FK_INLINE PairCotangents(const Convolution& c, T*& scratch) : first(c, scratch), second(c, scratch), sum(scratch) {
    scratch += kTurnTiles * first.width * kTileRows<T>;
  }
  template <int Step>
  FK_INLINE void gather(const PairTimes<T, Step>& times, const T* from, int64_t tiles) const {
    constexpr int64_t W = kLanes<T>, R = kTileRows<T>;
    for (int64_t o = 0; o < first.channels; ++o, from += times.times)
      for (int64_t n = 0; n < 2 * tiles; ++n) {
        const int64_t at = o * R + n % 2 * W;
        times.prefetch(from, n + 2 * kTurnTiles);
        const Pair<T> p = times.read(from, n);
        store(first.tile(n / 2) + at, p.first);
        store(second.tile(n / 2) + at, p.second);
      }
    first.transpose(tiles);
    second.transpose(tiles);
    for (int64_t i = 0; i < tiles * first.width * R; i += W)
      store(sum + i, load<Vec<T>>(first.transposed + i) + load<Vec<T>>(second.transposed + i));
  }
};

}  // namespace flowkern::FK_ISA
