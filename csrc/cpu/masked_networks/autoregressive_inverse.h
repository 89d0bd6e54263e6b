// The exact inverse of `autoregressive` in one degree-ordered sweep, and its gradient in one reverse sweep, on one
// tile.
#pragma once

#include "cpu/masked_networks/masked_network_backward.h"

namespace flowkern::FK_ISA {

// `state` and `next` are [feature][R]; the log-determinants are added to `log_det` [R].
template <class T, int R>
void autoregressive_inverse(const ChainStep<T>& step, TileRows rows, const T* state, const T* context, T* next,
                            double* log_det, T* kept, T* scratch) {
  const PlanView& plan = step.net.plan;
  const int64_t parameters = plan.parameters();
  Tile<T, R> tile(step.net, rows, context, scratch, kept);
  gather_rows<T, R>(state, step.order, plan.features(), tile.y);
  tile.sweep([&](int64_t first, int64_t last) {
    step.map.kernels->inverse[kTileKind<T, R>](step.map.map, last - first, tile.y + first * R,
                                               tile.out + first * parameters * R, tile.x + first * R, log_det);
  });
  scatter_rows<T, R>(tile.x, plan.feature_order(), plan.features(), next);
}

// With x = f^-1(z), J = dz/dx and cotangents g of x and gl of log|det dx/dz|: the cotangent v of z solves
// J^T v = g + gl dl/dx, and the parameters receive those of the density pass f for the cotangents (-v, -gl). So the
// density's backward pass is run from the last level to the first, choosing v such that it would return -g for x.
// `next` is x [feature][R], g its cotangent, g_state becomes that of z; both may be one buffer.
template <class T>
void autoregressive_inverse_backward(const ChainStep<T>& step, TileRows rows, const T* next, const T* context,
                                     const NetworkBackward<T>& in, const T* g, const T* g_log_det, T* g_state,
                                     T* g_context, T* scratch) {
  constexpr int R = kTileRows<T>;
  const PlanView& plan = step.net.plan;
  const int64_t features = plan.features(), parameters = plan.parameters();
  TileGradient<T> tile(step.net, rows, next, plan.feature_order(), context, in, scratch);
  alignas(64) T minus_g_log_det[R];
  for (int r = 0; r < R; ++r) minus_g_log_det[r] = -g_log_det[r];
  gather_rows<T, R>(g, plan.feature_order(), features, tile.value);
  tile.sweep([&](int64_t first, int64_t last) {
    const int64_t at = first * R, row = at * parameters;
    step.map.kernels->inverse_backward(step.map.map, last - first, tile.x + at, tile.out + row, tile.value + at,
                                       tile.g_x + at, minus_g_log_det, tile.value + at, tile.delta_out + row);
  });
  scatter_rows<T, R>(tile.value, step.order, features, g_state);
  if (g_context) tile.add_context_cotangent(g_context);
  tile.emit();
}

}  // namespace flowkern::FK_ISA
