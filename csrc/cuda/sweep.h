// A masked network swept in level order by one block of threads per tile of R rows: what the inverse and its gradient
// share.
//
// flowkern/cuda/program.py writes the sweep as a list of steps, one per level and layer. What units receive from
// levels of earlier blocks comes first, as dense panels that the warps divide among themselves (`items`, whose sums are
// added in a fixed order); the rest, inside a block of levels, is a short inner product per unit with weights that wait
// in shared memory. The lanes of a warp hold R rows, and 32 / R parts of every inner product.
#pragma once

#include "cuda/program.h"
#include "flowkern/activations.h"

// The family of univariate maps that the code is compiled for.
#ifndef FK_MAP
#define FK_MAP affine
#endif
#define FK_QUOTE(TEXT) #TEXT
#define FK_HEADER(PATH) FK_QUOTE(PATH)
// clang-format off: it takes the path for a quotient
#include FK_HEADER(flowkern/maps/FK_MAP.h)
// clang-format on

namespace flowkern::FK_ISA {

constexpr int kMaxTerms = 130;  // addends and gates of 64 hidden layers and the output

struct Term {
  const void* data;  // [batch, units of the layer], columns contiguous
  long long row;
};

// flowkern/cuda/launch.py fills this in.
struct SweepArguments {
  const int* program;
  const void *weights, *biases;             // packed
  const void *input, *g_log_det, *x;        // z; in the gradient the cotangents of x and of log_det, and x
  void *output, *log_det, *saved, *deltas;  // x or the cotangent of z; [rows of the plan][batch]
  void *scratch, *exchange;                 // rows of tiles, and sums that blocks exchange, where not in shared memory
  unsigned* counters;
  long long batch, input_row, input_column, g_log_det_row, x_row, x_column;
  int tiles, group, activation, cluster;
  double constant;
  UnivariateMap map;
  Term terms[kMaxTerms];
};
static_assert(sizeof(SweepArguments) == 2360,
              "launch.py has the same, and 4096 bytes are the most that a launch takes");

// -- the machine

template <class W_, class T_, int R_, bool Matrix, bool Spill>
class Sweep {
 public:
  using W = W_;
  using T = T_;
  using Map = maps::FK_MAP<T>;
  static constexpr int R = R_;
  static constexpr int kThreads = R == 32 ? 512 : 256;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kParts = 32 / R;
  static constexpr int kStages = 3;                       // of weights on their way to each warp
  static constexpr int kColumns = kParts > 16 ? 32 : 16;  // of a panel in one stage
  static constexpr int kStaging = kWarps * kStages * kColumns * 8;
  static_assert(!Matrix || R >= 16, "a matrix instruction takes sixteen rows");

  FK_INLINE explicit Sweep(const SweepArguments& arguments)
      : in(arguments),
        header(*reinterpret_cast<const Header*>(in.program)),
        warp(thread() / 32),
        lane(thread() % 32),
        row(lane % R),
        part(lane / R),
        rank(R == 1 ? block() % in.group : 0),
        map(in.map) {
    W* memory = reinterpret_cast<W*>(shared_memory());
    staging_ = memory + warp * kStages * kColumns * 8;
    sums_ = reinterpret_cast<T*>(memory);
    triangle_ = memory + kStaging;
    values_ = reinterpret_cast<T*>(triangle_ + header.triangle);
    if constexpr (Spill) values_ = static_cast<T*>(in.scratch) + block() * static_cast<long long>(rows()) * R;
    partials_ = values_ + header.value_rows * R;
    if (counted())
      partials_ = static_cast<T*>(in.exchange) + block() / in.group * static_cast<long long>(header.partial_rows);
  }

  FK_INLINE int rows() const { return header.value_rows + header.partial_rows; }
  FK_INLINE bool grouped() const { return R == 1 && in.group > 1; }
  FK_INLINE bool counted() const { return kCounters && grouped() && !in.cluster; }

  // Runs all tiles of this block. `Task` says how a tile begins and ends and what a unit becomes.
  template <class Task>
  FK_INLINE void run(Task task) {
    const int groups = R == 1 ? blocks() / in.group : blocks();
    for (int tile = R == 1 ? block() / in.group : block(); tile < in.tiles; tile += groups) {
      global_row = static_cast<long long>(tile) * R + row;
      inside = global_row < in.batch;
      source_row = inside ? global_row : in.batch - 1;  // rows beyond the batch repeat its last one
      for (int i = thread(); i < header.zeros * R; i += kThreads) values_[header.zeros_at * R + i] = 0;
      task.begin();
      sync_group();
      for (int s = 0; s < header.steps; ++s) {
        // The next record comes to the first-level cache meanwhile: a word of each of its three sectors.
        const int* next = reinterpret_cast<const int*>(steps() + (s + 1 < header.steps ? s + 1 : s));
        const int warm = next[0] + next[8] + next[16];
        run(task, steps()[s]);
        keep_alive(warm);
      }
      task.end();
      sync();
    }
    sync_group();  // nobody leaves whose memory others may still write to
  }

  // Value `row` of a unit's R. Rows are permuted so that the fragments of a matrix instruction meet no bank twice.
  FK_INLINE T& value(int unit) const { return values_[place(unit, row)]; }
  FK_INLINE T& value(int unit, int r) const { return values_[place(unit, r)]; }

  // Row i of a step's linear map, without its bias: what the panels gave, and the rest inside the block.
  FK_INLINE T product(const SweepStep& step, int i) const {
    T sum = 0;
    if (step.inner[0].columns > 0) sum += inner_product(step.inner[0], step.row + i);
    if (step.inner[1].columns > 0) sum += inner_product(step.inner[1], step.row + i);
    FK_UNROLL
    for (int m = R; m < 32; m *= 2) sum += shuffle_xor(sum, m);
    const int first = (step.partial + i) * R + row;
    for (int s = 0; s < step.segments; ++s) sum += partial(first + s * step.stride * R);
    return sum;
  }

  FK_INLINE T term(int slot, int column) const {
    return at<T>(in.terms[slot].data, source_row * in.terms[slot].row + column);
  }
  FK_INLINE int table(int index) const { return in.program[index]; }
  // One element of this thread's row; none of rows beyond the batch, or where another block of the group writes it too.
  FK_INLINE void write(void* to, long long index, T v) const {
    if (inside && rank == 0) static_cast<T*>(to)[index] = v;
  }
  // What the forward pass keeps, and cotangents: [rows][batch].
  FK_INLINE void keep(void* rows, int unit, T v) const { write(rows, unit * in.batch + global_row, v); }
  FK_INLINE T saved(int unit) const { return at<T>(in.saved, unit * in.batch + source_row); }

  // The sum over all warps of what each holds per row, in a fixed order; valid in the first R threads.
  FK_INLINE T sum_over_warps(T sum) const {
    sync();
    if (part == 0) sums_[warp * R + row] = sum;
    sync();
    T total = 0;
    if (thread() < R)
      for (int w = 0; w < kWarps; ++w) total += sums_[w * R + row];
    return total;
  }

  const SweepArguments& in;
  const Header header;
  const int warp, lane, row, part, rank;
  const Map map;
  long long global_row, source_row;
  bool inside;

 private:
  static FK_INLINE int place(int unit, int r) {
    if constexpr (Matrix) return unit * R + (r ^ ((R == 32 ? unit & 3 : (unit >> 1) & 1) * 8));
    return unit * R + r;
  }
  FK_INLINE const SweepStep* steps() const { return reinterpret_cast<const SweepStep*>(in.program + header.steps_at); }

  template <class Task>
  FK_INLINE void run(Task& task, const SweepStep step) {
    if (step.triangle_size > 0) {
      const char* from = reinterpret_cast<const char*>(static_cast<const W*>(in.weights) + step.triangle);
      const int bytes = step.triangle_size * static_cast<int>(sizeof(W));
      for (int i = thread() * 16; i < bytes; i += kThreads * 16)
        copy_async(reinterpret_cast<char*>(triangle_) + i, from + i);
      copy_commit();
    }
    const int group = R == 1 ? in.group : 1;
    for (int i = step.items + warp * group + rank; i < step.items_end; i += kWarps * group)
      panel(reinterpret_cast<const Item*>(in.program + header.items_at)[i]);
    if (step.triangle_size > 0) copy_wait<0>();
    if (step.items_end > step.items)
      sync_group();
    else if (step.triangle_size > 0)
      sync();
    const Node node = reinterpret_cast<const Node*>(in.program + header.nodes_at)[step.node];
    for (int i = warp; i < step.count; i += kWarps)
      if (node.head)
        task.feature(step, node, i);
      else
        task.unit(step, node, i);
    sync();
  }

  // -- dense panels

  FK_INLINE void panel(const Item item) const {
    const W* weights = static_cast<const W*>(in.weights) + item.weights;
    const int stages = (item.columns + kColumns - 1) / kColumns;
    FK_UNROLL
    for (int s = 0; s < kStages - 1; ++s) stage(weights, item.columns, s);
    if constexpr (Matrix) {
      float sums[R / 16][4] = {};
      for (int s = 0; s < stages; ++s) {
        await(weights, item.columns, s);
        multiply(item, s, sums);
      }
      publish(item, sums);
    } else {
      T sums[8] = {};
      for (int s = 0; s < stages; ++s) {
        await(weights, item.columns, s);
        accumulate(item, s, sums);
      }
      publish(item, sums);
    }
    copy_wait<0>();
    sync_warp();
  }

  FK_INLINE W* staged(int s) const { return staging_ + s % kStages * (kColumns * 8); }

  // Sends for one stage of a panel.
  FK_INLINE void stage(const W* weights, int columns, int s) const {
    const int left = columns - s * kColumns, n = left < kColumns ? left : kColumns;
    const char* from = reinterpret_cast<const char*>(weights + s * kColumns * 8);
    for (int i = lane * 16; i < n * 8 * static_cast<int>(sizeof(W)); i += 32 * 16)
      copy_async(reinterpret_cast<char*>(staged(s)) + i, from + i);
    copy_commit();
  }

  // Waits for stage s and sends for the one that takes the place of s - 1.
  FK_INLINE void await(const W* weights, int columns, int s) const {
    copy_wait<kStages - 2>();
    sync_warp();
    stage(weights, columns, s + kStages - 1);
  }

  FK_INLINE void accumulate(const Item& item, int s, T (&sums)[8]) const {
    struct alignas(sizeof(W) * 8 < 16 ? sizeof(W) * 8 : 16) Eight {
      W w[8];
    };
    const Eight* weights = reinterpret_cast<const Eight*>(staged(s));
    const int left = item.columns - s * kColumns, n = left < kColumns ? left : kColumns;
    const int first = item.values + s * kColumns;
    FK_UNROLL
    for (int i = 0; i < kColumns / kParts; ++i) {
      const int k = i * kParts + part;
      if (k >= n) break;
      const T a = value(first + k);
      const Eight e = weights[k];
      FK_UNROLL
      for (int j = 0; j < 8; ++j) sums[j] += load(e.w[j]) * a;
    }
  }

  FK_INLINE void publish(const Item& item, T (&sums)[8]) const {
    combine<8, kParts, R>(sums, lane, [&](int i, T sum) {
      if (i < item.rows) publish((item.partial + i) * R + row, sum);
    });
  }

  // As a matrix instruction takes it; values of half precision are what they are in tf32.
  static FK_INLINE unsigned fragment(float value) { return sizeof(W) == 2 ? float_to_bits(value) : to_tf32(value); }

  FK_INLINE void multiply(const Item& item, int s, float (&sums)[R / 16 > 0 ? R / 16 : 1][4]) const {
    const int left = item.columns - s * kColumns, n = left < kColumns ? left : kColumns;
    const int g = lane / 4, t = lane % 4;
    FK_UNROLL
    for (int k0 = 0; k0 < kColumns; k0 += 8) {
      if (k0 >= n) break;
      // Beyond the last column loads repeat it, and their place is zero: no branch keeps one load waiting for another.
      const int k[2] = {k0 + t, k0 + t + 4}, last = n - 1;
      unsigned b[2];
      FK_UNROLL
      for (int i = 0; i < 2; ++i) {
        const unsigned bits = fragment(load(staged(s)[(k[i] < n ? k[i] : last) * 8 + g]));
        b[i] = k[i] < n ? bits : 0;
      }
      FK_UNROLL
      for (int m = 0; m < R / 16; ++m) {
        unsigned a[4];
        FK_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int column = k[i / 2] < n ? k[i / 2] : last;
          const unsigned bits = fragment(value(item.values + s * kColumns + column, m * 16 + g + i % 2 * 8));
          a[i] = k[i / 2] < n ? bits : 0;
        }
        multiply_tf32(sums[m], a, b);
      }
    }
  }

  FK_INLINE void publish(const Item& item, const float (&sums)[R / 16 > 0 ? R / 16 : 1][4]) const {
    FK_UNROLL
    for (int m = 0; m < R / 16; ++m) {
      FK_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int j = lane % 4 * 2 + i % 2, r = m * 16 + lane / 4 + i / 2 * 8;
        if (j < item.rows) partials_[(item.partial + j) * R + r] = sums[m][i];
      }
    }
  }

  // Writes a sum to where every block of the group reads it.
  FK_INLINE void publish(int index, T sum) const {
    if (grouped() && !counted())
      for (int other = 0; other < in.group; ++other) remote(partials_, other)[index] = sum;
    else
      partials_[index] = sum;
  }
  FK_INLINE T partial(int index) const {
    return counted() ? load_shared_by_blocks(partials_ + index) : partials_[index];
  }
  FK_INLINE void sync_group() {
    if (!grouped())
      sync();
    else if (counted())
      sync_blocks(in.counters + block() / in.group, in.group, ++round_);
    else
      sync_cluster();
  }

  // -- inside a block of levels

  template <class Inner>
  FK_INLINE T inner_product(const Inner& inner, int r) const {
    constexpr int kSums = 4;  // independent ones: a multiply-add takes four cycles
    const W* weights = triangle_ + inner.weights + r / 8 * inner.stride + r % 8;
    T sums[kSums] = {};
    for (int k = part; k < inner.columns; k += kSums * kParts) {
      FK_UNROLL
      for (int i = 0; i < kSums; ++i) {
        const int column = k + i * kParts;
        if (column < inner.columns) sums[i] += load(weights[column * 8]) * value(inner.values + column);
      }
    }
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  W *staging_, *triangle_;
  T *values_, *partials_, *sums_;
  unsigned round_ = 0;
};

// -- activations by number

template <class T>
FK_INLINE T activate(int kind, double constant, T p) {
  return with_activation(static_cast<Activation>(kind),
                         [=](auto tag) { return activation<decltype(tag)::value, T>(p, static_cast<T>(constant)); });
}
template <class T>
FK_INLINE T activation_slope(int kind, double constant, T p) {
  return with_activation(static_cast<Activation>(kind), [=](auto tag) {
    return activation_slope<decltype(tag)::value, T>(p, static_cast<T>(constant));
  });
}

}  // namespace flowkern::FK_ISA
