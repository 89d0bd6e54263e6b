// The operators on masked networks with a univariate map: one transform, or several one after another, and their
// gradients. One call packs all weights, and takes each tile through the whole chain.
#include "ops/weight_gradients.h"

namespace flowkern {
namespace {

ChainView chain_view(const Tensor& program) {
  STD_TORCH_CHECK(on_cpu(program) && program.scalar_type() == ScalarType::Long && program.numel() > 2,
                  "flowkern: this is no chain");
  const ChainView v(const_data<int64_t>(program));
  STD_TORCH_CHECK(v.version() == kChainVersion && v.size() == program.numel(), "flowkern: this is no chain of version ",
                  kChainVersion, "; rebuild with `pip install -e .`");
  return v;
}

// The chain as the kernels take it, without its weights.
template <class T>
class ChainCall {
 public:
  ChainCall(const Tensor& program, const Tensors& addends, int64_t batch) : view(chain_view(program)) {
    int64_t rows = 0;
    added_.reserve(addends.size());  // the steps point into it
    for (int64_t i = 0; i < view.steps(); ++i) {
      const StepView s = view.step(i);
      const auto first = static_cast<int64_t>(added_.size());
      ChainStep<T> step{
          s.kind(), s.order(), s.passing(), s.row(), first, {s.plan(), nullptr, added_.data() + first, batch},
          {},       {},        {},          {}};
      if (s.network()) {
        const PlanView plan = checked(s.plan());
        step.map = univariate_map<T>(s.map());
        STD_TORCH_CHECK(plan.parameters() == step.map.map.count, "flowkern: the map does not belong to this plan");
        append_addends<T>(plan, addends.data() + first, addends.data() + addends.size(), batch, added_);
        rows = std::max(rows, scratch_rows(plan));
      }
      steps_.push_back(step);
    }
    STD_TORCH_CHECK(added_.size() == addends.size(), "flowkern: the addends do not belong to these plans");
    chain = {steps_.data(),  view.steps(), view.features(),
             view.context(), view.order(), view.normal(),
             view.kept(),    batch,        rows + 8 * view.features() + 2 * view.context()};
  }

  // Where the packed weights are: all in `own`, or those of networks in one vector each.
  void use(const T* own, const Tensors& packed) {
    size_t next = 0;
    for (int64_t i = 0; i < view.steps(); ++i) {
      const StepView s = view.step(i);
      ChainStep<T>& step = steps_[i];
      const T* at = own + s.packed();
      if (s.elementwise()) {
        step.shift = at, step.scale = at + view.features();
      } else if (s.lu_linear()) {
        step.entries = at;
      } else if (packed.empty()) {
        step.net.packed = at;
      } else {
        STD_TORCH_CHECK(next < packed.size() && on_cpu(packed[next]) && packed[next].scalar_type() == kDtype<T> &&
                            packed[next].numel() == s.plan().packed_size(),
                        "flowkern: `packed` does not belong to this plan");
        step.net.packed = const_data<T>(packed[next++]);
      }
    }
    STD_TORCH_CHECK(next == packed.size(), "flowkern: `packed` does not belong to these plans");
  }

  // What one context contributes to every row of every network, into view.network_rows() numbers.
  void give(Matrix<const T> context, T* given) {
    for (int64_t i = 0; i < view.steps(); ++i) {
      ChainStep<T>& step = steps_[i];
      const int64_t own = view.step(i).network() ? step.net.plan.context() - step.passing : 0;
      const PlanView& plan = step.net.plan;
      // Conditioners may read what a coupling lets pass too, which no two rows have in common.
      if (own == 0 || (plan.conditioners() > 0 && plan.conditioner_context() > own)) continue;
      masked_network_kernels<T>().give(step.net, own, context, given + step.row);
      step.net.given = given + step.row;
    }
  }

  // The steps in groups whose weights a core's cache holds: a tile goes through all steps of a group at once. Where the
  // weights of one step fill the cache, those of the next would have to come from beyond it for every tile.
  std::vector<StepRange> ranges() const {
    constexpr int64_t kCacheBytes = int64_t{1} << 19;
    std::vector<StepRange> found;
    int64_t bytes = 0;
    for (int64_t i = 0; i < view.steps(); ++i) {
      const StepView s = view.step(i);
      const int64_t size = !s.network() ? 0 : s.plan().packed_size() * static_cast<int64_t>(sizeof(T));
      if (found.empty() || bytes + size > kCacheBytes) found.push_back({i, i}), bytes = 0;
      found.back().end = i + 1;
      bytes += size;
    }
    return found;
  }

  ChainView view;
  Chain<T> chain;

 private:
  std::vector<ChainStep<T>> steps_;
  std::vector<Matrix<const T>> added_;
};

// All weights, shifts and scales into one buffer; weights that were packed before are left out.
template <class T>
void pack(const ChainView& view, const Tensors& tensors, bool packed_before, T* own) {
  std::vector<Packing<T>> packings;
  std::vector<std::pair<int, int64_t>> parts;
  size_t next = 0;
  for (int64_t i = 0; i < view.steps(); ++i) {
    const StepView s = view.step(i);
    const size_t count = s.elementwise() ? 2 : s.lu_linear() ? 4 : s.plan().linears() + biased(s.plan());
    STD_TORCH_CHECK(next + count <= tensors.size(), "flowkern: the weights do not belong to these plans");
    const Tensor* given = tensors.data() + next;
    next += count;
    if (!s.network()) {
      const int64_t n = view.features(), triangle = n * (n - 1) / 2;
      T* to = own + s.packed();
      for (size_t j = 0; j < count; ++j) {
        const Tensor& t = given[j];
        const int64_t size = s.lu_linear() && j < 2 ? triangle : n;
        STD_TORCH_CHECK(on_cpu(t) && t.dim() == 1 && t.size(0) == size && t.scalar_type() == kDtype<T>,
                        "flowkern: a vector of a step does not belong to this chain");
        for (int64_t f = 0; f < size; ++f) *to++ = matrix<T>(t)(f, 0);
      }
    } else if (!packed_before) {
      packings.emplace_back(s.plan(), given, given + s.plan().linears(), s.mask(), own + s.packed());
      for (int64_t p = 0; p < packings.back().parts(); ++p) parts.emplace_back(packings.size() - 1, p);
    }
  }
  STD_TORCH_CHECK(next == tensors.size(), "flowkern: the weights do not belong to these plans");
  // Small networks are packed sooner than a thread is woken.
  constexpr int64_t kSerial = 16384;
  const int64_t turns = view.packed_size() < kSerial ? 1 : static_cast<int64_t>(parts.size());
  parallel(turns, kParallelWork, [&](int64_t i) {
    const size_t begin = parts.size() * i / turns, end = parts.size() * (i + 1) / turns;
    for (size_t p = begin; p < end; ++p) packings[parts[p].first].run(parts[p].second);
  });
}

// `tensors` holds, of each step in turn, weights and biases, or shift and scale; `packed` is empty or holds one vector
// for each network.
std::tuple<Tensor, Tensor, Tensor, Tensor> autoregressive_chain(Tensor x, std::optional<Tensor> context,
                                                                Tensors tensors, Tensors addends, Tensors packed,
                                                                Tensor program, int64_t, bool save) {
  STD_TORCH_CHECK(x.dim() == 2, "flowkern: x is no matrix");
  return for_dtype(x, [&](auto zero) -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    using T = decltype(zero);
    const MaskedNetworkKernels<T>& k = masked_network_kernels<T>();
    const int64_t batch = x.size(0);
    ChainCall<T> call(program, addends, batch);
    const ChainView& v = call.view;
    STD_TORCH_CHECK(x.size(1) == v.features(), "flowkern: x does not belong to this chain");
    const Matrix<const T> conditions = context_matrix<T>(context, batch, v.context());
    Tensor own = empty<T>({save ? v.packed_size() : 0});
    T* into = save ? data<T>(own) : packing_scratch<T>(v.packed_size() + v.network_rows());
    pack<T>(v, tensors, !packed.empty(), into);
    call.use(into, packed);
    const Tiles<T> tiles(batch, save);
    // One context for all rows, as when a posterior is sampled: what it contributes is computed once.
    if (!save && tiles.count > 1 && conditions.data && conditions.row_stride == 0)
      call.give(conditions, into + v.packed_size());
    Tensor z = empty<T>({batch, v.features()}), log_det = empty<T>({batch});
    Tensor saved = large<T>({save ? tiles.count : 0, v.kept() * k.tile_rows});
    T* kept = save && saved.numel() > 0 ? data<T>(saved) : nullptr;
    for (const StepRange& range : call.ranges())
      parallel(tiles.count, v.work() * tiles.rows * tiles.count, [&](int64_t i) {
        k.autoregressive_chain[tiles.kind](call.chain, range, matrix<T>(x), conditions, data<T>(z), data<T>(log_det),
                                           kept, i, tile_scratch<T>(call.chain.scratch_rows, tiles.rows));
      });
    return {z, log_det, own, saved};
  });
}

std::tuple<Tensor, Tensor, Tensors, Tensors> autoregressive_chain_backward(
    std::optional<Tensor> g_value, std::optional<Tensor> g_log_det, Tensors addends, Tensors packed, Tensor own,
    Tensor saved, Tensor program, int64_t, int64_t batch, bool parameters, bool wants_context) {
  return for_dtype(saved, [&](auto zero) -> std::tuple<Tensor, Tensor, Tensors, Tensors> {
    using T = decltype(zero);
    const MaskedNetworkKernels<T>& k = masked_network_kernels<T>();
    ChainCall<T> call(program, addends, batch);
    const ChainView& v = call.view;
    const int64_t rows = k.tile_rows, tiles = (batch + rows - 1) / rows;
    STD_TORCH_CHECK(saved.numel() == tiles * v.kept() * rows && own.numel() == v.packed_size(),
                    "flowkern: `saved` does not belong to this call");
    call.use(const_data<T>(own), packed);
    AddendGradients<T> g_addends(addends);
    Tensor g_x = empty<T>({batch, v.features()}), g_context = empty<T>({wants_context ? batch : 0, v.context()});
    ChainBackward<T> in{};
    in.saved = const_data<T>(saved);
    if (g_value) in.g_value = matrix<T>(*g_value);
    if (g_log_det) in.g_log_det = matrix<T>(*g_log_det);
    in.g_x = {data<T>(g_x), v.features(), 1};
    if (wants_context) in.g_context = {data<T>(g_context), v.context(), 1};
    in.g_addends = g_addends.matrices.data();
    Tensors gradients;
    std::vector<StepRange> ranges = call.ranges();
    std::reverse(ranges.begin(), ranges.end());
    for (const StepRange& range : ranges) {
      WeightGradients<T> weights(parameters);
      for (int64_t i = range.begin; i < range.end; ++i) {
        const StepView s = v.step(i);
        if (s.elementwise())
          weights.add_elementwise(v.features());
        else if (s.lu_linear())
          weights.add_lu_linear(v.features());
        else
          weights.add(s.plan(), s.mask());
      }
      weights.run(batch, v.work(), [&](const auto& group, int64_t i) {
        ChainBackward<T> own = in;
        own.deltas = group.deltas, own.activations = group.activations, own.delta_rows = group.delta_rows;
        own.rows = group.rows, own.panels = group.panels, own.first_tile = group.first, own.tiles = group.count;
        k.autoregressive_chain_backward(call.chain, range, own, i, tile_scratch<T>(call.chain.scratch_rows, rows));
      });
      gradients.insert(gradients.begin(), weights.results.begin(), weights.results.end());
    }
    return {g_x, g_context, gradients, g_addends.tensors};
  });
}

}  // namespace
}  // namespace flowkern

// `key` is for torch.compile: by it flowkern/chain.py finds the shapes.
STABLE_TORCH_LIBRARY_FRAGMENT(flowkern, m) {
  m.def(
      "autoregressive_chain(Tensor x, Tensor? context, Tensor[] tensors, Tensor[] addends, Tensor[] packed, "
      "Tensor program, int key, bool save) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "autoregressive_chain_backward(Tensor? g_value, Tensor? g_log_det, Tensor[] addends, Tensor[] packed, Tensor "
      "own, "
      "Tensor saved, Tensor program, int key, int batch, bool parameters, bool wants_context) -> "
      "(Tensor, Tensor, Tensor[], Tensor[])");
}

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) {
  using namespace flowkern;
  m.impl("autoregressive_chain", TORCH_BOX(&autoregressive_chain));
  m.impl("autoregressive_chain_backward", TORCH_BOX(&autoregressive_chain_backward));
}
