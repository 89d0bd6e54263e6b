// A coupling: some features pass, and are read, with the context, by a network that gives the parameters of the others.
// Both directions are one pass, and no feature waits for another.
#pragma once

#include "cpu/masked_networks/masked_network_backward.h"

namespace flowkern::FK_ISA {

// What is read and is not finite shows in its row: an infinite number may vanish in the network.
template <class T, int R>
void add_zero_if_finite(const T* x, int64_t n, double* log_det) {
  for (int64_t i = 0; i < n; ++i)
    for (int r = 0; r < R; ++r) log_det[r] += x[i * R + r] - x[i * R + r];
}

// `state` and `next` are [feature][R]; the log-determinants are added to `log_det` [R].
template <class T, int R, bool Inverse>
void coupling(const ChainStep<T>& step, TileRows rows, const T* state, const T* context, T* next, double* log_det,
              T* kept, T* scratch) {
  const int64_t n = step.net.plan.features(), passing = step.passing;
  const int64_t *from = step.order, *to = step.order + n + passing;
  Tile<T, R> tile(step.net, rows, context, scratch, kept, state, from + n, passing);
  add_zero_if_finite<T, R>(tile.x - passing * R, passing, log_det);
  scatter_rows<T, R>(tile.x - passing * R, to + n, passing, next);
  gather_rows<T, R>(state, from, n, tile.x);
  tile.forward();
  const auto& kernels = *step.map.kernels;
  const auto map = (Inverse ? kernels.inverse : kernels.forward)[kTileKind<T, R>];
  map(step.map.map, n, tile.x, tile.out, tile.y, log_det);
  scatter_rows<T, R>(tile.y, to, n, next);
}

// From the cotangent g [feature][R] of the next state to that of the state; both may be one buffer.
template <class T, bool Inverse>
void coupling_backward(const ChainStep<T>& step, TileRows rows, const T* state, const T* context,
                       const NetworkBackward<T>& in, const T* g, const T* g_log_det, T* g_state, T* g_context,
                       T* scratch) {
  constexpr int R = kTileRows<T>;
  const int64_t n = step.net.plan.features(), passing = step.passing;
  const int64_t *from = step.order, *to = step.order + n + passing;
  TileGradient<T> tile(step.net, rows, state, from, context, in, scratch, passing);
  gather_rows<T, R>(g, to, n, tile.value);
  if constexpr (Inverse) {
    alignas(64) T minus_g_log_det[R];
    for (int r = 0; r < R; ++r) minus_g_log_det[r] = -g_log_det[r];
    step.map.kernels->backward_of_inverse(step.map.map, n, tile.x, tile.out, tile.value, tile.g_x, minus_g_log_det,
                                          tile.g_x, tile.delta_out);
  } else {
    step.map.kernels->backward(step.map.map, n, tile.x, tile.out, tile.value, g_log_det, tile.g_x, tile.delta_out);
  }
  tile.backward();
  tile.add_context_cotangent(g_context);
  for (int64_t i = 0; i < passing; ++i)
    for (int r = 0; r < R; ++r) tile.g_passing[i * R + r] += g[to[n + i] * R + r];
  scatter_rows<T, R>(tile.g_x, from, n, g_state);
  scatter_rows<T, R>(tile.g_passing, from + n, passing, g_state);
  tile.emit();
}

}  // namespace flowkern::FK_ISA
