"""No kernel is launched with more programs on an axis of its grid than CUDA takes, however large a call is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
from networks import network
from triton.runtime.jit import KernelInterface

from flowkern import kernels
from flowkern.kernels._network import network_of
from flowkern.kernels.actnorm import actnorm, actnorm_gradients
from flowkern.kernels.affine import affine, affine_gradients
from flowkern.kernels.autoregressive import autoregressive, autoregressive_gradients
from flowkern.kernels.causal_conv1d import causal_conv1d, causal_conv1d_gradients
from flowkern.kernels.log_det import log_det
from flowkern.kernels.wavenet_layer import wavenet_layer, wavenet_layer_gradients
from flowkern.univariate import Affine

FIRST, OTHERS = 2**31 - 1, 65535  # programs on the first axis of a grid, and on the two others


def empty(*shape: int) -> torch.Tensor:
    """A tensor without memory, so that sizes cost nothing."""
    return torch.empty(shape, device="meta")


def maps_of_rows(rows: int, columns: int) -> None:
    x, map = empty(rows, columns), Affine("exp", "standardize").words
    z, found = affine(x, [x, x], None, (0, 0, 0), False, map)
    affine_gradients(z, found, x, [x, x], None, (0, 0, 0), True, False, map)
    log_det(x)


def norms(*shape: int) -> None:
    x = empty(*shape)
    z, found = actnorm(x, x[0, :, 0], x[0, :, 0], False)
    actnorm_gradients(z, found, x, x[0, :, 0], x[0, :, 0], False)


def convolutions(batch: int, channels: int, times: int, groups: int = 1) -> None:
    x, weight, numbers = empty(batch, channels, times), empty(channels, channels // groups, 2), (1, groups, "ieee")
    y = causal_conv1d(x, weight, weight[:, 0, 0], *numbers)
    causal_conv1d_gradients(y, x, weight, *numbers, True, False, True)


def layers(batch: int, channels: int, times: int) -> None:
    x, weight, gate = empty(batch, channels, times), empty(channels, channels), empty(2 * channels, channels, 2)
    weights = gate, gate[:, 0, 0], weight, weight[0], weight, weight[0]
    y, skips = wavenet_layer(x, None, *weights, None, None, 1, "ieee")
    wavenet_layer_gradients(y, skips, x, *weights[:3], weight, None, None, 1, "ieee", False, True, False)


def networks(rows: int) -> None:
    net, x, map = network(8, (16,)), empty(rows, 8), Affine("exp", "standardize").words
    weights, biases = ([t.to("meta", torch.float32) for t in given] for given in (net.weights, net.biases))
    launches = network_of(net.plan, x.dtype, x.device, "ieee", map)
    _, found, state = autoregressive(x, weights, biases, [], launches, map, True)
    autoregressive_gradients(x, found, x, weights, biases, [], state, launches, map, True)


CALLS: list[Callable[[], None]] = [
    lambda: maps_of_rows(10**8, 2),
    lambda: maps_of_rows(2, 2**31 + 5),
    lambda: norms(10**8, 3, 4),
    lambda: norms(10**8, 8, 1),
    lambda: norms(2, 10**8, 1),
    lambda: norms(2, 3, 2**31 + 5),
    lambda: convolutions(10**6, 8, 40),
    lambda: convolutions(2, 8, 10**8),
    lambda: convolutions(100, 10**5, 10),
    lambda: convolutions(100, 10**5, 10, groups=10**5),
    lambda: layers(10**6, 8, 40),
    lambda: layers(2, 8, 10**8),
    lambda: networks(10**8),
]


def test_grids_have_no_more_programs_than_cuda_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[str, tuple[int, ...]]] = []

    def launch(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *_, **__: launched.append((kernel.fn.__name__, grid))

    monkeypatch.setattr(KernelInterface, "__getitem__", launch)
    for run in CALLS:
        run()
    assert [one for one in launched if one[1][0] > FIRST or max(one[1][1:], default=1) > OTHERS] == []
    assert {name for name, _ in launched} >= kernels_with_several_axes()


def kernels_with_several_axes() -> set[str]:
    """The names of all kernels whose programs have a second or third number."""
    modules = [importlib.import_module(m.name) for m in pkgutil.walk_packages(kernels.__path__, "flowkern.kernels.")]
    found = [k.fn for m in modules for k in vars(m).values() if isinstance(k, KernelInterface)]
    return {fn.__name__ for fn in found if re.search(r"program_id\([12]\)", inspect.getsource(fn))}
