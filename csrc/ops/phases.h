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

// Runs f(phase, part) for all phases of every part, those of a part in their order, a part to a thread. A phase begins
// once every other part has ended as many as needs(phase, part, other) says. Threads wait in a loop, since a phase
// takes no longer than waking one. Where a thread is missing, because the machine is busy or torch has no more of them,
// others do its phases after some patience; a thread that comes late goes on where the others are. So a call waits for
// nothing but a phase that is being computed, and it then lets other threads run.
template <class Needs, class F>
void run_phases(int64_t phases, int64_t parts, const Needs& needs, const F& f) {
  if (parts == 1) {
    for (int64_t phase = 0; phase < phases; ++phase) f(phase, 0);
    return;
  }
  struct alignas(64) Counter {
    std::atomic<int64_t> phases{0};
  };
  std::vector<Counter> taken(parts), ended(parts);  // of each part the phases that somebody has begun, and ended
  torch::stable::parallel_for(0, parts, 1, [&](int64_t own, int64_t) {
    std::vector<int64_t> seen(parts);  // of `ended`, whose lines are taken from those who write them at every look
    const auto has_ended = [&](int64_t part, int64_t count) {
      if (seen[part] < count) seen[part] = ended[part].phases.load(std::memory_order_acquire);
      return seen[part] >= count;
    };
    const auto take = [&](int64_t part) {  // the next phase of a part, unless somebody has it or it cannot begin
      int64_t phase = taken[part].phases.load(std::memory_order_relaxed);
      if (phase == phases) return false;
      for (int64_t other = 0; other < parts; ++other)
        if (!has_ended(other, other == part ? phase : needs(phase, part, other))) return false;
      if (!taken[part].phases.compare_exchange_strong(phase, phase + 1, std::memory_order_acq_rel)) return false;
      f(phase, part);
      ended[part].phases.store(phase + 1, std::memory_order_release);
      return true;
    };
    const auto all_ended = [&] {
      for (int64_t part = 0; part < parts; ++part)
        if (!has_ended(part, phases)) return false;
      return true;
    };
    constexpr int kPatience = 200;  // turns of a waiting loop, some microseconds
    bool helped = false;
    for (int turn = 0, patience = kPatience;;) {
      if (take(own)) {
        patience = helped ? 0 : kPatience;  // who is missing now will be missing for a while
        turn = 0, helped = false;
      } else if (all_ended()) {
        return;
      } else if (turn++ < patience) {
        relax();
      } else {
        bool found = false;
        for (int64_t part = 0; part < parts; ++part) found |= take(part);
        helped |= found;
        if (!found) std::this_thread::yield();
      }
    }
  });
}

}  // namespace flowkern
