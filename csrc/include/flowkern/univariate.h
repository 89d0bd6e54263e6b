// A univariate map u -> v, whose parameters a network or a caller gives for each feature, as the operators receive it.
//
// A family of maps is one header in maps/, and flowkern/univariate says what its numbers mean. The header holds a class
// template in the namespace `maps` with the header's name, for constants of type C, with
//
//   kKind                                  the number of the family in flowkern/univariate
//   kMost                                  parameters of a feature at most
//   explicit family(UnivariateMap)
//   forward(u, p) -> MapValue              v and log |dv/du|; NaN for the latter where u is not finite
//   inverse(v, p) -> MapValue              u and log |du/dv|; the same for v
//   backward(u, p, g_v, g_log, put)        the cotangent of u from those of v and log |dv/du|; put(i, g) those of p
//   inverse_backward(u, p, g, g_log, put)  the v for which backward(u, p, -v, g_log, put) returns -g, and does the same
//   backward_of_inverse(v, p, g, g_log, put)  the same at the inverse u of v
//   specialised(map, f)                    calls f(family) once per call, whose type may hold what it branches on
//
// where u, v and p(i), parameter i of the feature, are numbers X, see math.h: nothing else differs between CPU and GPU.
#pragma once

namespace flowkern {

constexpr int kMapOptions = 8, kMapConstants = 8;

// flowkern/univariate writes the same numbers, as doubles, and flowkern/cuda/launch.py this struct.
struct UnivariateMap {
  int kind, count;           // count: parameters of a feature
  int options[kMapOptions];  // what a family branches on
  double constants[kMapConstants];
};

template <class X>
struct MapValue {
  X value, log_slope;
};

}  // namespace flowkern
