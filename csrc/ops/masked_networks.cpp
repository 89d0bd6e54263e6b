// The operators on a masked network alone: packing, its parameters, and their gradients.
#include "ops/weight_gradients.h"

namespace flowkern {
namespace {

PlanView view(const Tensor& plan) { return checked(PlanView(const_data<int64_t>(plan))); }

template <class T>
void pack(const PlanView& v, const Tensors& weights, const Tensors& biases, const Tensor& mask, T* out) {
  STD_TORCH_CHECK(static_cast<int>(weights.size()) == v.linears() && static_cast<int64_t>(biases.size()) == biased(v),
                  "flowkern: the weights do not belong to this plan");
  const Packing<T> packing(v, weights.data(), biases.data(), const_data<uint8_t>(mask), out);
  parallel(packing.parts(), kParallelWork, [&](int64_t i) { packing.run(i); });
}

Tensor pack_weights(Tensors weights, Tensors biases, Tensor plan, Tensor mask, int64_t) {
  return for_dtype(weights[0], [&](auto zero) {
    using T = decltype(zero);
    const PlanView v = view(plan);
    Tensor out = empty<T>({v.packed_size()});
    pack<T>(v, weights, biases, mask, data<T>(out));
    return out;
  });
}

// `packed` holds the weights packed before (frozen models); without it they are packed now.
std::tuple<Tensor, Tensor, Tensor> masked_mlp(Tensor x, std::optional<Tensor> context, Tensors weights, Tensors biases,
                                              Tensors addends, std::optional<Tensor> packed, Tensor plan, Tensor mask,
                                              int64_t outputs, int64_t, int64_t, bool save) {
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensor, Tensor> {
    using T = decltype(zero);
    const MaskedNetworkKernels<T>& k = masked_network_kernels<T>();
    MaskedNetwork<T> net{view(plan), nullptr, nullptr, x.size(0)};
    const PlanView& v = net.plan;
    Tensor packed_now = empty<T>({save && !packed ? v.packed_size() : 0});
    if (packed) {
      STD_TORCH_CHECK(packed->numel() == v.packed_size(), "flowkern: `packed` does not belong to this plan");
      net.packed = const_data<T>(*packed);
    } else {
      T* into = save ? data<T>(packed_now) : packing_scratch<T>(v.packed_size());
      pack<T>(v, weights, biases, mask, into);
      net.packed = into;
    }
    std::vector<Matrix<const T>> added;
    append_addends<T>(v, addends.data(), addends.data() + addends.size(), net.batch, added);
    net.addends = added.data();
    const Matrix<const T> conditions = context_matrix<T>(context, net.batch, v.context());
    const Tiles<T> tiles(net.batch, save);
    Tensor out = empty<T>({net.batch, outputs});
    Tensor saved = large<T>({save ? tiles.count : 0, v.saved_rows() * k.tile_rows});
    T* kept = save && saved.numel() > 0 ? data<T>(saved) : nullptr;
    parallel(tiles.count, v.packed_size() * tiles.rows * tiles.count, [&](int64_t i) {
      k.masked_mlp[tiles.kind](net, matrix<T>(x), conditions, data<T>(out), kept, i,
                               tile_scratch<T>(scratch_rows(v), tiles.rows));
    });
    return {out, packed_now, saved};
  });
}

using Gradients = std::tuple<Tensor, Tensor, Tensors, Tensors>;  // of x, context, weights and biases, addends

Gradients masked_mlp_backward(Tensor g, Tensor x, std::optional<Tensor> context, Tensor packed, Tensor saved,
                              Tensor plan, Tensor mask, Tensors, Tensors, Tensors addends, bool parameters,
                              bool wants_context) {
  return for_dtype(x, [&](auto zero) -> Gradients {
    using T = decltype(zero);
    const MaskedNetworkKernels<T>& k = masked_network_kernels<T>();
    const PlanView v = view(plan);
    const int64_t batch = x.size(0), rows = k.tile_rows, tiles = (batch + rows - 1) / rows;
    STD_TORCH_CHECK(saved.numel() == tiles * v.saved_rows() * rows, "flowkern: `saved` does not belong to this call");
    std::vector<Matrix<const T>> added;
    append_addends<T>(v, addends.data(), addends.data() + addends.size(), batch, added);
    const MaskedNetwork<T> net{v, const_data<T>(packed), added.data(), batch};
    const Matrix<const T> conditions = context_matrix<T>(context, batch, v.context());
    AddendGradients<T> g_addends(addends);
    Tensor g_x = empty<T>({batch, v.features()}), g_context = empty<T>({wants_context ? batch : 0, v.context()});
    const Matrix<T> to_context{wants_context ? data<T>(g_context) : nullptr, v.context(), 1};
    WeightGradients<T> weights(parameters);
    weights.add(v, const_data<uint8_t>(mask));
    weights.run(batch, v.packed_size(), [&](const auto& group, int64_t i) {
      const int64_t tile = i - group.first, kept = v.saved_rows() * rows;
      const NetworkBackward<T> in{
          const_data<T>(saved) + i * kept, group.deltas + tile * kept, group.activations, tile, group.count,
          g_addends.matrices.data()};
      k.masked_mlp_backward(net, matrix<T>(x), conditions, in, matrix<T>(g), {data<T>(g_x), v.features(), 1},
                            to_context, i, tile_scratch<T>(scratch_rows(v), rows));
    });
    return {g_x, g_context, weights.results, g_addends.tensors};
  });
}

}  // namespace
}  // namespace flowkern

// Sizes that only torch.compile needs, which cannot read the plan, are arguments: packed_size, saved_rows, outputs.
STABLE_TORCH_LIBRARY_FRAGMENT(flowkern, m) {
  m.def("pack(Tensor[] weights, Tensor[] biases, Tensor plan, Tensor mask, int packed_size) -> Tensor");
  m.def(
      "masked_mlp(Tensor x, Tensor? context, Tensor[] weights, Tensor[] biases, Tensor[] addends, Tensor? packed, "
      "Tensor plan, Tensor mask, int outputs, int packed_size, int saved_rows, bool save) -> (Tensor, Tensor, Tensor)");
  m.def(
      "masked_mlp_backward(Tensor g, Tensor x, Tensor? context, Tensor packed, Tensor saved, Tensor plan, Tensor mask, "
      "Tensor[] weights, Tensor[] biases, Tensor[] addends, bool parameters, bool wants_context) -> "
      "(Tensor, Tensor, Tensor[], Tensor[])");
}

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  using namespace flowkern;
  m.impl("pack", TORCH_BOX(&pack_weights));
  m.impl("masked_mlp", TORCH_BOX(&masked_mlp));
  m.impl("masked_mlp_backward", TORCH_BOX(&masked_mlp_backward));
}
