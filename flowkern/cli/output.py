"""The folder that a command writes to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock  # torch needs it too

from flowkern.cli.errors import CommandError


class OutputFolder:
    """A folder that holds files of one run only; each is there whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def clear(self, names: Sequence[str]) -> None:
        """Removes what an earlier run has left under the names of this one's files."""
        for name in names:
            for file in (self.path / name, _part(self.path / name)):
                try:
                    file.unlink(missing_ok=True)
                except OSError as error:
                    raise CommandError(f"--output: cannot replace {file}: {error.strerror or error}") from None

    def write(self, name: str, content: bytes) -> None:
        """Writes a file of the run."""
        write_whole(self.path / name, content)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name and gives it its own."""
    part = _part(path)
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}", status=1) from None
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


@contextmanager
def output_folder(path: str) -> Iterator[OutputFolder]:
    """Creates the folder, checks that files can be written there, and keeps other runs out while it is in use.

    The operating system releases the lock with the process, however that ends.
    """
    if not path:
        raise CommandError("--output: expected the name of a folder, got ''")
    folder = Path(path)
    note = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(note).acquire(timeout=0)
        note.write_text(str(os.getpid()))
    except filelock.Timeout:
        raise CommandError(f"--output: process {_holder(note)} is writing to {path!r}; wait for it or name another") from None
    except OSError as error:
        raise CommandError(f"--output: cannot write to {path!r}: {error.strerror or error}") from None
    with lock:
        try:
            yield OutputFolder(folder)
        finally:
            with suppress(OSError):  # Windows keeps open files
                note.unlink()


def _holder(note: Path) -> str:
    try:
        return note.read_text() or "unknown"
    except OSError:  # Windows reads no locked file
        return "unknown"
