"""Times training and sampling of one architecture through the oracle, flowkern and zuko, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowkern.backends import backend
from flowkern.cli.errors import CommandError
from flowkern.flows import MAF
from flowkern.model import Model
from flowkern.nn import MaskedAutoregressive


def median_seconds(function: Callable[[], Any], budget: float = 1.0, most: int = 30) -> float:
    """Median time of repeated calls after one to warm up, for about ``budget`` seconds."""
    function()
    times: list[float] = []
    while len(times) < most and (not times or sum(times) < budget):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def zuko_obstacle(flow: Model) -> str | None:
    """Why there is no such model in zuko here, or ``None``."""
    if not isinstance(flow, MAF):
        return f"it has no {type(flow).__name__} to compare with"
    if flow.features == 1:
        return "its MAF of one feature has no networks"
    try:
        import zuko  # noqa: F401
    except ImportError:
        return "not installed"
    return None


def zuko_twin(flow: Model) -> Any:
    """zuko's MAF with the same parameters, or ``None`` where :func:`zuko_obstacle` has a reason.

    The flow must have been made with ``scale="soft_clipped_exp"`` and ``placement="scale_shift"``, zuko's univariate
    map; hidden units and masks then agree one by one.
    """
    if zuko_obstacle(flow) is not None:
        return None
    import zuko

    assert isinstance(flow, MAF)

    layers = [t for t in flow.transform.transforms if isinstance(t, MaskedAutoregressive)]
    hidden = [layer.out_features for layer in layers[0].network.layers[:-1]]
    twin = zuko.flows.MAF(flow.features, transforms=len(layers), hidden_features=hidden)
    with torch.no_grad():
        for layer, other in zip(layers, twin.transform.transforms, strict=True):
            linears = [m for m in other.hyper if isinstance(m, zuko.nn.MaskedLinear)]
            for ours, theirs in zip(layer.network.layers, linears, strict=True):
                theirs.weight.copy_(ours.weight)
                theirs.bias.copy_(ours.bias)
    return twin


def check_twin(flow: Model, twin: Any, x: Tensor) -> None:
    """Raises unless both give the same densities: nothing is timed before that."""
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(x), twin().log_prob(x), rtol=1e-3, atol=1e-2)


def throughputs(flow: Model, x: Tensor, samples: int = 1000) -> dict[str, dict[str, float]]:
    """Rows per second in a training step on the rows x, and in sampling, for every implementation that is here."""
    twin = zuko_twin(flow)
    if twin is not None:
        try:
            check_twin(flow, twin, x[:64])
        except AssertionError as error:
            reason = str(error).splitlines()[-1]
            raise CommandError(f"zuko's densities of the same model differ, nothing was timed: {reason}", status=1) from None

    def step(model: torch.nn.Module, log_prob: Callable[[Tensor], Tensor]) -> None:
        model.zero_grad()
        (-log_prob(x).mean()).backward()

    def oracle(function: Callable[[], Any]) -> None:
        with backend("reference"):
            function()

    def draw_twin() -> None:
        with torch.no_grad():
            twin().sample((samples,))

    work: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "plain PyTorch": (
            lambda: oracle(lambda: step(flow, flow.log_prob)),
            lambda: oracle(lambda: flow.sample((samples,))),
        ),
        "zuko": (lambda: step(twin, lambda rows: twin().log_prob(rows)), draw_twin),
        "flowkern": (lambda: step(flow, flow.log_prob), lambda: flow.sample((samples,))),
    }
    if twin is None:
        del work["zuko"]
    return {
        name: {"training": len(x) / median_seconds(train), "sampling": samples / median_seconds(sample)}
        for name, (train, sample) in work.items()
    }
