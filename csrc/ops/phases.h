// Threads that stay together through many short phases.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

#include "ops/tensors.h"

namespace flowkern {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Runs f(phase, part) for every part of phase 0, then of phase 1, and so on, a part to a thread. Threads wait in a
// loop, since a phase takes no longer than waking one. Where a thread is missing, because the machine is busy or torch
// has no more of them, others do its parts after some patience; a thread that comes late goes on where the others are.
// So a call waits for nothing but a part that is being computed, and it then lets other threads run.
template <class F>
void run_phases(int64_t phases, int64_t parts, const F& f) {
  if (parts == 1) {
    for (int64_t phase = 0; phase < phases; ++phase) f(phase, 0);
    return;
  }
  struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
  };
  std::vector<Counter> taken(parts);  // phases whose part i somebody has taken
  Counter done;                       // parts
  const auto take = [&](int64_t phase, int64_t part) {
    int64_t expected = phase;
    if (!taken[part].value.compare_exchange_strong(expected, phase + 1, std::memory_order_acq_rel)) return false;
    f(phase, part);
    done.value.fetch_add(1, std::memory_order_acq_rel);
    return true;
  };
  torch::stable::parallel_for(0, parts, 1, [&](int64_t own, int64_t) {
    constexpr int kPatience = 200;  // turns of a waiting loop, some microseconds
    int patience = kPatience;
    for (int64_t phase = 0; phase < phases; phase = done.value.load(std::memory_order_acquire) / parts) {
      take(phase, own);
      bool helped = false;
      for (int turn = 0; done.value.load(std::memory_order_acquire) < (phase + 1) * parts; ++turn) {
        if (turn < patience) {
          relax();
          continue;
        }
        bool found = false;
        for (int64_t part = 0; part < parts; ++part) found |= take(phase, part);
        helped |= found;
        if (!found) std::this_thread::yield();
      }
      patience = helped ? 0 : kPatience;  // who is missing now will be missing for a while
    }
  });
}

}  // namespace flowkern
