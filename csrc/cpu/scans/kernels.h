// The CPU kernels of the LSTMs that run over images as seen from csrc/ops: plain functions on raw pointers.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "flowkern/panel.h"

namespace flowkern {

// An LSTM over the pixels of images, [batch][height][width][channels]. A pixel's gates o, f, i, g are its input x and
// the products of the weights with the states of the pixels that its taps read; its cell is that of one of them, gated.
// A step is the pixels that read nothing of each other: a row, or a diagonal. What lies outside of an image is zero.
struct Scan {
  int64_t batch, height, width, hidden, taps;
  bool diagonal, mirrored;  // mirrored: columns are counted from the right

  // How many rows above a pixel, and columns before it, a tap reads.
  struct Shift {
    int64_t rows, columns;
  };
  FK_ALWAYS_INLINE Shift tap(int64_t j) const { return diagonal ? Shift{1 - j, j} : Shift{1, taps / 2 - j}; }
  FK_ALWAYS_INLINE Shift cell() const { return diagonal ? Shift{0, 1} : Shift{1, 0}; }

  FK_ALWAYS_INLINE int64_t steps() const { return diagonal ? height + width - 1 : height; }
  // The rows [first, last) of a step, and in each of them the columns.
  FK_ALWAYS_INLINE int64_t first_row(int64_t step) const {
    return !diagonal ? step : step < width ? 0 : step - width + 1;
  }
  FK_ALWAYS_INLINE int64_t last_row(int64_t step) const { return !diagonal || step < height ? step + 1 : height; }
  FK_ALWAYS_INLINE int64_t most() const { return !diagonal || width < height ? width : height; }  // pixels of a step
  // Where cells wait for the pixel that reads them: one for each row, or for each column.
  FK_ALWAYS_INLINE int64_t lanes() const { return diagonal ? height : width; }

  FK_ALWAYS_INLINE int64_t pixel(int64_t image, int64_t row, int64_t column) const {
    return (image * height + row) * width + (mirrored ? width - 1 - column : column);
  }
  FK_ALWAYS_INLINE bool inside(int64_t row, int64_t column) const {
    return row >= 0 && row < height && column >= 0 && column < width;
  }

  FK_ALWAYS_INLINE int64_t weights() const { return 4 * hidden * hidden * taps; }
  FK_ALWAYS_INLINE int64_t pixels() const { return batch * height * width; }
  FK_ALWAYS_INLINE int64_t work() const { return pixels() * weights(); }  // multiply-adds

  // Images that a thread takes at a time: so many that the pixels of a step fill tiles, and so few that others have
  // some.
  FK_ALWAYS_INLINE int64_t group() const {
    constexpr int64_t kPixels = 96, kGroups = 8;
    const int64_t full = (kPixels + most() - 1) / most(), fair = (batch + kGroups - 1) / kGroups;
    return full < fair || batch == 0 ? full : fair;
  }
  FK_ALWAYS_INLINE int64_t groups() const { return (batch + group() - 1) / group(); }
};

// Of all pixels: x and the gates [pixels][4][hidden], states h and cells [pixels][hidden]. Gates and cells are null
// where nobody wants gradients.
template <class T>
struct ScanForward {
  Scan scan;
  const T *x, *packed;
  T *h, *cells, *gates;
};

template <class T>
struct ScanBackward {
  Scan scan;
  const T *g_h, *h, *cells, *gates, *packed;
  T* g_x;
};

template <class T>
struct ScanKernels {
  int64_t lanes;

  // weight is [4][hidden][hidden][taps]. Packed for the scan [blocks][taps][hidden][4][lanes], a block being `lanes`
  // units; and for the scan backwards [blocks][taps][4 hidden][kBackwardVectors][lanes]. One block is written.
  void (*pack)(const Scan&, const T* weight, T* packed, int64_t block);
  void (*pack_backward)(const Scan&, const T* weight, T* packed, int64_t block);

  // All pixels of some images. Scratch: scan_scratch(...), scan_backward_scratch(...).
  void (*scan)(const ScanForward<T>&, int64_t first, int64_t images, T* scratch);
  void (*scan_backward)(const ScanBackward<T>&, int64_t first, int64_t images, T* scratch);
  // Adds to sums [taps][hidden][4 hidden in whole tiles], which are zero at first, what some images contribute.
  void (*weight_gradient)(const ScanBackward<T>&, int64_t first, int64_t images, T* sums);
};

constexpr int64_t kBackwardVectors = 4;

FK_ALWAYS_INLINE inline int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }
FK_ALWAYS_INLINE inline int64_t packed_size(const Scan& s, int64_t lanes) {
  return blocks(s.hidden, lanes) * s.taps * s.hidden * 4 * lanes;
}
FK_ALWAYS_INLINE inline int64_t packed_backward_size(const Scan& s, int64_t lanes) {
  return blocks(s.hidden, kBackwardVectors * lanes) * s.taps * 4 * s.hidden * kBackwardVectors * lanes;
}
// Zeros for what is outside, and the cells of a group, or their cotangents, that are waiting.
FK_ALWAYS_INLINE inline int64_t scan_scratch(const Scan& s) { return (4 + s.group() * s.lanes()) * s.hidden; }

}  // namespace flowkern

FK_KERNELS(ScanKernels, scan_kernels)
