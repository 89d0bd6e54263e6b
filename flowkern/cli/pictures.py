"""Pictures of the demo and of the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def learning_curve(history: Any, path: Path) -> None:
    """Training and validation score per epoch, the best epoch marked."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    epochs = np.arange(1, len(history.validation) + 1)
    axes.plot(epochs, history.train, label="training")
    axes.plot(epochs, history.validation, label="validation")
    axes.axvline(history.best + 1, color="grey", linestyle=":", label=f"best epoch ({history.best + 1})")
    axes.set(xlabel="epoch", ylabel="negative log-likelihood (nats)")
    axes.legend()
    _save(figure, path)


def image_grid(data: Any, samples: Tensor, path: Path, rows: int = 8, columns: int = 8) -> None:
    """Samples beside real images."""
    side, n = data.images.side, rows * columns
    real = data.test[:n] / (data.images.levels - 1)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.8), layout="constrained")
    for axis, title, images in zip(axes, ("real images", "samples"), (real, data.images.decode(samples[:n])), strict=True):
        grid = torch.nn.functional.pad(images.reshape(-1, side, side), (0, 1, 0, 1), value=0.5)
        grid = grid.reshape(rows, columns, side + 1, side + 1).transpose(1, 2).reshape(rows * (side + 1), -1)
        axis.imshow(grid.numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
    _save(figure, path)


def throughput_bars(rates: dict[str, dict[str, float]], path: Path) -> None:
    """Rows per second on a logarithmic axis, one panel for each kind of work."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for axis, work in zip(axes, ("training", "sampling"), strict=True):
        names = list(rates)
        values = [rates[name][work] for name in names]
        bars = axis.barh(names, values, color=["C1" if name == "flowkern" else "C0" for name in names])
        axis.bar_label(bars, [f"{v:,.0f}" for v in values], padding=3)
        axis.set(xscale="log", xlabel="rows per second", title=work)
        axis.set_xlim(min(values) / 3, max(values) * 12)
        axis.invert_yaxis()
    _save(figure, path)


def ratio_bars(ratios: dict[str, float], title: str, path: Path) -> None:
    """Speed-ups on a logarithmic axis, 1 marked."""
    figure, axis = plt.subplots(figsize=(10, 1.2 + 0.35 * len(ratios)), layout="constrained")
    bars = axis.barh(list(ratios), list(ratios.values()), color="C1")
    axis.bar_label(bars, [f"{v:,.1f}x" for v in ratios.values()], padding=3)
    axis.axvline(1, color="grey")
    axis.set(xscale="log", xlabel="times faster")
    figure.suptitle(title)
    axis.set_xlim(0.5, max(ratios.values()) * 10)
    axis.invert_yaxis()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150)
    plt.close(figure)
