"""Autoregressive models of images: the scan of a Diagonal BiLSTM layer, forward and backward, and generation."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import compiled, measure
from torch import Tensor

import flowkern as fk
from flowkern.models.pixels import PixelModel

SIDE, HIDDEN, BATCH = 28, 64, 32


def skewed_scan(x: Tensor, weight: Tensor, mirrored: bool = False) -> Tensor:
    """The scan as people write it in PyTorch: skew, a cell for each column of the skewed image, skew back."""
    if mirrored:
        return skewed_scan(x.flip(-2), weight).flip(-2)
    batch, height, width, gates = x.shape
    skewed = F.pad(x, (0, 0, 0, height)).flatten(1, 2)[:, : height * (height + width - 1)]
    skewed = skewed.unflatten(1, (height, height + width - 1))
    both = torch.cat([weight[..., 0], weight[..., 1]], 1).t()  # one product for both taps
    h = c = x.new_zeros(batch, height, gates // 4)
    columns = []
    for z in skewed.unbind(2):
        o, f, i, g = (z + torch.cat([F.pad(h, (0, 0, 1, 0))[:, :-1], h], -1) @ both).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        columns.append(h)
    rows = F.pad(torch.stack(columns, 2).flatten(1, 2), (0, 0, 0, height))
    return rows.unflatten(1, (height, height + width))[:, :, :width]


def both_directions(scan: Any, x: Tensor, weight: Tensor, mirrored_x: Tensor, mirrored_weight: Tensor) -> Tensor:
    """A Diagonal BiLSTM layer after its input-to-state convolutions."""
    mirrored = scan(mirrored_x, mirrored_weight, mirrored=True)
    return scan(x, weight) + F.pad(mirrored, (0, 0, 0, 0, 1, 0))[:, :-1]


@pytest.mark.parametrize("implementation", ["flowkern", "torch", "torch compiled"])
def test_diagonal_bilstm(benchmark: Any, implementation: str) -> None:
    """Both directions, forward and backward."""
    torch.manual_seed(0)
    shapes = (BATCH, SIDE, SIDE, 4 * HIDDEN), (4 * HIDDEN, HIDDEN, 2)
    leaves = [(torch.randn(s) * scale).requires_grad_() for s, scale in (*zip(shapes, (1, HIDDEN**-0.5), strict=True),) * 2]
    cotangent = torch.randn(BATCH, SIDE, SIDE, HIDDEN)
    scans: dict[str, Any] = {"flowkern": fk.ops.diagonal_lstm, "torch": skewed_scan}
    found, expected = (both_directions(scans[name], *leaves) for name in ("flowkern", "torch"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    plain: Any = compiled(skewed_scan, leaves[0], leaves[1]) if implementation == "torch compiled" else skewed_scan
    scan = fk.ops.diagonal_lstm if implementation == "flowkern" else plain

    def work() -> None:
        torch.autograd.grad(both_directions(scan, *leaves), leaves, cotangent)

    group = f"diagonal_lstm, both directions, forward + backward: {SIDE}x{SIDE}, h={HIDDEN}, B={BATCH}"
    measure(benchmark, work, group, implementation, 2 * 3 * BATCH * SIDE * SIDE * 8 * HIDDEN**2)


MODELS = {
    "PixelRNN": lambda: fk.models.PixelRNN((1, SIDE, SIDE), hidden=16, layers=7),
    "PixelRNN, rows": lambda: fk.models.PixelRNN((1, SIDE, SIDE), hidden=16, layers=7, scan="row"),
    "PixelCNN": lambda: fk.models.PixelCNN((1, SIDE, SIDE), hidden=32, layers=7),
    "PixelCNN, gated": lambda: fk.models.PixelCNN((1, SIDE, SIDE), hidden=32, layers=7, gated=True),
}
WHOLE_PASSES = 8  # of 784 that generation without a cache takes, each of which is the same work


@torch.no_grad()
def passes(model: PixelModel, x: Tensor, count: int) -> None:
    """The first pixels of generation by a pass over the whole image for each."""
    for row, column in itertools.islice(itertools.product(range(SIDE), repeat=2), count):
        x[:, 0, row, column] = model.head.sample(model.parameters_of(x)[:, 0, row, column])


@pytest.mark.parametrize("implementation", ["flowkern", f"whole passes, {WHOLE_PASSES} of {SIDE * SIDE}"])
@pytest.mark.parametrize("name", MODELS)
def test_generation(benchmark: Any, name: str, implementation: str) -> None:
    """64 images. Without a cache a few of the passes are timed, which take equally long: their ratio times 98 is the whole."""
    torch.manual_seed(0)
    model, x = MODELS[name]().eval(), torch.zeros(64, 1, SIDE, SIDE)
    cached = implementation == "flowkern"
    work = (lambda: model.sample((64,))) if cached else (lambda: passes(model, x, WHOLE_PASSES))
    measure(benchmark, work, f"generation of 64 images of {SIDE}x{SIDE}: {name}", implementation)
