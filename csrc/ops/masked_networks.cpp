// The operators on masked networks: packing, values, log-determinants, chains of transforms.
#include "ops/masked_networks.h"

namespace flowkern {
namespace {

constexpr int64_t kSerial = 16384;  // weights up to which a network is packed by one thread

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
      masked_network_kernels<T>().pack(plan_, weights_.data(), biases_.data(), mask_, out_, l, n * part / parts(),
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
void pack(const PlanView& v, const Tensors& weights, const Tensors& biases, const Tensor& mask, T* out) {
  STD_TORCH_CHECK(static_cast<int>(weights.size()) == v.linears() && static_cast<int64_t>(biases.size()) == biased(v),
                  "flowkern: the weights do not belong to this plan");
  const Packing<T> packing(v, weights.data(), biases.data(), mask, out);
  parallel(packing.parts(), [&](int64_t i) { packing.run(i); });
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

// Room for packed weights that nobody needs after the call. Fresh memory would cost more than the packing.
template <class T>
T* packing_scratch(int64_t size) {
  return static_cast<T*>(scratch(size * sizeof(T), 1));
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
int64_t tile_rows(const MaskedNetworkKernels<T>& k, int kind) {
  return kind == 2 ? k.tile_rows : k.small_rows[kind];
}

// What every masked-network operator prepares: packed weights, addends, the size of a tile, the saved buffer.
template <class T>
struct Prepared {
  Prepared(const Tensor& x, const NetworkArguments& in, bool save)
      : net{view(in.plan), nullptr, nullptr, x.size(0)},
        k(masked_network_kernels<T>()),
        packed_out(empty<T>({save && !in.packed ? net.plan.packed_size() : 0})) {
    if (in.packed) {
      STD_TORCH_CHECK(in.packed->numel() == net.plan.packed_size(), "flowkern: `packed` does not belong to this plan");
      net.packed = const_data<T>(*in.packed);
    } else {
      T* packed = save ? data<T>(packed_out) : packing_scratch<T>(net.plan.packed_size());
      pack<T>(net.plan, in.weights, in.biases, in.mask, packed);
      net.packed = packed;
    }
    for (const Tensor& t : in.addends) addends.push_back(matrix<T>(t));
    net.addends = addends.data();
    kind = save ? 2 : tile_kind(net.batch);
    rows = tile_rows(k, kind);
    tiles = (net.batch + rows - 1) / rows;
    saved = empty<T>({save ? tiles : 0, net.plan.saved_rows() * k.tile_rows});
    if (save) prefer_huge_pages(saved.mutable_data_ptr(), saved.numel() * sizeof(T));
  }
  T* saved_data() const { return saved.numel() > 0 ? data<T>(saved) : nullptr; }

  MaskedNetwork<T> net;
  const MaskedNetworkKernels<T>& k;
  std::vector<Matrix<const T>> addends;
  int kind;
  int64_t rows, tiles;
  Tensor packed_out, saved;  // what the backward pass needs; empty where there will be none
};

std::tuple<Tensor, Tensor, Tensor> masked_mlp(Tensor x, Tensors weights, Tensors biases, Tensors addends,
                                              std::optional<Tensor> packed, Tensor plan, Tensor mask, int64_t outputs,
                                              int64_t, int64_t, bool save) {
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensor, Tensor> {
    using T = decltype(zero);
    Prepared<T> call(x, {weights, biases, addends, packed, plan, mask}, save);
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
                                                     int64_t, Tensor univariate, bool save) {
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    using T = decltype(zero);
    const Map<T> map = univariate_map<T>(univariate);
    Prepared<T> call(x, {weights, biases, addends, packed, plan, mask}, save);
    STD_TORCH_CHECK(call.net.plan.parameters() == map.map.count, "flowkern: the map does not belong to this plan");
    Tensor z = empty<T>({call.net.batch, call.net.plan.features()}), log_det = empty<T>({call.net.batch});
    const auto kernel = Inverse ? call.k.autoregressive_inverse[call.kind] : call.k.autoregressive[call.kind];
    parallel(call.tiles, [&](int64_t i) {
      kernel(call.net, map, matrix<T>(x), data<T>(z), data<T>(log_det), call.saved_data(), i,
             tile_scratch<T>(call.net.plan, call.rows));
    });
    return {z, log_det, call.packed_out, call.saved};
  });
}

template <class T>
struct ChainStep {
  MaskedNetwork<T> net;
  Map<T> map;
  bool inverse;
};

// Transforms one after another without a gradient: all weights are packed in one go, then each tile runs through the
// whole chain while it is in the cache. Tensors of all steps are in one list each; `inverse` holds a bit per
// step. `packed` is empty or has one vector per step.
template <class T>
std::tuple<Tensor, Tensor> chain(const Tensor& x, const Tensors& weights, const Tensors& biases, const Tensors& addends,
                                 const Tensors& packed, const Tensors& plans, const Tensors& masks, const Tensors& maps,
                                 const std::vector<int64_t>& inverse) {
  const int64_t batch = x.size(0), features = x.size(1);
  const size_t n = plans.size();
  STD_TORCH_CHECK(
      n > 0 && masks.size() == n && maps.size() == n && inverse.size() == n && (packed.empty() || packed.size() == n),
      "flowkern: the lists of a chain differ in length");
  int64_t size = 0, linears = 0, biases_seen = 0;
  std::vector<Matrix<const T>> addend_data;
  addend_data.reserve(addends.size());  // the steps point into it
  std::vector<ChainStep<T>> steps;
  for (size_t i = 0; i < plans.size(); ++i) {
    const PlanView v = view(plans[i]);
    STD_TORCH_CHECK(v.features() == features, "flowkern: x does not belong to this plan");
    steps.push_back(
        {{v, nullptr, addend_data.data() + addend_data.size(), batch}, univariate_map<T>(maps[i]), inverse[i] != 0});
    STD_TORCH_CHECK(v.parameters() == steps.back().map.map.count, "flowkern: the map does not belong to this plan");
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

  std::vector<Packing<T>> packings;
  std::vector<std::pair<int, int64_t>> parts;
  T* out = packing_scratch<T>(packed.empty() ? size : 0);
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

  const MaskedNetworkKernels<T>& k = masked_network_kernels<T>();
  const int kind = tile_kind(batch);
  const int64_t rows = tile_rows(k, kind), tiles = (batch + rows - 1) / rows;
  Tensor z = empty<T>({batch, features}), log_det = empty<T>({batch}), term = empty<T>({batch});
  parallel(tiles, [&](int64_t tile) {
    for (size_t i = 0; i < steps.size(); ++i) {
      const ChainStep<T>& s = steps[i];
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
                                                Tensors packed, Tensors plans, Tensors masks, Tensors maps,
                                                std::vector<int64_t> inverse) {
  STD_TORCH_CHECK(x.dim() == 2, "flowkern: x is no matrix");
  return for_dtype(x, [&](auto zero) {
    return chain<decltype(zero)>(x, weights, biases, addends, packed, plans, masks, maps, inverse);
  });
}

}  // namespace
}  // namespace flowkern

#define FK_NETWORK "Tensor[] weights, Tensor[] biases, Tensor[] addends, Tensor? packed, Tensor plan, Tensor mask"

// Sizes that only torch.compile needs, which cannot read the plan, are arguments: packed_size, saved_rows, outputs.
STABLE_TORCH_LIBRARY_FRAGMENT(flowkern, m) {
  m.def("pack(Tensor[] weights, Tensor[] biases, Tensor plan, Tensor mask, int packed_size) -> Tensor");
  m.def("masked_mlp(Tensor x, " FK_NETWORK
        ", int outputs, int packed_size, int saved_rows, bool save) -> "
        "(Tensor, Tensor, Tensor)");
  m.def("autoregressive(Tensor x, " FK_NETWORK
        ", int packed_size, int saved_rows, Tensor map, "
        "bool save) -> "
        "(Tensor, Tensor, Tensor, Tensor)");
  m.def("autoregressive_inverse(Tensor z, " FK_NETWORK
        ", int packed_size, int saved_rows, Tensor map, "
        "bool save) -> "
        "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "autoregressive_chain(Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] addends, Tensor[] packed, "
      "Tensor[] plans, Tensor[] masks, Tensor[] maps, int[] inverse) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  using namespace flowkern;
  m.impl("pack", TORCH_BOX(&pack_weights));
  m.impl("masked_mlp", TORCH_BOX(&masked_mlp));
  m.impl("autoregressive", TORCH_BOX(&transform<false>));
  m.impl("autoregressive_inverse", TORCH_BOX(&transform<true>));
  m.impl("autoregressive_chain", TORCH_BOX(&autoregressive_chain));
}
