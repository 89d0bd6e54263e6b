"""WaveNets as arguments of the sampling loop."""

from __future__ import annotations

from typing import Any

import torch
from accuracy import using
from host_run import Host
from torch import Tensor

import flowkern as fk
from flowkern.ops import WaveNetState


def call(
    rows: int,
    times: int,
    *,
    taps: int = 2,
    channels: int = 0,
    own_biases: bool = False,
    output: str = "categorical",
    components: int = 3,
    dilations: tuple[int, ...] = (1, 5, 2),
    sizes: tuple[int, int, int, int, int] = (9, 7, 13, 6, 21),
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Arguments of the operator, of odd sizes, in the middle of a sequence; the parameters are far enough apart to matter."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    residual, gate, skip, hidden, classes = sizes
    numbers = output != "categorical"
    outputs = 3 * components if numbers else classes
    layer = [(2 * gate, residual, taps), (residual, gate), (skip, gate)]
    shapes = [(1 if numbers else classes, residual), *len(dilations) * layer, (hidden, skip), (outputs, hidden)]
    weights = [normal(*shape) / shape[1] ** 0.5 for shape in shapes]
    biases = [0.3 * normal(residual), *(0.3 * normal(shape[0]) for shape in shapes[1:])]
    if own_biases:
        biases[4] = normal(rows, 2 * gate)
    weights[-1] *= 3
    previous = torch.rand(rows, generator=generator, dtype=torch.float64) if numbers else torch.arange(rows) % classes
    draws = components + 1 if numbers else 1
    noise = torch.rand(rows, times, draws, generator=generator, dtype=torch.float64)
    if output == "gaussians":
        noise[..., -1] = normal(rows, times)
    condition = normal(channels, times, rows).permute(2, 0, 1) if channels else None
    return {
        "noise": noise, "state": WaveNetState(previous, normal(rows, (taps - 1) * sum(dilations), residual)),
        "weights": weights, "biases": biases, "dilations": dilations, "condition": condition,
        "condition_weights": [normal(2 * gate, channels) for _ in dilations] if channels else [],
        "output": output, **options,
    }  # fmt: skip


def cast(
    arguments: dict[str, Any], dtype: torch.dtype, weights: torch.dtype | None = None, device: torch.device | None = None
) -> dict[str, Any]:
    """Arguments whose numbers are of a dtype, the weights of another one, where the kernels run."""

    def to(t: Any, target: torch.dtype) -> Any:
        if isinstance(t, WaveNetState):
            return WaveNetState(*(to(part, target) for part in t))
        if isinstance(t, list):
            return [to(part, target) for part in t]
        return t.to(device, target if t.is_floating_point() else t.dtype) if isinstance(t, Tensor) else t

    return {name: to(t, weights if weights and "weights" in name else dtype) for name, t in arguments.items()}


def generate(arguments: dict[str, Any], kernels: str, host: Host | None = None) -> tuple[Tensor, WaveNetState]:
    with using(kernels, host):
        return fk.ops.wavenet_generate(**arguments)
