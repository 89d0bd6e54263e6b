"""Trained models from folders, as `flowkern evaluate` and `flowkern sample` take them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowkern.cli import configuration as conf
from flowkern.cli.errors import CommandError
from flowkern.data import DataError, Dataset, Identity, Rows, Waveform, load
from flowkern.data.dataset import PARTS
from flowkern.data.labels import SPEAKER
from flowkern.model import Model
from flowkern.models import Encoded

ROWS = 1000  # of each part, that a digest is of


def model_from(folder: str, name: str = "FOLDER") -> Encoded:
    """The model of a run, or any other that was saved, in the units of its data; ``name`` is of the argument."""
    try:
        model = Model.from_pretrained(folder)
    except (OSError, TypeError, ValueError) as error:
        raise CommandError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    bad = next((place for place, weight in model.named_parameters() if not weight.isfinite().all()), None)
    if bad is not None:  # classes drawn by them would look like any others
        raise CommandError(f"{name}: the model in {folder} has weights that are not finite, such as {bad}")
    if model.conditional and getattr(model, "context_encoding", None) is None:
        raise CommandError(f"{name}: the model in {folder} needs a context, and it is not known what it stands for in data")
    if isinstance(model, Encoded):
        return model
    rate = getattr(model, "rate", None)
    encoding = Identity(model.event_shape, model.levels) if rate is None else Waveform(model.event_shape, rate)
    return Encoded(model.float(), encoding)  # encoded rows are float32


def run_of(folder: str, name: str = "FOLDER") -> conf.Configuration | None:
    """The configuration of the run that made the model, where it is one; ``name`` is of the argument."""
    path = Path(folder) / "run.json"
    return conf.read(path, name) if path.exists() else None


def rows_of(found: Dataset) -> Rows:
    """All rows of --data, in their own order."""
    parts = [part for part in (found.train, found.validation, found.test) if len(part)]
    if len(parts) == 1:
        return parts[0]
    context = None if found.train.context is None else torch.cat([context_of(part) for part in parts])
    if found.rate is not None:  # rows are windows of one source
        index = torch.cat([part.index for part in parts if part.index is not None])
        return Rows(found.train.source, index, context=context)
    return replace(found.train, source=torch.cat([part.source for part in parts]), context=context)


def context_of(rows: Rows) -> Tensor:
    """What all rows are given."""
    assert rows.context is not None
    return rows.context[torch.arange(len(rows))]


def dataset_of(source: str, seed: int | None, loading: Mapping[str, Any]) -> Dataset:
    """The data set of --data, with the options of :func:`flowkern.data.load`."""
    try:
        return load(source, seed, **loading)
    except DataError as error:
        raise CommandError(f"--data: {error}") from None


def check_columns(name: str, dataset: Dataset, made: conf.Configuration | None) -> None:
    """Raises if the columns have other names, or another order, than those of the run's data."""
    want, have = made and made.columns, dataset.columns
    if want and have and list(want) != list(have):
        raise CommandError(f"--data: {name}: the model takes columns {', '.join(want)}, got {', '.join(have)}")


def with_classes_of(model: Encoded, made: conf.Configuration | None, name: str, dataset: Dataset) -> Dataset:
    """The data set with the labels that a model knows for what its rows are given: by their names, where these have some.

    Raises:
        CommandError: for a label that the model does not know.
    """
    known = None if model.context_encoding is None else model.context_encoding.data_levels
    want, have = None if made is None else made.class_names, dataset.class_names
    if have is None or want is None:
        if dataset.classes is not None and known is not None and dataset.classes > known:
            raise CommandError(f"--data: {name}: the model is given labels from 0 to {known - 1}, got {dataset.classes - 1}")
        return dataset
    unknown = [one for one in have if one not in want]
    if unknown:
        kind = "speakers" if SPEAKER in dataset.given else "classes"
        raise CommandError(f"--data: {name}: the model is given the {kind} {', '.join(want)}, got {', '.join(unknown)}")
    labels = torch.tensor([want.index(one) for one in have])
    parts = {part: getattr(dataset, part) for part in PARTS}
    renamed = {part: replace(rows, context=labels[context_of(rows)]) for part, rows in parts.items()}
    return replace(dataset, **renamed, classes=len(want), class_names=want)


def check_levels(name: str, rows: Rows, levels: int | None) -> None:
    """Raises if rows hold anything but whole numbers from 0 to levels - 1, where the model takes such."""
    if levels is None:
        return
    for chunk in rows.chunks():
        values = chunk.double()
        bad = values[(values < 0) | (values >= levels) | (values != values.round())]
        if len(bad):
            raise CommandError(f"--data: {name}: the model takes whole numbers from 0 to {levels - 1}, got {bad[0]:g}")


def digest(dataset: Dataset) -> str:
    """What tells other data from these: of the sizes of the parts, and of rows spread over each."""
    made = hashlib.blake2b(digest_size=16)
    for part in (dataset.train, dataset.validation, dataset.test):
        index = torch.arange(0, len(part), max(1, len(part) // ROWS))
        rows = part[index]
        made.update(f"{len(part)} {tuple(rows.shape)} {rows.dtype}".encode() + rows.numpy().tobytes())
        if part.context is not None:
            made.update(part.context[index].numpy().tobytes())
    return made.hexdigest()
