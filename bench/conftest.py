"""What the suites share: sizes, implementations, peak memory, and the options of pytest-benchmark.

Every benchmark belongs to a group, named after the work; within it the implementations are compared. Before a group is
timed, all of them must give the same numbers.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import flowkern as fk
from flowkern.cli.timing import check_twin, zuko_twin
from flowkern.flows import MAF

THREADS = 2


@dataclass(frozen=True)
class Size:
    """A MAF and a batch."""

    transforms: int
    features: int
    hidden: tuple[int, ...]
    batch: int

    def __str__(self) -> str:
        width = f"{self.hidden[0]}x{len(self.hidden)}"
        return f"{self.transforms} transforms, D={self.features}, hidden {width}, B={self.batch}"


WIDE = Size(5, 64, (512, 512), 1024)
SIZES = {
    "wide": WIDE,
    "wide-256": Size(5, 64, (512, 512), 256),
    "wide-1": Size(5, 64, (512, 512), 1),
    "narrow": Size(5, 8, (128, 128), 1024),
    "image": Size(1, 784, (1024, 1024), 256),
    "tiny": Size(5, 2, (16, 16), 1),
}

IMPLEMENTATIONS = ("flowkern", "oracle", "zuko", "zuko compiled")


class Models:
    """The implementations of one size, with the same parameters; checked against each other when first asked for."""

    def __init__(self, size: Size) -> None:
        torch.manual_seed(0)
        self.size = size
        self.flow = MAF(size.features, size.transforms, size.hidden, placement="scale_shift")
        self.zuko = zuko_twin(self.flow)
        self.x = torch.randn(size.batch, size.features)
        if self.zuko is not None:
            check_twin(self.flow, self.zuko, self.x)
        with torch.no_grad(), fk.backend("reference"):
            expected = self.flow.log_prob(self.x)
        torch.testing.assert_close(self.flow.log_prob(self.x), expected, rtol=1e-3, atol=1e-2)
        z = torch.randn(8, size.features)
        with torch.no_grad():
            x, _ = self.flow.transform.inverse(z)
            torch.testing.assert_close(self.flow.transform(x)[0], z, rtol=1e-2, atol=1e-2)

    @property
    def unmasked(self) -> int:
        """Multiply-adds of one density pass of one row that no mask removes."""
        plans = [t.network.plans[0] for t in self.flow.transform.transforms]
        return sum(int(m.sum()) for plan in plans for m in plan.masks)


_models: dict[Size, Models] = {}


def models(size: Size) -> Models:
    """Made once per size and process."""
    if size not in _models:
        _models[size] = Models(size)
    return _models[size]


def need_zuko(found: Models) -> Any:
    """zuko's model, or a skip."""
    if found.zuko is None:
        pytest.skip("zuko is not installed: pip install 'flowkern[peers]'")
    return found.zuko


def compiled(function: Callable[..., Any], *example: Any) -> Callable[..., Any]:
    """torch.compile of a peer's function, or a skip with the reason where it does not compile."""
    torch._dynamo.reset()
    wrapped = torch.compile(function)
    try:
        wrapped(*example)
    except Exception as error:
        pytest.skip(f"does not compile: {str(error).splitlines()[0][:200]}")
    return wrapped


def forced_oracle(function: Callable[[], Any]) -> Callable[[], Any]:
    """The function through plain PyTorch."""

    def call() -> Any:
        with fk.backend("reference"):
            return function()

    return call


def peak_memory(function: Callable[[], Any]) -> float | None:
    """Growth of the process's resident memory during one call, in MB; None where the kernel does not tell."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        reset.write_text("5")  # the high-water mark starts from here
    except OSError:
        return None
    before = _kilobytes(status, "VmRSS")
    function()
    return (_kilobytes(status, "VmHWM") - before) / 1024


def _kilobytes(status: Path, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", status.read_text())
    return int(found.group(1)) if found else 0


def measure(
    benchmark: Any, function: Callable[[], Any], group: str, implementation: str, multiply_adds: float | None = None
) -> None:
    """Times a function, for about a second or at least three calls, and records its peak memory."""
    benchmark.group = group
    benchmark.extra_info["implementation"] = implementation
    benchmark.extra_info["threads"] = torch.get_num_threads()
    if multiply_adds is not None:
        benchmark.extra_info["multiply_adds"] = multiply_adds
    benchmark(function)
    memory = peak_memory(function)  # after the timing, which must find the allocator as the work leaves it
    if memory is not None:
        benchmark.extra_info["peak_memory_mb"] = round(memory, 1)


def compare_with_oracle(call: Callable[[], Any]) -> None:
    """An operator and its oracle give the same numbers."""
    torch.testing.assert_close(call(), forced_oracle(call)(), rtol=1e-3, atol=1e-3)


def measure_operator(
    benchmark: Any,
    call: Callable[[], Any],
    leaves: Sequence[torch.Tensor],
    group: str,
    implementation: str,
    multiply_adds: float | None = None,
) -> None:
    """Times an operator or its oracle, and the gradients of the leaves where they need one."""

    def work() -> None:
        found = call()
        if leaves[0].requires_grad:
            outputs = found if isinstance(found, tuple) else (found,)
            torch.autograd.grad(outputs, list(leaves), [torch.ones_like(o) for o in outputs])

    function = forced_oracle(work) if implementation == "oracle" else work
    measure(benchmark, function, group, implementation, multiply_adds)


@pytest.fixture(autouse=True)
def _threads() -> None:
    torch.set_num_threads(min(THREADS, torch.get_num_threads()))
