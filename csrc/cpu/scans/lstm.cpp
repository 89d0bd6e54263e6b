// LSTMs over the pixels of images, step by step. The lanes are units: a pixel's channels lie side by side, and so do
// those of the pixels that it reads, wherever these are. No skewed image is ever made.
#include "cpu/gate.h"
#include "cpu/products.h"
#include "cpu/scans/kernels.h"

namespace flowkern::FK_ISA {

// Pixels of a tile: with four vectors of units for each, the sums fill the registers.
constexpr int kTilePixels = FK_VECTOR_REGISTERS >= 32 ? 6 : 2;

FK_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
FK_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Some vectors of units, of which `units` exist.
template <class T>
FK_INLINE Vec<T> load_units(const T* p, int64_t units) {
  return units >= kLanes<T> ? load<Vec<T>>(p) : load_part<Vec<T>>(p, units);
}
template <class T>
FK_INLINE void store_units(T* p, Vec<T> v, int64_t units) {
  if (units >= kLanes<T>)
    store(p, v);
  else
    store_part(p, v, units);
}

template <class T>
void pack_scan(const Scan& s, const T* weight, T* packed, int64_t block) {
  constexpr int W = kLanes<T>;
  packed += block * s.taps * s.hidden * 4 * W;
  for (int64_t j = 0; j < s.taps; ++j)
    for (int64_t k = 0; k < s.hidden; ++k)
      for (int64_t gate = 0; gate < 4; ++gate)
        for (int64_t lane = 0; lane < W; ++lane) {
          const int64_t unit = block * W + lane;
          *packed++ = unit < s.hidden ? weight[((gate * s.hidden + unit) * s.hidden + k) * s.taps + j] : T(0);
        }
}

template <class T>
void pack_scan_backward(const Scan& s, const T* weight, T* packed, int64_t block) {
  constexpr int64_t Width = kBackwardVectors * kLanes<T>;
  packed += block * s.taps * 4 * s.hidden * Width;
  for (int64_t j = 0; j < s.taps; ++j)
    for (int64_t k = 0; k < 4 * s.hidden; ++k)
      for (int64_t lane = 0; lane < Width; ++lane) {
        const int64_t unit = block * Width + lane;
        *packed++ = unit < s.hidden ? weight[(k * s.hidden + unit) * s.taps + j] : T(0);
      }
}

// A pixel of a step: its place in memory, and where its cell waits.
struct Place {
  int64_t image, row, column, pixel, slot;
};

// Calls f(places, count) for tiles of the pixels of a step of some images, count at most N and a constant.
template <int N, class F>
FK_INLINE void for_tiles(const Scan& s, int64_t step, int64_t first, int64_t images, F f) {
  Place places[N];
  int64_t count = 0;
  for (int64_t image = 0; image < images; ++image)
    for (int64_t row = s.first_row(step); row < s.last_row(step); ++row)
      for (int64_t column = s.diagonal ? step - row : 0; column < (s.diagonal ? step - row + 1 : s.width); ++column) {
        const int64_t slot = image * s.lanes() + (s.diagonal ? row : column);
        places[count++] = {first + image, row, column, s.pixel(first + image, row, column), slot};
        if (count < N) continue;
        f(places, std::integral_constant<int, N>{});
        count = 0;
      }
  if (count > 0) with_count<N - 1>(count, [&](auto rest) { f(places, rest); });
}

// The pixel that lies `rows` below and `columns` after a place, times `size` from `data`; zeros where there is none.
template <class T>
FK_INLINE const T* at(const Scan& s, const Place& p, int64_t rows, int64_t columns, const T* data, int64_t size,
                      const T* zeros) {
  const int64_t row = p.row + rows, column = p.column + columns;
  return s.inside(row, column) ? data + s.pixel(p.image, row, column) * size : zeros;
}

// total[i][v] += the product of some states, or cotangents, of N pixels with packed weights [columns][V]. Sums of some
// columns are put aside, as those of the gradients of weights are.
template <class T, int N, int V>
FK_INLINE void add_products(const T* const (&read)[N], const T* w, int64_t columns, Vec<T> (&total)[N][V]) {
  constexpr int64_t kColumns = 2 * kSumRows, Stride = V * kLanes<T>;
  for (int64_t k = 0; k < columns; k += kColumns) {
    const T* here[N];
    for (int i = 0; i < N; ++i) here[i] = read[i] + k;
    Vec<T> acc[N][V] = {};
    lane_products<T, N, V>(here, 1, w + k * Stride, Stride, least(columns - k, kColumns), acc);
    for (int i = 0; i < N; ++i)
      for (int v = 0; v < V; ++v) total[i][v] += acc[i][v];
  }
}

// Units from `unit` on, a vector of them, of N pixels.
template <class T, int N>
FK_INLINE void forward_tile(const ScanForward<T>& f, const Place* places, int64_t unit, const T* zeros, T* cells) {
  const Scan& s = f.scan;
  constexpr int W = kLanes<T>;
  const int64_t hidden = s.hidden, units = hidden - unit;
  Vec<T> acc[N][4];
  for (int i = 0; i < N; ++i)
    for (int g = 0; g < 4; ++g) acc[i][g] = load_units(f.x + (places[i].pixel * 4 + g) * hidden + unit, units);
  const T* w = f.packed + unit * s.taps * hidden * 4;
  for (int64_t j = 0; j < s.taps; ++j, w += hidden * 4 * W) {
    const Scan::Shift shift = s.tap(j);
    const T* read[N];
    for (int i = 0; i < N; ++i) read[i] = at<T>(s, places[i], -shift.rows, -shift.columns, f.h, hidden, zeros);
    add_products<T, N, 4>(read, w, hidden, acc);
  }
  for (int i = 0; i < N; ++i) {
    T* cell = cells + places[i].slot * hidden + unit;
    const Vec<T> forget = sigmoid_of(acc[i][1]);
    const Gate<T> in = gate(acc[i][3], acc[i][2]);
    const Vec<T> c = forget * load_units(cell, units) + in.sigmoid * in.tanh;
    const Gate<T> out = gate(c, acc[i][0]);
    store_units(cell, c, units);
    store_units(f.h + places[i].pixel * hidden + unit, out.tanh * out.sigmoid, units);
    if (!f.gates) continue;
    store_units(f.cells + places[i].pixel * hidden + unit, c, units);
    T* gates = f.gates + places[i].pixel * 4 * hidden + unit;
    const Vec<T> values[4] = {out.sigmoid, forget, in.sigmoid, in.tanh};
    for (int g = 0; g < 4; ++g) store_units(gates + g * hidden, values[g], units);
  }
}

template <class T>
T* clear_scratch(const Scan& s, T* scratch) {
  __builtin_memset(scratch, 0, scan_scratch(s) * sizeof(T));
  return scratch + 4 * s.hidden;
}

template <class T>
void scan(const ScanForward<T>& f, int64_t first, int64_t images, T* scratch) {
  T* cells = clear_scratch(f.scan, scratch);
  for (int64_t step = 0; step < f.scan.steps(); ++step)
    for (int64_t unit = 0; unit < f.scan.hidden; unit += kLanes<T>)
      for_tiles<kTilePixels>(f.scan, step, first, images, [&](const Place* places, auto count) {
        forward_tile<T, decltype(count)::value>(f, places, unit, scratch, cells);
      });
}

// Some vectors of units of N pixels: the cotangents of their gates, and over those of the cells that wait those of the
// cells before.
template <class T, int N>
FK_INLINE void backward_tile(const ScanBackward<T>& b, const Place* places, int64_t first, const T* zeros, T* g_cells) {
  const Scan& s = b.scan;
  constexpr int W = kLanes<T>, V = kBackwardVectors;
  const int64_t hidden = s.hidden;
  Vec<T> acc[N][V];
  for (int i = 0; i < N; ++i)
    for (int v = 0; v < V; ++v)
      acc[i][v] = load_units(b.g_h + places[i].pixel * hidden + first + v * W, most(hidden - first - v * W, 0));
  const T* w = b.packed + first * s.taps * 4 * hidden;
  for (int64_t j = 0; j < s.taps; ++j, w += 4 * hidden * V * W) {
    const Scan::Shift shift = s.tap(j);
    const T* read[N];
    for (int i = 0; i < N; ++i) read[i] = at<T>(s, places[i], shift.rows, shift.columns, b.g_x, 4 * hidden, zeros);
    add_products<T, N, V>(read, w, 4 * hidden, acc);
  }
  const Scan::Shift before = s.cell();
  for (int i = 0; i < N; ++i)
    for (int v = 0; v < V && first + v * W < hidden; ++v) {
      const int64_t unit = first + v * W, units = hidden - unit, pixel = places[i].pixel;
      Vec<T> gates[4];
      for (int g = 0; g < 4; ++g) gates[g] = load_units(b.gates + (pixel * 4 + g) * hidden + unit, units);
      const auto& [out, forget, in, update] = gates;
      const Vec<T> g_h = acc[i][v], tanh = tanh_of(load_units(b.cells + pixel * hidden + unit, units)),
                   earlier = load_units(
                       at<T>(s, places[i], -before.rows, -before.columns, b.cells, hidden, zeros) + unit, units);
      T* waiting = g_cells + places[i].slot * hidden + unit;
      const Vec<T> g_cell = load_units(waiting, units) + g_h * out * (1 - tanh * tanh);
      store_units(waiting, g_cell * forget, units);
      const Vec<T> values[4] = {g_h * tanh * out * (1 - out), g_cell * earlier * forget * (1 - forget),
                                g_cell * update * in * (1 - in), g_cell * in * (1 - update * update)};
      for (int g = 0; g < 4; ++g) store_units(b.g_x + (pixel * 4 + g) * hidden + unit, values[g], units);
    }
}

template <class T>
void scan_backward(const ScanBackward<T>& b, int64_t first, int64_t images, T* scratch) {
  T* g_cells = clear_scratch(b.scan, scratch);
  for (int64_t step = b.scan.steps() - 1; step >= 0; --step)
    for (int64_t unit = 0; unit < b.scan.hidden; unit += kBackwardVectors * kLanes<T>)
      for_tiles<kTilePixels>(b.scan, step, first, images, [&](const Place* places, auto count) {
        backward_tile<T, decltype(count)::value>(b, places, unit, scratch, g_cells);
      });
}

// Some pixels of some rows, and those that a tap reads: the first of each, and how many.
template <class T>
struct Pairs {
  const T *g_x, *h;
  int64_t rows, columns;
};

// sums[k][unit] for N states k and V vectors of units of the gates += the products over some pairs.
template <class T, int N, int V, bool Part = false>
FK_INLINE void gradient_tile(const Scan& s, const Pairs<T>& pairs, T* sums, int64_t width, int64_t lanes = 0) {
  const int64_t step = s.mirrored ? -s.hidden : s.hidden, row_step = s.width * s.hidden;
  Vec<T> acc[N][V] = {};
  for (int64_t row = 0; row < pairs.rows; ++row) {
    const T* read[N];
    for (int i = 0; i < N; ++i) read[i] = pairs.h + row * row_step + i;
    const T* g_x = pairs.g_x + row * 4 * row_step;
    lane_products<T, N, V, Part>(read, step, g_x, 4 * step, pairs.columns, acc, lanes);
  }
  for (int i = 0; i < N; ++i, sums += width)
    for (int v = 0; v < V; ++v) {
      T* to = sums + v * kLanes<T>;
      store(to, load<Vec<T>>(to) + acc[i][v]);
    }
}

template <class T>
void add_pairs(const Scan& s, const Pairs<T>& pairs, T* sums, int64_t width) {
  constexpr int W = kLanes<T>;
  const int64_t units = 4 * s.hidden;
  const auto tiles = [&](int64_t unit, auto vectors, auto part) {
    for (int64_t k = 0; k < s.hidden; k += kTilePixels)
      with_count<kTilePixels>(least(s.hidden - k, kTilePixels), [&](auto states) {
        gradient_tile<T, decltype(states)::value, decltype(vectors)::value, decltype(part)::value>(
            s, {pairs.g_x + unit, pairs.h + k, pairs.rows, pairs.columns}, sums + k * width + unit, width,
            units - unit);
      });
  };
  using One = std::integral_constant<int, 1>;
  int64_t unit = 0;
  for (; unit + 4 * W <= units; unit += 4 * W) tiles(unit, std::integral_constant<int, 4>{}, std::false_type{});
  for (; unit + W <= units; unit += W) tiles(unit, One{}, std::false_type{});
  if (unit < units) tiles(unit, One{}, std::true_type{});
}

template <class T>
void scan_weight_gradient(const ScanBackward<T>& b, int64_t first, int64_t images, T* sums) {
  constexpr int64_t kPixels = 2 * kSumRows;  // whose cotangents stay in the cache
  const Scan& s = b.scan;
  const int64_t width = whole_tiles(4 * s.hidden, kTileRows<T>), columns = least(s.width, kPixels),
                rows = most(kPixels / s.width, 1);
  for (int64_t image = first; image < first + images; ++image)
    for (int64_t j = 0; j < s.taps; ++j) {
      const Scan::Shift shift = s.tap(j);
      const int64_t begin = most(shift.columns, 0), end = s.width + least(shift.columns, 0);
      for (int64_t row = shift.rows; row < s.height; row += rows)
        for (int64_t column = begin; column < end; column += columns) {
          const T* g_x = b.g_x + s.pixel(image, row, column) * 4 * s.hidden;
          const T* h = b.h + s.pixel(image, row - shift.rows, column - shift.columns) * s.hidden;
          add_pairs<T>(s, {g_x, h, least(rows, s.height - row), least(columns, end - column)},
                       sums + j * s.hidden * width, width);
        }
    }
}

#define FK_INSTANTIATE(T)                                                       \
  template void pack_scan<T>(const Scan&, const T*, T*, int64_t);               \
  template void pack_scan_backward<T>(const Scan&, const T*, T*, int64_t);      \
  template void scan<T>(const ScanForward<T>&, int64_t, int64_t, T*);           \
  template void scan_backward<T>(const ScanBackward<T>&, int64_t, int64_t, T*); \
  template void scan_weight_gradient<T>(const ScanBackward<T>&, int64_t, int64_t, T*);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
