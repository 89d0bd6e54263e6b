// WaveNet's sampling loop in one launch. The network is cut into members, each a block of threads with its part of the
// weights in shared memory: first blocks of layers, then rows of the last two matrices. The members of a chain hand on
// what they computed for a tile of N rows of the batch, and are at work on other tiles meanwhile; the sample comes back
// to the first one. Chains share nothing.
//
// What a member does for a time and a tile depends on what members before it do for the same, or on the sample of the
// time before. All go through times, tiles and their own parts in this order, so nothing waits for ever, provided that
// all blocks run at the same time.
#include "cuda/numbers.h"
#include "flowkern/math.h"

namespace flowkern::FK_ISA {

// flowkern/cuda/wavenet_generate.py writes these, and fills in the arguments. Places in shared memory are counted in
// numbers of one row.
struct alignas(16) Member {
  int first, layers, pieces;               // of the layers, and its first piece
  int inputs, z, u, h;                     // [layer][columns of the past], [layer][2 gate], [layer][gate], [residual]
  int skips, hidden, parameters, weights;  // [skip], [hidden], [outputs]; weights: in units of 16 bytes
  int unused;
};
// A matrix as panels of 16 / (size of a weight) rows, [columns][rows], in units of 16 bytes; `first` is its first row's
// place in the whole. The pieces of a member: skip (the columns of all its layers), the last but one matrix, the last;
// then for each layer what reads queues and the condition, what reads the present, the residual.
struct alignas(16) Piece {
  int weights, shared, first, rows, columns, unused[3];  // shared: its place there, or -1
};
struct Layer {
  int dilation, queue;  // where its queue begins
};
struct GenerateArguments {
  const Member* members;
  const Piece* pieces;
  const Layer* layers;
  const void *weights, *embedding;
  const void *gate_biases, *biases;  // [layer][rows][2 gate]; embedding, residual of all layers, skip of all, last two
  const void *noise, *condition, *previous;
  void *queues, *samples;        // [row][place][residual], [row][time]
  unsigned long long* messages;  // [tile][number][row]
  long long batch, times, queue, messages_per_tile, gate_bias_layer, gate_bias_row;
  long long noise_row, noise_time, noise_number, condition_row, condition_channel, condition_time;
  int begin, end, tiles, chains, length, stages;  // the times of this launch; members, and how many of them have layers
  int depth, taps, residual, gate, skip, hidden, outputs, classes, output, levels;
  double log_scale_min, bound;
};
static_assert(sizeof(Member) == 48 && sizeof(Piece) == 32 && sizeof(GenerateArguments) == 280,
              "wavenet_generate.py has the same");

enum Output { kCategorical, kLogistics, kGaussians };

constexpr int kGenerateThreads = 256;

template <class W, class T, int N>
class Generator {
 public:
  static constexpr int kWarps = kGenerateThreads / 32;
  static constexpr int kParts = 8;  // lanes that share an inner product, so that four panels share a warp
  static constexpr int kRows = 16 / sizeof(W);
  static constexpr int kWords = sizeof(T) / 4;
  static_assert(kParts == 8 && N <= kWarps, "a warp draws the sample of a row");

  struct alignas(16) Panel {
    W rows[kRows];
  };
  struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Column {
    T rows[N];
  };

  FK_INLINE explicit Generator(const GenerateArguments& arguments)
      : in(arguments),
        index(block() % in.length),
        warp(thread() / 32),
        lane(thread() % 32),
        part(lane % kParts),
        member(in.members[index]),
        pieces(in.pieces + member.pieces),
        weights_(reinterpret_cast<const Panel*>(shared_memory()) + member.weights) {}

  FK_INLINE void run() {
    fetch_weights();
    for (time_ = in.begin; time_ < in.end; ++time_)
      for (tile_ = block() / in.length; tile_ < in.tiles; tile_ += in.chains) {
        if (member.layers > 0) run_layers();
        if (pieces[1].rows > 0) run_hidden();
        if (pieces[2].rows > 0) run_outputs();
        sync();
      }
    if (index == 0)
      for (tile_ = block() / in.length; tile_ < in.tiles; tile_ += in.chains) draw();
  }

 private:
  FK_INLINE T* values(int at) const { return reinterpret_cast<T*>(shared_memory()) + at * N; }
  FK_INLINE long long row_of(int n) const { return static_cast<long long>(tile_) * N + n; }
  // Rows beyond the batch repeat its last one.
  FK_INLINE long long source_row(int n) const { return row_of(n) < in.batch ? row_of(n) : in.batch - 1; }
  // Calls f(i, n) for all numbers of all rows; neighbouring threads have neighbouring numbers.
  template <class F>
  FK_INLINE void for_each(int count, F f) const {
    for (int i = thread(); i < count * N; i += kGenerateThreads) f(i % count, i / count);
  }

  FK_INLINE void fetch_weights() {
    const char* from = static_cast<const char*>(in.weights);
    for (int p = 0; p < 3 + 3 * member.layers; ++p) {
      const Piece piece = pieces[p];
      if (piece.shared < 0) continue;
      const int size = (piece.rows + kRows - 1) / kRows * piece.columns;
      unsigned char* to = shared_memory() + (member.weights + piece.shared) * 16;
      for (int i = thread(); i < size; i += kGenerateThreads)
        copy_async(to + i * 16, from + (static_cast<long long>(piece.weights) + i) * 16);
    }
    copy_commit();
    copy_wait<0>();
    sync();
  }

  // -- what a member computes

  FK_INLINE void run_layers() {
    remember();
    if (index == 0)
      begin();
    else
      for_each(in.residual, [&](int i, int n) { values(member.h)[i * N + n] = receive(state_at(index - 1) + i, n); });
    sync();
    for (int l = 0; l < member.layers; ++l) run_layer(l);
    run_skip();
  }

  // Everything that does not depend on the layer before: z = biases + products with the queues and the condition.
  FK_INLINE void remember() {
    const int columns = pieces[3].columns;
    for (int l = 0; l < member.layers; ++l)
      for_each(columns,
               [&](int c, int n) { values(member.inputs + l * columns + c)[n] = heard(member.first + l, c, n); });
    sync();
    for (int l = 0; l < member.layers; ++l) {
      T* z = values(member.z + l * 2 * in.gate);
      const long long bias = (member.first + l) * in.gate_bias_layer;
      product(pieces[3 + 3 * l], values(member.inputs + l * columns), [&](int r, int n, T sum) {
        z[r * N + n] = sum + at<T>(in.gate_biases, bias + source_row(n) * in.gate_bias_row + r);
      });
    }
  }

  // Column c of what a layer hears of the past and of the condition.
  FK_INLINE T heard(int l, int c, int n) const {
    const int tap = c / in.residual;
    if (tap < in.taps - 1) {
      const int dilation = in.layers[l].dilation, slot = (time_ + tap * dilation) % ((in.taps - 1) * dilation);
      return at<T>(in.queues, queue_place(l, slot, n) + c % in.residual);
    }
    const int channel = c - (in.taps - 1) * in.residual;
    return at<T>(in.condition,
                 source_row(n) * in.condition_row + channel * in.condition_channel + time_ * in.condition_time);
  }
  FK_INLINE long long queue_place(int l, int slot, int n) const {
    return (source_row(n) * in.queue + in.layers[l].queue + slot) * in.residual;
  }

  FK_INLINE void run_layer(int l) {
    T *z = values(member.z + l * 2 * in.gate), *u = values(member.u + l * in.gate), *h = values(member.h);
    product(pieces[4 + 3 * l], h, [&](int r, int n, T sum) { z[r * N + n] += sum; });
    if (in.taps > 1) enqueue(member.first + l, h);
    sync();
    for (int i = thread(); i < in.gate * N; i += kGenerateThreads) u[i] = tanh(z[i]) * sigmoid(z[in.gate * N + i]);
    sync();
    const bool last = l + 1 == member.layers;
    const int bias = in.residual * (1 + member.first + l);
    product(pieces[5 + 3 * l], u, [&](int r, int n, T sum) {
      const T next = h[r * N + n] + (sum + at<T>(in.biases, bias + r));
      h[r * N + n] = next;
      if (last) send(state_at(index) + r, n, next);
    });
    sync();
  }

  // What the layer read takes the place of the oldest, which was read for the last time.
  FK_INLINE void enqueue(int l, const T* h) const {
    const int slot = time_ % ((in.taps - 1) * in.layers[l].dilation);
    for_each(in.residual, [&](int i, int n) {
      if (row_of(n) < in.batch) static_cast<T*>(in.queues)[queue_place(l, slot, n) + i] = h[i * N + n];
    });
  }

  FK_INLINE void run_skip() {
    const int biases = in.residual * (1 + in.depth) + in.skip * member.first;
    product(pieces[0], values(member.u), [&](int r, int n, T sum) {
      for (int l = 0; l < member.layers; ++l) sum += at<T>(in.biases, biases + l * in.skip + r);
      if (index > 0) sum += receive(skips_at(index - 1) + r, n);
      send(skips_at(index) + r, n, sum);
    });
  }

  FK_INLINE void run_hidden() {
    T* x = values(member.skips);
    for_each(in.skip, [&](int i, int n) { x[i * N + n] = rectified(receive(skips_at(in.stages - 1) + i, n)); });
    sync();
    const int bias = in.residual * (1 + in.depth) + in.skip * in.depth, to = hidden_at();
    product(pieces[1], x, [&](int r, int n, T sum) { send(to + r, n, rectified(sum + at<T>(in.biases, bias + r))); });
  }

  FK_INLINE void run_outputs() {
    T* x = values(member.hidden);
    for_each(in.hidden, [&](int i, int n) { x[i * N + n] = receive(hidden_at() + i, n); });
    sync();
    const int bias = in.residual * (1 + in.depth) + in.skip * in.depth + in.hidden, to = parameters_at();
    product(pieces[2], x, [&](int r, int n, T sum) { send(to + r, n, sum + at<T>(in.biases, bias + r)); });
  }
  static FK_INLINE T rectified(T x) { return x < 0 ? T(0) : x; }

  // -- samples

  // The sample of the time before, and what the first layer reads of it.
  FK_INLINE void begin() {
    if (time_ > in.begin) draw();
    const T* embedding_bias = static_cast<const T*>(in.biases);
    const W* embedding = static_cast<const W*>(in.embedding);
    for_each(in.residual, [&](int i, int n) {
      T x;
      if (in.output == kCategorical) {
        const long long drawn = previous<long long>(n);
        const long long known = drawn < 0 ? 0 : drawn < in.classes ? drawn : in.classes - 1;
        x = load(embedding[known * in.residual + i]);
      } else {
        x = previous<T>(n) * load(embedding[i]);
      }
      values(member.h)[i * N + n] = x + embedding_bias[i];
    });
  }
  template <class X>
  FK_INLINE X previous(int n) const {
    const long long row = source_row(n);
    return time_ == 0 ? at<X>(in.previous, row) : at<X>(in.samples, row * in.times + time_ - 1);
  }

  // The sample of the time before for all rows of a tile: a warp for each.
  FK_INLINE void draw() {
    T* parameters = values(member.parameters);
    const T warm = warp < N ? noise(min(lane, noises() - 1)) : T(0);  // comes to the first-level cache meanwhile
    for_each(in.outputs, [&](int i, int n) { parameters[i * N + n] = receive(parameters_at() + i, n, time_); });
    keep_alive(warm > 0);
    sync();
    if (warp < N) {
      const long long to = row_of(warp) * in.times + time_ - 1;
      const bool writes = lane == 0 && row_of(warp) < in.batch;
      if (in.output == kCategorical) {
        const int drawn = drawn_class(parameters + warp);
        if (writes) static_cast<long long*>(in.samples)[to] = drawn;
      } else {
        const T drawn = drawn_number(parameters + warp);
        if (writes) static_cast<T*>(in.samples)[to] = drawn;
      }
    }
    sync();
  }
  FK_INLINE int noises() const { return in.output == kCategorical ? 1 : in.outputs / 3 + 1; }
  FK_INLINE T noise(int number) const {
    return at<T>(in.noise, source_row(warp) * in.noise_row + (time_ - 1) * in.noise_time + number * in.noise_number);
  }

  static constexpr T kLeast = -3.402823466e38f;  // NVRTC has no name for an infinity

  // The first class whose cumulative probability exceeds the noise. Each lane has some neighbouring classes.
  FK_INLINE int drawn_class(T* logits) const {
    const int own = (in.outputs + 31) / 32, first = lane * own, end = min(first + own, in.outputs);
    T largest = kLeast;
    for (int i = lane; i < in.outputs; i += 32) largest = logits[i * N] > largest ? logits[i * N] : largest;
    FK_UNROLL
    for (int m = 1; m < 32; m *= 2) {
      const T other = shuffle_xor(largest, m);
      largest = other > largest ? other : largest;
    }
    double total = 0, before = 0;
    for (int i = first; i < end; ++i) total += logits[i * N] = exp(logits[i * N] - largest);
    FK_UNROLL
    for (int m = 1; m < 32; m *= 2) {
      const double other = shuffle_xor(total, m);
      if (lane & m) before += other;
      total += other;
    }
    const double most = noise(0) * total;
    int below = 0;
    double until = 0;
    for (int i = first; i < end; ++i) below += before + (until += logits[i * N]) <= most;
    FK_UNROLL
    for (int m = 1; m < 32; m *= 2) below += shuffle_xor(below, m);
    return min(below, in.outputs - 1);
  }
  static FK_INLINE int min(int a, int b) { return a < b ? a : b; }

  // A component by Gumbel noise, then of its distribution.
  FK_INLINE T drawn_number(const T* parameters) const {
    const int components = in.outputs / 3;
    T largest = kLeast;
    int chosen = 0;
    for (int i = lane; i < components; i += 32) {
      const T score = parameters[i * N] - log(-log(noise(i)));
      if (score > largest) largest = score, chosen = i;
    }
    FK_UNROLL
    for (int m = 1; m < 32; m *= 2) {
      const T other = shuffle_xor(largest, m);
      const int its = shuffle_xor(chosen, m);
      if (other > largest || (other == largest && its < chosen)) largest = other, chosen = its;
    }
    const T mean = parameters[(components + chosen) * N], raw = parameters[(2 * components + chosen) * N];
    const T least = static_cast<T>(in.log_scale_min), bound = static_cast<T>(in.bound), last = noise(components);
    const T scale = exp(raw < least ? least : raw);
    if (in.output == kGaussians) return clamped(mean + scale * last, bound);
    const T x = mean + scale * (log(last) - log1p(-last));
    if (in.levels == 0) return clamped(x, bound);
    const T steps = static_cast<T>(in.levels - 1) / 2;
    return clamped(nearest((clamped(x, T(1)) + 1) * steps) / steps - 1, bound);
  }
  static FK_INLINE T clamped(T x, T bound) { return x < -bound ? -bound : x > bound ? bound : x; }

  // -- messages: numbers of a tile that one member sends and others wait for, tagged with the time after theirs

  FK_INLINE int state_at(int stage) const { return stage * in.residual; }  // what the next member's layers read
  FK_INLINE int skips_at(int stage) const { return state_at(in.stages - 1) + stage * in.skip; }
  FK_INLINE int hidden_at() const { return skips_at(in.stages); }
  FK_INLINE int parameters_at() const { return hidden_at() + in.hidden; }

  FK_INLINE unsigned long long* message(int number, int n) const {
    return in.messages + tile_ * in.messages_per_tile + (number * N + n) * kWords;
  }
  FK_INLINE void send(int number, int n, float v) const { send_word(message(number, n), float_to_bits(v), time_ + 1); }
  FK_INLINE void send(int number, int n, double v) const {
    send_word(message(number, n), low_bits(v), time_ + 1);
    send_word(message(number, n) + 1, high_bits(v), time_ + 1);
  }
  FK_INLINE T receive(int number, int n) const { return receive(number, n, time_ + 1); }
  FK_INLINE T receive(int number, int n, int tag) const {
    const unsigned low = receive_word(message(number, n), tag);
    if constexpr (kWords == 1)
      return bits_to_float(low);
    else
      return bits_to_double(receive_word(message(number, n) + 1, tag), low);
  }

  // -- products

  // Calls f(row, n, sum) with the rows of a piece applied to x [columns][N], each from one thread.
  template <class F>
  FK_INLINE void product(const Piece& piece, const T* x, F f) const {
    const auto finish = [&](int row, int n, T sum) { f(piece.first + row, n, sum); };
    const Column* columns = reinterpret_cast<const Column*>(x);
    if (piece.shared >= 0)
      product(weights_ + piece.shared, piece.rows, piece.columns, columns, finish);
    else
      product(static_cast<const Panel*>(in.weights) + piece.weights, piece.rows, piece.columns, columns, finish);
  }

  template <class F>
  FK_INLINE void product(const Panel* panels, int rows, int columns, const Column* x, F f) const {
    const int count = (rows + kRows - 1) / kRows;
    for (int first = warp * (32 / kParts); first < count; first += kWarps * (32 / kParts)) {
      const int panel = first + lane / kParts;
      T sums[kRows * N] = {};
      if (panel < count) accumulate(panels + static_cast<long long>(panel) * columns, columns, x, sums);
      combine<kRows * N, kParts, 1>(sums, lane, [&](int i, T sum) {
        const int row = panel * kRows + i / N;
        if (row < rows) f(row, i % N, sum);
      });
    }
  }

  FK_INLINE void accumulate(const Panel* panel, int columns, const Column* x, T (&sums)[kRows * N]) const {
    for (int c = part; c < columns; c += kParts) {
      const Panel w = panel[c];
      const Column a = x[c];
      FK_UNROLL
      for (int r = 0; r < kRows; ++r) {
        FK_UNROLL
        for (int n = 0; n < N; ++n) sums[r * N + n] += load(w.rows[r]) * a.rows[n];
      }
    }
  }

  const GenerateArguments& in;
  const int index, warp, lane, part;
  const Member member;
  const Piece* pieces;
  const Panel* weights_;
  int time_, tile_;
};

}  // namespace flowkern::FK_ISA

#define FK_GENERATE(VARIANT, W, T, N)                                             \
  FK_KERNEL(flowkern::FK_ISA::kGenerateThreads)                                   \
  wavenet_generate_##VARIANT(FK_ARGUMENTS(flowkern::FK_ISA::GenerateArguments)) { \
    flowkern::FK_ISA::Generator<W, T, N>(arguments).run();                        \
  }
FK_GENERATE(f32_r1, float, float, 1)
FK_GENERATE(f32_r8, float, float, 8)
FK_GENERATE(f64_r1, double, double, 1)
FK_GENERATE(f64_r8, double, double, 8)
FK_GENERATE(bf16_r1, flowkern::FK_ISA::Bf16, float, 1)
FK_GENERATE(bf16_r8, flowkern::FK_ISA::Bf16, float, 8)
