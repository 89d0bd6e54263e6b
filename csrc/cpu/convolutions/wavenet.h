// A WaveNet that draws samples, as seen from csrc/ops: what it holds, and its kernels, plain functions on raw pointers.
//
// S is what weights are stored as: float, double, or BFloat16, which is widened as it is read; all else is a Real<S>.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/dispatch.h"
#include "cpu/matrix.h"
#include "flowkern/panel.h"

namespace flowkern {

struct BFloat16 {
  uint16_t bits;  // the upper half of a float
};

template <class S>
using Real = std::conditional_t<sizeof(S) == sizeof(BFloat16), float, S>;

// A matrix of a network that is applied to one time of a few rows: panels of `tile` output rows,
// [panels][columns][tile]. Of a gated one a panel is a vector of rows of the first half, then the same of the second.
template <class S>
struct PanelMatrix {
  int64_t rows, columns;
  bool gated = false;
  int64_t bias_stride = 0;  // between the biases of rows of the batch, where each has its own
  S* panels = nullptr;
  Real<S>* bias = nullptr;  // [panels][tile]

  FK_ALWAYS_INLINE int64_t count(int64_t tile) const { return (rows + tile - 1) / tile; }
};

template <class S>
struct GeneratorLayer {
  int64_t taps, dilation;
  PanelMatrix<S> past;      // columns: tap after tap but the last, the oldest first, then the condition
  PanelMatrix<S> gate;      // of the present; the result of `past` is its bias, one for each row
  PanelMatrix<S> residual;  // of what the layer before gave; of no use to the first one
  Real<S>* ring = nullptr;  // [slots][batch][residual]: what it read at time t is at t mod slots

  FK_ALWAYS_INLINE int64_t slots() const { return (taps - 1) * dilation + 1; }
};

enum class Output { categorical, logistics, gaussians };

// Of each row the sample before the first, and what is drawn; null where samples are of the other kind.
template <class N>
struct Samples {
  const N* previous = nullptr;  // [batch]
  N* drawn = nullptr;           // [batch][time]
};

// What is drawn with the parameters of a sample.
struct Sampler {
  Output output;
  int64_t levels;  // 0 for none
  double log_scale_min, bound;
};

template <class S>
struct WaveNet {
  using T = Real<S>;
  int64_t batch, time, numbers, channels, residual, gate;
  const S* embedding;       // [classes][residual]
  const T* embedding_bias;  // [residual]
  const T* noise;           // [batch][time][numbers]
  const T* condition;       // [batch][time][channels]
  Sampler sampler;
  Samples<int64_t> classes;
  Samples<T> values;
  int64_t depth;  // number of layers
  GeneratorLayer<S>* layers = nullptr;
  PanelMatrix<S>* skips = nullptr;  // of each kRun layers; columns: layer after layer
  PanelMatrix<S> last[2];           // to the parameters
  T* present = nullptr;             // of each part [batch][residual]: what a layer reads at this time
  int64_t present_stride = 0;       // between those of parts
  T* gated = nullptr;               // [batch][depth][gate]
  T* skipped = nullptr;             // [batch][rows of skips]
  T* hidden = nullptr;              // [batch][rows of last[0]]
  T* parameters = nullptr;          // [batch][rows of last[1]]
  double* cumulative = nullptr;     // [batch][rows of last[1]]
  T* sampled = nullptr;             // [batch]
};

constexpr int64_t kRun = 2;  // layers whose skips are one product, and for which others wait

// Who draws some rows. A layer needs the one before, but not so its product with the past, nor do the skips. Either all
// parts share every layer and meet after it; or the first part computes all layers without waiting for anybody, while
// the others follow it with the skips and end with the samples, for which alone it waits.
struct Team {
  int64_t begin, end;  // the rows
  int64_t parts;
  bool shares_layers;
  int64_t first_skips, first_pasts;  // panels of the skips, of products with the past, that the first part computes

  FK_ALWAYS_INLINE int64_t helpers() const { return parts - 1; }
  FK_ALWAYS_INLINE int64_t runs(int64_t depth) const { return (depth + kRun - 1) / kRun; }
  // Of a time: the layers, where they are shared the skips, two more matrices, and the samples.
  FK_ALWAYS_INLINE int64_t stages(int64_t depth) const { return (shares_layers ? depth + 1 : runs(depth)) + 3; }
  // How many stages of a time another part must have ended before a part begins one.
  FK_ALWAYS_INLINE int64_t needs(int64_t depth, int64_t stage, int64_t part, int64_t other) const {
    const int64_t layers = runs(depth);
    if (shares_layers) return stage;
    if (other == 0) return stage < layers ? stage + 1 : layers + 1;
    return part == 0 || stage < layers ? 0 : stage;  // 0: all of the times before
  }
};

template <class S>
struct WaveNetKernels {
  int64_t tile;

  // Columns [first, first + columns) of the panels of a matrix, from weight(r, c).
  void (*pack_panels)(const PanelMatrix<S>&, Matrix<const S> weight, int64_t first, int64_t columns);
  // To `to` [panels][tile], whose numbers stay where `add` is.
  void (*pack_bias)(const PanelMatrix<S>&, const Real<S>* bias, Real<S>* to, bool add);
  // A part of a stage of a time; all parts of a stage before the next.
  void (*wavenet_stage)(const WaveNet<S>&, const Team&, int64_t time, int64_t stage, int64_t part);
};

}  // namespace flowkern

FK_KERNELS(WaveNetKernels, wavenet_kernels)
