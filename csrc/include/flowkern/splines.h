// What monotonic splines have in common: an interval in K bins, each with a piece of the curve, and tails beyond it.
// Parameters of a feature: K raw widths, K raw heights, the raw derivatives at the knots, and of pieces that are
// divided in two K raw numbers that say where. flowkern/univariate says what the numbers of a map mean.
//
// A bin is found by comparing with every knot, without branches. Its sizes are kept as parts of a sum of exponentials,
// so that only the sums, and what belongs to one bin, are normalised.
#pragma once

#include "flowkern/math.h"
#include "flowkern/univariate.h"

namespace flowkern::FK_ISA::splines {

#ifdef FK_DEVICE
constexpr int kMostBins = 32;  // every thread has room for them; flowkern/univariate/splines.py knows
#else
constexpr int kMostBins = 128;
#endif

// The order of flowkern/univariate/rational_quadratic.py's TAILS and PARAMETRIZATIONS.
enum class Tails { linear, circular, unconstrained };
enum class Parametrization { soft_clipped_exp, softplus };

// A type that converts to one value, so that the compiler knows which.
template <auto Value>
struct Constant {
  FK_INLINE constexpr operator decltype(Value)() const { return Value; }
};

template <class X>
struct Positive {
  X value, slope;  // of what the raw number becomes
};
// Widths, or heights: the exponentials of all bins, of those before the bin, of the bin.
template <class X>
struct Sizes {
  X sum, before, part;
};
template <class X>
struct Bin {
  X index, offset;  // the number less the bin's start
  Sizes<X> widths, heights;
  X x0, w, y0, h, d0, d1, slope0, slope1;  // slope0: d d0 / d raw
  X divide, divide_slope;                  // the part of the width at which a piece is divided
};
template <class X>
struct Curve {
  X value, slope;  // the part of the bin's height, dv/du
};
// Of what a piece depends on: the place in the bin, the mean slope h / w, the derivatives at its ends, the division.
template <class X>
struct PieceCotangents {
  X theta, s, d0, d1, divide;
};
template <class X>
struct Cotangents {
  X u, x0, w, y0, h, d0, d1, divide;
};

template <class X>
FK_INLINE X within_a_bin(X t) {  // without what rounding adds
  return select(t < 0, X{}, select(t > 1, X{} + 1, t));
}

// A family of splines is one of these with its Piece, a class of functions of a bin:
//
//   kDivided                    whether a piece is divided in two
//   at(bin, theta) -> Place     the part theta of the bin's width, and what else a family wants of it
//   root(bin, t) -> Place       where the curve has the part t of the bin's height
//   curve(bin, place) -> Curve
//   cotangents(bin, place, g_v, g_log) -> PieceCotangents    for v = h value and the logarithm of the slope
//
// S and T are Parametrization and Tails, or types that convert to one value of them.
template <class C, class Piece, class S, class T>
class Spline {
 public:
  FK_INLINE Spline(const UnivariateMap& map, S parametrization, T tails)
      : parametrization_(parametrization),
        tails_(tails),
        shifted_(map.options[3] != 0),
        bins_(map.options[0]),
        lower_(static_cast<C>(map.constants[0])),
        upper_(static_cast<C>(map.constants[1])),
        length_(upper_ - lower_),
        least_width_(static_cast<C>(map.constants[2])),
        least_height_(static_cast<C>(map.constants[3])),
        least_derivative_(static_cast<C>(map.constants[4])),
        end_(static_cast<C>(map.constants[5])),
        gain_(static_cast<C>(map.constants[6])),
        least_part_(static_cast<C>(map.constants[7])) {}

  template <class X, class P>
  FK_INLINE MapValue<X> forward(X u, P p) const {
    X exponentials[2 * kMostBins];
    u = half_a_turn_on(u);
    const X turns = whole_turns(u);
    const Bin<X> b = find<false>(u - turns, p, exponentials);
    const Curve<X> c = Piece::curve(b, Piece::at(b, within_a_bin(b.offset / b.w)));
    const X finite = u - u;  // NaN where the input is not finite, so that the log-det shows it
    const X v = b.y0 + b.h * c.value, log_slope = log(c.slope);
    switch (tails_) {
      case Tails::linear: return {select(inside(u), v, u), select(inside(u), log_slope, X{}) + finite};
      case Tails::circular: return {v + turns, log_slope + finite};
      case Tails::unconstrained: {
        const X end = end_beside(u), d = slope_beside(u, b);
        return {select(inside(u), v, end + (u - end) * d), select(inside(u), log_slope, log(d)) + finite};
      }
    }
    __builtin_unreachable();
  }

  template <class X, class P>
  FK_INLINE MapValue<X> inverse(X v, P p) const {
    X exponentials[2 * kMostBins];
    v = turned_back(v);
    const X turns = whole_turns(v);
    const Bin<X> b = find<true>(v - turns, p, exponentials);
    const auto at = Piece::root(b, within_a_bin(b.offset / b.h));
    const X finite = v - v;
    const X u = b.x0 + b.w * at.theta, log_slope = -log(Piece::curve(b, at).slope);
    switch (tails_) {
      case Tails::linear: return {half_a_turn_on(select(inside(v), u, v)), select(inside(v), log_slope, X{}) + finite};
      case Tails::circular: return {u + turns, log_slope + finite};
      case Tails::unconstrained: {
        const X end = end_beside(v), d = slope_beside(v, b);
        return {select(inside(v), u, end + (v - end) / d), select(inside(v), log_slope, -log(d)) + finite};
      }
    }
    __builtin_unreachable();
  }

  template <class X, class P, class Put>
  FK_INLINE X backward(X u, P p, X g_v, X g_log, Put put) const {
    X exponentials[2 * kMostBins];
    u = half_a_turn_on(u);
    const Bin<X> b = find<false>(u - whole_turns(u), p, exponentials);
    const auto at = Piece::at(b, within_a_bin(b.offset / b.w));
    return put_cotangents(u, b, at.theta, Piece::curve(b, at).value, Piece::cotangents(b, at, g_v, g_log), exponentials,
                          p, g_v, g_log, put);
  }

  template <class X, class P, class Put>
  FK_INLINE X inverse_backward(X u, P p, X g, X g_log, Put put) const {
    X exponentials[2 * kMostBins];
    u = half_a_turn_on(u);
    const Bin<X> b = find<false>(u - whole_turns(u), p, exponentials);
    return cancel(u, b, Piece::at(b, within_a_bin(b.offset / b.w)), exponentials, p, g, g_log, put);
  }

  template <class X, class P, class Put>
  FK_INLINE X backward_of_inverse(X v, P p, X g, X g_log, Put put) const {
    X exponentials[2 * kMostBins];
    v = turned_back(v);
    const Bin<X> b = find<true>(v - whole_turns(v), p, exponentials);
    const auto at = Piece::root(b, within_a_bin(b.offset / b.h));
    X u = v;  // where it counts, which is outside
    if (tails_ == Tails::unconstrained) {
      const X end = end_beside(v);
      u = select(inside(v), v, end + (v - end) / slope_beside(v, b));
    }
    return cancel(u, b, at, exponentials, p, g, g_log, put);
  }

 private:
  template <class X>
  FK_INLINE auto inside(X u) const {
    return (u >= lower_) & (u < upper_);
  }
  template <class X>
  FK_INLINE X whole_turns(X u) const {
    return tails_ == Tails::circular ? floor((u - lower_) / length_) * length_ : X{};
  }
  // Of a spline that is shifted: into its interval, by whole turns, and by half a turn more.
  template <class X>
  FK_INLINE X turned_back(X v) const {
    return shifted_ ? v - floor((v - lower_) / length_) * length_ : v;
  }
  template <class X>
  FK_INLINE X half_a_turn_on(X u) const {
    return shifted_ ? u - floor(u / length_) * length_ + lower_ : u;
  }
  template <class X>
  FK_INLINE X end_beside(X u) const {
    return select(u < lower_, X{} + lower_, X{} + upper_);
  }
  template <class X>
  FK_INLINE X slope_beside(X u, const Bin<X>& b) const {
    return select(u < lower_, b.d0, b.d1);
  }

  template <class X>
  FK_INLINE Positive<X> logit(X a) const {
    if (parametrization_ == Parametrization::softplus) return {a * gain_, X{} + gain_};
    const X q = 1 / (1 + abs(2 * gain_ * a));
    return {a * q, q * q};
  }
  template <class X>
  FK_INLINE Positive<X> derivative(X a) const {
    if (parametrization_ == Parametrization::softplus) return {least_derivative_ + softplus(a), sigmoid(a)};
    const X q = 1 / (1 + abs(gain_ * a)), d = exp(a * q);
    return {d, d * q * q};
  }

  // The exponentials of the bins' logits, and their sum.
  template <class X, class P>
  FK_INLINE X exponentials(P p, int first, X* out) const {
    X most = X{};
    if (parametrization_ == Parametrization::softplus) {  // whose logits have no bound
      most = logit(p(first)).value;
      for (int k = 1; k < bins_; ++k) {
        const X a = logit(p(first + k)).value;
        most = select(a > most, a, most);
      }
    }
    X sum = out[0] = exp(logit(p(first)).value - most);
    for (int k = 1; k < bins_; ++k) sum += out[k] = exp(logit(p(first + k)).value - most);
    return sum;
  }

  // Where the raw numbers are that say where pieces are divided.
  FK_INLINE int first_divide() const { return 3 * bins_ - 1 + static_cast<int>(static_cast<Tails>(tails_)); }

  // The raw derivative at knot k, from 0 to K; none where it is given.
  template <class X, class P>
  FK_INLINE X raw_derivative(P p, int k) const {
    const int first = 2 * bins_;
    switch (tails_) {
      case Tails::linear: return k == 0 || k == bins_ ? X{} : p(first + k - 1);
      case Tails::circular: return p(first + (k == bins_ ? 0 : k));
      case Tails::unconstrained: return p(first + k);
    }
    __builtin_unreachable();
  }

  // The bin of a number among the heights, or the widths; beyond the ends the first or the last.
  template <bool Heights, class X, class P>
  FK_INLINE Bin<X> find(X u, P p, X* out) const {
    Bin<X> b;
    Sizes<X>&widths = b.widths, &heights = b.heights;
    const X *w = out, *h = out + bins_;
    widths = {exponentials<X>(p, 0, out), X{}, w[0]};
    heights = {exponentials<X>(p, bins_, out + bins_), X{}, h[0]};
    const C least = Heights ? least_height_ : least_width_;
    const X unit = length_ * (1 - bins_ * least) / (Heights ? heights.sum : widths.sum);
    const X* const sizes = Heights ? h : w;
    X width = w[0], height = h[0];  // of the bins before the knot
    X low = X{}, low_before = X{};  // what rounding took from the one that is compared
    X raw0 = raw_derivative<X>(p, 0), raw1 = raw_derivative<X>(p, 1), raw = raw1;
    X raw_divide = X{};
    if constexpr (Piece::kDivided) raw_divide = p(first_divide());
    b.index = X{};
    for (int k = 1; k < bins_; ++k) {
      const X next = raw_derivative<X>(p, k + 1), knot = Heights ? height : width;
      const auto past = u >= lower_ + length_ * least * k + unit * knot;
      b.index = select(past, X{} + k, b.index);
      widths = {widths.sum, select(past, width, widths.before), select(past, w[k], widths.part)};
      heights = {heights.sum, select(past, height, heights.before), select(past, h[k], heights.part)};
      raw0 = select(past, raw, raw0), raw1 = select(past, next, raw1);
      if constexpr (Piece::kDivided) raw_divide = select(past, p(first_divide() + k), raw_divide);
      width += w[k], height += h[k], raw = next;
      if constexpr (kExact<X>) {  // a narrow bin magnifies what rounding takes from the sum
        low_before = select(past, low, low_before);
        low += lost(knot, sizes[k], Heights ? height : width);
      }
    }
    if constexpr (kExact<X>) {
      b.offset = offset(u, Heights ? heights.before : widths.before, low_before, Heights ? height : width, low, b.index,
                        least);
    } else {
      b.offset = u - start(Heights ? heights : widths, least, b.index);
    }
    b.w = size(widths, least_width_), b.x0 = start(widths, least_width_, b.index);
    b.h = size(heights, least_height_), b.y0 = start(heights, least_height_, b.index);
    const Positive<X> d0 = derivative(raw0), d1 = derivative(raw1);
    b.d0 = d0.value, b.slope0 = d0.slope, b.d1 = d1.value, b.slope1 = d1.slope;
    if (tails_ == Tails::linear) {
      b.d0 = select(b.index == 0, X{} + end_, b.d0);
      b.d1 = select(b.index == bins_ - 1, X{} + end_, b.d1);
    }
    if constexpr (Piece::kDivided) {
      const X part = sigmoid(raw_divide);
      b.divide = least_part_ + (1 - 2 * least_part_) * part;
      b.divide_slope = (1 - 2 * least_part_) * part * (1 - part);
    }
    return b;
  }
  template <class X>
  FK_INLINE X size(const Sizes<X>& s, C least) const {
    return length_ * least + length_ * (1 - bins_ * least) * s.part / s.sum;
  }
  template <class X>
  FK_INLINE X start(const Sizes<X>& s, C least, X index) const {
    return lower_ + length_ * least * index + length_ * (1 - bins_ * least) * s.before / s.sum;
  }

  // a + b less their rounded sum.
  template <class X>
  static FK_INLINE X lost(X a, X b, X sum) {
    const X rest = sum - a;
    return (a - (sum - rest)) + (b - rest);
  }
  // u less the start of its bin, with the digits that a start beside 0 would have.
  template <class X>
  FK_INLINE X offset(X u, X before, X low_before, X sum, X low, X index, C least) const {
    const X scale = X{} + length_ * (1 - bins_ * least), part = before / sum;
    const X rest = (fma(-part, sum, before) + low_before - part * low) / sum;
    const X from = u - lower_, least_start = length_ * least * index, beyond = from - least_start;
    return fma(-scale, part, beyond) + (lost(u, X{} - lower_, from) + lost(from, -least_start, beyond) - scale * rest);
  }

  // The cotangent v that makes that of u, which is at a place in its bin, -g for -v.
  template <class X, class Place, class P, class Put>
  FK_INLINE X cancel(X u, const Bin<X>& b, const Place& at, const X* exponentials, P p, X g, X g_log, Put put) const {
    const Curve<X> c = Piece::curve(b, at);
    X v = (g + Piece::cotangents(b, at, X{}, g_log).theta / b.w) / c.slope;
    if (tails_ != Tails::circular) v = select(inside(u), v, tails_ == Tails::linear ? g : g / slope_beside(u, b));
    PieceCotangents<X> of_piece = Piece::cotangents(b, at, -v, g_log);
    of_piece.theta = -g * b.w;  // what it is but for rounding, which a steep curve magnifies
    put_cotangents(u, b, at.theta, c.value, of_piece, exponentials, p, -v, g_log, put);
    return v;
  }

  // The cotangent of u; hands over those of the parameters.
  template <class X, class P, class Put>
  FK_INLINE X put_cotangents(X u, const Bin<X>& b, X theta, X value, const PieceCotangents<X>& of_piece,
                             const X* exponentials, P p, X g_v, X g_log, Put put) const {
    const X s = b.h / b.w, per_w = 1 / b.w, of_u = of_piece.theta * per_w;
    Cotangents<X> g = {of_u,
                       -of_u,
                       -(of_piece.theta * theta + of_piece.s * s) * per_w,
                       g_v,
                       g_v * value + of_piece.s * per_w,
                       of_piece.d0,
                       of_piece.d1,
                       of_piece.divide};
    if (tails_ != Tails::circular) {
      const auto in = inside(u);
      const X none = {};
      g = {g.u,
           select(in, g.x0, none),
           select(in, g.w, none),
           select(in, g.y0, none),
           select(in, g.h, none),
           select(in, g.d0, none),
           select(in, g.d1, none),
           select(in, g.divide, none)};
      if (tails_ == Tails::linear) {
        g.u = select(in, g.u, g_v);
      } else {
        const X d = slope_beside(u, b), g_d = g_v * (u - end_beside(u)) + g_log / d;
        g.u = select(in, g.u, g_v * d);
        g.d0 = select(u < lower_, g_d, g.d0);
        g.d1 = select(u < upper_, g.d1, g_d);
      }
    }
    put_sizes(b, b.widths, exponentials, least_width_, 0, g.x0, g.w, p, put);
    put_sizes(b, b.heights, exponentials + bins_, least_height_, bins_, g.y0, g.h, p, put);
    put_derivatives(b, g.d0 * b.slope0, g.d1 * b.slope1, put);
    if constexpr (Piece::kDivided) {
      const X g_raw = g.divide * b.divide_slope;
      for (int k = 0; k < bins_; ++k) put(first_divide() + k, select(b.index == k, g_raw, X{}));
    }
    return g.u;
  }

  // Cotangents of the raw sizes from those of the bin's start and size.
  template <class X, class P, class Put>
  FK_INLINE void put_sizes(const Bin<X>& b, const Sizes<X>& sizes, const X* exponentials, C least, int first, X g_start,
                           X g_size, P p, Put put) const {
    const X unit = length_ * (1 - bins_ * least) / sizes.sum, before = unit * g_start, of_bin = unit * g_size;
    const X mean = (before * sizes.before + of_bin * sizes.part) / sizes.sum;
    for (int k = 0; k < bins_; ++k) {
      const X g = select(b.index > k, before, select(b.index == k, of_bin, X{}));
      put(first + k, exponentials[k] * (g - mean) * logit(p(first + k)).slope);
    }
  }
  template <class X, class Put>
  FK_INLINE void put_derivatives(const Bin<X>& b, X g0, X g1, Put put) const {
    const int first = 2 * bins_, begin = tails_ == Tails::linear ? 1 : 0;
    const int end = tails_ == Tails::unconstrained ? bins_ + 1 : bins_;
    for (int k = begin; k < end; ++k) {
      const int before = tails_ == Tails::circular && k == 0 ? bins_ - 1 : k - 1;  // the bin that ends at the knot
      put(first + k - begin, select(b.index == k, g0, X{}) + select(b.index == before, g1, X{}));
    }
  }

  S parametrization_;
  T tails_;
  bool shifted_;
  int bins_;
  C lower_, upper_, length_, least_width_, least_height_, least_derivative_, end_, gain_, least_part_;
};

}  // namespace flowkern::FK_ISA::splines
