"""The two files of a model in their folder: replaced as one, read as one.

A folder holds the old model, whole, until the last of these steps, and the new one after it:

1. both files are written into a new folder inside, and brought to the disk;
2. the old weights are renamed to ``model.safetensors.previous``;
3. the new weights are renamed to ``model.safetensors``, then the new configuration to ``config.json``;
4. the old weights are removed.

``config.json`` names the checksum of its weights. Whoever reads it takes the file that has it, under either name; after a crash
between the steps that may be the second.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from flowkern._files import sync_folder
from flowkern.pretrained import document
from flowkern.pretrained.document import CONFIG, LARGEST, WEIGHTS
from flowkern.pretrained.errors import PretrainedError

PREVIOUS = WEIGHTS + ".previous"


def write(folder: Path, config: bytes, weights: bytes) -> None:
    """Replaces the model in a folder, which is made where there is none.

    Raises:
        PretrainedError: if the folder holds files of these names that are not flowkern's.
        OSError: if a file cannot be written; the model that was there is unchanged.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replaced = _replaced(folder)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder, ignore_cleanup_errors=True) as name:
            new = Path(name)
            _write(new / CONFIG, config)
            _write(new / WEIGHTS, weights)
            if replaced:
                _rename(folder / WEIGHTS, folder / PREVIOUS)
            _rename(new / WEIGHTS, folder / WEIGHTS)
            _rename(new / CONFIG, folder / CONFIG)
        with contextlib.suppress(OSError):  # the new model is there; the next to save removes it
            (folder / PREVIOUS).unlink()
    except OSError as error:
        raise _explained(error, f"{folder}: the model could not be saved, the folder holds what it held") from error


def read(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The entries of ``config.json`` and the content of the weights that belong to it.

    Links are followed: a cache of the Hugging Face hub is made of them.

    Raises:
        PretrainedError: if one is missing, too large, damaged, or they do not belong to each other.
        OSError: if one cannot be read.
    """
    entries = document.from_text(_read(folder / CONFIG, LARGEST), str(folder / CONFIG))
    for path in (folder / WEIGHTS, folder / PREVIOUS):
        if path.exists():
            weights = _read(path)
            if document.checksum(weights) == entries["checksums"][WEIGHTS]:
                return entries, weights
    if not (folder / WEIGHTS).exists():
        raise PretrainedError(f"{folder / WEIGHTS}: no such file; {CONFIG} beside it needs it")
    raise PretrainedError(
        f"{folder / WEIGHTS}: its checksum is not the one in {CONFIG}: it is damaged, or belongs to another {CONFIG}"
    )


def _replaced(folder: Path) -> bool:
    """Whether the weights in the folder belong to the configuration that is to be replaced; raises for files of others."""
    old, weights = folder / CONFIG, folder / WEIGHTS
    if not old.exists():
        if weights.exists():
            raise PretrainedError(f"{weights}: is there without a {CONFIG}, and would be overwritten; remove it first")
        return False
    try:
        expected = document.saved_weights(_read(old, LARGEST), str(old))
    except PretrainedError as error:
        raise PretrainedError(f"{error}; it would be overwritten: remove it, or choose another folder") from None
    return weights.exists() and document.checksum(_read(weights)) == expected


def _read(path: Path, most: int | None = None) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for ever
            raise PretrainedError(f"{path}: expected a file")
        with path.open("rb") as file:
            return file.read() if most is None else file.read(most + 1)
    except OSError as error:
        raise _explained(error, f"{path}: cannot be read") from error


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _rename(path: Path, name: Path) -> None:
    """On the disk before the next: a crash of the machine must not keep the second of two only."""
    path.replace(name)
    sync_folder(name.parent)


def _explained(error: OSError, what: str) -> OSError:
    """An error of the same kind, in one line."""
    return OSError(error.errno, f"{what}: {error.strerror or error}")
