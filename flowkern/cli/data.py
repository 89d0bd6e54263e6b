"""Data of the demo: scikit-learn's digits, or a table of numbers from a file."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowkern.cli.errors import CommandError

LAMBDA = 0.05  # of the logit transform, see Dequantised


@dataclass
class Dequantised:
    """Images of n levels, as real numbers y = logit(lambda + (1 - 2 lambda) (k + u) / n) with u uniform in [0, 1).

    References:
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), appendix D.
    """

    levels: int
    side: int

    def encode(self, k: Tensor, generator: torch.Generator) -> Tensor:
        """Fresh noise for every call."""
        x = (k + torch.rand(k.shape, generator=generator)) / self.levels
        return torch.logit(LAMBDA + (1 - 2 * LAMBDA) * x)

    def decode(self, y: Tensor) -> Tensor:
        """Grey values in [0, 1]."""
        return ((torch.sigmoid(y) - LAMBDA) / (1 - 2 * LAMBDA)).clamp(0, 1)

    def bits_per_dimension(self, y: Tensor, log_prob: Tensor) -> float:
        """Mean over the rows of the code length of the discrete images, in bits per dimension."""
        log_s = torch.nn.functional.logsigmoid(y) + torch.nn.functional.logsigmoid(-y)
        nats = -log_prob / y.shape[-1] + log_s.mean(-1)
        return float(nats.mean()) / math.log(2) - math.log2(1 - 2 * LAMBDA) + math.log2(self.levels)


@dataclass
class Dataset:
    """Rows of a split; ``images`` says how to read them where they are images."""

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    images: Dequantised | None = None


def digits(seed: int) -> Dataset:
    """1,797 images of 8 x 8 with 17 levels: 80 % for training, 10 % each for validation and test."""
    from sklearn.datasets import load_digits

    data = torch.from_numpy(load_digits().data).float()
    return _split("digits", data, seed, Dequantised(levels=17, side=8))


def table(path: str, seed: int) -> Dataset:
    """Rows of a .npy or .csv file, standardised by the training part."""
    values = _read(Path(path))
    if values.ndim != 2 or values.shape[0] < 20 or values.shape[1] < 1:
        raise CommandError(f"--data: expected at least 20 rows of one or more columns, {path} has shape {values.shape}")
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise CommandError(
            f"--data: {path}: row {row + 1}, column {column + 1} is missing or not finite ({len(bad)} such values)"
        )
    data = _split(Path(path).name, torch.from_numpy(values).float(), seed)
    mean, std = data.train.mean(0), data.train.std(0)
    if not bool((std > 0).all()):
        raise CommandError(f"--data: {path}: column {int((std <= 0).nonzero()[0]) + 1} is constant, it has no density")
    data.train, data.validation, data.test = ((t - mean) / std for t in (data.train, data.validation, data.test))
    return data


def _read(path: Path) -> np.ndarray:
    if path.suffix not in (".npy", ".csv"):
        raise CommandError(f"--data: expected a .npy or .csv file, got {str(path)!r}")
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
            if values.dtype.kind not in "fiub":
                raise CommandError(f"--data: {path}: expected numbers, got an array of type {values.dtype}")
            return values.astype(np.float64)
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, ValueError, UnicodeDecodeError, csv.Error) as error:
        raise CommandError(f"--data: cannot read {str(path)!r}: {error}") from None
    return _numbers(path, rows)


def _numbers(path: Path, rows: list[list[str]]) -> np.ndarray:
    def number(text: str) -> float | None:
        try:
            return float(text)
        except ValueError:
            return None

    header = 1 if rows and all(number(cell) is None for cell in rows[0]) else 0
    width = len(rows[0]) if rows else 0
    values = np.empty((len(rows) - header, width))
    for i, row in enumerate(rows[header:]):
        if len(row) != width:
            raise CommandError(f"--data: {path}: row {i + 1 + header} has {len(row)} columns, the first has {width}")
        for j, cell in enumerate(row):
            value = number(cell)
            if value is None:
                what = "is missing" if not cell.strip() else f"is no number: {cell!r}"
                raise CommandError(f"--data: {path}: row {i + 1 + header}, column {j + 1} {what}")
            values[i, j] = value
    return values


def _split(name: str, rows: Tensor, seed: int, images: Dequantised | None = None) -> Dataset:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    held = max(len(rows) // 10, 1)
    test, validation, train = rows[order[:held]], rows[order[held : 2 * held]], rows[order[2 * held :]]
    return Dataset(name, train, validation, test, images)
