// Activations of the hidden units and their derivatives, on contiguous elements.
#pragma once

#include "flowkern/math.h"

namespace flowkern::FK_ISA {

// The order of flowkern/plan.py's ACTIVATIONS.
enum class Activation { identity, relu, leaky_relu, elu, gelu, silu, tanh, sigmoid, softplus };

// out = act(in); `constant` is leaky_relu's negative slope or elu's alpha. `in` may be `out`.
template <class T>
void activate(Activation kind, double constant, const T* in, T* out, int64_t n) {
  using V = Vec<T>;
  const T c = static_cast<T>(constant);
  switch (kind) {
    case Activation::identity: return map_elements(in, out, n, [](V x) { return x; });
    case Activation::relu: return map_elements(in, out, n, [](V x) { return x < 0 ? V{} : x; });
    case Activation::leaky_relu: return map_elements(in, out, n, [=](V x) { return x < 0 ? c * x : x; });
    case Activation::elu:
      return map_elements(in, out, n, [=](V x) {
        const auto f = [=](auto a) { return constant * expm1(a); };
        return x > 0 ? x : apply(f, x > 0 ? V{} : x);
      });
    case Activation::gelu:
      return map_elements(in, out, n, [](V x) { return apply([](auto a) { return a * normal_cdf(a); }, x); });
    case Activation::silu:
      return map_elements(in, out, n, [](V x) { return apply([](auto a) { return a * sigmoid(a); }, x); });
    case Activation::tanh:
      return map_elements(in, out, n, [](V x) { return apply([](auto a) { return tanh(a); }, x); });
    case Activation::sigmoid:
      return map_elements(in, out, n, [](V x) { return apply([](auto a) { return sigmoid(a); }, x); });
    case Activation::softplus:
      return map_elements(in, out, n, [](V x) { return apply([](auto a) { return softplus(a); }, x); });
  }
}

// g *= act'(p), from the pre-activation p.
template <class T>
void activation_backward(Activation kind, double constant, const T* p, T* g, int64_t n) {
  using V = Vec<T>;
  const T c = static_cast<T>(constant);
  const auto scale = [&](auto derivative) {
    constexpr int W = kLanes<T>;
    for (int64_t i = 0; i < n; i += W) {  // n is a multiple of the tile width, hence of W
      const V x = load<V>(p + i);
      store(g + i, load<V>(g + i) * derivative(x));
    }
  };
  const V one = V{} + 1;
  switch (kind) {
    case Activation::identity: return;
    case Activation::relu: return scale([=](V x) { return x > 0 ? one : V{}; });
    case Activation::leaky_relu: return scale([=](V x) { return x > 0 ? one : c * one; });
    case Activation::elu:
      return scale([=](V x) {
        const auto f = [=](auto a) { return constant * exp(a); };
        return x > 0 ? one : apply(f, x > 0 ? V{} : x);
      });
    case Activation::gelu:
      return scale([](V x) {
        return apply([](auto a) { return normal_cdf(a) + a * (M_2_SQRTPI * M_SQRT1_2 * 0.5) * exp(-0.5 * a * a); }, x);
      });
    case Activation::silu:
      return scale([](V x) {
        return apply(
            [](auto a) {
              const auto s = sigmoid(a);
              return s * (1 + a * (1 - s));
            },
            x);
      });
    case Activation::tanh:
      return scale([](V x) {
        return apply(
            [](auto a) {
              const auto t = tanh(a);
              return 1 - t * t;
            },
            x);
      });
    case Activation::sigmoid:
      return scale([](V x) {
        return apply(
            [](auto a) {
              const auto s = sigmoid(a);
              return s * (1 - s);
            },
            x);
      });
    case Activation::softplus: return scale([](V x) { return apply([](auto a) { return sigmoid(a); }, x); });
  }
}

}  // namespace flowkern::FK_ISA
