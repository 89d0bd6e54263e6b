// One time of a WaveNet, stage by stage. Few rows at a time: the lanes are output rows, and every weight is read once
// from wherever it lies, which is what a stage takes.
#include "cpu/convolutions/kernels.h"
#include "flowkern/math.h"

namespace flowkern::FK_ISA {

// The row of a lane of a panel, or `rows` where there is none.
template <class T>
FK_INLINE int64_t lane_row(const PanelMatrix<T>& m, int64_t panel, int64_t lane) {
  constexpr int64_t W = kLanes<T>;
  if (!m.gated) return panel * kTileRows<T> + lane < m.rows ? panel * kTileRows<T> + lane : m.rows;
  const int64_t half = m.rows / 2, unit = panel * W + lane % W;
  return unit < half ? unit + lane / W * half : m.rows;
}

template <class T>
void pack_panels(const PanelMatrix<T>& m, Matrix<const T> weight, int64_t first, int64_t columns) {
  constexpr int64_t P = kTileRows<T>;
  for (int64_t panel = 0; panel < m.count(P); ++panel) {
    T* to = m.panels + (panel * m.columns + first) * P;
    const T* rows[P];
    for (int64_t lane = 0; lane < P; ++lane) {
      const int64_t row = lane_row(m, panel, lane);
      rows[lane] = row < m.rows ? &weight(row, 0) : nullptr;
    }
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t lane = 0; lane < P; ++lane) *to++ = rows[lane] ? rows[lane][c * weight.column_stride] : T(0);
  }
}

template <class T>
void pack_bias(const PanelMatrix<T>& m, const T* bias, bool add) {
  constexpr int64_t P = kTileRows<T>;
  for (int64_t i = 0; i < m.count(P) * P; ++i) {
    const int64_t row = lane_row(m, i / P, i % P);
    m.bias[i] = (add ? m.bias[i] : T(0)) + (row < m.rows ? bias[row] : T(0));
  }
}

// What a matrix is applied to: a piece of its columns, of rows that lie `stride` apart.
template <class T>
struct Inputs {
  const T* data;
  int64_t stride, columns;
};

// sums[b] += the product of a panel and row b; w goes on to the columns that follow.
template <class T, int B>
FK_INLINE void add_product(const T*& w, Inputs<T> x, Vec<T> (&sums)[B][2]) {
  constexpr int W = kLanes<T>, Unroll = B == 1   ? 4
                                        : B == 2 ? 2
                                                 : 1;  // independent sums hide the latency of the additions
  Vec<T> part[Unroll][B][2] = {};
  int64_t c = 0;
  const auto column = [&](int u) {
    const auto w0 = load<Vec<T>>(w), w1 = load<Vec<T>>(w + W);
    for (int b = 0; b < B; ++b) {
      part[u][b][0] += x.data[b * x.stride + c + u] * w0;
      part[u][b][1] += x.data[b * x.stride + c + u] * w1;
    }
    w += 2 * W;
  };
  for (; c + Unroll <= x.columns; c += Unroll)
    for (int u = 0; u < Unroll; ++u) column(u);
  for (; c < x.columns; ++c) column(0);
  for (int u = 0; u < Unroll; ++u)
    for (int b = 0; b < B; ++b)
      for (int h = 0; h < 2; ++h) sums[b][h] += part[u][b][h];
}

// Calls finish(row, first lane's row, vectors) with the results of a part of a matrix's panels, the rows of the batch a
// few at a time. The columns are those of one or two inputs.
template <class T, class Finish>
FK_INLINE void apply_matrix(const PanelMatrix<T>& m, int64_t batch, Inputs<T> x, Inputs<T> more, int64_t part,
                            int64_t parts, Finish finish) {
  constexpr int W = kLanes<T>, P = kTileRows<T>, Rows = FK_VECTOR_REGISTERS >= 32 ? 8 : 4;
  const int64_t panels = m.count(P), begin = panels * part / parts, end = panels * (part + 1) / parts;
  for (int64_t panel = begin; panel < end; ++panel)
    for (int64_t row = 0; row < batch; row += Rows)
      with_count<Rows>(batch - row < Rows ? batch - row : Rows, [&](auto count) {
        constexpr int B = decltype(count)::value;
        Vec<T> sums[B][2];
        for (int b = 0; b < B; ++b)
          for (int h = 0; h < 2; ++h) sums[b][h] = load<Vec<T>>(m.bias + panel * P + h * W);
        const T* w = m.panels + panel * m.columns * P;
        add_product<T, B>(w, {x.data + row * x.stride, x.stride, x.columns}, sums);
        if (more.columns) add_product<T, B>(w, {more.data + row * more.stride, more.stride, more.columns}, sums);
        for (int b = 0; b < B; ++b) finish(row + b, panel, sums[b]);
      });
}

// The first n lanes of the two vectors of a panel, or all that are there.
template <class T, class F>
FK_INLINE void store_panel(const Vec<T> (&v)[2], int64_t n, T* to, F f) {
  constexpr int W = kLanes<T>;
  for (int h = 0; h < 2; ++h, n -= W, to += W)
    if (n >= W)
      store(to, f(v[h], h));
    else if (n > 0)
      store_part(to, f(v[h], h), n);
}

// In float32 by tanh, which is one of its own: off by an ulp of 1.
FK_INLINE Vec<float> sigmoid_of(Vec<float> x) { return 0.5f + 0.5f * tanh(0.5f * x); }
FK_INLINE Vec<double> sigmoid_of(Vec<double> x) {
  return apply([](auto a) { return sigmoid(a); }, x);
}

template <class T>
FK_INLINE Vec<T> relu(Vec<T> x) {
  return x < 0 ? Vec<T>{} : x;
}

// sigmoid and tanh of the two halves of a layer's channels.
template <class T>
void gate(const WaveNet<T>& net, int64_t time, int64_t layer, int64_t part, int64_t parts) {
  constexpr int W = kLanes<T>;
  const int64_t slots = net.dilations[layer] + 1, step = net.batch * net.residual;
  const Inputs<T> past{net.rings[layer] + (time + 1) % slots * step, net.residual, net.residual};
  const Inputs<T> present{net.rings[layer] + time % slots * step, net.residual, net.residual};
  apply_matrix(net.matrices[2 * layer], net.batch, past, present, part, parts,
               [&](int64_t row, int64_t panel, const Vec<T>(&v)[2]) {
                 const Vec<T> u = tanh_of(v[0]) * sigmoid_of(v[1]);
                 T* to = net.gated + (row * net.layers + layer) * net.gate + panel * W;
                 const int64_t n = net.gate - panel * W;
                 n >= W ? store(to, u) : store_part(to, u, n);
               });
}

// What the next layer reads.
template <class T>
void residual(const WaveNet<T>& net, int64_t time, int64_t layer, int64_t part, int64_t parts) {
  constexpr int W = kLanes<T>, P = kTileRows<T>;
  const int64_t R = net.residual, step = net.batch * R;
  const T* from = net.rings[layer] + time % (net.dilations[layer] + 1) * step;
  T* to = net.rings[layer + 1] + time % (net.dilations[layer + 1] + 1) * step;
  const Inputs<T> u{net.gated + layer * net.gate, net.layers * net.gate, net.gate};
  apply_matrix(net.matrices[2 * layer + 1], net.batch, u, {}, part, parts,
               [&](int64_t row, int64_t panel, const Vec<T>(&v)[2]) {
                 const int64_t at = row * R + panel * P, n = R - panel * P;
                 store_panel<T>(v, n, to + at, [&](Vec<T> x, int h) {
                   const T* h0 = from + at + h * W;
                   return x + (n - h * W >= W ? load<Vec<T>>(h0) : load_part<Vec<T>>(h0, n - h * W));
                 });
               });
}

// One of the last three matrices, with a relu behind it or not.
template <class T>
void dense(const WaveNet<T>& net, const PanelMatrix<T>& m, const T* x, T* y, bool activated, int64_t part,
           int64_t parts) {
  apply_matrix(m, net.batch, {x, m.columns, m.columns}, {}, part, parts,
               [&](int64_t row, int64_t panel, const Vec<T>(&v)[2]) {
                 store_panel<T>(v, m.rows - panel * kTileRows<T>, y + row * m.rows + panel * kTileRows<T>,
                                [=](Vec<T> a, int) { return activated ? relu<T>(a) : a; });
               });
}

// Logits to probabilities that are not yet divided by their sum.
template <class T>
void exponentials(const T* logits, int64_t n, double* to) {
  constexpr int W = kLanes<double>;
  typedef T Part __attribute__((vector_size(W * sizeof(T))));
  Part largest = Part{} + logits[0];
  int64_t i = 0;
  for (; i + W <= n; i += W) {
    const auto v = load<Part>(logits + i);
    largest = v > largest ? v : largest;
  }
  T most = largest[0];
  for (int j = 1; j < W; ++j) most = largest[j] > most ? largest[j] : most;
  for (; i < n; ++i) most = logits[i] > most ? logits[i] : most;
  for (i = 0; i < n; i += W) {
    const VecD x =
        __builtin_convertvector(n - i < W ? load_part<Part>(logits + i, n - i) : load<Part>(logits + i), VecD);
    const VecD p = exp(x - static_cast<double>(most));
    n - i < W ? store_part(to + i, p, n - i) : store(to + i, p);
  }
}
template <>
void exponentials(const double* logits, int64_t n, double* to) {
  double most = logits[0];
  for (int64_t i = 1; i < n; ++i) most = logits[i] > most ? logits[i] : most;
  for (int64_t i = 0; i < n; ++i) to[i] = exp(logits[i] - most);
}

// The first class whose cumulative probability exceeds a uniform number. Logits that are not finite give some class.
template <class T>
int64_t choose(const T* logits, int64_t n, double uniform, double* p) {
  exponentials(logits, n, p);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) p[i] = sum += p[i];
  int64_t below = 0, above = n - 1;  // the class is among these
  while (below < above) {
    const int64_t middle = (below + above) / 2;
    if (p[middle] <= uniform * sum)
      below = middle + 1;
    else
      above = middle;
  }
  return below;
}

// What the first layer reads at a time, after a class.
template <class T>
void wavenet_embed(const WaveNet<T>& net, int64_t row, int64_t drawn, int64_t time) {
  T* to = net.rings[0] + (time % (net.dilations[0] + 1) * net.batch + row) * net.residual;
  __builtin_memcpy(to, net.embedding + drawn * net.residual, net.residual * sizeof(T));
}

// Asks for the first weights of a part of a stage, which then arrive while the threads wait for each other.
template <class T>
FK_INLINE void prefetch(const PanelMatrix<T>& m, int64_t part, int64_t parts) {
  constexpr int64_t kBytes = 4096;
  const char* from =
      reinterpret_cast<const char*>(m.panels + m.count(kTileRows<T>) * part / parts * m.columns * kTileRows<T>);
  for (int64_t i = 0; i < kBytes; i += 64) __builtin_prefetch(from + i);
}

template <class T>
void wavenet_stage(const WaveNet<T>& net, int64_t time, int64_t stage, int64_t part, int64_t parts) {
  const int64_t last = 2 * net.layers - 1;  // the residual of the last layer is read by nobody
  const PanelMatrix<T>* m = net.matrices + stage;
  if (stage < last)
    (stage % 2 ? residual<T> : gate<T>)(net, time, stage / 2, part, parts);
  else if (stage == last)
    dense(net, *m, net.gated, net.skips, true, part, parts);
  else if (stage == last + 1)
    dense(net, *m, net.skips, net.hiddens, true, part, parts);
  else if (stage == last + 2)
    dense(net, *m, net.hiddens, net.logits, false, part, parts);
  else if (part == 0)
    for (int64_t row = 0; row < net.batch; ++row) {
      const int64_t at = row * net.time + time;
      net.drawn[at] = choose(net.logits + row * net.classes, net.classes, net.uniform[at], net.cumulative);
      wavenet_embed(net, row, net.drawn[at], time + 1);
    }
  prefetch(net.matrices[stage < last + 2 ? stage + 1 : 0], part, parts);
}

#define FK_INSTANTIATE(T)                                                                 \
  template void pack_panels<T>(const PanelMatrix<T>&, Matrix<const T>, int64_t, int64_t); \
  template void pack_bias<T>(const PanelMatrix<T>&, const T*, bool);                      \
  template void wavenet_stage<T>(const WaveNet<T>&, int64_t, int64_t, int64_t, int64_t);  \
  template void wavenet_embed<T>(const WaveNet<T>&, int64_t, int64_t, int64_t);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
