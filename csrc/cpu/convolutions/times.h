// Where in time the tiles of a turn lie, and copies to and from there.
#pragma once

#include "cpu/convolutions/kernels.h"
#include "flowkern/simd.h"

namespace flowkern::FK_ISA {

// A vector of x from a time on, zero outside of the sequence.
template <class T>
__attribute__((noinline, pure)) Vec<T> vector_at_an_end(const T* x, int64_t time, int64_t times) {
  Vec<T> v = {};
  for (int i = 0; i < kLanes<T>; ++i)
    if (time + i >= 0 && time + i < times) v[i] = x[time + i];
  return v;
}
template <class T>
FK_INLINE Vec<T> vector_at(const T* x, int64_t time, int64_t times) {
  return time >= 0 && time + kLanes<T> <= times ? load<Vec<T>>(x + time) : vector_at_an_end(x, time, times);
}

template <class T>
FK_INLINE void store_at(Vec<T> v, int64_t time, int64_t times, T* y) {
  if (time + kLanes<T> <= times)
    store(y + time, v);
  else if (time < times)
    store_part(y + time, v, times - time);
}

constexpr int kInOrder = -1;

// What lies at the times of a vector of lanes: in order they are times, else pairs of a time and its other, a dilation
// later.
template <class T, int Order>
struct Lanes {
  static constexpr int kTimes = Order == kInOrder ? 1 : 2;
  Vec<T> at[kTimes];
};

// The times of a turn. Its tiles are of lanes: of times or of pairs. The latter make two tiles of times each; those of
// the first times come first, as many of the others after them.
template <class T>
struct Times {
  static constexpr int64_t W = kLanes<T>;
  bool paired;
  int64_t dilation, times;             // times of the sequence
  int64_t lane_tiles, tiles;           // of lanes, of times
  int64_t second;                      // from the first of the two vectors in memory that are a vector of pairs
  int64_t starts[2 * kTurnTiles + 2];  // in memory, of the vectors of this turn and of a tile after it

  FK_INLINE Times(const Convolution& c, Turn turn)
      : paired(c.paired),
        dilation(c.dilation),
        times(c.time),
        lane_tiles(turn.tiles),
        tiles(c.paired ? 2 * turn.tiles : turn.tiles),
        second(dilation < W ? W : dilation) {
    for (int64_t v = 0; v < 2 * lane_tiles + 2; ++v) {
      const int64_t lane = turn.time + v * W;
      starts[v] = !paired ? lane : dilation < W ? 2 * lane : lane / dilation * 2 * dilation + lane % dilation;
      if (lane >= c.lanes()) starts[v] = times + 2 * dilation;
    }
  }
  // Calls f with the order as a constant: kInOrder; of pairs the dilation where it is less than a vector, else 0.
  template <int Step = kLanes<T> / 2, class F>
  FK_INLINE void with_order(F f) const {
    if (!paired) return f(std::integral_constant<int, kInOrder>{});
    if (dilation == Step) return f(std::integral_constant<int, Step>{});
    if constexpr (Step > 1)
      with_order<Step / 2>(f);
    else
      f(std::integral_constant<int, 0>{});
  }
  // Two vectors in memory are two vectors of pairs with their lanes exchanged, and the other way round.
  template <int Order>
  static FK_INLINE Lanes<T, Order> exchange(Lanes<T, Order> v) {
    using Indices = std::make_integer_sequence<int, kLanes<T>>;
    if constexpr (Order <= 0)
      return v;
    else
      return {detail::interleave_low<Order>(v.at[0], v.at[1], Indices{}),
              detail::interleave_high<Order>(v.at[0], v.at[1], Indices{})};
  }
  // x at the times of a vector, `lag` later.
  template <int Order>
  FK_INLINE Lanes<T, Order> read(const T* x, int64_t vector, int64_t lag = 0) const {
    Lanes<T, Order> v;
    for (int k = 0; k < v.kTimes; ++k) v.at[k] = vector_at(x, starts[vector] + lag + k * second, times);
    return exchange(v);
  }
  template <int Order>
  FK_INLINE void write(Lanes<T, Order> v, int64_t vector, T* y) const {
    v = exchange(v);
    for (int k = 0; k < v.kTimes; ++k) store_at(v.at[k], starts[vector] + k * second, times, y);
  }
  // A channel is on pages of its own, where no hardware looks ahead.
  template <int Order, int Write = 0, class N>
  FK_INLINE void prefetch(N* x, int64_t vector) const {
    for (int k = 0; k < Lanes<T, Order>::kTimes; ++k) __builtin_prefetch(x + starts[vector] + k * second, Write);
  }
};

constexpr int64_t kAhead = 4;  // channels that are asked for while others are copied

// Some channels at the times of a turn, or `lag` later, to [tile][channel][R] where the tiles lie `stride` apart.
template <class T>
void gather(const Times<T>& times, const T* from, int64_t channels, int64_t lag, T* to, int64_t stride) {
  constexpr int64_t W = kLanes<T>, R = kTileRows<T>;
  times.with_order([&](auto order) {
    const T* x = from;
    for (int64_t i = 0; i < channels; ++i, x += times.times)
      for (int64_t v = 0; v < 2 * times.lane_tiles; ++v) {
        times.template prefetch<order>(x + lag + kAhead * times.times, v);
        const auto lanes = times.template read<order>(x, v, lag);
        for (int k = 0; k < lanes.kTimes; ++k)
          store(to + (k * times.lane_tiles + v / 2) * stride + i * R + v % 2 * W, lanes.at[k]);
      }
  });
}

// The channels of such tiles to where they belong.
template <class T>
void scatter(const Times<T>& times, const T* from, int64_t stride, int64_t channels, T* to) {
  constexpr int64_t W = kLanes<T>, R = kTileRows<T>;
  times.with_order([&](auto order) {
    T* y = to;
    for (int64_t i = 0; i < channels; ++i, y += times.times)
      for (int64_t v = 0; v < 2 * times.lane_tiles; ++v) {
        Lanes<T, order> lanes;
        for (int k = 0; k < lanes.kTimes; ++k)
          lanes.at[k] = load<Vec<T>>(from + (k * times.lane_tiles + v / 2) * stride + i * R + v % 2 * W);
        times.template write<order>(lanes, v, y);
      }
  });
}

}  // namespace flowkern::FK_ISA
