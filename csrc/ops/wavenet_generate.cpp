// The sampling loop of a WaveNet.
#include <numeric>

#include "cpu/convolutions/kernels.h"
#include "ops/phases.h"

namespace flowkern {
namespace {

// A network as it draws, its weights packed.
template <class T>
class Generator {
 public:
  Generator(const Tensor& uniform, const Tensor& queues, const Tensors& weights, const Tensors& biases,
            const std::vector<int64_t>& dilations)
      : dilations_(dilations) {
    const int64_t layers = static_cast<int64_t>(dilations.size());
    STD_TORCH_CHECK(
        layers > 0 && static_cast<int64_t>(weights.size()) == 3 * layers + 3 && biases.size() == weights.size() - 1,
        "flowkern: these are not the weights of so many layers");
    const Tensor &first = weights[0], &hidden = weights[3 * layers + 1];
    net_ = {uniform.size(0), first.size(1), weights[1].size(0) / 2, weights[3].size(0), hidden.size(0),
            first.size(0),   layers,        uniform.size(1),        dilations_.data(),  const_data<T>(first)};
    net_.uniform = const_data<T>(uniform);
    const int64_t R = net_.residual, G = net_.gate;
    for (int64_t l = 0; l < layers; ++l) {
      matrices_.push_back({2 * G, 2 * R, true, nullptr, nullptr});
      if (l + 1 < layers) matrices_.push_back({R, G, false, nullptr, nullptr});
    }
    matrices_.push_back({net_.skip, layers * G, false, nullptr, nullptr});
    matrices_.push_back({net_.hidden, net_.skip, false, nullptr, nullptr});
    matrices_.push_back({net_.classes, net_.hidden, false, nullptr, nullptr});
    net_.matrices = matrices_.data();
    lay_out();
    pack(weights, biases);
    import(queues);
  }

  Tensor draw(const Tensor& previous) {
    const int64_t B = net_.batch, stages = net_.stages();
    Tensor drawn = empty({B, net_.time}, ScalarType::Long);
    net_.drawn = data<int64_t>(drawn);
    for (int64_t row = 0; row < B; ++row) {
      const int64_t c = const_data<int64_t>(previous)[row];
      STD_TORCH_CHECK(0 <= c && c < net_.classes, "state.previous: expected classes from 0 to ", net_.classes - 1,
                      ", got ", c);
      kernels_.wavenet_embed(net_, row, c, 0);
    }
    if (B > 0)
      run_phases(net_.time * stages, parts(), [&](int64_t phase, int64_t part) {
        kernels_.wavenet_stage(net_, phase / stages, phase % stages, part, parts());
      });
    return drawn;
  }

  // What the layers read last, oldest first.
  Tensor queues() const {
    Tensor out =
        empty<T>({net_.batch, std::accumulate(dilations_.begin(), dilations_.end(), int64_t{0}), net_.residual});
    each_entry(net_.time, [&](int64_t at, T* entry) { std::copy_n(entry, net_.residual, data<T>(out) + at); });
    return out;
  }

 private:
  // Threads are worth their waiting for each other where a stage has work for them.
  int64_t parts() const {
    constexpr int64_t kStageWork = 4096;
    int64_t work = 0;
    for (const PanelMatrix<T>& m : matrices_) work += net_.batch * m.rows * m.columns;
    const int64_t most = std::min<int64_t>(matrices_[0].count(kernels_.tile), work / (net_.stages() * kStageWork));
    return std::clamp<int64_t>(most, 1, torch::stable::get_num_threads());
  }

  // One piece of memory for all weights and all that the stages hold, each part of it from a cache line's beginning.
  void lay_out() {
    size_t size = 0;
    const auto place = [&](auto*& p, int64_t n) {
      using E = std::remove_reference_t<decltype(*p)>;
      if (memory_) p = reinterpret_cast<E*>(memory_ + size);
      size += (n * sizeof(E) + 63) / 64 * 64;
    };
    rings_.resize(net_.layers);
    for (memory_ = nullptr;; memory_ = static_cast<char*>(scratch(size, 1)), size = 0) {
      for (PanelMatrix<T>& m : matrices_) {
        place(m.panels, m.count(kernels_.tile) * kernels_.tile * m.columns);
        place(m.bias, m.count(kernels_.tile) * kernels_.tile);
      }
      for (int64_t l = 0; l < net_.layers; ++l) place(rings_[l], (dilations_[l] + 1) * net_.batch * net_.residual);
      place(net_.gated, net_.batch * net_.layers * net_.gate);
      place(net_.skips, net_.batch * net_.skip);
      place(net_.hiddens, net_.batch * net_.hidden);
      place(net_.logits, net_.batch * net_.classes);
      place(net_.cumulative, net_.classes);
      if (memory_) break;
    }
    net_.rings = rings_.data();
  }

  void pack(const Tensors& weights, const Tensors& biases) {
    const int64_t layers = net_.layers, R = net_.residual, G = net_.gate;
    const PanelMatrix<T>* end = matrices_.data() + 2 * layers - 1;
    const auto dense = [](const Tensor& t) { return Matrix<const T>{const_data<T>(t), t.size(1), 1}; };
    parallel(layers + 2, kParallelWork, [&](int64_t l) {
      if (l >= layers) {
        const int64_t i = l - layers;
        kernels_.pack_panels(end[1 + i], dense(weights[3 * layers + 1 + i]), 0, end[1 + i].columns);
        return kernels_.pack_bias(end[1 + i], const_data<T>(biases[3 * layers + i]), false);
      }
      const T* gate = const_data<T>(weights[3 * l + 1]);
      const PanelMatrix<T>* m = matrices_.data() + 2 * l;
      for (int64_t tap = 0; tap < 2; ++tap) kernels_.pack_panels(m[0], {gate + tap, 2 * R, 2}, tap * R, R);
      kernels_.pack_bias(m[0], const_data<T>(biases[3 * l]), false);
      kernels_.pack_panels(end[0], dense(weights[3 * l + 3]), l * G, G);
      if (l + 1 == layers) return;
      kernels_.pack_panels(m[1], dense(weights[3 * l + 2]), 0, G);
      kernels_.pack_bias(m[1], const_data<T>(biases[3 * l + 1]), false);
    });
    for (int64_t l = 0; l < layers; ++l) kernels_.pack_bias(end[0], const_data<T>(biases[3 * l + 2]), l > 0);
  }

  // Calls f with the place of an entry of the queues and where the rings hold it at a time.
  template <class F>
  void each_entry(int64_t time, const F& f) const {
    int64_t at = 0;
    for (int64_t row = 0; row < net_.batch; ++row)
      for (int64_t l = 0; l < net_.layers; ++l) {
        const int64_t d = dilations_[l];
        for (int64_t i = 0; i < d; ++i, at += net_.residual) {
          const int64_t slot = (time + 1 + i) % (d + 1);  // of the time that lies d - i before this one
          f(at, rings_[l] + (slot * net_.batch + row) * net_.residual);
        }
      }
  }

  void import(const Tensor& queues) {
    each_entry(0, [&](int64_t at, T* entry) { std::copy_n(const_data<T>(queues) + at, net_.residual, entry); });
  }

  const ConvolutionKernels<T>& kernels_ = convolution_kernels<T>();
  std::vector<int64_t> dilations_;
  std::vector<PanelMatrix<T>> matrices_;
  std::vector<T*> rings_;
  WaveNet<T> net_;
  char* memory_;
};

std::tuple<Tensor, Tensor> wavenet_generate(Tensor uniform, Tensor previous, Tensor queues, Tensors weights,
                                            Tensors biases, std::vector<int64_t> dilations) {
  return for_dtype(uniform, [&](auto zero) -> std::tuple<Tensor, Tensor> {
    Generator<decltype(zero)> generator(uniform, queues, weights, biases, dilations);
    Tensor drawn = generator.draw(previous);
    return {drawn, generator.queues()};
  });
}

}  // namespace
}  // namespace flowkern

STABLE_TORCH_LIBRARY_FRAGMENT(flowkern, m) {
  m.def(
      "wavenet_generate(Tensor uniform, Tensor previous, Tensor queues, Tensor[] weights, Tensor[] biases, int[] "
      "dilations) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(flowkern, CPU, m) { m.impl("wavenet_generate", TORCH_BOX(&flowkern::wavenet_generate)); }
