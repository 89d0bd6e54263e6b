"""The rule that every kernel is held to.

The largest error against the float64 oracle is at most twice that of the oracle run in the kernel's own dtype, plus
four units in the last place of the largest output, over at least a thousand elements pooled over seeds. For float64
kernels the oracle's own error is that of its float32 run, scaled by the ratio of the two precisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

ENOUGH = 1000


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

    def check(self, name: str, dtype: torch.dtype) -> None:
        eps = torch.finfo(dtype).eps
        own = self.oracle * eps / torch.finfo(torch.float32).eps
        bound = 2 * own + 4 * eps * self.largest
        assert self.kernel <= bound, f"{name}: error {self.kernel:.3g}, bound {bound:.3g} (oracle's own {own:.3g})"


def check_rule(
    cases: Iterable[Any], evaluate: Callable[[Any, torch.dtype, str], dict[str, Tensor]], dtype: torch.dtype
) -> None:
    """Draws cases until every output has pooled enough elements that are not zero, or there are no more cases.

    ``evaluate(case, dtype, backend)`` gives named outputs, computed by a backend in a dtype.
    """
    pools: dict[str, Pool] = {}
    for case in cases:
        kernel = evaluate(case, dtype, "native")
        oracle = evaluate(case, torch.float32, "reference")
        exact = evaluate(case, torch.float64, "reference")
        assert kernel.keys() == exact.keys()
        for name, value in exact.items():
            pools.setdefault(name, Pool()).add(kernel[name], oracle[name], value)
        if all(pool.count >= ENOUGH for pool in pools.values()):
            break
    for name, pool in pools.items():
        pool.check(name, dtype)
