// Masked network, univariate map and log-determinant in one pass, on one tile.
#pragma once

#include "cpu/masked_networks/masked_network_backward.h"

namespace flowkern::FK_ISA {

// `state` and `next` are [feature][R]; the log-determinants are added to `log_det` [R].
template <class T, int R>
void autoregressive(const ChainStep<T>& step, TileRows rows, const T* state, const T* context, T* next, double* log_det,
                    T* kept, T* scratch) {
  const PlanView& plan = step.net.plan;
  Tile<T, R> tile(step.net, rows, context, scratch, kept);
  gather_rows<T, R>(state, step.order, plan.features(), tile.x);
  tile.forward();
  step.map.kernels->forward[kTileKind<T, R>](step.map.map, plan.features(), tile.x, tile.out, tile.y, log_det);
  scatter_rows<T, R>(tile.y, plan.feature_order(), plan.features(), next);
}

// From the cotangent g [feature][R] of the next state to that of the state; both may be one buffer.
template <class T>
void autoregressive_backward(const ChainStep<T>& step, TileRows rows, const T* state, const T* context,
                             const NetworkBackward<T>& in, const T* g, const T* g_log_det, T* g_state, T* g_context,
                             T* scratch) {
  constexpr int R = kTileRows<T>;
  const PlanView& plan = step.net.plan;
  TileGradient<T> tile(step.net, rows, state, step.order, context, in, scratch);
  gather_rows<T, R>(g, plan.feature_order(), plan.features(), tile.value);
  step.map.kernels->backward(step.map.map, plan.features(), tile.x, tile.out, tile.value, g_log_det, tile.g_x,
                             tile.delta_out);
  tile.backward();
  scatter_rows<T, R>(tile.g_x, step.order, plan.features(), g_state);
  if (g_context) tile.add_context_cotangent(g_context);
  tile.emit();
}

}  // namespace flowkern::FK_ISA
