"""A clock for pytest-benchmark that reads CUDA events: ``--benchmark-timer=cuda_timer.now``."""

from __future__ import annotations

import torch

_start: torch.cuda.Event | None = None


def now() -> float:
    """Seconds of the GPU's clock since the first call, when all work that was queued is done."""
    global _start
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    event.synchronize()
    if _start is None:
        _start = event
        return 0.0
    return _start.elapsed_time(event) / 1e3
