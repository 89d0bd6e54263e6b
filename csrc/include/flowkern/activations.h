// Activations of the hidden units and their derivatives.
#pragma once

#include "flowkern/math.h"

namespace flowkern::FK_ISA {

// The order of flowkern/plan.py's ACTIVATIONS.
enum class Activation { identity, relu, leaky_relu, elu, gelu, silu, tanh, sigmoid, softplus };

template <Activation Kind>
struct ActivationTag {
  static constexpr Activation value = Kind;
};

// Calls f with the tag of an activation.
template <class F>
FK_INLINE auto with_activation(Activation kind, F f) {
  switch (kind) {
    case Activation::identity: return f(ActivationTag<Activation::identity>{});
    case Activation::relu: return f(ActivationTag<Activation::relu>{});
    case Activation::leaky_relu: return f(ActivationTag<Activation::leaky_relu>{});
    case Activation::elu: return f(ActivationTag<Activation::elu>{});
    case Activation::gelu: return f(ActivationTag<Activation::gelu>{});
    case Activation::silu: return f(ActivationTag<Activation::silu>{});
    case Activation::tanh: return f(ActivationTag<Activation::tanh>{});
    case Activation::sigmoid: return f(ActivationTag<Activation::sigmoid>{});
    case Activation::softplus: return f(ActivationTag<Activation::softplus>{});
  }
  __builtin_unreachable();
}

// The activation of V, a vector of T or T itself; the constant is leaky_relu's negative slope or elu's alpha.
template <Activation Kind, class T, class V, class C>
FK_INLINE V activation(V x, C constant) {
  if constexpr (Kind == Activation::identity) return x;
  if constexpr (Kind == Activation::relu) return x < 0 ? V{} : x;
  if constexpr (Kind == Activation::leaky_relu) return x < 0 ? static_cast<T>(constant) * x : x;
  if constexpr (Kind == Activation::elu) {
    const auto f = [=](auto a) { return constant * expm1(a); };
    return x > 0 ? x : apply(f, x > 0 ? V{} : x);
  }
  if constexpr (Kind == Activation::gelu) return apply([](auto a) { return a * normal_cdf(a); }, x);
  if constexpr (Kind == Activation::silu) return apply([](auto a) { return a * sigmoid(a); }, x);
  if constexpr (Kind == Activation::tanh) return tanh_of(x);
  if constexpr (Kind == Activation::sigmoid) return apply([](auto a) { return sigmoid(a); }, x);
  if constexpr (Kind == Activation::softplus) return apply([](auto a) { return softplus(a); }, x);
}

// Its derivative.
template <Activation Kind, class T, class V, class C>
FK_INLINE V activation_slope(V x, C constant) {
  const V one = V{} + 1;
  if constexpr (Kind == Activation::identity) return one;
  if constexpr (Kind == Activation::relu) return x > 0 ? one : V{};
  if constexpr (Kind == Activation::leaky_relu) return x > 0 ? one : static_cast<T>(constant) * one;
  if constexpr (Kind == Activation::elu) {
    const auto f = [=](auto a) { return constant * exp(a); };
    return x > 0 ? one : apply(f, x > 0 ? V{} : x);
  }
  if constexpr (Kind == Activation::gelu) {
    const C density = C(0.3989422804014327), half = C(0.5);  // 1 / sqrt(2 pi)
    return apply([=](auto a) { return normal_cdf(a) + a * density * exp(-half * a * a); }, x);
  }
  if constexpr (Kind == Activation::silu) {
    const auto f = [](auto a) {
      const auto s = sigmoid(a);
      return s * (1 + a * (1 - s));
    };
    return apply(f, x);
  }
  if constexpr (Kind == Activation::tanh) {
    const auto f = [](auto a) {
      const auto t = tanh(a);
      return 1 - t * t;
    };
    return apply(f, x);
  }
  if constexpr (Kind == Activation::sigmoid) {
    const auto f = [](auto a) {
      const auto s = sigmoid(a);
      return s * (1 - s);
    };
    return apply(f, x);
  }
  if constexpr (Kind == Activation::softplus) return apply([](auto a) { return sigmoid(a); }, x);
}

// Whether the derivative can be had from the activation itself, so that this is kept and the other forgotten.
FK_INLINE bool slope_from_output(Activation kind, double constant) {
  switch (kind) {
    case Activation::gelu:
    case Activation::silu: return false;
    case Activation::leaky_relu:
    case Activation::elu: return constant >= 0;  // else the sign says nothing
    default: return true;
  }
}

// The derivative where the activation is y.
template <Activation Kind, class T, class V, class C>
FK_INLINE V slope_at_output(V y, C constant) {
  const V one = V{} + 1;
  if constexpr (Kind == Activation::relu) return y > 0 ? one : V{};
  if constexpr (Kind == Activation::leaky_relu) return y > 0 ? one : static_cast<T>(constant) * one;
  if constexpr (Kind == Activation::elu) return y > 0 ? one : y + static_cast<T>(constant);
  if constexpr (Kind == Activation::tanh) return 1 - y * y;
  if constexpr (Kind == Activation::sigmoid) return y * (1 - y);
  if constexpr (Kind == Activation::softplus) return apply([](auto a) { return -expm1(-a); }, y);
  return one;
}

}  // namespace flowkern::FK_ISA
