"""The rule that every kernel is held to.

The largest error against the float64 oracle is at most twice that of the oracle run in the kernel's own dtype, plus
four units in the last place of the largest output, over at least a thousand elements pooled over seeds. For float64
kernels the oracle's own error is that of its float32 run, scaled by the ratio of the two precisions.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import host_run
import numpy as np
import pytest
import torch
from torch import Tensor

import flowkern as fk

ENOUGH = 1000
LONG_DOUBLES = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="NumPy has no longer numbers here")
# Triton's kernels run on the GPU where there is one, else in the interpreter, which takes a tenth of a second for a
# network of a few units: fewer cases there.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FEW_CASES = 2
KERNELS = pytest.mark.parametrize("kernels", ["native", pytest.param("triton", marks=pytest.mark.gpu)])


def device_of(kernels: str) -> torch.device:
    """Where kernels are tested: "native" are those of the CPU, "cuda" those that are native on a GPU."""
    return DEVICE if kernels in ("triton", "cuda") else torch.device("cpu")


def stands_in(kernels: str) -> bool:
    """Whether Triton's interpreter runs the kernels."""
    return kernels == "triton" and DEVICE.type == "cpu"


@contextlib.contextmanager
def using(kernels: str, host: host_run.Host | None = None) -> Iterator[None]:
    """Forces the backend that kernels belong to; without a GPU the CUDA kernels run on the host."""
    with contextlib.ExitStack() as stack:
        if kernels == "cuda" and DEVICE.type == "cpu":
            stack.enter_context(host_run.in_place_of_a_gpu(host))
        stack.enter_context(fk.backend("native" if kernels == "cuda" else kernels))
        yield


class Pool:
    """Errors of one kind of output, pooled over calls."""

    def __init__(self) -> None:
        self.count, self.largest = 0, 0.0
        self.kernel, self.oracle = 0.0, 0.0

    def add(self, kernel: Tensor, oracle32: Tensor, exact: Tensor) -> None:
        assert kernel.shape == exact.shape, (kernel.shape, exact.shape)
        if exact.numel() == 0:
            return
        assert torch.isfinite(exact).all(), "the oracle itself is not finite here"
        assert torch.isfinite(kernel).all(), "the kernel left something unwritten or overflowed"
        assert (kernel[exact == 0] == 0).all(), "something is not exactly zero that should be"
        self.count += int((exact != 0).sum())
        self.largest = max(self.largest, float(exact.abs().max()))
        self.kernel = max(self.kernel, float((kernel.double() - exact).abs().max()))
        self.oracle = max(self.oracle, float((oracle32.double() - exact).abs().max()))

    def add_long(self, kernel: Tensor, oracle: Tensor, exact: np.ndarray) -> None:
        """The same with NumPy's long doubles for the judge of float64."""
        assert kernel.shape == exact.shape, (kernel.shape, exact.shape)
        assert np.isfinite(exact).all()
        assert torch.isfinite(kernel).all(), "the kernel left something unwritten or overflowed"
        assert (kernel.numpy()[exact == 0] == 0).all(), "something is not exactly zero that should be"
        self.count += int((exact != 0).sum())
        self.largest = max(self.largest, float(abs(exact).max()))
        self.kernel = max(self.kernel, float(abs(kernel.numpy() - exact).max()))
        self.oracle = max(self.oracle, float(abs(oracle.numpy() - exact).max()))

    def check(self, name: str, dtype: torch.dtype, oracles: torch.dtype = torch.float32) -> None:
        """``oracles``: the precision that the oracle ran in."""
        eps = torch.finfo(dtype).eps
        own = self.oracle * eps / torch.finfo(oracles).eps
        bound = 2 * own + 4 * eps * self.largest
        assert self.kernel <= bound, f"{name} in {dtype}: error {self.kernel:.3g}, bound {bound:.3g} (oracle's own {own:.3g})"


def check_rule(
    cases: Iterable[Any],
    evaluate: Callable[[Any, torch.dtype, str], dict[str, Tensor]],
    *dtypes: torch.dtype,
    kernels: str = "native",
    least: int = 1,
) -> None:
    """Draws cases until every output has pooled enough elements that are not zero, or there are no more cases.

    It draws ``least`` of them at least, where elements of one case share their errors.

    Outputs that are zero throughout, as the log-determinant of an additive map, are not waited for.

    ``evaluate(case, dtype, backend)`` gives named outputs, computed by a backend in a dtype. The oracle, which takes longer
    than the kernels, is asked once for all of ``dtypes``.
    """
    pools: dict[tuple[torch.dtype, str], Pool] = {}
    few = None
    if stands_in(kernels):
        few = FEW_CASES
    elif "FLOWKERN_FEW_CASES" in os.environ:
        few = max(FEW_CASES, least)
    for number, case in enumerate(islice(cases, few), 1):
        oracle = evaluate(case, torch.float32, "reference")
        exact = evaluate(case, torch.float64, "reference")
        for dtype in dtypes:
            kernel = evaluate(case, dtype, kernels)
            assert kernel.keys() == exact.keys()
            for name, value in exact.items():
                pools.setdefault((dtype, name), Pool()).add(kernel[name], oracle[name], value)
        counts = [pool.count for pool in pools.values() if pool.count]
        if counts and min(counts) >= ENOUGH and number >= least:
            break
    for (dtype, name), pool in pools.items():
        pool.check(name, dtype)
