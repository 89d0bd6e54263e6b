"""Trained models from folders, as `flowkern evaluate` and `flowkern sample` take them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from flowkern.cli import configuration as conf
from flowkern.cli.errors import CommandError
from flowkern.data import DataError, Dataset, Identity, Rows, load
from flowkern.model import Model
from flowkern.models import Encoded

ROWS = 1000  # of each part, that a digest is of


def model_from(folder: str) -> Encoded:
    """The model of a run, or any other that was saved, in the units of its data."""
    try:
        model = Model.from_pretrained(folder)
    except (OSError, TypeError, ValueError) as error:
        raise CommandError(f"FOLDER: {error}") from None
    if isinstance(model, Encoded):
        return model
    return Encoded(model, Identity(model.event_shape, model.levels))


def run_of(folder: str) -> conf.Configuration | None:
    """The configuration of the run that made the model, where it is one."""
    path = Path(folder) / "run.json"
    return conf.read(path, "FOLDER") if path.exists() else None


def all_rows(source: str) -> Rows:
    """All rows of --data, in their own order."""
    found = dataset_of(source, None)
    parts = [part for part in (found.train, found.validation, found.test) if len(part)]
    return parts[0] if len(parts) == 1 else Rows(torch.cat([part.source for part in parts]))


def dataset_of(source: str, seed: int | None) -> Dataset:
    """The data set of --data."""
    try:
        return load(source, seed)
    except DataError as error:
        raise CommandError(f"--data: {error}") from None


def digest(dataset: Dataset) -> str:
    """What tells other data from these: of the sizes of the parts, and of rows spread over each."""
    made = hashlib.blake2b(digest_size=16)
    for part in (dataset.train, dataset.validation, dataset.test):
        rows = part[torch.arange(0, len(part), max(1, len(part) // ROWS))]
        made.update(f"{len(part)} {tuple(rows.shape)} {rows.dtype}".encode() + rows.numpy().tobytes())
    return made.hexdigest()
