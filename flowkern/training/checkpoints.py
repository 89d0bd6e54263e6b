"""Checkpoints of a run, from which it is continued by any number of processes."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp

from flowkern._files import sync_folder
from flowkern.training.distributed import Processes
from flowkern.training.errors import TrainingError

PROGRESS = "progress.json"
NAMES = "checkpoint-" + 10 * "[0-9]"  # a user's own copy beside them has another


class Checkpoints:
    """The newest checkpoint of a run in its folder; one is there whole or not at all.

    Args:
        folder: of the run.
        processes: all of them write their parts.
    """

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder, self.processes = folder, processes

    def newest(self) -> Path | None:
        """The checkpoint of the latest step."""
        return max(self.folder.glob(NAMES), default=None)  # numbers of one length

    def save(self, step: int, state: dict[str, Any], progress: dict[str, Any]) -> None:
        """Writes a checkpoint and removes the one before.

        Raises:
            TrainingError: where it cannot be written; the one before stays.
        """
        part, made = self.folder / ".checkpoint.part", self.folder / f"checkpoint-{step:010d}"
        failed = ""
        if self.processes.first:
            shutil.rmtree(part, ignore_errors=True)
        self.processes.barrier()
        try:
            with _alone():
                dcp.save(state, checkpoint_id=part, no_dist=self.processes.count == 1)
            if self.processes.first:
                self._finish(part, made, progress)
        except (OSError, dcp.CheckpointException) as error:
            failed = _reason(error)
        failed = next(filter(None, self.processes.gather(failed)), "")
        if failed:
            if self.processes.first:
                shutil.rmtree(part, ignore_errors=True)
            raise TrainingError(f"cannot write {made}: {failed}" + self.kept())

    def kept(self) -> str:
        """The end of a message: what there is to go on from."""
        newest = self.newest()
        return "" if newest is None else f"; {newest} is kept, continue from it with --resume"

    def _finish(self, part: Path, made: Path, progress: dict[str, Any]) -> None:
        with (part / PROGRESS).open("w") as file:
            json.dump(progress, file)
            file.flush()
            os.fsync(file.fileno())
        if made.exists():  # of the same step, so it holds the same
            shutil.rmtree(part)
        else:
            part.rename(made)
            sync_folder(self.folder)  # before the one before is removed
        for old in self.folder.glob(NAMES):
            if old != made:
                shutil.rmtree(old, ignore_errors=True)

    def progress(self, path: Path, keys: Set[str]) -> dict[str, Any]:
        """How far a run had come, under these keys."""
        try:
            found = json.loads((path / PROGRESS).read_text())
        except (OSError, ValueError) as error:
            raise TrainingError(f"cannot read {path / PROGRESS}: {error}") from None
        if not isinstance(found, dict) or not keys <= found.keys():
            raise TrainingError(f"cannot read {path / PROGRESS}: expected an object with {', '.join(sorted(keys))}")
        return found

    def load(self, path: Path, state: dict[str, Any]) -> None:
        """Fills the tensors of a state in place.

        Raises:
            TrainingError: for a checkpoint of another model, or a damaged one.
        """
        try:
            with _alone():
                dcp.load(state, checkpoint_id=path, no_dist=self.processes.count == 1)
        except (OSError, ValueError, RuntimeError, EOFError, KeyError, dcp.CheckpointException) as error:
            raise TrainingError(f"cannot continue from {path}: damaged, or of another model: {_reason(error)}") from None

    def remove(self) -> None:
        """Removes all."""
        with suppress(OSError):
            for path in (*self.folder.glob(NAMES), *self.folder.glob(".checkpoint.part")):
                shutil.rmtree(path)


@contextmanager
def _alone() -> Iterator[None]:
    """torch warns of a single process even where it was told that there is one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _reason(error: BaseException) -> str:
    """The innermost reason, in one line: torch wraps those of all processes."""
    if isinstance(error, dcp.CheckpointException):
        error = next((wrapped[0] for wrapped in error.failures.values()), error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).splitlines()[0]
