// The sampling loop of a WaveNet.
#include "cpu/convolutions/wavenet.h"
#include "ops/phases.h"

namespace flowkern {
namespace {

// The tensors of a call; condition is [batch][time][channels].
struct Arguments {
  Tensor noise, previous, queues;
  Tensors weights, biases;
  std::vector<int64_t> dilations;
  std::optional<Tensor> condition;
  Tensors condition_weights;
};

// A network as it draws, its weights packed.
template <class S>
class Generator {
  using T = Real<S>;

 public:
  Generator(const Arguments& a, const Sampler& sampler)
      : layers_(a.dilations.size()), skips_((layers_.size() + kRun - 1) / kRun) {
    const size_t depth = layers_.size();
    STD_TORCH_CHECK(depth > 0 && a.weights.size() == 3 * depth + 3 && a.biases.size() == a.weights.size() &&
                        a.condition_weights.size() == (a.condition ? depth : 0),
                    "flowkern: these are not the weights of so many layers");
    const Tensor &first = a.weights[0], &skip = a.weights[3], &hidden = a.weights[3 * depth + 1];
    net_.batch = a.noise.size(0), net_.time = a.noise.size(1), net_.numbers = a.noise.size(2);
    net_.channels = a.condition ? a.condition->size(2) : 0;
    net_.residual = first.size(1), net_.gate = a.weights[1].size(0) / 2, net_.depth = depth;
    net_.embedding = const_data<S>(first), net_.embedding_bias = const_data<T>(a.biases[0]);
    net_.noise = const_data<T>(a.noise), net_.condition = a.condition ? const_data<T>(*a.condition) : nullptr;
    net_.sampler = sampler;
    for (size_t l = 0; l < depth; ++l) {
      const int64_t taps = a.weights[3 * l + 1].size(2), R = net_.residual, G = net_.gate;
      layers_[l] = {
          taps, a.dilations[l], {2 * G, (taps - 1) * R + net_.channels, true}, {2 * G, R, true}, {l ? R : 0, G}};
    }
    net_.layers = layers_.data();
    for (size_t r = 0; r < skips_.size(); ++r)
      skips_[r] = {skip.size(0), std::min<int64_t>(kRun, depth - r * kRun) * net_.gate};
    net_.skips = skips_.data();
    net_.last[0] = {hidden.size(0), skip.size(0)};
    net_.last[1] = {a.weights[3 * depth + 2].size(0), net_.last[0].rows};
    threads_ = torch::stable::get_num_threads();
    lay_out(a);
    pack(a);
    each_entry(0, [&](int64_t at, T* entry) { std::copy_n(const_data<T>(a.queues) + at, net_.residual, entry); });
  }

  Tensor draw(const Tensor& previous) {
    const bool classes = net_.sampler.output == Output::categorical;
    Tensor drawn = empty({net_.batch, net_.time}, classes ? ScalarType::Long : kDtype<T>);
    if (classes)
      net_.classes = {const_data<int64_t>(previous), data<int64_t>(drawn)};
    else
      net_.values = {const_data<T>(previous), data<T>(drawn)};
    for (int64_t row = 0; classes && row < net_.batch; ++row)
      STD_TORCH_CHECK(0 <= net_.classes.previous[row] && net_.classes.previous[row] < net_.last[1].rows,
                      "state.previous: expected classes from 0 to ", net_.last[1].rows - 1, ", got ",
                      net_.classes.previous[row]);
    // Threads that have rows enough for themselves need not wait for each other.
    const int64_t groups = (net_.batch + kGroup - 1) / kGroup;
    if (groups >= threads_)
      parallel(groups, net_.time * net_.depth * work(layers_[0].gate),
               [&](int64_t group) { run(alone(group * kGroup, std::min(net_.batch, (group + 1) * kGroup))); });
    else if (net_.batch > 0)
      run(team());
    return drawn;
  }

  // What the layers read last, oldest first.
  Tensor queues() const {
    int64_t length = 0;
    for (const GeneratorLayer<S>& l : layers_) length += l.slots() - 1;
    Tensor out = empty<T>({net_.batch, length, net_.residual});
    each_entry(net_.time, [&](int64_t at, T* entry) { std::copy_n(entry, net_.residual, data<T>(out) + at); });
    return out;
  }

 private:
  static constexpr int64_t kGroup = 8;  // rows that read a weight together

  void run(const Team& team) const {
    const int64_t stages = team.stages(net_.depth);
    const auto needs = [&](int64_t phase, int64_t part, int64_t other) {
      return phase - phase % stages + team.needs(net_.depth, phase % stages, part, other);
    };
    run_phases(net_.time * stages, team.parts, needs, [&](int64_t phase, int64_t part) {
      kernels_.wavenet_stage(net_, team, phase / stages, phase % stages, part);
    });
  }

  // Multiply-adds of a matrix at a time.
  int64_t work(const PanelMatrix<S>& m) const { return net_.batch * m.rows * m.columns; }

  Team alone(int64_t begin, int64_t end) const {
    const int64_t tile = kernels_.tile;
    return {begin, end, 1, false, skips_[0].count(tile), layers_[0].past.count(tile)};
  }

  // What takes least for a sample, in multiply-adds, as many of which a meeting is worth (docs/measured.md).
  Team team() const {
    constexpr int64_t kMeeting = 16384;
    int64_t residuals = 0, gates = 0, pasts = 0, skips = 0;
    for (const GeneratorLayer<S>& l : layers_)
      residuals += work(l.residual), gates += work(l.gate), pasts += work(l.past);
    for (const PanelMatrix<S>& m : skips_) skips += work(m);
    const int64_t layers = (residuals + gates) * 5 / 4;  // which wait for each other, and evaluate functions
    const int64_t last = work(net_.last[0]) + work(net_.last[1]), all = layers + pasts + skips + last;
    Team apart = alone(0, net_.batch), shared = apart;
    apart.parts = std::min(threads_, 1 + (all - 1) / layers);
    shared.parts = std::min(threads_, layers_[0].gate.count(kernels_.tile));
    shared.shares_layers = true;
    if (threads_ == 1) return apart;
    // Of the rest the first part takes what makes all as long; the others begin a run of layers later.
    const int64_t helpers = apart.helpers(), late = layers / skips_.size();
    const int64_t equal = (all + helpers * late) / apart.parts;
    int64_t idle = equal - layers;
    const auto share = [&](int64_t& panels, int64_t of_all) {
      const int64_t count = panels;
      if (of_all > 0) panels = std::clamp<int64_t>((2 * idle * count + of_all) / (2 * of_all), 0, count);
      idle -= of_all * panels / count;
    };
    share(apart.first_pasts, pasts), share(apart.first_skips, skips);
    const int64_t first = equal - idle, others = late + (all - first) / helpers;
    const int64_t way = layers + (work(skips_.back()) + last) / helpers;  // from a sample to the next
    const int64_t takes_apart = std::max({first, others, way}) + 4 * kMeeting;
    const int64_t takes_shared = residuals + (all - residuals) / shared.parts + (net_.depth + 4) * kMeeting;
    if (all <= std::min(takes_apart, takes_shared)) return alone(0, net_.batch);
    return takes_shared < takes_apart ? shared : apart;
  }

  // Calls f with every matrix, in the order in which they are read: who asks ahead for memory follows.
  template <class F>
  void each_matrix(const F& f) {
    for (GeneratorLayer<S>& l : layers_) f(l.residual), f(l.gate);
    for (GeneratorLayer<S>& l : layers_) f(l.past);
    for (PanelMatrix<S>& m : skips_) f(m);
    f(net_.last[0]), f(net_.last[1]);
  }

  // One piece of memory for all weights and all that the stages hold, each part of it from a cache line's beginning.
  void lay_out(const Arguments& a) {
    size_t size = 0;
    const auto place = [&](auto*& p, int64_t n) {
      using E = std::remove_reference_t<decltype(*p)>;
      if (memory_) p = reinterpret_cast<E*>(memory_ + size);
      size += (n * sizeof(E) + 63) / 64 * 64;
    };
    const int64_t B = net_.batch, tile = kernels_.tile;
    net_.present_stride = (B * net_.residual + tile - 1) / tile * tile;
    for (size_t l = 0; l < layers_.size(); ++l) {
      PanelMatrix<S>&past = layers_[l].past, &gate = layers_[l].gate;
      gate.bias_stride = gate.count(tile) * tile;
      past.bias_stride = a.biases[3 * l + 1].dim() == 2 ? gate.bias_stride : 0;
    }
    for (memory_ = nullptr;; memory_ = static_cast<char*>(scratch(size, 1)), size = 0) {
      each_matrix([&](PanelMatrix<S>& m) {
        place(m.panels, m.count(tile) * tile * m.columns);
        place(m.bias, m.bias_stride ? B * m.bias_stride : m.count(tile) * tile);
      });
      for (GeneratorLayer<S>& l : layers_) place(l.ring, l.slots() * B * net_.residual);
      place(net_.present, threads_ * net_.present_stride);
      place(net_.gated, B * net_.depth * net_.gate);
      place(net_.skipped, B * skips_[0].rows);
      place(net_.hidden, B * net_.last[0].rows);
      place(net_.parameters, B * net_.last[1].rows);
      place(net_.cumulative, B * net_.last[1].rows);
      place(net_.sampled, B);
      if (memory_) break;
    }
  }

  void pack(const Arguments& a) {
    const int64_t depth = net_.depth, R = net_.residual, G = net_.gate;
    const auto dense = [](const Tensor& t) { return Matrix<const S>{const_data<S>(t), t.size(1), 1}; };
    const auto bias = [&](const PanelMatrix<S>& m, const Tensor& t, bool add) {
      kernels_.pack_bias(m, const_data<T>(t), m.bias, add);
    };
    parallel(depth + 2, kParallelWork, [&](int64_t l) {
      if (l >= depth) {
        const PanelMatrix<S>& m = net_.last[l - depth];
        kernels_.pack_panels(m, dense(a.weights[2 * depth + 1 + l]), 0, m.columns);
        return bias(m, a.biases[2 * depth + 1 + l], false);
      }
      const GeneratorLayer<S>& layer = layers_[l];
      const int64_t taps = layer.taps;
      const S* weight = const_data<S>(a.weights[3 * l + 1]);
      for (int64_t tap = 0; tap + 1 < taps; ++tap)
        kernels_.pack_panels(layer.past, {weight + tap, taps * R, taps}, tap * R, R);
      if (a.condition) kernels_.pack_panels(layer.past, dense(a.condition_weights[l]), (taps - 1) * R, net_.channels);
      kernels_.pack_panels(layer.gate, {weight + taps - 1, taps * R, taps}, 0, R);
      for (int64_t row = 0; row < (layer.past.bias_stride ? net_.batch : 1); ++row)
        kernels_.pack_bias(layer.past, const_data<T>(a.biases[3 * l + 1]) + row * 2 * G,
                           layer.past.bias + row * layer.past.bias_stride, false);
      kernels_.pack_panels(skips_[l / kRun], dense(a.weights[3 * l + 3]), l % kRun * G, G);
      if (l + 1 == depth) return;  // the residual of the last layer is read by nobody
      kernels_.pack_panels(layers_[l + 1].residual, dense(a.weights[3 * l + 2]), 0, G);
      bias(layers_[l + 1].residual, a.biases[3 * l + 2], false);
    });
    for (int64_t l = 0; l < depth; ++l) bias(skips_[l / kRun], a.biases[3 * l + 3], l % kRun > 0);
  }

  // Calls f with the place of an entry of the queues and where the rings hold it at a time.
  template <class F>
  void each_entry(int64_t time, const F& f) const {
    int64_t at = 0;
    for (int64_t row = 0; row < net_.batch; ++row)
      for (const GeneratorLayer<S>& l : layers_)
        for (int64_t i = 1; i < l.slots(); ++i, at += net_.residual)  // the slot before is of the time that is next
          f(at, l.ring + ((time + i) % l.slots() * net_.batch + row) * net_.residual);
  }

  const WaveNetKernels<S>& kernels_ = wavenet_kernels<S>();
  std::vector<GeneratorLayer<S>> layers_;
  std::vector<PanelMatrix<S>> skips_;
  WaveNet<S> net_ = {};
  int64_t threads_;
  char* memory_;
};

std::tuple<Tensor, Tensor> wavenet_generate(Tensor noise, Tensor previous, Tensor queues, Tensors weights,
                                            Tensors biases, std::vector<int64_t> dilations,
                                            std::optional<Tensor> condition, Tensors condition_weights, int64_t output,
                                            int64_t levels, double log_scale_min, double bound) {
  const Arguments arguments{noise, previous, queues, weights, biases, dilations, condition, condition_weights};
  const Sampler sampler{static_cast<Output>(output), levels, log_scale_min, bound};
  const auto generate = [&](auto zero) -> std::tuple<Tensor, Tensor> {
    Generator<decltype(zero)> generator(arguments, sampler);
    Tensor drawn = generator.draw(previous);
    return {drawn, generator.queues()};
  };
  STD_TORCH_CHECK(!weights.empty(), "flowkern: a network without weights");
  return weights[0].scalar_type() == ScalarType::BFloat16 ? generate(BFloat16{}) : for_dtype(noise, generate);
}

}  // namespace
}  // namespace flowkern

STABLE_TORCH_LIBRARY_FRAGMENT(flowkern, m) {
  m.def(
      "wavenet_generate(Tensor noise, Tensor previous, Tensor queues, Tensor[] weights, Tensor[] biases, "
      "int[] dilations, Tensor? condition, Tensor[] condition_weights, int output, int levels, float log_scale_min, "
      "float bound) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) { m.impl("wavenet_generate", TORCH_BOX(&flowkern::wavenet_generate)); }
