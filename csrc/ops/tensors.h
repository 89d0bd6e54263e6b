// What the operators share: tensors to pointers, threads, memory. Built on torch's stable ABI only.
//
// Arguments were checked in Python (flowkern/ops), so the operators trust shapes and dtypes; they check only what would
// corrupt memory if the two sides disagreed about a plan.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/maps/kernels.h"

namespace flowkern {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

constexpr size_t kHugePage = size_t{1} << 21;

inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (int64_t i = static_cast<int64_t>(sizes.size()) - 2; i >= 0; --i)
    strides[i] = strides[i + 1] * std::max<int64_t>(sizes[i + 1], 1);
  AtenTensorHandle handle = nullptr;
  const int32_t code = dtype == ScalarType::Double ? aoti_torch_dtype_float64()
                       : dtype == ScalarType::Long ? aoti_torch_dtype_int64()
                                                   : aoti_torch_dtype_float32();
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), code, aoti_torch_device_type_cpu(), 0,
                                                         &handle));
  return Tensor(handle);
}

template <class T>
constexpr ScalarType kDtype = sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;

template <class T>
Tensor empty(const std::vector<int64_t>& sizes) {
  return empty(sizes, kDtype<T>);
}

template <class T>
Tensor zeros(const std::vector<int64_t>& sizes) {
  Tensor t = empty<T>(sizes);
  if (t.numel() > 0) std::memset(t.mutable_data_ptr(), 0, t.numel() * sizeof(T));
  return t;
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <class T>
const T* const_data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

inline bool on_cpu(const Tensor& t) {
  int32_t type = -1;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type == aoti_torch_device_type_cpu();
}

template <class T>
Matrix<const T> matrix(const Tensor& t) {
  return {const_data<T>(t), t.stride(0), t.dim() > 1 ? t.stride(1) : 0};
}

// Multiply-adds from which a call is worth sharing among threads: fewer are done sooner than a thread is woken
// (measured: docs/measured.md).
constexpr int64_t kParallelWork = int64_t{1} << 20;

// Runs f(i) for i in [0, n), which takes `work` multiply-adds or so in all; threads take the next index as they become
// free. Each index writes its own results, so they do not depend on the number of threads. One thread, the calling one
// where torch's threads are OpenMP's, runs `before` first, which no index may wait for.
template <class F, class Before>
void parallel(int64_t n, int64_t work, const F& f, const Before& before) {
  const int64_t threads = n > 1 && work >= kParallelWork ? std::min<int64_t>(n, torch::stable::get_num_threads()) : 1;
  if (threads <= 1) {
    before();
    for (int64_t i = 0; i < n; ++i) f(i);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t thread, int64_t) {
    if (thread == 0) before();
    for (int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) f(i);
  });
}
template <class F>
void parallel(int64_t n, int64_t work, const F& f) {
  parallel(n, work, f, [] {});
}

// Calls f(begin, end) on ranges of so many.
template <class F>
void parallel_ranges(int64_t n, int64_t step, int64_t work, const F& f) {
  parallel((n + step - 1) / step, work, [&](int64_t i) { f(i * step, std::min(n, (i + 1) * step)); });
}

// Calls f(part, begin, end) on so many parts of [0, n).
template <class F>
void parallel_parts(int64_t n, int64_t parts, int64_t work, const F& f) {
  parallel(parts, work, [&](int64_t part) { f(part, n * part / parts, n * (part + 1) / parts); });
}

// Parts of n pieces of work whose products are summed apart, so many elements of each: their number does not depend on
// that of the threads.
inline int64_t gradient_parts(int64_t n, int64_t sums) {
  constexpr int64_t kParts = 16, kElements = int64_t{1} << 22;
  return std::clamp<int64_t>(std::min(n, kElements / std::max<int64_t>(sums, 1)), 1, kParts);
}

// Asks for pages of 2 MB: a training step has a third of the page faults then (docs/measured.md).
inline void prefer_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
  const auto begin = (reinterpret_cast<uintptr_t>(memory) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kHugePage * kHugePage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Memory for results that are large.
template <class T>
Tensor large(std::vector<int64_t> sizes) {
  Tensor t = empty<T>(sizes);
  prefer_huge_pages(t.mutable_data_ptr(), t.numel() * sizeof(T));
  return t;
}

// Memory that a thread keeps from call to call: fresh pages would cost as much as a small network. Slot 0 serves the
// tiles of every thread, slot 1 what the calling thread hands to all of them.
inline void* scratch(size_t bytes, int slot = 0) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> memory[2];
  thread_local size_t capacity[2] = {};
  if (capacity[slot] < bytes) {
    capacity[slot] = 0;
    const size_t page = bytes < kHugePage ? 4096 : kHugePage, wanted = (bytes + page - 1) / page * page;
    memory[slot].reset(std::aligned_alloc(page, wanted));
    STD_TORCH_CHECK(memory[slot] != nullptr, "flowkern: out of memory for ", wanted, " bytes of scratch space");
    prefer_huge_pages(memory[slot].get(), wanted);
    capacity[slot] = wanted;
  }
#ifdef FLOWKERN_POISON
  std::memset(memory[slot].get(), 0xFF, capacity[slot]);  // NaN: a read before a write shows
#endif
  return memory[slot].get();
}

template <class F>
auto for_dtype(const Tensor& t, F f) {
  return t.scalar_type() == ScalarType::Double ? f(double{}) : f(float{});
}

// flowkern/univariate writes a map as a vector of doubles: the fields of the struct in their order.
template <class T>
Map<T> univariate_map(const double* from) {
  UnivariateMap map{static_cast<int>(from[0]), static_cast<int>(from[1]), {}, {}};
  for (int i = 0; i < kMapOptions; ++i) map.options[i] = static_cast<int>(from[2 + i]);
  std::copy_n(from + 2 + kMapOptions, kMapConstants, map.constants);
  const MapFamilies<T>& families = map_families<T>();
  for (int i = 0; i < families.count; ++i)
    if (families.begin[i].kind == map.kind) return {map, &families.begin[i]};
  STD_TORCH_CHECK(false, "flowkern: this build has no kernels for univariate maps of kind ", map.kind);
}

template <class T>
Map<T> univariate_map(const Tensor& numbers) {
  STD_TORCH_CHECK(on_cpu(numbers) && numbers.numel() == 2 + kMapOptions + kMapConstants &&
                      numbers.scalar_type() == ScalarType::Double,
                  "flowkern: this is no univariate map");
  return univariate_map<T>(const_data<double>(numbers));
}

}  // namespace flowkern
