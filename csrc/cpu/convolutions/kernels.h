// The CPU kernels of causal convolutions as seen from csrc/ops: plain functions on raw pointers.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "flowkern/panel.h"

namespace flowkern {

// y[b][o][t] = bias[o] + sum of w[o][i][j] x[b][i][t - (taps - 1 - j) dilation] over the inputs i of the group of o and
// the taps j; x is zero before its beginning. Arrays are contiguous, time last. `transposed` is the map of cotangents,
// in which time runs backwards: its inputs are the channels of y.
struct Convolution {
  int64_t batch, time;
  int64_t inputs, outputs;  // channels of a group
  int64_t groups, taps, dilation;
  bool transposed = false;

  FK_ALWAYS_INLINE int64_t columns() const { return taps * inputs; }  // what an output reads: [taps][inputs]
  FK_ALWAYS_INLINE int64_t chunks() const { return (outputs + kChunkRows - 1) / kChunkRows; }
  FK_ALWAYS_INLINE int64_t packed_size() const { return groups * chunks() * columns() * kChunkRows; }
  FK_ALWAYS_INLINE int64_t weights() const { return groups * outputs * columns(); }
  FK_ALWAYS_INLINE Convolution transpose() const {
    return {batch, time, outputs, inputs, groups, taps, dilation, !transposed};
  }
};

// A tile is `tile` times of all channels of one row of the batch, a time in each lane.
template <class T>
struct ConvolutionKernels {
  int64_t tile;

  // weight is [groups][outputs][inputs][taps], or with inputs and outputs exchanged where the convolution is
  // transposed; packed is [groups][chunks][columns][kChunkRows], of which one chunk is written.
  void (*pack)(const Convolution&, const T* weight, T* packed, int64_t chunk);

  // The tile that begins at `time`. `bias` may be null. Scratch: columns + kChunkRows tiles.
  void (*causal_conv1d)(const Convolution&, const T* x, const T* packed, const T* bias, T* y, int64_t row, int64_t time,
                        T* scratch);

  // The products over the tiles [begin, end) of all rows that make the gradient of the weights: sums is
  // gradient_sums(...) elements; scratch is gradient_scratch(...).
  void (*weight_gradient)(const Convolution&, const T* x, const T* g_y, int64_t begin, int64_t end, T* sums,
                          T* scratch);
  // The gradient of the weights of one output channel, from the sums of several parts.
  void (*unpack)(const Convolution&, const T* sums, int64_t parts, int64_t output, T* g_weight);
  // The sum over batch and time of one channel.
  void (*bias_gradient)(const Convolution&, const T* g_y, int64_t output, T* g_bias);

  // One time of one row: x [channels] joins the ring `state` [channels][(taps - 1) dilation]. Scratch:
  // [channels][taps].
  void (*causal_conv1d_update)(const Convolution&, const T* x, T* state, int64_t step, const T* weight, const T* bias,
                               T* y, T* scratch);
};

constexpr int64_t kTurnTiles = 8;  // that a thread takes at a turn

FK_ALWAYS_INLINE inline int64_t whole_tiles(int64_t n, int64_t tile) { return (n + tile - 1) / tile * tile; }
// [groups][columns][outputs], the last in whole tiles.
FK_ALWAYS_INLINE inline int64_t gradient_sums(const Convolution& c, int64_t tile) {
  return c.groups * c.columns() * whole_tiles(c.outputs, tile);
}
FK_ALWAYS_INLINE inline int64_t gradient_scratch(const Convolution& c, int64_t tile) {
  const int64_t outputs = whole_tiles(c.outputs, tile);
  return (kTurnTiles * (outputs + c.columns()) + outputs) * tile;
}

}  // namespace flowkern

FK_KERNELS(ConvolutionKernels, convolution_kernels)
