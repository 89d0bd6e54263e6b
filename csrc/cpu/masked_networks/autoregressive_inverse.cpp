// The exact inverse of `autoregressive` in one degree-ordered sweep, and its gradient in one reverse sweep.
#include "cpu/masked_networks/masked_network_backward.h"

namespace flowkern::FK_ISA {

template <class T, int R>
void autoregressive_inverse(const MaskedNetwork<T>& net, const Map<T>& map, Matrix<const T> z, T* x, T* log_det,
                            T* saved, int64_t index, T* scratch) {
  Tile<T, R> tile(net, index, scratch, saved);
  const int64_t features = net.plan.features(), parameters = net.plan.parameters();
  tile.gather(z, net.plan.feature_order(), features, tile.y);
  alignas(64) double sum[R] = {};
  tile.sweep([&](int64_t first, int64_t last) {
    map.kernels->inverse[kTileKind<T, R>](map.map, last - first, tile.y + first * R, tile.out + first * parameters * R,
                                          tile.x + first * R, sum);
  });
  tile.scatter(tile.x, net.plan.feature_order(), features, {x, features, 1});
  for (int64_t r = 0; r < tile.rows(); ++r) log_det[tile.first_row() + r] = static_cast<T>(sum[r]);
}

// With x = f^-1(z), J = dz/dx and cotangents g of x and gl of log|det dx/dz|: the cotangent v of z solves
// J^T v = g + gl dl/dx, and the parameters receive those of the density pass f for the cotangents (-v, -gl). So the
// density's backward pass is run from the last level to the first, choosing v such that it would return -g for x.
template <class T>
void autoregressive_inverse_backward(const MaskedNetwork<T>& net, const Map<T>& map, const TileBackward<T>& in,
                                     int64_t index, T* scratch) {
  TileGradient<T> tile(net, in, index, scratch);
  constexpr int R = TileGradient<T>::R;
  const int64_t features = net.plan.features(), parameters = net.plan.parameters(), first_column = 0;
  alignas(64) T g_log_det[R];
  tile.gather(in.g_value, net.plan.feature_order(), features, tile.value);
  tile.gather(in.g_log_det, &first_column, 1, g_log_det);
  for (int r = 0; r < R; ++r) g_log_det[r] = -g_log_det[r];
  tile.sweep([&](int64_t first, int64_t last) {
    const int64_t at = first * R, row = at * parameters;
    map.kernels->inverse_backward(map.map, last - first, tile.x + at, tile.out + row, tile.value + at, tile.g_x + at,
                                  g_log_det, tile.value + at, tile.delta_out + row);
  });
  tile.scatter(tile.value, net.plan.feature_order(), features, in.g_x);
  tile.emit();
}

#define FK_INSTANTIATE(T)                                                                                             \
  template void autoregressive_inverse<T, 1>(const MaskedNetwork<T>&, const Map<T>&, Matrix<const T>, T*, T*, T*,     \
                                             int64_t, T*);                                                            \
  template void autoregressive_inverse<T, kSmallRows<T>>(const MaskedNetwork<T>&, const Map<T>&, Matrix<const T>, T*, \
                                                         T*, T*, int64_t, T*);                                        \
  template void autoregressive_inverse<T, kTileRows<T>>(const MaskedNetwork<T>&, const Map<T>&, Matrix<const T>, T*,  \
                                                        T*, T*, int64_t, T*);                                         \
  template void autoregressive_inverse_backward<T>(const MaskedNetwork<T>&, const Map<T>&, const TileBackward<T>&,    \
                                                   int64_t, T*);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
