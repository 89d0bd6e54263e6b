"""Errors that a user can mend, and the checks that several commands share."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path


class CommandError(Exception):
    """A message for the user, without a traceback. ``status`` is 2 for bad input, 1 for a run that failed."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


def require(modules: Sequence[str], extra: str) -> None:
    """Raises if a module of an optional dependency is missing, naming the command that installs it."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise CommandError(f"{name} is missing; install it with: pip install 'flowkern[{extra}]' ({error})") from None


def output_folder(path: str) -> Path:
    """Creates the folder and checks that files can be written there, before any work."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(f"--output: cannot write to {path!r}: {error.strerror or error}") from None
    return folder
