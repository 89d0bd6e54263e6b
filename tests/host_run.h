// The names of csrc/cuda/device.h on a CPU: the threads of a block are fibers that take turns at every barrier.
//
// A barrier that not all threads reach, a shuffle in part of a warp, or a wait for a word that nobody sends stops the
// program with a message. Shared memory
// is a heap block of exactly the size asked for, filled with NaN, so AddressSanitizer sees its bounds. What an
// asynchronous copy will write is NaN until the wait. Blocks of a group run together, others one after another, on the
// same fibers. ThreadSanitizer takes fibers for threads that only barriers order. Not shown: what depends on the memory
// model, bank conflicts, speed.
#pragma once

#ifndef __x86_64__
#error "host_run.h switches fibers of x86-64 only"
#endif

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define FK_NO_TSAN __attribute__((no_sanitize("thread"), noinline))
#else
#define FK_NO_TSAN
#endif

#define FK_INLINE inline
#define FK_UNROLL
#define FK_KERNEL(THREADS) extern "C" void
#define FK_ARGUMENTS(TYPE) const TYPE& arguments

// Pushes the registers that a function must keep, changes stacks, pops them.
asm(R"(
.text
.type fk_switch_stacks, @function
fk_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
extern "C" void fk_switch_stacks(void** from, void* to);

namespace host_run {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "host_run: %s\n", what);
  std::abort();
}

struct Fiber;
inline Fiber* running = nullptr;
inline long turns_with_progress = 0;
void yield();

class Barrier {
 public:
  explicit Barrier(int expected) : expected_(expected) {}
  FK_NO_TSAN void wait() {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(this);
#endif
    const unsigned round = round_;
    if (++arrived_ == expected_) {
      arrived_ = 0;
      ++round_;
      ++turns_with_progress;
    } else {
      while (round_ == round) yield();
    }
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(this);
#endif
  }

 private:
  int expected_, arrived_ = 0;
  unsigned round_ = 0;
};

struct Warp {
  Barrier barrier{32};
  double value[32];
  unsigned fragments[32][6];
};

struct Group {
  Barrier barrier;
  std::vector<unsigned char*> shared;  // of each block
};

struct Block {
  int index, grid, threads;
  unsigned char* shared;
  long shared_size;
  Barrier barrier;
  Group* group;
  std::deque<Warp> warps;
};

struct Copy {
  unsigned char* to;
  const unsigned char* from;
};

struct Fiber {
  void* stack_pointer = nullptr;
  std::unique_ptr<unsigned char[]> stack;
  Block* block = nullptr;
  int thread = 0;
  bool done = false;
  std::vector<std::vector<Copy>>* copies = nullptr;  // groups under way, the open one last
  void (*kernel)(const void*) = nullptr;
  const void* arguments = nullptr;
  void* sanitizer = nullptr;
};

constexpr size_t kStack = 192 * 1024;
inline char group_begins, launch_ends;  // what orders one launch before the next, and no block before another
inline void* scheduler_stack = nullptr;
inline void* scheduler_sanitizer = nullptr;
#if defined(__SANITIZE_ADDRESS__)
inline const void* scheduler_bottom = nullptr;
inline size_t scheduler_size = 0;
#endif

FK_NO_TSAN inline void yield() {
  Fiber* me = running;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(me->done ? nullptr : &fake, scheduler_bottom, scheduler_size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(scheduler_sanitizer, 1);
#endif
  fk_switch_stacks(&me->stack_pointer, scheduler_stack);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, &scheduler_bottom, &scheduler_size);
#endif
}

FK_NO_TSAN inline void enter() {
  Fiber* me = running;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(&group_begins);
#endif
  {
    std::vector<std::vector<Copy>> copies(1);
    me->copies = &copies;
    me->kernel(me->arguments);
    for (const auto& open : copies)
      if (!open.empty()) fail("a thread ended with copies under way");
  }
#if defined(__SANITIZE_THREAD__)
  __tsan_release(&launch_ends);
#endif
  me->done = true;
  ++turns_with_progress;
  yield();
  fail("a finished thread was resumed");
}

FK_NO_TSAN inline void resume(Fiber& fiber) {
  running = &fiber;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), kStack);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fiber.sanitizer, 1);
#endif
  fk_switch_stacks(&scheduler_stack, fiber.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

// The blocks [first, first + count) of a grid, all at once.
FK_NO_TSAN inline void run_group(void (*kernel)(const void*), int first, int count, int grid, int threads,
                                 long shared_size, const void* arguments, std::deque<Fiber>& fibers) {
  const std::unique_ptr<Group> group(
      new Group{Barrier(count * threads), {}});  // on the heap: a stack's bytes are used again
  std::deque<Block> blocks;
  std::vector<unsigned char*> memory;
  for (int b = 0; b < count; ++b) {
    // aligned_alloc would round the size up; AddressSanitizer is to see the exact end.
    unsigned char* shared = static_cast<unsigned char*>(std::malloc(shared_size > 0 ? shared_size : 1));
    if (reinterpret_cast<uintptr_t>(shared) % 16) fail("malloc returned unaligned memory");
    std::memset(shared, 0xFF, shared_size);
    memory.push_back(shared);
    group->shared.push_back(shared);
    blocks.push_back({first + b, grid, threads, shared, shared_size, Barrier(threads), group.get(), {}});
    for (int w = 0; w < threads / 32; ++w) blocks.back().warps.emplace_back();
  }
  while (fibers.size() < static_cast<size_t>(count * threads)) fibers.emplace_back();
  for (int i = 0; i < count * threads; ++i) {
    Fiber& f = fibers[i];
    if (!f.stack) f.stack.reset(new unsigned char[kStack]);
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(f.stack.get(), kStack);  // the last thread there never returned
#endif
    f.block = &blocks[i / threads];
    f.thread = i % threads;
    f.done = false;
    f.kernel = kernel;
    f.arguments = arguments;
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(f.stack.get()) + kStack) / 16 * 16);
    *--top = nullptr;  // where enter() would return to, keeps the stack aligned
    *--top = reinterpret_cast<void*>(&enter);
    for (int r = 0; r < 6; ++r) *--top = nullptr;
    f.stack_pointer = top;
#if defined(__SANITIZE_THREAD__)
    if (!f.sanitizer) f.sanitizer = __tsan_create_fiber(0);
#endif
  }
#if defined(__SANITIZE_THREAD__)
  __tsan_release(&group_begins);
#endif
  for (int left = count * threads; left > 0;) {
    const long before = turns_with_progress;
    for (int i = 0; i < count * threads; ++i)
      if (!fibers[i].done) {
        resume(fibers[i]);
        left -= fibers[i].done;
      }
    if (turns_with_progress == before)
      fail("some threads wait at a barrier that the others do not reach, or for a word");
  }
  for (unsigned char* m : memory) std::free(m);
}

}  // namespace host_run

// What a test calls in place of a launch: blocks of a group run together.
extern "C" inline __attribute__((used, visibility("default"))) void host_run_launch(void (*kernel)(const void*),
                                                                                    int grid, int threads, int group,
                                                                                    long shared,
                                                                                    const void* arguments) {
  static std::deque<host_run::Fiber> fibers;  // kept: a sanitizer's fiber costs more than the thread does
#if defined(__SANITIZE_THREAD__)
  host_run::scheduler_sanitizer = __tsan_get_current_fiber();
#endif
  for (int b = 0; b < grid; b += group) host_run::run_group(kernel, b, group, grid, threads, shared, arguments, fibers);
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(&host_run::launch_ends);
#endif
}

namespace flowkern::FK_ISA {

using host_run::running;

inline int thread() { return running->thread; }
inline int block() { return running->block->index; }
inline int blocks() { return running->block->grid; }
inline void sync() { running->block->barrier.wait(); }
inline host_run::Warp& warp_of_thread() { return running->block->warps[running->thread / 32]; }
inline void sync_warp() { warp_of_thread().barrier.wait(); }
inline unsigned char* shared_memory() { return running->block->shared; }

template <class T>
inline T shuffle_xor(T value, int mask) {
  host_run::Warp& warp = warp_of_thread();
  warp.value[thread() % 32] = value;
  warp.barrier.wait();
  const T other = static_cast<T>(warp.value[thread() % 32 ^ mask]);
  warp.barrier.wait();
  return other;
}

inline void keep_alive(int) {}

inline void copy_async(void* shared, const void* global) {
  unsigned char* to = static_cast<unsigned char*>(shared);
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    host_run::fail("an asynchronous copy of unaligned memory");
  if (to < shared_memory() || to + 16 > shared_memory() + running->block->shared_size)
    host_run::fail("an asynchronous copy to outside of shared memory");
  for (int i = 0; i < 16; ++i) to[i] = 0xFF;
  running->copies->back().push_back({to, static_cast<const unsigned char*>(global)});
}
inline void copy_commit() { running->copies->emplace_back(); }
template <int N>
inline void copy_wait() {
  auto& groups = *running->copies;
  while (groups.size() > N + 1) {
    for (const host_run::Copy& copy : groups.front())
      for (int i = 0; i < 16; ++i) copy.to[i] = copy.from[i];
    groups.erase(groups.begin());
  }
}

constexpr bool kCounters = true;
template <class T>
inline T* remote(T* shared, int rank) {
  const auto offset = reinterpret_cast<unsigned char*>(shared) - shared_memory();
  return reinterpret_cast<T*>(running->block->group->shared[rank] + offset);
}
inline void sync_cluster() { running->block->group->barrier.wait(); }
inline void sync_blocks(unsigned*, int, unsigned) { running->block->group->barrier.wait(); }
template <class T>
inline T load_shared_by_blocks(const T* p) {
  return *p;
}

FK_NO_TSAN inline void made_progress() { ++host_run::turns_with_progress; }
inline void send_word(unsigned long long* to, unsigned value, unsigned tag) {
  __atomic_store_n(to, static_cast<unsigned long long>(tag) << 32 | value, __ATOMIC_RELAXED);
  made_progress();
}
inline unsigned receive_word(const unsigned long long* from, unsigned tag) {
  for (;;) {
    const unsigned long long word = __atomic_load_n(from, __ATOMIC_RELAXED);
    if (word >> 32 == tag) return static_cast<unsigned>(word);
    host_run::yield();
  }
}

inline float bits_to_float(unsigned bits) { return __builtin_bit_cast(float, bits); }
inline unsigned float_to_bits(float value) { return __builtin_bit_cast(unsigned, value); }
inline double bits_to_double(unsigned high, unsigned low) {
  return __builtin_bit_cast(double, static_cast<unsigned long long>(high) << 32 | low);
}
inline unsigned high_bits(double value) { return __builtin_bit_cast(unsigned long long, value) >> 32; }
inline unsigned low_bits(double value) { return static_cast<unsigned>(__builtin_bit_cast(unsigned long long, value)); }
inline float half_to_float(unsigned short h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const float magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(float(fraction), -24)
                                          : std::ldexp(float(fraction + 1024), exponent - 25);
  return h >> 15 ? -magnitude : magnitude;
}
inline unsigned short float_to_half(float value) {
  const unsigned short sign = std::signbit(value) ? 0x8000 : 0;
  const float a = std::fabs(value);
  if (a != a) return sign | 0x7E00;
  if (a == 0) return sign;
  if (a >= 65520.0f) return sign | 0x7C00;
  int exponent;
  std::frexp(a, &exponent);
  const int shift = exponent < -13 ? 24 : 11 - exponent;  // of the unit in the last place
  const int units = static_cast<int>(std::nearbyint(std::ldexp(a, shift)));
  return sign | static_cast<unsigned short>(exponent < -13 ? units : ((exponent + 14) << 10) + units - 1024);
}

inline unsigned to_tf32(float value) {
  const unsigned bits = float_to_bits(value);
  return std::isfinite(value) ? (bits + 0x1000) & ~0x1FFFu : bits;
}
inline void multiply_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  host_run::Warp& warp = warp_of_thread();
  const int lane = thread() % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) warp.fragments[lane][i] = a[i];
  for (int i = 0; i < 2; ++i) warp.fragments[lane][4 + i] = b[i];
  warp.barrier.wait();
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 8; ++k)
      c[i] += bits_to_float(warp.fragments[g * 4 + k % 4][i / 2 + k / 4 * 2]) *
              bits_to_float(warp.fragments[(t * 2 + i % 2) * 4 + k % 4][4 + k / 4]);
  warp.barrier.wait();
}

}  // namespace flowkern::FK_ISA
