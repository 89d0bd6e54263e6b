// What the CPU kernels of other families need of a univariate map: functions on whole tiles and rows, so that a map is
// chosen once per call and no kernel knows which families there are.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/matrix.h"
#include "flowkern/univariate.h"

namespace flowkern {

// A tile holds every quantity as [feature][row], parameters as [feature][parameter][row].
template <class T>
struct MapKernels {
  int kind;

  // Index 0, 1: small tiles; 2: bulk tiles. The log-slopes are added to `log_slope` [row].
  using Tile = void (*)(const UnivariateMap&, int64_t features, const T* u, const T* parameters, T* v,
                        double* log_slope);
  Tile forward[3], inverse[3];

  // Of bulk tiles: cotangents of u and of the parameters from those of v and of the log-slope [row].
  void (*backward)(const UnivariateMap&, int64_t features, const T* u, const T* parameters, const T* g_v,
                   const T* g_log_slope, T* g_u, T* g_parameters);
  // The same for the inverse, u being its result: g_v cancels g + network, and the parameters receive what the density
  // would give them for (-g_v, g_log_slope).
  using InverseBackward = void (*)(const UnivariateMap&, int64_t features, const T* u, const T* parameters, const T* g,
                                   const T* network, const T* g_log_slope, T* g_v, T* g_parameters);
  InverseBackward inverse_backward;
  InverseBackward backward_of_inverse;  // u being what the inverse was of

  // Rows of matrices, with one matrix per parameter. `rebuild`: x holds the output of the map, from which the input is
  // found.
  void (*rows)(const UnivariateMap&, bool inverse, Matrix<const T> x, const Matrix<const T>* parameters,
               int64_t columns, T* z, T* log_det, int64_t row_begin, int64_t row_end);
  void (*rows_backward)(const UnivariateMap&, bool rebuild, bool inverse, Matrix<const T> x,
                        const Matrix<const T>* parameters, Matrix<const T> g_z, Matrix<const T> g_log_det,
                        int64_t columns, T* g_x, T* const* g_parameters, int64_t row_begin, int64_t row_end);
};

template <class T>
struct MapFamilies {
  const MapKernels<T>* begin;
  int count;
};

// A map and its family's kernels.
template <class T>
struct Map {
  UnivariateMap map;
  const MapKernels<T>* kernels;
};

}  // namespace flowkern

FK_KERNELS(MapFamilies, map_families)
