// The CPU kernels of causal convolutions as seen from csrc/ops: plain functions on raw pointers.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "flowkern/panel.h"

namespace flowkern {

constexpr int64_t kTurnTiles = 8;

// Tiles of a row, kTurnTiles of times or what is left of it, that a thread takes at a turn: a channel lies on pages of
// its own, of which a turn takes a piece. Where times are taken in pairs, `time` is the first pair, and tiles are of
// pairs.
struct Turn {
  int64_t row, time, tiles;
};

// y[b][o][t] = bias[o] + sum of w[o][i][j] x[b][i][t - (taps - 1 - j) dilation] over the inputs i of the group of o and
// the taps j; x is zero before its beginning. Arrays are contiguous, time last. `transposed` is the map of cotangents,
// in which time runs backwards: its inputs are the channels of y.
struct Convolution {
  int64_t batch, time;
  int64_t inputs, outputs;  // channels of a group
  int64_t groups, taps, dilation;
  bool transposed = false;
  bool paired = false;  // two outputs at a time, by fewer products: see pairs.h

  FK_ALWAYS_INLINE int64_t columns() const { return (paired ? taps + 1 : taps) * inputs; }  // what products read
  FK_ALWAYS_INLINE int64_t chunks() const { return (outputs + kChunkRows - 1) / kChunkRows; }
  FK_ALWAYS_INLINE int64_t packed_size() const { return groups * chunks() * columns() * kChunkRows; }
  FK_ALWAYS_INLINE int64_t weights() const { return groups * outputs * taps * inputs; }
  FK_ALWAYS_INLINE int64_t work() const { return batch * time * weights(); }  // multiply-adds without pairs
  // What lies in the lanes: times; or pairs of them, whose first times are every other `dilation` times.
  FK_ALWAYS_INLINE int64_t lanes() const {
    if (!paired) return time;
    const int64_t rest = time % (2 * dilation);
    return (time - rest) / 2 + (rest < dilation ? rest : dilation);
  }
  FK_ALWAYS_INLINE int64_t turn_tiles() const { return paired ? kTurnTiles / 2 : kTurnTiles; }
  FK_ALWAYS_INLINE int64_t row_turns(int64_t tile) const {
    return (lanes() + tile * turn_tiles() - 1) / (tile * turn_tiles());
  }
  FK_ALWAYS_INLINE int64_t turns(int64_t tile) const { return batch * row_turns(tile); }
  FK_ALWAYS_INLINE Turn turn(int64_t i, int64_t tile) const {
    const int64_t begin = i % row_turns(tile) * tile * turn_tiles(), tiles = whole_tiles(lanes() - begin, tile) / tile;
    return {i / row_turns(tile), begin, tiles < turn_tiles() ? tiles : turn_tiles()};
  }
  FK_ALWAYS_INLINE Convolution transpose() const {
    return {batch, time, outputs, inputs, groups, taps, dilation, !transposed};
  }
  // In pairs where that pays: vectors hold whole ones, and there are enough products to one that is read or stored.
  FK_ALWAYS_INLINE Convolution pairs(int64_t vector) const {
    const bool whole = dilation < vector ? vector % dilation == 0 : dilation % vector == 0;
    Convolution c = *this;
    c.paired = (taps == 2 || taps == 3) && whole && inputs >= 32 && outputs >= 32 && time >= 8 * dilation &&
               time >= 16 * vector;
    return c;
  }
};

// A layer of a WaveNet: four convolutions, of which all but the gate have one tap, with their packed weights. Those of
// residual and skip read u = tanh(a) sigmoid(b), where (a, b) is the sum of what gate and condition put out.
template <class T>
struct WaveNetLayer {
  Convolution gate, condition, residual, skip;  // without inputs where there is no condition
  const T *gate_weight, *condition_weight, *residual_weight, *skip_weight;
  const T *gate_bias, *residual_bias, *skip_bias;
  int64_t gate_bias_stride;            // from row to row of the batch
  const T *x, *condition_x, *skips;    // [batch][channels][time]; no skips before the first layer
  T *y = nullptr, *y_skips = nullptr;  // what the next layer reads

  FK_ALWAYS_INLINE int64_t work() const { return gate.work() + condition.work() + residual.work() + skip.work(); }
};

// What the gradients of a convolution's parameters are made of: the products of every part, as in weight_gradient, and,
// unless it is null, of every turn the sums of the cotangents over its times, [turn][outputs in whole tiles].
template <class T>
struct ParameterSums {
  T *products, *biases;
};

// A layer and its cotangents. The weights of residual and skip are packed for transposed convolutions.
template <class T>
struct WaveNetLayerBackward {
  WaveNetLayer<T> layer;
  const T *g_y, *g_skips;
  T* g_z;                                            // that of (a, b)
  ParameterSums<T> gate, condition, residual, skip;  // null where nobody wants them
};

// A tile is `tile` times of all channels of one row of the batch, a time in each lane.
template <class T>
struct ConvolutionKernels {
  int64_t tile;

  // weight is [groups][outputs][inputs][taps], or with inputs and outputs exchanged where the convolution is
  // transposed; packed is [groups][chunks][columns][kChunkRows], of which one chunk is written.
  void (*pack)(const Convolution&, const T* weight, T* packed, int64_t chunk);

  // `bias` may be null, and so may `add`, an addend like y. Scratch: read_scratch(...).
  void (*causal_conv1d)(const Convolution&, const T* x, const T* packed, const T* bias, const T* add, T* y, Turn,
                        T* scratch);

  // The products over the turns [begin, end) of all rows that make the gradient of the weights: sums is
  // gradient_sums(...) elements; scratch is gradient_scratch(...).
  void (*weight_gradient)(const Convolution&, const T* x, const T* g_y, int64_t begin, int64_t end, T* sums,
                          T* scratch);
  // The gradient of the weights of one column of one group, from the sums of several parts.
  void (*unpack)(const Convolution&, const T* sums, int64_t parts, int64_t column, T* g_weight);
  // The sum over batch and time of one channel.
  void (*bias_gradient)(const Convolution&, const T* g_y, int64_t output, T* g_bias);
  // The sum of the numbers that some turns left, `stride` apart.
  T (*sum_of_turns)(const T* sums, int64_t turns, int64_t stride);

  // A turn; the turns [begin, end) of all rows, which are a part. Scratch: layer_scratch(...),
  // layer_backward_scratch(...).
  void (*wavenet_layer)(const WaveNetLayer<T>&, Turn, T* scratch);
  void (*wavenet_layer_backward)(const WaveNetLayerBackward<T>&, int64_t part, int64_t begin, int64_t end, T* scratch);

  // One time of one row: x [channels] joins the ring `state` [channels][(taps - 1) dilation]. Scratch:
  // [channels][taps].
  void (*causal_conv1d_update)(const Convolution&, const T* x, T* state, int64_t step, const T* weight, const T* bias,
                               T* y, T* scratch);
};

// [groups][columns][outputs], the last in whole tiles.
FK_ALWAYS_INLINE inline int64_t gradient_sums(const Convolution& c, int64_t tile) {
  return c.groups * c.columns() * whole_tiles(c.outputs, tile);
}
// What a convolution reads in a turn; the cotangents of what it puts out, and those of one tile of channels transposed.
FK_ALWAYS_INLINE inline int64_t read_scratch(const Convolution& c, int64_t tile) {
  return c.turn_tiles() * c.columns() * tile;
}
FK_ALWAYS_INLINE inline int64_t cotangents_size(const Convolution& c, int64_t tile) {
  return kTurnTiles * (whole_tiles(c.outputs, tile) + (c.paired ? 2 : 1) * tile) * tile;
}
FK_ALWAYS_INLINE inline int64_t gradient_scratch(const Convolution& c, int64_t tile) {
  return read_scratch(c, tile) + cotangents_size(c, tile);
}

template <class T>
FK_ALWAYS_INLINE inline int64_t layer_read_scratch(const WaveNetLayer<T>& n, int64_t tile) {  // skip reads u
  return read_scratch(n.gate, tile) + read_scratch(n.condition, tile) + read_scratch(n.skip, tile);
}
template <class T>
FK_ALWAYS_INLINE inline int64_t layer_scratch(const WaveNetLayer<T>& n, int64_t tile) {
  return layer_read_scratch(n, tile) + 2 * n.gate.outputs * tile;
}
template <class T>
FK_ALWAYS_INLINE inline int64_t layer_backward_scratch(const WaveNetLayer<T>& n, int64_t tile) {
  return layer_read_scratch(n, tile) + cotangents_size(n.gate, tile) + cotangents_size(n.residual, tile) +
         cotangents_size(n.skip, tile) + n.residual.inputs * tile;
}

}  // namespace flowkern

FK_KERNELS(ConvolutionKernels, convolution_kernels)
