// One time of a WaveNet, stage by stage. Few rows at a time: the lanes are output rows, and every weight is read once
// from wherever it lies, which is what a stage takes.
#include "cpu/convolutions/wavenet.h"
#include "cpu/gate.h"
#include "cpu/mixtures/sample.h"
#include "flowkern/math.h"

namespace flowkern::FK_ISA {

// The row of a lane of a panel, or `rows` where there is none.
template <class S>
FK_INLINE int64_t lane_row(const PanelMatrix<S>& m, int64_t panel, int64_t lane) {
  constexpr int64_t W = kLanes<Real<S>>;
  if (!m.gated) return panel * 2 * W + lane < m.rows ? panel * 2 * W + lane : m.rows;
  const int64_t half = m.rows / 2, unit = panel * W + lane % W;
  return unit < half ? unit + lane / W * half : m.rows;
}

// Where a lane's weight is in a column of a panel. Those of 16 bits alternate between the two vectors.
template <class S>
FK_INLINE int64_t lane_place(int64_t lane) {
  constexpr int64_t W = kLanes<Real<S>>;
  return sizeof(S) == sizeof(Real<S>) ? lane : lane % W * 2 + lane / W;
}

// A vector in a register. Compilers would read memory again for each of its uses, and loads are what a product of one
// row waits for.
template <class V>
FK_INLINE V in_register(V v) {
#ifdef __x86_64__
  asm("" : "+v"(v));
#endif
  return v;
}

// The two vectors of a column.
template <class T>
FK_INLINE void load_column(const T* w, Vec<T> (&v)[2]) {
  for (int h = 0; h < 2; ++h) v[h] = load<Vec<T>>(w + h * kLanes<T>);
}
FK_INLINE void load_column(const BFloat16* w, Vec<float> (&v)[2]) {
  const auto pairs = in_register(load<Vec<uint32_t>>(&w->bits));
  v[0] = __builtin_bit_cast(Vec<float>, pairs << 16);
  v[1] = __builtin_bit_cast(Vec<float>, pairs & 0xFFFF0000);
}

FK_INLINE float widened(BFloat16 w) { return __builtin_bit_cast(float, static_cast<uint32_t>(w.bits) << 16); }
template <class T>
FK_INLINE T widened(T w) {
  return w;
}

template <class S>
void pack_panels(const PanelMatrix<S>& m, Matrix<const S> weight, int64_t first, int64_t columns) {
  constexpr int64_t P = kTileRows<Real<S>>;
  for (int64_t panel = 0; panel < m.count(P); ++panel) {
    S* to = m.panels + (panel * m.columns + first) * P;
    const S* rows[P];
    for (int64_t lane = 0; lane < P; ++lane) {
      const int64_t row = lane_row(m, panel, lane);
      rows[lane_place<S>(lane)] = row < m.rows ? &weight(row, 0) : nullptr;
    }
    for (int64_t c = 0; c < columns; ++c)
      for (const S* row : rows) *to++ = row ? row[c * weight.column_stride] : S{};
  }
}

template <class S>
void pack_bias(const PanelMatrix<S>& m, const Real<S>* bias, Real<S>* to, bool add) {
  using T = Real<S>;
  constexpr int64_t P = kTileRows<T>;
  for (int64_t i = 0; i < m.count(P) * P; ++i) {
    const int64_t row = lane_row(m, i / P, i % P);
    to[i] = (add ? to[i] : T(0)) + (row < m.rows ? bias[row] : T(0));
  }
}

struct Range {
  int64_t begin, end;
};

// Asks for n numbers that another thread has written, or read before they are written: line by line they would take a
// way to its cache each, one after another.
template <bool Written = false, class T>
FK_INLINE void ask_for(const T* p, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / sizeof(T)) __builtin_prefetch(p + i, Written);
}

// A part of the panels of a matrix after the first ones.
template <class S>
FK_INLINE Range panels_of(const PanelMatrix<S>& m, int64_t part, int64_t parts, int64_t first = 0) {
  const int64_t count = m.count(kTileRows<Real<S>>) - first;
  return {first + count * part / parts, first + count * (part + 1) / parts};
}
template <class S>
FK_INLINE Range all_panels(const PanelMatrix<S>& m) {
  return panels_of(m, 0, 1);
}

// What a matrix is applied to: a piece of its columns, of rows that lie `stride` apart.
template <class T>
struct Inputs {
  const T* data;
  int64_t stride, columns;
};

// sums[b] += the product of a panel and row b; w goes on to the columns that follow.
template <class S, class T, int B>
FK_INLINE void add_product(const S*& w, Inputs<T> x, Vec<T> (&sums)[B][2]) {
  constexpr int Unroll = B == 1 ? 4 : B == 2 ? 2 : 1;  // independent sums hide the latency of the additions
  Vec<T> part[Unroll][B][2] = {};
  int64_t c = 0;
  const auto column = [&](int u) {
    Vec<T> v[2];
    load_column(w, v);
    for (int b = 0; b < B; ++b)
      for (int h = 0; h < 2; ++h) part[u][b][h] += x.data[b * x.stride + c + u] * v[h];
    w += kTileRows<T>;
  };
  for (; c + Unroll <= x.columns; c += Unroll)
    for (int u = 0; u < Unroll; ++u) column(u);
  for (; c < x.columns; ++c) column(0);
  for (int u = 0; u < Unroll; ++u)
    for (int b = 0; b < B; ++b)
      for (int h = 0; h < 2; ++h) sums[b][h] += part[u][b][h];
}

// Calls finish(row, panel, vectors) with the results of some of a matrix's panels, the rows a few at a time. What the
// matrix is applied to is inputs(0), inputs(1), ...: so many pieces.
template <class S, class GetInputs, class Finish>
FK_INLINE void apply_matrix(const PanelMatrix<S>& m, Range rows, Range panels, int64_t pieces, GetInputs inputs,
                            Finish finish) {
  using T = Real<S>;
  constexpr int W = kLanes<T>, P = kTileRows<T>, Rows = FK_VECTOR_REGISTERS >= 32 ? 8 : 4;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel)
    for (int64_t row = rows.begin; row < rows.end; row += Rows)
      with_count<Rows>(rows.end - row < Rows ? rows.end - row : Rows, [&](auto count) {
        constexpr int B = decltype(count)::value;
        Vec<T> sums[B][2];
        for (int b = 0; b < B; ++b)
          for (int h = 0; h < 2; ++h) sums[b][h] = load<Vec<T>>(m.bias + (row + b) * m.bias_stride + panel * P + h * W);
        const S* w = m.panels + panel * m.columns * P;
        for (int64_t i = 0; i < pieces; ++i) {
          const Inputs<T> x = inputs(i);
          add_product<S, T, B>(w, {x.data + row * x.stride, x.stride, x.columns}, sums);
        }
        for (int b = 0; b < B; ++b) finish(row + b, panel, sums[b]);
      });
}

// Calls f(vector, the same lanes of `to`) -> vector on the first n lanes of a panel, or all that are there.
template <class T, class F>
FK_INLINE void update_panel(const Vec<T> (&v)[2], int64_t n, T* to, F f) {
  constexpr int W = kLanes<T>;
  for (int h = 0; h < 2; ++h, n -= W, to += W)
    if (n >= W)
      store(to, f(v[h], load<Vec<T>>(to)));
    else if (n > 0)
      store_part(to, f(v[h], load_part<Vec<T>>(to, n)), n);
}

template <class T>
FK_INLINE Vec<T> relu(Vec<T> x) {
  return x < 0 ? Vec<T>{} : x;
}

// The sample before a time.
template <class N>
FK_INLINE N sample_before(const Samples<N>& samples, int64_t row, int64_t time, int64_t times) {
  return time == 0 ? samples.previous[row] : samples.drawn[row * times + time - 1];
}

// What the first layer reads: the row of a class, or a number times the only row.
template <class S>
FK_INLINE void embed(const WaveNet<S>& net, Range rows, int64_t time, Real<S>* to) {
  const bool is_class = net.sampler.output == Output::categorical;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const int64_t c = is_class ? sample_before(net.classes, row, time, net.time) : 0;
    const Real<S> x = is_class ? 1 : sample_before(net.values, row, time, net.time);
    const S* weight = net.embedding + c * net.residual;
    for (int64_t i = 0; i < net.residual; ++i)
      to[row * net.residual + i] = x * widened(weight[i]) + net.embedding_bias[i];
  }
}

// What a layer reads, from what the one before it read and gave.
template <class S>
FK_INLINE void residual(const WaveNet<S>& net, Range rows, int64_t layer, Real<S>* present) {
  using T = Real<S>;
  const PanelMatrix<S>& m = net.layers[layer].residual;
  const int64_t R = net.residual;
  const Inputs<T> u{net.gated + (layer - 1) * net.gate, net.depth * net.gate, net.gate};
  apply_matrix(
      m, rows, all_panels(m), 1, [=](int64_t) { return u; },
      [=](int64_t row, int64_t panel, const Vec<T>(&v)[2]) {
        const int64_t first = panel * kTileRows<T>;
        update_panel<T>(v, R - first, present + row * R + first, [](Vec<T> x, Vec<T> before) { return x + before; });
      });
}

// The products of a layer with the past and the condition at a time.
template <class S>
void past(const WaveNet<S>& net, Range rows, int64_t time, const GeneratorLayer<S>& l, Range panels) {
  using T = Real<S>;
  constexpr int W = kLanes<T>;
  const int64_t R = net.residual, C = net.channels;
  const int64_t slots = l.slots(), oldest = (time + 1) % slots;
  const auto inputs = [&](int64_t piece) -> Inputs<T> {
    if (piece == l.taps - 1) return {net.condition + time * C, net.time * C, C};
    const int64_t slot = oldest + piece * l.dilation;
    return {l.ring + (slot < slots ? slot : slot - slots) * net.batch * R, R, R};
  };
  for (int64_t tap = 0; tap + 1 < l.taps; ++tap)
    ask_for(inputs(tap).data + rows.begin * R, (rows.end - rows.begin) * R);
  apply_matrix(l.past, rows, panels, l.taps - 1 + (C > 0), inputs,
               [&](int64_t row, int64_t panel, const Vec<T>(&v)[2]) {
                 T* to = l.gate.bias + row * l.gate.bias_stride + panel * kTileRows<T>;
                 for (int h = 0; h < 2; ++h) store(to + h * W, v[h]);
               });
}

// A layer after its products with the past, by one of some parts. Each of them makes all that the layer reads: it is a
// fraction of the work, and waiting for each other's part takes longer.
template <class S>
void layer(const WaveNet<S>& net, Range rows, int64_t time, int64_t index, int64_t part, int64_t parts) {
  using T = Real<S>;
  constexpr int W = kLanes<T>;
  const GeneratorLayer<S>& l = net.layers[index];
  const int64_t R = net.residual;
  T* present = net.present + part * net.present_stride;
  if (index == 0)
    embed(net, rows, time, present);
  else
    residual(net, rows, index, present);
  if (part == 0)
    __builtin_memcpy(l.ring + (time % l.slots() * net.batch + rows.begin) * R, present + rows.begin * R,
                     (rows.end - rows.begin) * R * sizeof(T));
  const Inputs<T> x{present, R, R};
  const Range panels = panels_of(l.gate, part, parts);
  const auto sums = [&](int64_t row, int64_t panel) { return l.gate.bias + row * l.gate.bias_stride + panel * 2 * W; };
  apply_matrix(
      l.gate, rows, panels, 1, [=](int64_t) { return x; },
      [&](int64_t row, int64_t panel, const Vec<T>(&v)[2]) {
        for (int h = 0; h < 2; ++h) store(sums(row, panel) + h * W, v[h]);
      });
  // After all products: a processor does not look far enough ahead to begin one while it evaluates functions.
  for (int64_t row = rows.begin; row < rows.end; ++row)
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      const T* z = sums(row, panel);
      const Vec<T> u = gated(load<Vec<T>>(z), load<Vec<T>>(z + W));
      T* to = net.gated + (row * net.depth + index) * net.gate + panel * W;
      const int64_t n = net.gate - panel * W;
      n >= W ? store(to, u) : store_part(to, u, n);
    }
}

// Adds the skips of a run of layers to those of the runs before.
template <class S>
void skip(const WaveNet<S>& net, Range rows, int64_t run, Range panels) {
  using T = Real<S>;
  const PanelMatrix<S>& m = net.skips[run];
  const bool is_first = run == 0, is_last = (run + 1) * kRun >= net.depth;
  const Inputs<T> u{net.gated + run * kRun * net.gate, net.depth * net.gate, m.columns};
  apply_matrix(
      m, rows, panels, 1, [=](int64_t) { return u; },
      [=](int64_t row, int64_t panel, const Vec<T>(&v)[2]) {
        const int64_t first = panel * kTileRows<T>;
        update_panel<T>(v, m.rows - first, net.skipped + row * m.rows + first, [=](Vec<T> x, Vec<T> before) {
          const Vec<T> sum = is_first ? x : x + before;
          return is_last ? relu<T>(sum) : sum;
        });
      });
}

// One of the last two matrices, with a relu behind it or not.
template <class S, class T>
void dense(const PanelMatrix<S>& m, Range rows, const T* x, T* y, bool activated, Range panels) {
  const Inputs<T> all{x, m.columns, m.columns};
  apply_matrix(
      m, rows, panels, 1, [=](int64_t) { return all; },
      [=](int64_t row, int64_t panel, const Vec<T>(&v)[2]) {
        const int64_t first = panel * kTileRows<T>;
        update_panel<T>(v, m.rows - first, y + row * m.rows + first,
                        [=](Vec<T> sum, Vec<T>) { return activated ? relu<T>(sum) : sum; });
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

// The samples of some rows from their parameters.
template <class S>
void sample(const WaveNet<S>& net, Range rows, int64_t time) {
  using T = Real<S>;
  const Sampler& sampler = net.sampler;
  const int64_t outputs = net.last[1].rows, components = outputs / 3, stride = net.time * net.numbers;
  const T *noise = net.noise + time * net.numbers, *parameters = net.parameters;
  if (sampler.output == Output::categorical) {
    for (int64_t row = rows.begin; row < rows.end; ++row)
      net.classes.drawn[row * net.time + time] =
          choose(parameters + row * outputs, outputs, noise[row * stride], net.cumulative + row * outputs);
    return;
  }
  const auto of = [=](int64_t i) { return Components<T>{parameters + i * components, outputs, 0, 1}; };
  const Mixtures<T> mixtures = {
      1, components, sampler.levels, sampler.output == Output::gaussians, sampler.log_scale_min, of(0), of(1), of(2)};
  const Matrix<const T> last{noise + components, stride, 0};
  const Components<T> choice{noise, stride, 0, 1};
  sample_mixtures(mixtures, last, choice, net.sampled, rows.begin, rows.end);
  const T bound = sampler.bound;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const T x = net.sampled[row];
    net.values.drawn[row * net.time + time] = x < -bound ? -bound : x > bound ? bound : x;
  }
}

// Calls f with the layers of a run.
template <class S, class F>
FK_INLINE void each_of_run(const WaveNet<S>& net, int64_t run, F f) {
  for (int64_t l = run * kRun; l < net.depth && l < (run + 1) * kRun; ++l) f(l);
}

// The end of a time, by one of some parts: two more matrices, then the samples, those of a single row by the first.
template <class S>
void last_stage(const WaveNet<S>& net, Range rows, int64_t time, int64_t stage, int64_t part, int64_t parts) {
  if (stage == 0) {
    dense(net.last[0], rows, net.skipped, net.hidden, true, panels_of(net.last[0], part, parts));
  } else if (stage == 1) {
    dense(net.last[1], rows, net.hidden, net.parameters, false, panels_of(net.last[1], part, parts));
  } else {
    const auto until = [&](int64_t p) { return rows.begin + ((rows.end - rows.begin) * p + parts - 1) / parts; };
    sample(net, {until(part), until(part + 1)}, time);
  }
}

// A stage where all parts share the layers.
template <class S>
void shared_stage(const WaveNet<S>& net, const Team& team, int64_t time, int64_t stage, int64_t part) {
  const Range rows{team.begin, team.end};
  if (stage < net.depth) {
    past(net, rows, time, net.layers[stage], panels_of(net.layers[stage].past, part, team.parts));
    layer(net, rows, time, stage, part, team.parts);
  } else if (stage == net.depth) {
    for (int64_t r = 0; r < team.runs(net.depth); ++r) skip(net, rows, r, panels_of(net.skips[r], part, team.parts));
  } else {
    last_stage(net, rows, time, stage - net.depth - 1, part, team.parts);
  }
}

// A stage of the first part where it computes all layers. Products with the past are those of the next time: the first
// part computes its own while the others end this one.
template <class S>
void leading_stage(const WaveNet<S>& net, const Team& team, int64_t time, int64_t stage) {
  const Range rows{team.begin, team.end};
  const int64_t runs = team.runs(net.depth);
  const auto pasts = [&](int64_t at, Range panels) {
    for (int64_t l = 0; l < net.depth && at < net.time; ++l) past(net, rows, at, net.layers[l], panels);
  };
  const auto ask_ahead = [&](int64_t l) {
    const PanelMatrix<S>& m = net.layers[l].gate;
    const int64_t own = team.first_pasts * kTileRows<Real<S>>;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      ask_for<true>(net.gated + (row * net.depth + l) * net.gate, net.gate);
      ask_for(m.bias + row * m.bias_stride + own, m.bias_stride - own);
    }
  };
  if (time == 0 && stage == 0) pasts(0, all_panels(net.layers[0].past));
  if (stage < runs) {
    if (team.helpers() > 0) each_of_run(net, (stage + 1) % runs, ask_ahead);
    each_of_run(net, stage, [&](int64_t l) { layer(net, rows, time, l, 0, 1); });
  } else if (stage == runs) {
    for (int64_t r = 0; r < runs; ++r) skip(net, rows, r, {0, team.first_skips});
  } else if (stage == runs + 1) {
    pasts(time + 1, {0, team.first_pasts});
  }
}

// A stage of one of the others.
template <class S>
void following_stage(const WaveNet<S>& net, const Team& team, int64_t time, int64_t stage, int64_t part) {
  const Range rows{team.begin, team.end};
  const int64_t runs = team.runs(net.depth), helper = part - 1;
  if (stage >= runs) return last_stage(net, rows, time, stage - runs, helper, team.helpers());
  for (int64_t row = rows.begin; row < rows.end; ++row)
    ask_for(net.gated + (row * net.depth + stage * kRun) * net.gate, net.skips[stage].columns);
  skip(net, rows, stage, panels_of(net.skips[stage], helper, team.helpers(), team.first_skips));
  if (time + 1 < net.time)
    each_of_run(net, stage, [&](int64_t l) {
      const PanelMatrix<S>& m = net.layers[l].past;
      past(net, rows, time + 1, net.layers[l], panels_of(m, helper, team.helpers(), team.first_pasts));
    });
}

template <class S>
void wavenet_stage(const WaveNet<S>& net, const Team& team, int64_t time, int64_t stage, int64_t part) {
  if (team.shares_layers) return shared_stage(net, team, time, stage, part);
  if (part > 0) return following_stage(net, team, time, stage, part);
  leading_stage(net, team, time, stage);
  if (const int64_t last = stage - team.runs(net.depth); team.helpers() == 0 && last >= 0)
    last_stage(net, {team.begin, team.end}, time, last, 0, 1);
}

template <class S>
const WaveNetKernels<S>& wavenet_kernels() {
  static constexpr WaveNetKernels<S> kTable = {
      .tile = kTileRows<Real<S>>,
      .pack_panels = &pack_panels<S>,
      .pack_bias = &pack_bias<S>,
      .wavenet_stage = &wavenet_stage<S>,
  };
  return kTable;
}
template const WaveNetKernels<float>& wavenet_kernels<float>();
template const WaveNetKernels<double>& wavenet_kernels<double>();
template const WaveNetKernels<BFloat16>& wavenet_kernels<BFloat16>();

}  // namespace flowkern::FK_ISA
