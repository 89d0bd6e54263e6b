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
    std::atomic<int64_t> phases{0};
  };
  std::vector<Counter> taken(parts), finished(parts);  // of each part the phases that somebody has begun, and ended
  const auto take = [&](int64_t phase, int64_t part) {
    int64_t expected = phase;
    if (!taken[part].phases.compare_exchange_strong(expected, phase + 1, std::memory_order_acq_rel)) return false;
    f(phase, part);
    finished[part].phases.store(phase + 1, std::memory_order_release);
    return true;
  };
  const auto current = [&] {  // the phase that not all parts have finished
    int64_t phase = phases;
    for (const Counter& part : finished) phase = std::min(phase, part.phases.load(std::memory_order_acquire));
    return phase;
  };
  torch::stable::parallel_for(0, parts, 1, [&](int64_t own, int64_t) {
    constexpr int kPatience = 200;  // turns of a waiting loop, some microseconds
    int patience = kPatience;
    for (int64_t phase = 0; phase < phases;) {
      take(phase, own);
      bool helped = false;
      int64_t next = current();
      for (int turn = 0; next <= phase; ++turn, next = current()) {
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
      phase = next;
    }
  });
}

}  // namespace flowkern
