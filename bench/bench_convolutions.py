"""Causal convolutions, forward and backward, and the sampling loop of a WaveNet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import forced_oracle, measure
from torch import Tensor

import flowkern as fk

CHANNELS, TIME = 64, 16000


def padded(x: Tensor, weight: Tensor, bias: Tensor, *, dilation: int) -> Tensor:
    """The same by torch's convolution."""
    return F.conv1d(F.pad(x, ((weight.shape[-1] - 1) * dilation, 0)), weight, bias, dilation=dilation)


@pytest.mark.parametrize("implementation", ["flowkern", "torch"])
@pytest.mark.parametrize("kernel", [2, 3])
def test_causal_conv1d(benchmark: Any, kernel: int, implementation: str) -> None:
    """Dilations 1 to 512, one after another, each forward and backward."""
    torch.manual_seed(0)
    leaves = [torch.randn(s, requires_grad=True) for s in ((1, CHANNELS, TIME), (CHANNELS, CHANNELS, kernel), (CHANNELS,))]
    cotangent = torch.randn(1, CHANNELS, TIME)
    call = {"flowkern": fk.ops.causal_conv1d, "torch": padded}[implementation]
    torch.testing.assert_close(call(*leaves, dilation=8), padded(*leaves, dilation=8), rtol=1e-3, atol=1e-3)

    def work() -> None:
        for power in range(10):
            torch.autograd.grad(call(*leaves, dilation=2**power), leaves, cotangent)

    group = f"causal_conv1d forward + backward: {CHANNELS} channels, kernel {kernel}, dilations 1 to 512, {TIME} times"
    measure(benchmark, work, group, implementation, 30 * CHANNELS**2 * kernel * TIME)


LAYERS, RESIDUAL, SKIP, CLASSES = 20, 64, 256, 256
DILATIONS = [2 ** (layer % 10) for layer in range(LAYERS)]


@pytest.mark.parametrize("implementation", ["flowkern", "oracle"])
@pytest.mark.parametrize("batch", [1, 16])
def test_wavenet_generate(benchmark: Any, batch: int, implementation: str) -> None:
    """The oracle is a loop over time in PyTorch, with cached queues; it is timed on fewer classes."""
    torch.manual_seed(0)
    layer = [(2 * RESIDUAL, RESIDUAL, 2), (RESIDUAL, RESIDUAL), (SKIP, RESIDUAL)]
    shapes = [(CLASSES, RESIDUAL), *LAYERS * layer, (SKIP, SKIP), (CLASSES, SKIP)]
    weights = [torch.randn(s) / s[1] ** 0.5 for s in shapes]
    biases = [torch.zeros(s[0]) for s in shapes[1:]]
    state = fk.ops.WaveNetState(torch.full((batch,), CLASSES // 2), torch.zeros(batch, sum(DILATIONS), RESIDUAL))
    time = 4000 if implementation == "flowkern" else 100
    uniform = torch.rand(batch, time)

    def work() -> Tensor:
        return fk.ops.wavenet_generate(uniform, state, weights, biases, DILATIONS)[0]

    group = f"wavenet_generate, per class: L={LAYERS}, R={RESIDUAL}, S={SKIP}, A={CLASSES}, B={batch}"
    measure(benchmark, work if implementation == "flowkern" else forced_oracle(work), group, implementation)
    benchmark.extra_info["classes"] = batch * time
    benchmark.extra_info["classes_per_second"] = round(batch * time / benchmark.stats.stats.min)
