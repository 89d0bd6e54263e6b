"""What the examples share: sizes from the command line, and the time of a call before and after one line."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

import flowkern as fk


def sizes(description: str, **defaults: int) -> argparse.Namespace:
    """Command-line options, one whole number each."""
    parser = argparse.ArgumentParser(description=description)
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"({value})")
    return parser.parse_args()


def seconds(call: Callable[[], Any]) -> float:
    """The shortest of three calls, after one that is not counted."""
    call()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def before_and_after(model: Any, **calls: Callable[[], Any]) -> None:
    """Times each call, accelerates the model, times each again; the results must be those of before."""
    results, before = {}, {}
    for name, call in calls.items():
        torch.manual_seed(0)
        results[name] = call()
        before[name] = seconds(call)
    fk.accelerate(model)
    for name, call in calls.items():
        torch.manual_seed(0)
        torch.testing.assert_close(call(), results[name], rtol=1e-3, atol=1e-3)
        after = seconds(call)
        ratio = before[name] / after
        print(f"{name}: {1e3 * before[name]:.1f} ms before, {1e3 * after:.1f} ms after, {ratio:.1f} times as fast")
    print(fk.explain(model))
