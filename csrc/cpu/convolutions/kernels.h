// The CPU kernels of causal convolutions as seen from csrc/ops: plain functions on raw pointers.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/matrix.h"
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

// A matrix of a network that is applied to one time of a few rows: panels of `tile` output rows,
// [panels][columns][tile]. Of a gated one a panel is a vector of rows of the first half, then the same of the second.
template <class T>
struct PanelMatrix {
  int64_t rows, columns;
  bool gated;
  T *panels, *bias;  // bias [panels][tile]

  FK_ALWAYS_INLINE int64_t count(int64_t tile) const { return (rows + tile - 1) / tile; }
};

// A WaveNet while it draws: its weights, packed, and what its layers hold.
template <class T>
struct WaveNet {
  int64_t batch, residual, gate, skip, hidden, classes, layers, time;
  const int64_t* dilations;
  const T* embedding;  // [classes][residual]
  // Of each layer the gate (columns: of the past, of the present) and the residual; then the skips (columns: layer
  // after layer), and two to the logits.
  const PanelMatrix<T>* matrices = nullptr;
  const T* uniform = nullptr;  // [batch][time]
  int64_t* drawn = nullptr;    // [batch][time]
  // Of each layer [dilation + 1][batch][residual]: what it read at time t is at t mod (dilation + 1).
  T* const* rings = nullptr;
  T* gated = nullptr;            // [batch][layers][gate]
  T* skips = nullptr;            // [batch][skip]
  T* hiddens = nullptr;          // [batch][hidden]
  T* logits = nullptr;           // [batch][classes]
  double* cumulative = nullptr;  // [classes]

  // Of the time t: gate and residual of each layer (of the last one the gate alone), skips, two more, and the choice.
  FK_ALWAYS_INLINE int64_t stages() const { return 2 * layers + 3; }
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

  // Columns [first, first + columns) of the panels of a matrix, from weight(r, c).
  void (*pack_panels)(const PanelMatrix<T>&, Matrix<const T> weight, int64_t first, int64_t columns);
  void (*pack_bias)(const PanelMatrix<T>&, const T* bias, bool add);
  // A part of a stage of a time; all parts of a stage before the next.
  void (*wavenet_stage)(const WaveNet<T>&, int64_t time, int64_t stage, int64_t part, int64_t parts);
  void (*wavenet_embed)(const WaveNet<T>&, int64_t row, int64_t drawn, int64_t time);
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
