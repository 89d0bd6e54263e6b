// A whole masked network: x -> parameters of every feature.
#include "cpu/masked_networks/masked_network_backward.h"

namespace flowkern::FK_ISA {

template <class T, int R>
void masked_mlp(const MaskedNetwork<T>& net, Matrix<const T> x, Matrix<const T> context, T* parameters, T* saved,
                int64_t index, T* scratch) {
  const PlanView& plan = net.plan;
  const TileRows rows(index, R, net.batch);
  const LinearView last = plan.linear(plan.network_linears() - 1);
  T* conditions = scratch;
  scratch += plan.context() * R;
  gather<T, R>(context, rows, nullptr, plan.context(), conditions);
  Tile<T, R> tile(net, rows, conditions, scratch, saved ? saved + index * plan.saved_rows() * R : nullptr);
  gather<T, R>(x, rows, plan.feature_order(), plan.features(), tile.x);
  tile.forward();
  scatter<T, R>(tile.out, rows, last.row_order(), last.rows(), {parameters, last.original_rows(), 1});
}

template <class T>
void masked_mlp_backward(const MaskedNetwork<T>& net, Matrix<const T> x, Matrix<const T> context,
                         const NetworkBackward<T>& in, Matrix<const T> g, Matrix<T> g_x, Matrix<T> g_context,
                         int64_t index, T* scratch) {
  constexpr int R = kTileRows<T>;
  const PlanView& plan = net.plan;
  const TileRows rows(index, R, net.batch);
  const LinearView last = plan.linear(plan.network_linears() - 1);
  T *state = scratch, *conditions = state + plan.features() * R, *g_conditions = conditions + plan.context() * R;
  scratch = g_conditions + plan.context() * R;
  gather<T, R>(x, rows, nullptr, plan.features(), state);
  gather<T, R>(context, rows, nullptr, plan.context(), conditions);
  TileGradient<T> tile(net, rows, state, plan.feature_order(), conditions, in, scratch);
  gather_cotangents(g, rows, last.row_order(), last.rows(), tile.delta_out);
  tile.backward();
  scatter<T, R>(tile.g_x, rows, plan.feature_order(), plan.features(), g_x);
  if (g_context.data) {
    __builtin_memset(g_conditions, 0, plan.context() * R * sizeof(T));
    tile.add_context_cotangent(g_conditions);
    scatter<T, R>(g_conditions, rows, nullptr, plan.context(), g_context);
  }
  tile.emit();
}

#define FK_FORWARD(T, R) \
  template void masked_mlp<T, R>(const MaskedNetwork<T>&, Matrix<const T>, Matrix<const T>, T*, T*, int64_t, T*);
#define FK_INSTANTIATE(T)                                                                         \
  FK_FORWARD(T, 1)                                                                                \
  FK_FORWARD(T, kSmallRows<T>)                                                                    \
  FK_FORWARD(T, kTileRows<T>)                                                                     \
  template void masked_mlp_backward<T>(const MaskedNetwork<T>&, Matrix<const T>, Matrix<const T>, \
                                       const NetworkBackward<T>&, Matrix<const T>, Matrix<T>, Matrix<T>, int64_t, T*);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
