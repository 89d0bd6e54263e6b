// Transforms one after another: a tile goes through all of them, and back, while it is in the cache.
#include "cpu/masked_networks/autoregressive.h"
#include "cpu/masked_networks/autoregressive_inverse.h"
#include "cpu/masked_networks/coupling.h"
#include "cpu/masked_networks/lu_linear.h"

namespace flowkern::FK_ISA {

constexpr double kHalfLogTwoPi = 0.91893853320467274178;

// Adds the log-densities of the rows of x [n][R] under the standard normal.
template <class T, int R>
void add_normal(const T* x, int64_t n, double* log_prob) {
  for (int64_t i = 0; i < n; ++i)
    for (int r = 0; r < R; ++r) {
      const double v = x[i * R + r];
      log_prob[r] -= 0.5 * v * v + kHalfLogTwoPi;
    }
}

template <class T, int R>
void elementwise(const ChainStep<T>& step, int64_t features, const T* state, T* next, double* log_det) {
  const bool divides = step.kind == StepKind::standardize;
  double constant = 0;
  for (int64_t f = 0; f < features; ++f, next += R) {
    const T shift = step.shift[f], scale = step.scale[f], *u = state + step.order[f] * R;
    constant += log(abs(static_cast<double>(scale)));
    for (int r = 0; r < R; ++r) next[r] = divides ? (u[r] - shift) / scale : u[r] * scale + shift;
  }
  for (int r = 0; r < R; ++r) log_det[r] += divides ? -constant : constant;
}

// Cotangents of the state, and of shift and scale for each row of the tile, rows [2 features][R] of `deltas`.
template <class T>
void elementwise_backward(const ChainStep<T>& step, int64_t features, const T* state, const T* next, const T* g,
                          const T* g_log_det, T* g_state, T* deltas) {
  constexpr int R = kTileRows<T>;
  const bool divides = step.kind == StepKind::standardize;
  T* g_scale = deltas + features * R;
  for (int64_t f = 0; f < features; ++f) {
    const T scale = step.scale[f], *u = state + step.order[f] * R;
    for (int64_t i = f * R; i < (f + 1) * R; ++i) {
      const T out = divides ? g[i] / scale : g[i] * scale, of_log = g_log_det[i - f * R] / scale;
      deltas[i] = divides ? -out : g[i];
      g_scale[i] = divides ? -out * next[i] - of_log : g[i] * u[i - f * R] + of_log;
      g_state[step.order[f] * R + i - f * R] = out;
    }
  }
}

template <class T, int R>
void autoregressive_chain(const Chain<T>& chain, StepRange range, Matrix<const T> x, Matrix<const T> context, T* z,
                          T* log_det, T* saved, int64_t index, T* scratch) {
  const TileRows rows(index, R, chain.batch);
  const int64_t features = chain.features;
  const bool starts = range.begin == 0, ends = range.end == chain.count;
  T* kept = saved ? saved + index * chain.kept * R : nullptr;
  T* conditions = kept ? kept : scratch;
  T* state = conditions + (chain.context + (kept ? range.begin * features : 0)) * R;
  T* own = conditions + (chain.context + (chain.count + 1) * features) * R;  // the rows of the steps
  if (!kept) scratch = state + 2 * features * R;
  alignas(64) double sum[R] = {};
  if (starts || !kept) {
    gather<T, R>(context, rows, nullptr, chain.context, conditions);
    gather<T, R>(starts ? x : Matrix<const T>{z, features, 1}, rows, nullptr, features, state);
  }
  if (starts) {
    if (chain.normal == Normal::input) add_normal<T, R>(state, features, sum);
    for (int r = 0; r < R; ++r) sum[r] = -sum[r];  // the sign is turned around at the end
    add_zero_if_finite<T, R>(conditions, chain.context, sum);
  } else {
    for (int64_t r = 0; r < rows.count; ++r) sum[r] = log_det[rows.first + r];
  }
  T* next = state + features * R;
  for (int64_t i = range.begin; i < range.end; ++i) {
    const ChainStep<T>& step = chain.steps[i];
    T* step_kept = kept ? own + step.row * R : nullptr;
    switch (step.kind) {
      case StepKind::density: autoregressive<T, R>(step, rows, state, conditions, next, sum, step_kept, scratch); break;
      case StepKind::inverse:
        autoregressive_inverse<T, R>(step, rows, state, conditions, next, sum, step_kept, scratch);
        break;
      case StepKind::coupling:
        coupling<T, R, false>(step, rows, state, conditions, next, sum, step_kept, scratch);
        break;
      case StepKind::coupling_inverse:
        coupling<T, R, true>(step, rows, state, conditions, next, sum, step_kept, scratch);
        break;
      case StepKind::lu_linear:
      case StepKind::lu_linear_inverse: lu_linear<T, R>(step, features, state, next, sum, scratch); break;
      default: elementwise<T, R>(step, features, state, next, sum);
    }
    T* before = state;
    state = next;
    next = kept ? next + features * R : before;
  }
  if (ends && chain.normal == Normal::output) add_normal<T, R>(state, features, sum);
  if (ends || !kept)
    for (int64_t f = 0; f < features; ++f)
      scatter<T, R>(state + (ends ? chain.order[f] : f) * R, rows, &f, 1, {z, features, 1});
  const double sign = ends && chain.normal == Normal::input ? -1 : 1;
  for (int64_t r = 0; r < rows.count; ++r) log_det[rows.first + r] = static_cast<T>(sign * sum[r]);
}

template <class T>
void autoregressive_chain_backward(const Chain<T>& chain, StepRange range, const ChainBackward<T>& in, int64_t index,
                                   T* scratch) {
  constexpr int R = kTileRows<T>;
  const TileRows rows(index, R, chain.batch);
  const int64_t features = chain.features, tile = index - in.first_tile, panel = in.tiles * R * R;
  const bool starts = range.end == chain.count, ends = range.begin == 0;  // on the way back
  const T* conditions = in.saved + index * chain.kept * R;
  const T* state = conditions + (chain.context + range.end * features) * R;
  const T* own = conditions + (chain.context + (chain.count + 1) * features) * R;
  T *g = scratch, *g_context = g + features * R;
  scratch = g_context + chain.context * R;
  alignas(64) T g_log_det[R] = {};
  if (in.g_log_det.data) gather_cotangents(in.g_log_det, rows, nullptr, 1, g_log_det);
  const Matrix<const T> g_value = starts ? in.g_value : Matrix<const T>{in.g_x.data, in.g_x.row_stride, 1};
  for (int64_t f = 0; f < features; ++f) {
    T* to = g + (starts ? chain.order[f] : f) * R;
    if (g_value.data)
      gather_cotangents(g_value, rows, &f, 1, to);
    else
      __builtin_memset(to, 0, R * sizeof(T));
  }
  T* wanted = in.g_context.data ? g_context : nullptr;
  __builtin_memset(g_context, 0, chain.context * R * sizeof(T));
  if (wanted && !starts)
    gather_cotangents({in.g_context.data, in.g_context.row_stride, 1}, rows, nullptr, chain.context, g_context);
  const auto subtract_normal = [&](const T* x) {  // of the log-density, whose cotangent is that of the result
    for (int64_t i = 0; i < features; ++i)
      for (int r = 0; r < R; ++r) g[i * R + r] -= x[i * R + r] * g_log_det[r];
  };
  if (starts && chain.normal == Normal::output) subtract_normal(state);
  const T sign = chain.normal == Normal::input ? -1 : 1;
  for (int r = 0; r < R; ++r) g_log_det[r] *= sign;
  for (int64_t i = range.end - 1; i >= range.begin; --i, state -= features * R) {
    const ChainStep<T>& step = chain.steps[i];
    const T* before = state - features * R;
    T* deltas = in.deltas + (tile * in.delta_rows + in.rows[i - range.begin]) * R;
    const NetworkBackward<T> network{own + step.row * R,
                                     deltas,
                                     in.activations ? in.activations + in.panels[i - range.begin] * panel : nullptr,
                                     tile,
                                     in.tiles,
                                     in.g_addends ? in.g_addends + step.addend : nullptr};
    switch (step.kind) {
      case StepKind::density:
        autoregressive_backward<T>(step, rows, before, conditions, network, g, g_log_det, g, wanted, scratch);
        break;
      case StepKind::inverse:
        autoregressive_inverse_backward<T>(step, rows, state, conditions, network, g, g_log_det, g, wanted, scratch);
        break;
      case StepKind::coupling:
        coupling_backward<T, false>(step, rows, before, conditions, network, g, g_log_det, g, wanted, scratch);
        break;
      case StepKind::coupling_inverse:
        coupling_backward<T, true>(step, rows, before, conditions, network, g, g_log_det, g, wanted, scratch);
        break;
      case StepKind::lu_linear:
      case StepKind::lu_linear_inverse:
        lu_linear_backward<T>(step, features, before, state, g, g_log_det, g, deltas, scratch);
        break;
      default: {
        T* g_before = scratch;
        elementwise_backward<T>(step, features, before, state, g, g_log_det, g_before, deltas);
        __builtin_memcpy(g, g_before, features * R * sizeof(T));
      }
    }
  }
  if (ends && chain.normal == Normal::input) {
    for (int r = 0; r < R; ++r) g_log_det[r] *= sign;
    subtract_normal(state);
  }
  scatter<T, R>(g, rows, nullptr, features, in.g_x);
  if (wanted) scatter<T, R>(g_context, rows, nullptr, chain.context, in.g_context);
}

template <class T>
void give(const MaskedNetwork<T>& net, int64_t own, Matrix<const T> context, T* given) {
  const PlanView& plan = net.plan;
  __builtin_memset(given, 0, plan.saved_rows() * sizeof(T));
  for (int l = 0; l < plan.linears(); ++l) {
    const LinearView w = plan.linear(l);
    const int64_t read = plan.start(w.source(), 0), columns = read < own ? read : own;
    T* to = given + plan.row_of(w.target());
    for (int64_t i = 0; i < w.chunks() && w.source() < 0; ++i) {
      const Chunk& k = w.chunk(i);
      const T* column = net.packed + k.offset;
      T sums[kChunkRows] = {};
      for (int64_t q = 0; q < columns; ++q, column += kChunkRows)
        for (int64_t j = 0; j < kChunkRows; ++j) sums[j] += column[j] * context(0, q);
      for (int64_t j = 0; j < k.rows; ++j) to[k.row + j] += sums[j];
    }
    for (int64_t i = 0; i < w.rows() && w.bias_offset() >= 0; ++i) to[i] += net.packed[w.bias_offset() + i];
  }
  for (int i = 0; i < plan.conditioners(); ++i) {
    const ConditionerView c = plan.conditioner(i);
    T* values = given + c.row();
    activate(static_cast<Activation>(c.activation()), c.activation_constant(), values, values, c.units());
  }
}

#define FK_FORWARD(T, R)                                                                                             \
  template void autoregressive_chain<T, R>(const Chain<T>&, StepRange, Matrix<const T>, Matrix<const T>, T*, T*, T*, \
                                           int64_t, T*);
#define FK_INSTANTIATE(T)                                                       \
  FK_FORWARD(T, 1)                                                              \
  FK_FORWARD(T, kSmallRows<T>)                                                  \
  FK_FORWARD(T, kTileRows<T>)                                                   \
  template void give<T>(const MaskedNetwork<T>&, int64_t, Matrix<const T>, T*); \
  template void autoregressive_chain_backward<T>(const Chain<T>&, StepRange, const ChainBackward<T>&, int64_t, T*);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)

}  // namespace flowkern::FK_ISA
