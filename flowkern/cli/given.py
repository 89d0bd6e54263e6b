"""What samples are given: ``--given``, as values or as a table of them."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from flowkern.cli.configuration import Configuration
from flowkern.cli.errors import CommandError
from flowkern.data import DataError, Encoding, OneHot, files
from flowkern.data.dataset import reading
from flowkern.data.labels import SPEAKER
from flowkern.data.tables import given_columns


def context_of(text: str | None, encoding: Encoding | None, made: Configuration | None, folder: str) -> Tensor | None:
    """The contexts that a text means, (rows, numbers of each) of float64; ``None`` for a model that is given nothing.

    Args:
        text: numbers separated by commas, the name of a class, or the file of a table; ``None`` where the user wrote none.
        encoding: the model's, of contexts.
        made: the run that made the model, where that is known: it has names.
        folder: of the model, for messages.
    """
    if encoding is None:
        if text is not None:
            raise CommandError(f"--given: the model in {folder} is given nothing, got {text!r}")
        return None
    wanted = _wanted(encoding, made)
    if text is None:
        raise CommandError(f"--given: expected {wanted}, which the model in {folder} is given")
    path = Path(text)
    values = _table(path, made) if files.found(path) and path.is_file() else _values(text, made)
    if values is None or values.shape[1] != encoding.event_shape.numel():
        got = repr(text) if values is None else f"{values.shape[1]} numbers"
        raise CommandError(f"--given: expected {wanted}, got {got}")
    try:
        encoding.encode(values)
    except ValueError:
        raise CommandError(f"--given: expected {wanted}, got {text!r}") from None
    return values


def _wanted(encoding: Encoding, made: Configuration | None) -> str:
    """What a context consists of, in words."""
    if isinstance(encoding, OneHot):
        known = ", ".join((made and made.class_names) or ())
        if not _numbers_count(made):
            return f"{'a speaker' if _is_of_speakers(made) else 'the name of a class'} ({known})"
        return f"a class from 0 to {encoding.features - 1}" + (f", or its name ({known})" if known else "")
    names = made.data_options["given"] if made else ()
    return f"{encoding.features} numbers" + (f" ({', '.join(names)})" if names else "") + ", or a table of them"


def _is_of_speakers(made: Configuration | None) -> bool:
    return made is not None and SPEAKER in made.data_options["given"] and made.class_names is not None


def _numbers_count(made: Configuration | None) -> bool:
    """Whether a class can be given by its number: no speaker can, nor one of some whose names are numbers themselves."""
    names = (made and made.class_names) or ()
    return not _is_of_speakers(made) and not any(name.isdecimal() for name in names)


def _values(text: str, made: Configuration | None) -> Tensor | None:
    """One context, (1, numbers); ``None`` if it is none."""
    names = (made and made.class_names) or ()
    if text in names:
        return torch.tensor([[names.index(text)]], dtype=torch.float64)
    if not _numbers_count(made):
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    return torch.tensor([values], dtype=torch.float64) if all(map(math.isfinite, values)) else None


def _table(path: Path, made: Configuration | None) -> Tensor:
    """The contexts of a table: of the columns of the names that the run knows, where it has some."""
    try:
        with reading(path):
            tables = files.read(path)
        if len(tables) > 1:
            raise DataError(f"{path}: expected one table, got {', '.join(tables)}")
        return given_columns(tables["train"], made.data_options["given"] if made else ())
    except DataError as error:
        raise CommandError(f"--given: {error}") from None
