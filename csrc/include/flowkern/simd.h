// Vectors of the widest registers that this translation unit may use, by the compiler's vector extension.
//
// The CPU kernels are compiled once per instruction set, each time into the namespace FK_ISA; no symbol of one
// set may be shared with another, so this header and those that include it keep to raw pointers and builtins.
#pragma once

#include <cstdint>
#include <utility>

#ifndef FK_ISA
#error "FK_ISA names the instruction set that a kernel is compiled for"
#endif

#if defined(__AVX512F__)
#define FK_VECTOR_BYTES 64
#define FK_VECTOR_REGISTERS 32
#elif defined(__AVX2__)
#define FK_VECTOR_BYTES 32
#define FK_VECTOR_REGISTERS 16
#elif defined(__aarch64__)
#define FK_VECTOR_BYTES 16
#define FK_VECTOR_REGISTERS 32
#else
#define FK_VECTOR_BYTES 16
#define FK_VECTOR_REGISTERS 16
#endif

#define FK_INLINE inline __attribute__((always_inline))

namespace flowkern::FK_ISA {

template <class T, int Bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Bytes)));
};
template <class T>
using Vec = typename VectorOf<T, FK_VECTOR_BYTES>::type;
template <class T>
using Panel8 = typename VectorOf<T, 8 * sizeof(T)>::type;  // one column of a packed panel
template <class T>
constexpr int kLanes = FK_VECTOR_BYTES / sizeof(T);
template <class T>
constexpr int kTileRows = 2 * kLanes<T>;  // rows of a bulk tile
template <class T>
constexpr int kSmallRows = kTileRows<T> > 4 ? 4 : 2;  // rows of a small tile; the other small tile has one
template <class T, int R>
constexpr int kTileKind = R == 1               ? 0
                          : R == kSmallRows<T> ? 1
                                               : 2;  // the index of tiles of R rows in kernel tables

template <class V, class T>
FK_INLINE V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <class V, class T>
FK_INLINE void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}
// The first n lanes, the others zero.
template <class V, class T>
FK_INLINE V load_part(const T* p, int64_t n) {
  V v = {};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
template <class V, class T>
FK_INLINE void store_part(T* p, V v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}
template <class T>
FK_INLINE T lane_sum(Vec<T> v) {
  T s = 0;
  for (int i = 0; i < kLanes<T>; ++i) s += v[i];
  return s;
}

// Calls f(vector) -> vector on n contiguous elements.
template <class T, class F>
FK_INLINE void map_elements(const T* in, T* out, int64_t n, F f) {
  constexpr int W = kLanes<T>;
  int64_t i = 0;
  for (; i + W <= n; i += W) store(out + i, f(load<Vec<T>>(in + i)));
  if (i < n) store_part(out + i, f(load_part<Vec<T>>(in + i, n - i)), n - i);
}

// Calls f with n, from 1 to Max, as a constant, so that loops of that length unroll.
template <int Max, class F>
FK_INLINE void with_count(int64_t n, F f) {
  if (n == Max) return f(std::integral_constant<int, Max>{});
  if constexpr (Max > 1) with_count<Max - 1>(n, f);
}

namespace detail {
template <int Step, class V, int... I>
FK_INLINE V interleave_low(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int W = sizeof...(I);
  return __builtin_shufflevector(a, b, ((I & Step) ? W + I - Step : I)...);
}
template <int Step, class V, int... I>
FK_INLINE V interleave_high(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int W = sizeof...(I);
  return __builtin_shufflevector(a, b, ((I & Step) ? W + I : I + Step)...);
}
template <int Step, class T>
FK_INLINE void transpose_step(Vec<T>* v) {
  constexpr int W = kLanes<T>;
  if constexpr (Step < W) {
    using Lanes = std::make_integer_sequence<int, W>;
    for (int i = 0; i < W; ++i) {
      if (i & Step) continue;
      const Vec<T> a = v[i], b = v[i + Step];
      v[i] = interleave_low<Step>(a, b, Lanes{});
      v[i + Step] = interleave_high<Step>(a, b, Lanes{});
    }
    transpose_step<Step * 2, T>(v);
  }
}
}  // namespace detail

// Transposes a square of kLanes x kLanes elements held in registers.
template <class T>
FK_INLINE void transpose(Vec<T>* v) {
  detail::transpose_step<1, T>(v);
}

}  // namespace flowkern::FK_ISA
