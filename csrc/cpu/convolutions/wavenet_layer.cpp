// A layer of a WaveNet: of a tile of times all that it computes is in the cache, so that one pass over memory does it.
// The lanes are times, or pairs of them where that spares products of the gate.
#include "cpu/convolutions/tiles.h"
#include "cpu/gate.h"

namespace flowkern::FK_ISA {

// What the gate and the condition read in a turn, [tile][columns][R].
template <class T>
void gather_inputs(const WaveNetLayer<T>& n, const Times<T>& times, int64_t row, T* read, T* condition) {
  gather_taps(n.gate, times, n.x + row * n.gate.inputs * n.gate.time, read);
  if (n.condition.inputs > 0)
    gather_taps(n.condition, times, n.condition_x + row * n.condition.inputs * n.gate.time, condition);
}

// (a, b) in one of its tiles, of times or of pairs; the two of the latter lie `second` apart.
template <class T>
void gate_product(const WaveNetLayer<T>& n, const Times<T>& times, int64_t row, int64_t tile, const T* read,
                  const T* condition, T* z, int64_t second) {
  constexpr int64_t R = kTileRows<T>;
  const T* bias = n.gate_bias + row * n.gate_bias_stride;
  for (int64_t k = 0; k < times.tiles; k += times.lane_tiles)
    for (int64_t i = 0; i < n.gate.outputs; ++i)
      for (int64_t r = 0; r < R; ++r) z[(k > 0 ? second : 0) + i * R + r] = bias[i];
  add_all_outputs(n.gate, times, n.gate_weight, read, tile, z, second);
  if (n.condition.inputs > 0) add_all_outputs(n.condition, times, n.condition_weight, condition, tile, z, second);
}

template <class T>
void wavenet_layer(const WaveNetLayer<T>& n, Turn turn, T* scratch) {
  constexpr int64_t R = kTileRows<T>;
  const Times<T> times(n.gate, turn);
  const int64_t half = n.residual.inputs * R, y = turn.row * n.residual.outputs * n.gate.time,
                skips = turn.row * n.skip.outputs * n.gate.time;
  T *read = scratch, *condition = read + read_scratch(n.gate, R), *u = condition + read_scratch(n.condition, R),
    *z = u + read_scratch(n.skip, R);
  gather_inputs(n, times, turn.row, read, condition);
  for (int64_t tile = 0; tile < times.lane_tiles; ++tile) {
    gate_product(n, times, turn.row, tile, read, condition, z, 2 * half);
    for (int64_t to = tile, from = 0; to < times.tiles; to += times.lane_tiles, from += 2 * half)
      for (int64_t i = 0; i < half; i += kLanes<T>)
        store(u + to * half + i, gated(load<Vec<T>>(z + from + i), load<Vec<T>>(z + from + half + i)));
  }
  store_outputs(n.residual, times, n.residual_weight, u, n.residual_bias, n.x + y, n.y + y);
  store_outputs(n.skip, times, n.skip_weight, u, n.skip_bias, n.skips ? n.skips + skips : nullptr, n.y_skips + skips);
}

// From (a, b) and the cotangent of u: u, and over (a, b) its cotangent.
template <class T>
void gate_backward(int64_t half, const T* g_u, T* z, T* u) {
  for (int64_t i = 0; i < half; i += kLanes<T>) {
    const Gate<T> g = gate(load<Vec<T>>(z + i), load<Vec<T>>(z + half + i));
    const Vec<T> value = g.tanh * g.sigmoid, cotangent = load<Vec<T>>(g_u + i);
    store(u + i, value);
    store(z + i, cotangent * (1 - g.tanh * g.tanh) * g.sigmoid);
    store(z + half + i, cotangent * value * (1 - g.sigmoid));
  }
}

template <class T>
void wavenet_layer_backward(const WaveNetLayerBackward<T>& b, int64_t part, int64_t begin, int64_t end, T* scratch) {
  constexpr int64_t R = kTileRows<T>;
  const WaveNetLayer<T>& n = b.layer;
  const int64_t sequence = n.gate.time, half = n.residual.inputs * R;
  const Cotangents<T> z(n.gate, scratch), residual(n.residual, scratch), skip(n.skip, scratch);
  T *read = scratch, *condition = read + read_scratch(n.gate, R), *u = condition + read_scratch(n.condition, R),
    *g_u = u + read_scratch(n.skip, R);
  for (int64_t i = begin; i < end; ++i) {
    const Turn turn = n.gate.turn(i, R);
    const Times<T> times(n.gate, turn);
    gather_inputs(n, times, turn.row, read, condition);
    residual.gather_from(times, b.g_y + turn.row * residual.channels * sequence);
    skip.gather_from(times, b.g_skips + turn.row * skip.channels * sequence);
    for (int64_t tile = 0; tile < times.lane_tiles; ++tile)
      gate_product(n, times, turn.row, tile, read, condition, z.tile(tile), times.lane_tiles * z.width * R);
    for (int64_t tile = 0; tile < times.tiles; ++tile) {
      for (int64_t j = 0; j < half; ++j) g_u[j] = 0;
      add_product(n.residual.transpose(), n.residual_weight, residual.tile(tile), g_u);
      add_product(n.skip.transpose(), n.skip_weight, skip.tile(tile), g_u);
      gate_backward(half, g_u, z.tile(tile), u + tile * half);
    }
    scatter(times, z.tiles, z.width * R, z.channels, b.g_z + turn.row * z.channels * sequence);
    if (!b.gate.products) continue;
    const auto products = [&](const Convolution& c, const Cotangents<T>& g, const T* x, const ParameterSums<T>& to) {
      add_weight_gradient(c, times, i == begin, g, x, to.products + part * gradient_sums(c, R),
                          to.biases ? to.biases + i * g.width : nullptr);
    };
    products(n.gate, z, read, b.gate);
    if (n.condition.inputs > 0) products(n.condition, z, condition, b.condition);
    products(n.residual, residual, u, b.residual);
    products(n.skip, skip, u, b.skip);
  }
}

#define FK_INSTANTIATE(T)                                           \
  template void wavenet_layer<T>(const WaveNetLayer<T>&, Turn, T*); \
  template void wavenet_layer_backward<T>(const WaveNetLayerBackward<T>&, int64_t, int64_t, int64_t, T*);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
