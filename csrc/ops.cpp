// The operators of namespace `flowkern`: schemas, tensors to pointers, threads. Built on torch's stable ABI only.
//
// Arguments were checked in Python (flowkern/ops), so these functions trust shapes and dtypes; they check only what
// would corrupt memory if the two sides disagreed about a plan.
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

#include "cpu/kernels.h"

namespace flowkern {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

constexpr int64_t kSerial = 16384;  // weights up to which a network is packed by one thread
constexpr size_t kHugePage = size_t{1} << 21;
// Rows whose cotangents are held at once, which bounds the memory of a backward pass: so many, or more of a small
// network.
constexpr int64_t kBackwardRows = 512;
constexpr int64_t kBackwardBytes = int64_t{1} << 22;

// ---- tensors and threads ----------------------------------------------------------------------------------------

Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (int64_t i = static_cast<int64_t>(sizes.size()) - 2; i >= 0; --i)
    strides[i] = strides[i + 1] * std::max<int64_t>(sizes[i + 1], 1);
  AtenTensorHandle handle = nullptr;
  const int32_t code = dtype == ScalarType::Double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
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

bool on_cpu(const Tensor& t) {
  int32_t type = -1;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
  return type == aoti_torch_device_type_cpu();
}

template <class T>
Matrix<const T> matrix(const Tensor& t) {
  return {const_data<T>(t), t.stride(0), t.dim() > 1 ? t.stride(1) : 0};
}

// Runs f(i) for i in [0, n); threads take the next index as they become free. Each index writes its own results, so
// they do not depend on the number of threads.
template <class F>
void parallel(int64_t n, const F& f) {
  const int64_t threads = n > 1 ? std::min<int64_t>(n, torch::stable::get_num_threads()) : 1;
  if (threads <= 1) {
    for (int64_t i = 0; i < n; ++i) f(i);
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) f(i);
  });
}

// Asks for pages of 2 MB: a training step spends a tenth of its time on faults for small ones (docs/measured.md).
void prefer_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
  const auto begin = (reinterpret_cast<uintptr_t>(memory) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kHugePage * kHugePage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Memory that a thread keeps from call to call: fresh pages would cost as much as a small network. Slot 0 serves the
// tiles of every thread, slot 1 what the calling thread hands to all of them.
void* scratch(size_t bytes, int slot = 0) {
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
template <class T>
T* tile_scratch(const PlanView& plan, int64_t rows) {
  return static_cast<T*>(scratch(scratch_rows(plan) * rows * sizeof(T)));
}

PlanView view(const Tensor& plan) {
  const PlanView v(const_data<int64_t>(plan));
  STD_TORCH_CHECK(v.version() == kPlanVersion, "flowkern: the plan has version ", v.version(),
                  ", this build reads version ", kPlanVersion, "; rebuild with `pip install -e .`");
  return v;
}

template <class F>
auto for_dtype(const Tensor& t, F f) {
  return t.scalar_type() == ScalarType::Double ? f(double{}) : f(float{});
}

UnivariateMap univariate_map(int64_t scale, int64_t placement, double c0, double c1) {
  return {static_cast<Scale>(scale), static_cast<Placement>(placement), c0, c1};
}

// ---- masked networks --------------------------------------------------------------------------------------------

// The weights of one network on their way into its packed buffer, in parts that threads can share.
template <class T>
class Packing {
 public:
  Packing(const PlanView& plan, const Tensor* weights, const Tensor* biases, const Tensor& mask, T* out)
      : plan_(plan), mask_(const_data<uint8_t>(mask)), out_(out) {
    const auto fits = [](const Tensor& t, int64_t rows, int64_t columns) {
      return on_cpu(t) && t.scalar_type() == kDtype<T> && t.dim() == (columns < 0 ? 1 : 2) && t.size(0) == rows &&
             (columns < 0 || t.size(1) == columns);
    };
    for (int l = 0; l < plan.linears(); ++l) {
      const LinearView m = plan.linear(l);
      bool good = fits(weights[l], m.original_rows(), m.original_columns());
      weights_.push_back(matrix<T>(weights[l]));
      if (m.bias_index() >= 0) {
        good = good && fits(biases[m.bias_index()], m.original_rows(), -1);
        biases_.push_back(matrix<T>(biases[m.bias_index()]));
        // The biases are padded to whole vectors; leave nothing undefined.
        std::fill_n(out + m.bias_offset() + m.rows(), (16 - m.rows() % 16) % 16, T(0));
      }
      STD_TORCH_CHECK(good, "flowkern: the weights do not belong to this plan");
    }
  }

  int64_t parts() const {
    constexpr int64_t kPart = 8192;  // weights per turn of a thread; fewer are not worth waking one
    return std::clamp<int64_t>(plan_.packed_size() / kPart, 1, 64);
  }

  void run(int64_t part) const {
    for (int l = 0; l < plan_.linears(); ++l) {
      const int64_t n = plan_.linear(l).chunks();
      kernels<T>().pack(plan_, weights_.data(), biases_.data(), mask_, out_, l, n * part / parts(),
                        n * (part + 1) / parts());
    }
  }

 private:
  PlanView plan_;
  std::vector<Matrix<const T>> weights_, biases_;
  const uint8_t* mask_;
  T* out_;
};

int64_t biased(const PlanView& plan) {
  int64_t n = 0;
  for (int l = 0; l < plan.linears(); ++l) n += plan.linear(l).bias_index() >= 0;
  return n;
}

// Units of the layer that receives the addend or gate `slot`.
int64_t addend_units(const PlanView& plan, int slot) {
  for (int l = 0; l < plan.hidden(); ++l)
    if (plan.hidden(l).addend() == slot || plan.hidden(l).gate() == slot) return plan.hidden(l).original_units();
  return plan.linear(plan.hidden()).original_rows();
}

template <class T>
Tensor pack(const PlanView& v, const Tensors& weights, const Tensors& biases, const Tensor& mask) {
  STD_TORCH_CHECK(static_cast<int>(weights.size()) == v.linears() && static_cast<int64_t>(biases.size()) == biased(v),
                  "flowkern: the weights do not belong to this plan");
  Tensor out = empty<T>({v.packed_size()});
  const Packing<T> packing(v, weights.data(), biases.data(), mask, data<T>(out));
  parallel(packing.parts(), [&](int64_t i) { packing.run(i); });
  return out;
}

Tensor pack_weights(Tensors weights, Tensors biases, Tensor plan, Tensor mask, int64_t) {
  return for_dtype(weights[0], [&](auto zero) { return pack<decltype(zero)>(view(plan), weights, biases, mask); });
}

// The network part of an operator's arguments. `packed` holds the weights packed before (frozen models); without it
// they are packed now.
struct NetworkArguments {
  const Tensors &weights, &biases, &addends;
  const std::optional<Tensor>& packed;
  const Tensor &plan, &mask;
};

// Which tiles a batch is cut into. Without a batch that fills the lanes, the units do (measured: docs/measured.md).
int tile_kind(int64_t batch) { return batch > 8 ? 2 : batch > 1 ? 1 : 0; }
template <class T>
int64_t tile_rows(const Kernels<T>& k, int kind) {
  return kind == 2 ? k.tile_rows : k.small_rows[kind];
}

template <class T>
struct Call {  // what every masked-network operator prepares: weights, addends, the size of a tile, the saved buffer
  Call(const Tensor& x, const NetworkArguments& in, bool save)
      : packed(in.packed ? *in.packed : pack<T>(view(in.plan), in.weights, in.biases, in.mask)),
        net{view(in.plan), const_data<T>(packed), nullptr, x.size(0)},
        k(kernels<T>()) {
    STD_TORCH_CHECK(packed.numel() == net.plan.packed_size(), "flowkern: `packed` does not belong to this plan");
    for (const Tensor& t : in.addends) addends.push_back(matrix<T>(t));
    net.addends = addends.data();
    kind = save ? 2 : tile_kind(net.batch);
    rows = tile_rows(k, kind);
    tiles = (net.batch + rows - 1) / rows;
    saved = empty<T>({save ? tiles : 0, net.plan.saved_rows() * k.tile_rows});
    if (save) prefer_huge_pages(saved.mutable_data_ptr(), saved.numel() * sizeof(T));
    if (in.packed || !save)
      packed_out = empty<T>({0});
    else
      packed_out = packed;
  }
  T* saved_data() const { return saved.numel() > 0 ? data<T>(saved) : nullptr; }

  Tensor packed;
  Network<T> net;
  const Kernels<T>& k;
  std::vector<Matrix<const T>> addends;
  int kind;
  int64_t rows, tiles;
  Tensor saved, packed_out;  // what the backward pass needs; empty where there will be none
};

std::tuple<Tensor, Tensor, Tensor> masked_mlp(Tensor x, Tensors weights, Tensors biases, Tensors addends,
                                              std::optional<Tensor> packed, Tensor plan, Tensor mask, int64_t outputs,
                                              int64_t, int64_t, bool save) {
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensor, Tensor> {
    using T = decltype(zero);
    Call<T> call(x, {weights, biases, addends, packed, plan, mask}, save);
    const PlanView& v = call.net.plan;
    Tensor out = empty<T>({call.net.batch, outputs});
    parallel(call.tiles, [&](int64_t i) {
      call.k.masked_mlp[call.kind](call.net, matrix<T>(x), data<T>(out), call.saved_data(), i,
                                   tile_scratch<T>(v, call.rows));
    });
    return {out, call.packed_out, call.saved};
  });
}

// The forward and the inverse differ only in the kernel.
template <bool Inverse>
std::tuple<Tensor, Tensor, Tensor, Tensor> transform(Tensor x, Tensors weights, Tensors biases, Tensors addends,
                                                     std::optional<Tensor> packed, Tensor plan, Tensor mask, int64_t,
                                                     int64_t, int64_t scale, int64_t placement, double c0, double c1,
                                                     bool save) {
  const UnivariateMap map = univariate_map(scale, placement, c0, c1);
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    using T = decltype(zero);
    Call<T> call(x, {weights, biases, addends, packed, plan, mask}, save);
    Tensor z = empty<T>({call.net.batch, call.net.plan.features()}), log_det = empty<T>({call.net.batch});
    const auto kernel = Inverse ? call.k.autoregressive_inverse[call.kind] : call.k.autoregressive[call.kind];
    parallel(call.tiles, [&](int64_t i) {
      kernel(call.net, map, matrix<T>(x), data<T>(z), data<T>(log_det), call.saved_data(), i,
             tile_scratch<T>(call.net.plan, call.rows));
    });
    return {z, log_det, call.packed_out, call.saved};
  });
}

// One transform of a chain.
template <class T>
struct Step {
  Network<T> net;
  UnivariateMap map;
  bool inverse;
};

// Transforms one after another without a gradient: all weights are packed in one go, then each tile runs through the
// whole chain while it is in the cache. Tensors of all steps are in one list each; `maps` holds (inverse, scale,
// placement) of each step and `constants` its two constants. `packed` is empty or has one vector per step.
template <class T>
std::tuple<Tensor, Tensor> chain(const Tensor& x, const Tensors& weights, const Tensors& biases, const Tensors& addends,
                                 const Tensors& packed, const Tensors& plans, const Tensors& masks,
                                 const std::vector<int64_t>& maps, const std::vector<double>& constants) {
  const int64_t batch = x.size(0), features = x.size(1);
  const size_t n = plans.size();
  STD_TORCH_CHECK(n > 0 && masks.size() == n && maps.size() == 3 * n && constants.size() == 2 * n &&
                      (packed.empty() || packed.size() == n),
                  "flowkern: the lists of a chain differ in length");
  int64_t size = 0, linears = 0, biases_seen = 0;
  std::vector<Matrix<const T>> addend_data;
  addend_data.reserve(addends.size());  // the steps point into it
  std::vector<Step<T>> steps;
  for (size_t i = 0; i < plans.size(); ++i) {
    const PlanView v = view(plans[i]);
    STD_TORCH_CHECK(v.features() == features, "flowkern: x does not belong to this plan");
    steps.push_back({{v, nullptr, addend_data.data() + addend_data.size(), batch},
                     univariate_map(maps[3 * i + 1], maps[3 * i + 2], constants[2 * i], constants[2 * i + 1]),
                     maps[3 * i] != 0});
    size += v.packed_size();
    linears += v.linears(), biases_seen += biased(v);
    for (int slot = 0; slot < v.addends(); ++slot) {
      const size_t next = addend_data.size();
      STD_TORCH_CHECK(next < addends.size() && on_cpu(addends[next]) && addends[next].dim() == 2 &&
                          addends[next].size(0) == batch && addends[next].size(1) == addend_units(v, slot) &&
                          addends[next].scalar_type() == kDtype<T>,
                      "flowkern: the addends do not belong to this batch and these plans");
      addend_data.push_back(matrix<T>(addends[next]));
    }
  }
  STD_TORCH_CHECK(linears == static_cast<int64_t>(weights.size()) &&
                      biases_seen == static_cast<int64_t>(biases.size()) && addend_data.size() == addends.size(),
                  "flowkern: the weights do not belong to these plans");

  Tensor buffer = empty<T>({packed.empty() ? size : 0});
  std::vector<Packing<T>> packings;
  std::vector<std::pair<int, int64_t>> parts;
  T* out = data<T>(buffer);
  for (size_t i = 0, l = 0, b = 0; i < steps.size(); ++i) {
    const PlanView& v = steps[i].net.plan;
    if (!packed.empty()) {
      STD_TORCH_CHECK(on_cpu(packed[i]) && packed[i].numel() == v.packed_size() && packed[i].scalar_type() == kDtype<T>,
                      "flowkern: `packed` does not belong to this plan");
      steps[i].net.packed = const_data<T>(packed[i]);
      continue;
    }
    packings.emplace_back(v, weights.data() + l, biases.data() + b, masks[i], out);
    for (int64_t p = 0; p < packings.back().parts(); ++p) parts.emplace_back(static_cast<int>(i), p);
    steps[i].net.packed = out;
    out += v.packed_size(), l += v.linears(), b += biased(v);
  }
  // Small networks are packed sooner than a thread is woken.
  const int64_t turns = size < kSerial ? 1 : static_cast<int64_t>(parts.size());
  parallel(turns, [&](int64_t i) {
    const size_t begin = parts.size() * i / turns, end = parts.size() * (i + 1) / turns;
    for (size_t p = begin; p < end; ++p) packings[parts[p].first].run(parts[p].second);
  });

  const Kernels<T>& k = kernels<T>();
  const int kind = tile_kind(batch);
  const int64_t rows = tile_rows(k, kind), tiles = (batch + rows - 1) / rows;
  Tensor z = empty<T>({batch, features}), log_det = empty<T>({batch}), term = empty<T>({batch});
  parallel(tiles, [&](int64_t tile) {
    for (size_t i = 0; i < steps.size(); ++i) {
      const Step<T>& s = steps[i];
      const auto kernel = s.inverse ? k.autoregressive_inverse[kind] : k.autoregressive[kind];
      // A tile reads its rows before it writes them, so z serves as the input of the next step.
      kernel(s.net, s.map, matrix<T>(i ? z : x), data<T>(z), data<T>(i ? term : log_det), nullptr, tile,
             tile_scratch<T>(s.net.plan, rows));
      for (int64_t r = tile * rows; i && r < std::min(batch, (tile + 1) * rows); ++r)
        data<T>(log_det)[r] += data<T>(term)[r];
    }
  });
  return {z, log_det};
}

std::tuple<Tensor, Tensor> autoregressive_chain(Tensor x, Tensors weights, Tensors biases, Tensors addends,
                                                Tensors packed, Tensors plans, Tensors masks, std::vector<int64_t> maps,
                                                std::vector<double> constants) {
  STD_TORCH_CHECK(x.dim() == 2, "flowkern: x is no matrix");
  return for_dtype(x, [&](auto zero) {
    return chain<decltype(zero)>(x, weights, biases, addends, packed, plans, masks, maps, constants);
  });
}

// Cotangents of x, and of every weight, bias and addend. `kernel(net, in, tile, scratch)` handles one tile; the tiles
// go by groups of kBackwardRows rows, and the weight gradients of a group follow as products over its rows.
template <class T, class Kernel>
std::tuple<Tensor, Tensors, Tensors, Tensors> backward(TileBackward<T> in, const Tensor& packed, const Tensor& saved,
                                                       const Tensor& plan, const Tensor& mask, const Tensors& weights,
                                                       const Tensors& biases, const Tensors& addends, int64_t batch,
                                                       bool parameters, Kernel kernel) {
  const PlanView v = view(plan);
  const Kernels<T>& k = kernels<T>();
  const int64_t rows = k.tile_rows, tiles = (batch + rows - 1) / rows;
  STD_TORCH_CHECK(saved.numel() == tiles * v.saved_rows() * rows, "flowkern: `saved` does not belong to this call");
  std::vector<Matrix<const T>> addend_data;
  for (const Tensor& t : addends) addend_data.push_back(matrix<T>(t));
  const Network<T> net{v, const_data<T>(packed), addend_data.data(), batch};

  Tensor g_x = empty<T>({batch, v.features()});
  Tensors g_weights, g_biases, g_addends;
  std::vector<Matrix<T>> a;
  std::vector<T*> w, b;
  for (const Tensor& t : addends) {
    g_addends.push_back(zeros<T>({t.size(0), t.size(1)}));
    a.push_back({data<T>(g_addends.back()), t.size(1), 1});
  }
  if (parameters) {
    for (int l = 0; l < v.linears(); ++l) {
      const LinearView m = v.linear(l);
      const std::vector<int64_t> sizes{m.original_rows(), m.original_columns()};
      // Rows that no output can see are not in the plan.
      g_weights.push_back(m.rows() < m.original_rows() ? zeros<T>(sizes) : empty<T>(sizes));
      w.push_back(data<T>(g_weights.back()));
    }
    for (const Tensor& t : biases) {
      g_biases.push_back(zeros<T>({t.size(0)}));
      b.push_back(data<T>(g_biases.back()));
    }
  }
  in.saved = const_data<T>(saved);
  in.g_x = {data<T>(g_x), v.features(), 1};
  in.g_addends = a.data();

  const int64_t panels = panel_offset(v, v.hidden(), rows);
  const int64_t tile_bytes = (v.saved_rows() + panels * rows) * rows * static_cast<int64_t>(sizeof(T));
  const int64_t group =
      std::clamp<int64_t>(std::max(kBackwardRows / rows, kBackwardBytes / tile_bytes), 1, std::max<int64_t>(tiles, 1));
  const int64_t deltas = group * v.saved_rows() * rows, activations = parameters ? panels * group * rows * rows : 0;
  const int64_t sums = parameters ? sums_offset(v, v.linears(), rows) : 0;
  in.deltas = static_cast<T*>(scratch((deltas + activations + sums) * sizeof(T), 1));
  in.activations = parameters ? in.deltas + deltas : nullptr;

  struct Item {
    int linear;
    int64_t panel, begin, end;
  };
  std::vector<Item> items;
  if (parameters)
    for (int l = 0; l < v.linears(); ++l) {
      const LinearView m = v.linear(l);
      constexpr int64_t kChunks = 4;
      const int64_t columns = v.start(m.source(), v.levels());
      for (int64_t p = 0; p * rows < std::max<int64_t>(columns, 1); ++p)
        for (int64_t c = 0; c < m.chunks(); c += kChunks)
          if (p == 0 || m.chunk(std::min(c + kChunks, m.chunks()) - 1).columns > p * rows)
            items.push_back({l, p, c, std::min(c + kChunks, m.chunks())});
    }

  WeightGradient<T> g{
      v,        in.deltas, in.activations, const_data<uint8_t>(mask), 0, true, in.deltas + deltas + activations,
      w.data(), b.data()};
  for (int64_t first = 0; first == 0 || first < tiles; first += group) {  // once for an empty batch: zeros
    in.first_tile = first;
    in.tiles = g.tiles = std::min(group, tiles - first);
    g.first = first == 0;
    parallel(in.tiles, [&](int64_t i) { kernel(k, net, in, first + i, tile_scratch<T>(v, rows)); });
    parallel(static_cast<int64_t>(items.size()),
             [&](int64_t i) { k.weight_gradient(g, items[i].linear, items[i].panel, items[i].begin, items[i].end); });
  }
  parallel(static_cast<int64_t>(items.size()), [&](int64_t i) {
    if (items[i].panel == 0) k.unpack(g, items[i].linear, items[i].begin, items[i].end);
  });
  return {g_x, g_weights, g_biases, g_addends};
}

std::tuple<Tensor, Tensors, Tensors, Tensors> masked_mlp_backward(Tensor g, Tensor x, Tensor packed, Tensor saved,
                                                                  Tensor plan, Tensor mask, Tensors weights,
                                                                  Tensors biases, Tensors addends, bool parameters) {
  return for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    TileBackward<T> in{};
    in.x = matrix<T>(x);
    in.g_value = matrix<T>(g);
    return backward<T>(in, packed, saved, plan, mask, weights, biases, addends, x.size(0), parameters,
                       [](const Kernels<T>& k, const auto&... rest) { k.masked_mlp_backward(rest...); });
  });
}

template <bool Inverse>
std::tuple<Tensor, Tensors, Tensors, Tensors> transform_backward(Tensor g, Tensor g_log_det, Tensor x, Tensor packed,
                                                                 Tensor saved, Tensor plan, Tensor mask,
                                                                 Tensors weights, Tensors biases, Tensors addends,
                                                                 int64_t scale, int64_t placement, double c0, double c1,
                                                                 bool parameters) {
  const UnivariateMap map = univariate_map(scale, placement, c0, c1);
  return for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    TileBackward<T> in{};
    in.x = matrix<T>(x);
    in.g_value = matrix<T>(g);
    in.g_log_det = matrix<T>(g_log_det);
    return backward<T>(in, packed, saved, plan, mask, weights, biases, addends, x.size(0), parameters,
                       [&](const Kernels<T>& k, const Network<T>& net, const auto&... rest) {
                         const auto f = Inverse ? k.autoregressive_inverse_backward : k.autoregressive_backward;
                         f(net, map, rest...);
                       });
  });
}

// ---- rows -------------------------------------------------------------------------------------------------------

// Calls f(begin, end) on ranges of rows of about 16,384 elements.
template <class F>
void parallel_rows(int64_t rows, int64_t columns, const F& f) {
  const int64_t step = std::max<int64_t>(1, 16384 / std::max<int64_t>(columns, 1));
  parallel((rows + step - 1) / step, [&](int64_t i) { f(i * step, std::min(rows, (i + 1) * step)); });
}

// The transformed feature of every column of parameters: every `step`-th from `begin` on, or as the table says.
std::vector<int64_t> transformed_features(const std::optional<Tensor>& place, int64_t begin, int64_t step,
                                          int64_t count, int64_t width) {
  std::vector<int64_t> features(count, -1);
  if (!place) {
    STD_TORCH_CHECK(count == 0 || (begin >= 0 && begin + (count - 1) * step < width), "coupling: no such features");
    for (int64_t j = 0; j < count; ++j) features[j] = begin + j * step;
    return features;
  }
  const int64_t* column = const_data<int64_t>(*place);
  int64_t found = 0;
  for (int64_t d = 0; d < width; ++d) {
    if (column[d] < 0) continue;
    STD_TORCH_CHECK(column[d] < count && features[column[d]] < 0, "transformed: expected each column from 0 to ",
                    count - 1, " once and -1 elsewhere, got ", column[d], " for feature ", d);
    features[column[d]] = d;
    ++found;
  }
  STD_TORCH_CHECK(found == count, "transformed: expected ", count, " features with a column, got ", found);
  return features;
}

// Serves `affine` too: step 0 says that every feature is transformed.
std::tuple<Tensor, Tensor> coupling(Tensor x, Tensor shift, Tensor raw, std::optional<Tensor> place, int64_t begin,
                                    int64_t step, int64_t count, bool inverse, int64_t scale, int64_t placement,
                                    double c0, double c1) {
  const UnivariateMap map = univariate_map(scale, placement, c0, c1);
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensor> {
    using T = decltype(zero);
    const int64_t rows = x.size(0), columns = x.size(1);
    Tensor z = empty<T>({rows, columns}), log_det = empty<T>({rows});
    const auto features = transformed_features(place, begin, step, step ? count : 0, columns);
    parallel_rows(rows, columns, [&](int64_t first, int64_t last) {
      const Matrix<const T> in[] = {matrix<T>(x), matrix<T>(shift), matrix<T>(raw)};
      if (step == 0)
        return kernels<T>().affine(map, inverse, in[0], in[1], in[2], columns, data<T>(z), data<T>(log_det), first,
                                   last);
      kernels<T>().coupling(map, inverse, in[0], in[1], in[2], {features.data(), count, columns}, data<T>(z),
                            data<T>(log_det), static_cast<T*>(scratch(3 * columns * sizeof(T))), first, last);
    });
    return {z, log_det};
  });
}

std::tuple<Tensor, Tensor, Tensor> coupling_backward(Tensor g_z, Tensor g_log_det, Tensor x, Tensor shift, Tensor raw,
                                                     std::optional<Tensor> place, int64_t begin, int64_t step,
                                                     int64_t count, bool rebuild, bool inverse, int64_t scale,
                                                     int64_t placement, double c0, double c1) {
  const UnivariateMap map = univariate_map(scale, placement, c0, c1);
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensor, Tensor> {
    using T = decltype(zero);
    const int64_t rows = x.size(0), columns = x.size(1), parameters = step ? count : columns;
    Tensor g_x = empty<T>({rows, columns}), g_shift = empty<T>({rows, parameters}),
           g_raw = empty<T>({rows, parameters});
    const auto features = transformed_features(place, begin, step, step ? count : 0, columns);
    parallel_rows(rows, columns, [&](int64_t first, int64_t last) {
      const Matrix<const T> in[] = {matrix<T>(x), matrix<T>(shift), matrix<T>(raw), matrix<T>(g_z),
                                    matrix<T>(g_log_det)};
      if (step == 0)
        return kernels<T>().affine_backward(map, rebuild, inverse, in[0], in[1], in[2], in[3], in[4], columns,
                                            data<T>(g_x), data<T>(g_shift), data<T>(g_raw), first, last);
      kernels<T>().coupling_backward(map, rebuild, inverse, in[0], in[1], in[2], in[3], in[4],
                                     {features.data(), count, columns}, data<T>(g_x), data<T>(g_shift), data<T>(g_raw),
                                     static_cast<T*>(scratch(3 * columns * sizeof(T))), first, last);
    });
    return {g_x, g_shift, g_raw};
  });
}

Tensor log_det(Tensor log_scale) {
  return for_dtype(log_scale, [&](auto zero) {
    using T = decltype(zero);
    const int64_t rows = log_scale.size(0), columns = log_scale.size(1);
    Tensor out = empty<T>({rows});
    parallel_rows(rows, columns, [&](int64_t begin, int64_t end) {
      kernels<T>().log_det(matrix<T>(log_scale), columns, data<T>(out), begin, end);
    });
    return out;
  });
}

Tensor normal_log_prob(Tensor z, Tensor log_det) {
  return for_dtype(z, [&](auto zero) {
    using T = decltype(zero);
    const int64_t rows = z.size(0), columns = z.size(1);
    Tensor out = empty<T>({rows});
    parallel_rows(rows, columns, [&](int64_t begin, int64_t end) {
      kernels<T>().normal_log_prob(matrix<T>(z), matrix<T>(log_det), columns, data<T>(out), begin, end);
    });
    return out;
  });
}

}  // namespace
}  // namespace flowkern

#define FK_NETWORK "Tensor[] weights, Tensor[] biases, Tensor[] addends, Tensor? packed, Tensor plan, Tensor mask"
#define FK_MAP "int scale, int placement, float c0, float c1"
#define FK_FEATURES "Tensor? place, int begin, int step, int count"
#define FK_GRADIENTS "(Tensor, Tensor[], Tensor[], Tensor[])"

// Sizes that only torch.compile needs, which cannot read the plan, are arguments: packed_size, saved_rows, outputs.
STABLE_TORCH_LIBRARY(flowkern, m) {
  m.def("pack(Tensor[] weights, Tensor[] biases, Tensor plan, Tensor mask, int packed_size) -> Tensor");
  m.def("masked_mlp(Tensor x, " FK_NETWORK
        ", int outputs, int packed_size, int saved_rows, bool save) -> "
        "(Tensor, Tensor, Tensor)");
  m.def(
      "masked_mlp_backward(Tensor g, Tensor x, Tensor packed, Tensor saved, Tensor plan, Tensor mask, "
      "Tensor[] weights, Tensor[] biases, Tensor[] addends, bool parameters) -> " FK_GRADIENTS);
  m.def("autoregressive(Tensor x, " FK_NETWORK ", int packed_size, int saved_rows, " FK_MAP
        ", bool save) -> "
        "(Tensor, Tensor, Tensor, Tensor)");
  m.def("autoregressive_inverse(Tensor z, " FK_NETWORK ", int packed_size, int saved_rows, " FK_MAP
        ", bool save) -> "
        "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "autoregressive_chain(Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] addends, Tensor[] packed, "
      "Tensor[] plans, Tensor[] masks, int[] maps, float[] constants) -> (Tensor, Tensor)");
  m.def(
      "autoregressive_backward(Tensor g, Tensor g_log_det, Tensor x, Tensor packed, Tensor saved, Tensor plan, "
      "Tensor mask, Tensor[] weights, Tensor[] biases, Tensor[] addends, " FK_MAP
      ", bool parameters) -> " FK_GRADIENTS);
  m.def(
      "autoregressive_inverse_backward(Tensor g, Tensor g_log_det, Tensor x, Tensor packed, Tensor saved, "
      "Tensor plan, Tensor mask, Tensor[] weights, Tensor[] biases, Tensor[] addends, " FK_MAP
      ", bool parameters) -> " FK_GRADIENTS);
  m.def("coupling(Tensor x, Tensor shift, Tensor raw, " FK_FEATURES ", bool inverse, " FK_MAP ") -> (Tensor, Tensor)");
  m.def("coupling_backward(Tensor g_z, Tensor g_log_det, Tensor x, Tensor shift, Tensor raw, " FK_FEATURES
        ", bool rebuild, bool inverse, " FK_MAP ") -> (Tensor, Tensor, Tensor)");
  m.def("log_det(Tensor log_scale) -> Tensor");
  m.def("normal_log_prob(Tensor z, Tensor log_det) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  using namespace flowkern;
  m.impl("pack", TORCH_BOX(&pack_weights));
  m.impl("masked_mlp", TORCH_BOX(&masked_mlp));
  m.impl("masked_mlp_backward", TORCH_BOX(&masked_mlp_backward));
  m.impl("autoregressive", TORCH_BOX(&transform<false>));
  m.impl("autoregressive_inverse", TORCH_BOX(&transform<true>));
  m.impl("autoregressive_chain", TORCH_BOX(&autoregressive_chain));
  m.impl("autoregressive_backward", TORCH_BOX(&transform_backward<false>));
  m.impl("autoregressive_inverse_backward", TORCH_BOX(&transform_backward<true>));
  m.impl("coupling", TORCH_BOX(&coupling));
  m.impl("coupling_backward", TORCH_BOX(&coupling_backward));
  m.impl("log_det", TORCH_BOX(&log_det));
  m.impl("normal_log_prob", TORCH_BOX(&normal_log_prob));
}
