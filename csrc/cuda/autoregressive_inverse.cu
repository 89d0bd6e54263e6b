// The exact inverse of `autoregressive` in one sweep over the levels, and its gradient in one reverse sweep.
#include "cuda/sweep.h"

namespace flowkern::FK_ISA {

// Calls f(k) for the parameters of a feature. Of a family that has few at most they stay in registers: the loop is
// unrolled, and those that this map has not are never read.
template <int Most, class F>
FK_INLINE void each_parameter(int count, F f) {
  if constexpr (Most <= 8) {
    FK_UNROLL
    for (int k = 0; k < Most; ++k)
      if (k < count) f(k);
  } else {
    for (int k = 0; k < count; ++k) f(k);
  }
}

// A hidden unit is final as soon as the features that it may read are known.
template <class M>
class Inverse {
 public:
  using T = typename M::T;
  FK_INLINE explicit Inverse(M& machine) : m(machine) {}

  FK_INLINE void begin() {
    log_det_ = 0;
    for (int f = m.warp; f < m.header.features; f += M::kWarps)
      if (m.part == 0)
        m.value(f) =
            at<T>(m.in.input, m.source_row * m.in.input_row + m.table(m.header.order_at + f) * m.in.input_column);
  }

  FK_INLINE void unit(const SweepStep& step, const Node& node, int i) {
    const int u = step.first + i;
    const T added = addend(node, node.order_at + u);
    const T factor = node.gate < 0 ? T(1) : m.term(node.gate, m.table(node.order_at + u));
    const T ungated = m.product(step, i) + at<T>(m.in.biases, node.bias + u) + added;
    if (m.part != 0) return;
    T p = ungated * factor;
    if (node.residual_at >= 0) p += m.value(m.table(node.residual_at + u));
    const T h = node.activated ? activate(m.in.activation, m.in.constant, p) : p;
    if (node.kept >= 0) m.value(node.kept + u) = p;
    m.value(node.values + u) = rounded(typename M::W{}, h);
    if (!m.in.saved) return;
    m.keep(m.in.saved, node.saved + u, p);
    if (node.gate >= 0) m.keep(m.in.saved, node.gate_saved + u, ungated);
  }

  FK_INLINE void feature(const SweepStep& step, const Node& node, int i) {
    const int f = step.first + i, count = m.header.parameters;
    T parameters[M::Map::kMost];
    each_parameter<M::Map::kMost>(count, [&](int k) { parameters[k] = parameter(step, node, i * count + k); });
    if (m.part != 0) return;
    const auto x = m.map.inverse(m.value(f), [&](int k) { return parameters[k]; });
    log_det_ += x.log_slope;
    m.value(f) = rounded(typename M::W{}, x.value);
    m.write(m.in.output, m.global_row * m.header.features + m.table(node.order_at + f), x.value);
  }

  FK_INLINE void end() {
    const T total = m.sum_over_warps(log_det_);
    if (thread() < M::R) m.write(m.in.log_det, m.global_row, total);
  }

 private:
  // Row i of the step's features, a parameter of one of them.
  FK_INLINE T parameter(const SweepStep& step, const Node& node, int i) const {
    const int r = step.first * m.header.parameters + i;
    const T added = addend(node, m.header.parameters_at + r);
    const T value = m.product(step, i) + at<T>(m.in.biases, node.bias + r) + added;
    if (m.part == 0 && m.in.saved) m.keep(m.in.saved, node.saved + r, value);
    return value;
  }
  FK_INLINE T addend(const Node& node, int order_at) const {
    return node.addend < 0 ? T(0) : m.term(node.addend, m.table(order_at));
  }

  M& m;
  T log_det_;
};

// With J = dz/dx and cotangents g of x and gl of log|det dx/dz|: the cotangent v of z solves J^T v = g + gl dl/dx, and
// the parameters receive those of the density for the cotangents (-v, -gl). So the density's backward pass is run from
// the last level to the first, choosing v such that it would return -g for x.
template <class M>
class InverseGradient {
 public:
  using T = typename M::T;
  FK_INLINE explicit InverseGradient(M& machine) : m(machine) {}

  FK_INLINE void begin() { g_log_det_ = -at<T>(m.in.g_log_det, m.source_row * m.in.g_log_det_row); }

  FK_INLINE void feature(const SweepStep& step, const Node& node, int i) {
    const int f = step.first + i, d = m.table(node.order_at + f), count = m.header.parameters;
    const T g = at<T>(m.in.input, m.source_row * m.in.input_row + d * m.in.input_column);
    const T x = at<T>(m.in.x, m.source_row * m.in.x_row + d * m.in.x_column);
    T parameters[M::Map::kMost];
    each_parameter<M::Map::kMost>(count, [&](int k) { parameters[k] = m.saved(node.saved + f * count + k); });
    const T network = m.product(step, i);
    if (m.part != 0) return;
    const auto parameter = [&](int k) { return parameters[k]; };
    const T v = m.map.inverse_backward(x, parameter, g + network, g_log_det_,
                                       [&](int k, T g_k) { put(node, f * count + k, g_k); });
    m.write(m.in.output, m.global_row * m.header.features + d, v);
  }

  FK_INLINE void unit(const SweepStep& step, const Node& node, int i) {
    const int u = step.first + i;
    const T pre = m.saved(node.saved + u);
    const T factor = node.gate < 0 ? T(1) : m.term(node.gate, m.table(node.order_at + u));
    T d = m.product(step, i);
    if (m.part != 0) return;
    if (node.activated) d *= activation_slope(m.in.activation, m.in.constant, pre);
    if (node.kept >= 0) d += m.value(node.kept + u);
    if (node.residual_at >= 0) m.value(m.table(node.residual_at + u)) += d;
    if (node.gate >= 0) m.keep(m.in.deltas, node.gate_saved + u, d * m.saved(node.gate_saved + u));
    put(node, u, d * factor);
  }

  FK_INLINE void end() {}

 private:
  FK_INLINE void put(const Node& node, int r, T delta) const {
    m.value(node.values + r) = rounded(typename M::W{}, delta);
    m.keep(m.in.deltas, node.saved + r, delta);
  }

  M& m;
  T g_log_det_;
};

}  // namespace flowkern::FK_ISA

#define FK_SWEEP(NAME, TASK, ...)                                                       \
  FK_KERNEL((flowkern::FK_ISA::Sweep<__VA_ARGS__>::kThreads))                           \
  NAME(FK_ARGUMENTS(flowkern::FK_ISA::SweepArguments)) {                                \
    flowkern::FK_ISA::Sweep<__VA_ARGS__> machine(arguments);                            \
    machine.run(flowkern::FK_ISA::TASK<flowkern::FK_ISA::Sweep<__VA_ARGS__>>(machine)); \
  }
#define FK_BOTH(VARIANT, ...)                                      \
  FK_SWEEP(autoregressive_inverse_##VARIANT, Inverse, __VA_ARGS__) \
  FK_SWEEP(autoregressive_inverse_backward_##VARIANT, InverseGradient, __VA_ARGS__)

// Weights, numbers, rows of a tile, matrix instructions, rows in memory rather than in shared memory. NVRTC names one.
#ifdef FK_ONLY_SWEEP
FK_SWEEP(FK_ONLY_NAME, FK_ONLY_TASK, FK_ONLY_SWEEP)
#else
using flowkern::FK_ISA::Bf16;
using flowkern::FK_ISA::Half;
FK_BOTH(f32_r1, float, float, 1, false, false)
FK_BOTH(f32_r16, float, float, 16, false, false)
FK_BOTH(f32_r32, float, float, 32, false, false)
FK_BOTH(f32_s32, float, float, 32, false, true)
FK_BOTH(tf32_r16, float, float, 16, true, false)
FK_BOTH(tf32_r32, float, float, 32, true, false)
FK_BOTH(tf32_s32, float, float, 32, true, true)
FK_BOTH(f64_r1, double, double, 1, false, false)
FK_BOTH(f64_r16, double, double, 16, false, false)
FK_BOTH(f64_s32, double, double, 32, false, true)
FK_BOTH(bf16_r1, Bf16, float, 1, false, false)
FK_BOTH(bf16_r16, Bf16, float, 16, true, false)
FK_BOTH(bf16_r32, Bf16, float, 32, true, false)
FK_BOTH(bf16_s32, Bf16, float, 32, true, true)
FK_BOTH(f16_r1, Half, float, 1, false, false)
FK_BOTH(f16_r16, Half, float, 16, true, false)
FK_BOTH(f16_r32, Half, float, 32, true, false)
FK_BOTH(f16_s32, Half, float, 32, true, true)
#endif
