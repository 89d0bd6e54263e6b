// The gradients of the operators on masked networks.
#include "ops/masked_networks.h"

namespace flowkern {
namespace {

// Rows whose cotangents are held at once, which bounds the memory of a backward pass: so many, or more of a small
// network.
constexpr int64_t kBackwardRows = 512;
constexpr int64_t kBackwardBytes = int64_t{1} << 22;

using Gradients = std::tuple<Tensor, Tensors, Tensors, Tensors>;  // of x, weights, biases, addends

// Chunks [begin, end) of one linear map against the inputs of one panel: what a thread takes at a time.
struct Item {
  int linear;
  int64_t panel, begin, end;
};

std::vector<Item> items_of(const PlanView& plan, int64_t rows) {
  constexpr int64_t kChunks = 4;
  std::vector<Item> items;
  for (int l = 0; l < plan.linears(); ++l) {
    const LinearView map = plan.linear(l);
    const int64_t columns = plan.start(map.source(), plan.levels());
    for (int64_t p = 0; p * rows < std::max<int64_t>(columns, 1); ++p)
      for (int64_t c = 0; c < map.chunks(); c += kChunks) {
        const int64_t end = std::min(c + kChunks, map.chunks());
        if (p == 0 || map.chunk(end - 1).columns > p * rows) items.push_back({l, p, c, end});
      }
  }
  return items;
}

// The results of a backward pass, and where the kernels write them.
template <class T>
struct Results {
  Results(const PlanView& plan, const Tensors& w, const Tensors& b, const Tensors& a, int64_t batch, bool parameters)
      : x(empty<T>({batch, plan.features()})) {
    for (const Tensor& t : a) {
      addends.push_back(zeros<T>({t.size(0), t.size(1)}));
      addend_data.push_back({data<T>(addends.back()), t.size(1), 1});
    }
    if (!parameters) return;
    for (int l = 0; l < plan.linears(); ++l) {
      const LinearView m = plan.linear(l);
      const std::vector<int64_t> sizes{m.original_rows(), m.original_columns()};
      STD_TORCH_CHECK(w[l].size(0) == sizes[0] && w[l].size(1) == sizes[1],
                      "flowkern: the weights do not belong to this plan");
      // Rows that no output can see are not in the plan.
      weights.push_back(m.rows() < m.original_rows() ? zeros<T>(sizes) : empty<T>(sizes));
      weight_data.push_back(data<T>(weights.back()));
    }
    for (const Tensor& t : b) {
      biases.push_back(zeros<T>({t.size(0)}));
      bias_data.push_back(data<T>(biases.back()));
    }
  }

  Tensor x;
  Tensors weights, biases, addends;
  std::vector<T*> weight_data, bias_data;
  std::vector<Matrix<T>> addend_data;
};

// `kernel(kernels, net, in, tile, scratch)` handles one tile; the tiles go by groups of kBackwardRows rows or more, and
// the weight gradients of a group follow as products over its rows.
template <class T, class Kernel>
Gradients backward(TileBackward<T> in, const Tensor& packed, const Tensor& saved, const Tensor& plan,
                   const Tensor& mask, const Tensors& weights, const Tensors& biases, const Tensors& addends,
                   int64_t batch, bool parameters, Kernel kernel) {
  const PlanView v = view(plan);
  const MaskedNetworkKernels<T>& k = masked_network_kernels<T>();
  const int64_t rows = k.tile_rows, tiles = (batch + rows - 1) / rows;
  STD_TORCH_CHECK(saved.numel() == tiles * v.saved_rows() * rows, "flowkern: `saved` does not belong to this call");
  std::vector<Matrix<const T>> addend_data;
  for (const Tensor& t : addends) addend_data.push_back(matrix<T>(t));
  const MaskedNetwork<T> net{v, const_data<T>(packed), addend_data.data(), batch};
  Results<T> g(v, weights, biases, addends, batch, parameters);

  const int64_t inputs = parameters ? panel_offset(v, v.hidden(), rows) * rows * rows : 0;  // of one tile
  const int64_t deltas = v.saved_rows() * rows, tile_bytes = (deltas + inputs) * static_cast<int64_t>(sizeof(T));
  const int64_t group =
      std::clamp<int64_t>(std::max(kBackwardRows / rows, kBackwardBytes / tile_bytes), 1, std::max<int64_t>(tiles, 1));
  const int64_t sums = parameters ? sums_offset(v, v.linears(), rows) : 0;
  T* memory = static_cast<T*>(scratch((group * (deltas + inputs) + sums) * sizeof(T), 1));
  in.saved = const_data<T>(saved);
  in.g_x = {data<T>(g.x), v.features(), 1};
  in.g_addends = g.addend_data.data();
  in.deltas = memory;
  in.activations = parameters ? memory + group * deltas : nullptr;
  WeightGradient<T> products{.plan = v,
                             .deltas = in.deltas,
                             .activations = in.activations,
                             .mask = const_data<uint8_t>(mask),
                             .tiles = 0,
                             .first = true,
                             .sums = memory + group * (deltas + inputs),
                             .weights = g.weight_data.data(),
                             .biases = g.bias_data.data()};

  const std::vector<Item> items = parameters ? items_of(v, rows) : std::vector<Item>{};
  const auto for_items = [&](const auto& f) {
    parallel(static_cast<int64_t>(items.size()), [&](int64_t i) { f(items[i]); });
  };
  for (int64_t first = 0; first == 0 || first < tiles; first += group) {  // once for an empty batch: zeros
    in.first_tile = first;
    in.tiles = products.tiles = std::min(group, tiles - first);
    products.first = first == 0;
    parallel(in.tiles, [&](int64_t i) { kernel(k, net, in, first + i, tile_scratch<T>(v, rows)); });
    for_items([&](const Item& i) { k.weight_gradient(products, i.linear, i.panel, i.begin, i.end); });
  }
  for_items([&](const Item& i) {
    if (i.panel == 0) k.unpack(products, i.linear, i.begin, i.end);
  });
  return {g.x, g.weights, g.biases, g.addends};
}

Gradients masked_mlp_backward(Tensor g, Tensor x, Tensor packed, Tensor saved, Tensor plan, Tensor mask,
                              Tensors weights, Tensors biases, Tensors addends, bool parameters) {
  return for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    TileBackward<T> in{};
    in.x = matrix<T>(x);
    in.g_value = matrix<T>(g);
    return backward<T>(in, packed, saved, plan, mask, weights, biases, addends, x.size(0), parameters,
                       [](const MaskedNetworkKernels<T>& k, const auto&... rest) { k.masked_mlp_backward(rest...); });
  });
}

template <bool Inverse>
Gradients transform_backward(Tensor g, Tensor g_log_det, Tensor x, Tensor packed, Tensor saved, Tensor plan,
                             Tensor mask, Tensors weights, Tensors biases, Tensors addends, Tensor univariate,
                             bool parameters) {
  return for_dtype(x, [&](auto zero) {
    using T = decltype(zero);
    const Map<T> map = univariate_map<T>(univariate);
    TileBackward<T> in{};
    in.x = matrix<T>(x);
    in.g_value = matrix<T>(g);
    in.g_log_det = matrix<T>(g_log_det);
    return backward<T>(in, packed, saved, plan, mask, weights, biases, addends, x.size(0), parameters,
                       [&](const MaskedNetworkKernels<T>& k, const MaskedNetwork<T>& net, const auto&... rest) {
                         const auto f = Inverse ? k.autoregressive_inverse_backward : k.autoregressive_backward;
                         f(net, map, rest...);
                       });
  });
}

}  // namespace
}  // namespace flowkern

#define FK_NETWORK                                                                                                \
  "Tensor x, Tensor packed, Tensor saved, Tensor plan, Tensor mask, Tensor[] weights, Tensor[] biases, Tensor[] " \
  "addends"
#define FK_GRADIENTS "(Tensor, Tensor[], Tensor[], Tensor[])"

STABLE_TORCH_LIBRARY_FRAGMENT(flowkern, m) {
  m.def("masked_mlp_backward(Tensor g, " FK_NETWORK ", bool parameters) -> " FK_GRADIENTS);
  m.def("autoregressive_backward(Tensor g, Tensor g_log_det, " FK_NETWORK
        ", Tensor map, bool parameters) -> " FK_GRADIENTS);
  m.def("autoregressive_inverse_backward(Tensor g, Tensor g_log_det, " FK_NETWORK
        ", Tensor map, bool parameters) -> " FK_GRADIENTS);
}

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  using namespace flowkern;
  m.impl("masked_mlp_backward", TORCH_BOX(&masked_mlp_backward));
  m.impl("autoregressive_backward", TORCH_BOX(&transform_backward<false>));
  m.impl("autoregressive_inverse_backward", TORCH_BOX(&transform_backward<true>));
}
