"""Pictures of the demo and of the benchmarks, as the contents of PNG files."""

from __future__ import annotations

import io
import math
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from flowkern.data import Dequantised

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, NullFormatter


def learning_curve(history: Any, space: str) -> bytes:
    """Training and validation score per epoch, the best epoch marked; ``space`` names the units of the density."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    epochs = np.arange(1, len(history.validation) + 1)
    marker = "o" if len(epochs) == 1 else None  # one point makes no line
    axes.plot(epochs, history.train, marker=marker, label="training")
    axes.plot(epochs, history.validation, marker=marker, label="validation")
    axes.axvline(history.best + 1, color="grey", linestyle=":", label=f"best epoch ({history.best + 1})")
    axes.set(xlabel="epoch", ylabel=f"negative log-likelihood\n(nats per row, {space} units)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return _png(figure)


def image_grids(real: Tensor, samples: Tensor, images: Dequantised, rows: int = 8, columns: int = 8) -> bytes:
    """Real images beside samples (n, 1, height, width), both in the levels of the images."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.8), layout="constrained")
    for axis, title, levels in zip(axes, ("real images", "samples"), (real, samples), strict=True):
        grid = _grid(levels[: rows * columns].reshape(rows, columns, *images.event_shape[1:]), (images.data_levels - 1) / 2)
        axis.imshow(grid.numpy(), cmap="gray_r", vmin=0, vmax=images.data_levels - 1, interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
    return _png(figure)


def _grid(images: Tensor, grey: float, zoom: int = 8, line: int = 4) -> Tensor:
    """Images (rows, columns, height, width) beside and below each other, with grey lines around each of them."""
    images = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    images = torch.nn.functional.pad(images, (0, line, 0, line), value=grey)  # on the right and below each
    rows, columns, height, width = images.shape
    grid = images.transpose(1, 2).reshape(rows * height, columns * width)
    return torch.nn.functional.pad(grid, (line, 0, line, 0), value=grey)  # on the left and above all


def throughputs(rates: dict[str, dict[str, float]]) -> bytes:
    """Rows per second, a panel for each kind of work; points, since a bar on a logarithmic axis has no origin."""
    layout = ConstrainedLayoutEngine(w_pad=0.2)  # inches: between the numbers of the two axes
    figure, axes = plt.subplots(1, 2, figsize=(9, 1.2 + 0.4 * len(rates)), layout=layout, sharey=True)
    colors = ["C1" if name == "flowkern" else "C0" for name in rates]
    for axis, work in zip(axes, ("training", "sampling"), strict=True):
        values = {name: rate[work] for name, rate in rates.items()}
        _points(axis, values, "{:,.0f}", colors, low=min(values.values()))
        axis.set(xlabel="rows per second (logarithmic)", title=work)
    return _png(figure)


def ratios(values: dict[str, float], baseline: str) -> bytes:
    """Speed-ups as points joined to 1, where both are equally fast."""
    figure, axis = plt.subplots(figsize=(10, 1.4 + 0.3 * len(values)), layout="constrained")
    _points(axis, values, "{:,.1f}x", ["C1"] * len(values), low=min(1.0, *values.values()))
    axis.hlines(range(len(values)), 1, list(values.values()), color="C1", linewidth=1)
    axis.axvline(1, color="grey", linewidth=1)
    axis.set_xlabel(f"times as fast as {baseline} (logarithmic)")
    figure.suptitle(f"flowkern against {baseline}, same architecture, one run")
    return _png(figure)


def _points(axis: Any, values: dict[str, float], label: str, colors: list[str], low: float) -> None:
    """A line for each name from top to bottom, with a point and its value; whole decades from that of ``low`` on."""
    axis.scatter(values.values(), range(len(values)), color=colors, zorder=3, clip_on=False)
    for line, value in enumerate(values.values()):
        axis.annotate(label.format(value), (value, line), (6, 0), textcoords="offset points", va="center")
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:,.9g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    high = 6 * max(values.values())  # room for the labels
    axis.set_xlim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
    axis.set_yticks(range(len(values)), values)
    axis.set_ylim(len(values) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    plt.close(figure)
    return file.getvalue()
