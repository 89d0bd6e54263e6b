"""Sounds that commands write: .wav files of 16 bits and one channel."""

from __future__ import annotations

import io
import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from flowkern.cli.errors import CommandError
from flowkern.training.progress import EVERY, draws

HEADER = 44  # bytes, before the samples
LARGEST = 2**32 - 1 - HEADER  # bytes of samples that the header can tell
PAUSE = 0.1  # seconds between rows that have nothing to do with each other


class WaveFile:
    """A .wav file that can be played from the first samples on, whatever ends the process that writes it.

    Python's own module writes it: after every stretch of samples it puts the length into the header, which soundfile does only
    once the file is closed.

    Args:
        path: the file; an earlier one is replaced.
        rate: in Hz.
    """

    def __init__(self, path: Path, rate: int) -> None:
        self.path, self.rate, self.length = path, rate, 0

    def __enter__(self) -> WaveFile:
        with self._told():
            self.file = self.path.open("wb")
            self.waves = _waves(self.file, self.rate)
        return self

    def write(self, samples: Tensor) -> None:
        """Adds samples (n,) in [-1, 1]."""
        with self._told():
            self.waves.writeframes(_bytes(samples))
            self.file.flush()
        self.length += len(samples)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError) if error is not None else self._told():
            try:
                self.waves.close()
            finally:
                self.file.close()

    @property
    def held(self) -> str:
        """What the file holds, in words."""
        return f"{self.length / self.rate:.2f} s ({self.length:,} samples) are in {self.path}"

    @property
    def kept(self) -> str:
        """The same, as the end of a sentence on a failure; nothing where it holds nothing."""
        return f"; {self.held}" if self.length else ""

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CommandError(f"cannot write {self.path}: {error.strerror or error}{self.kept}", status=1) from None

    def read(self) -> Tensor:
        """The samples that were written, (n,) of int16, mapped into memory."""
        return torch.from_file(str(self.path), shared=False, size=HEADER // 2 + self.length, dtype=torch.int16)[HEADER // 2 :]


def content(rows: Tensor, rate: int) -> bytes:
    """A .wav file of rows (n, samples) in [-1, 1], one after another with pauses."""
    file = io.BytesIO()
    with _waves(file, rate) as waves:
        waves.writeframes(_bytes(torch.nn.functional.pad(rows, (0, round(PAUSE * rate))).flatten()))
    return file.getvalue()


def _waves(file: BinaryIO, rate: int) -> wave.Wave_write:
    waves = wave.Wave_write(file)
    waves.setparams((1, 2, rate, 0, "NONE", ""))
    return waves


def _bytes(samples: Tensor) -> bytes:
    """Samples as whole numbers of 16 bits."""
    return (samples.clamp(-1, 1) * 32767).round().to(torch.int16).cpu().numpy().astype("<i2").tobytes()


class Meter:
    """Shows how fast samples come: a bar, or a line now and then where none can be drawn.

    Args:
        total: samples that there will be.
        rate: in Hz.
    """

    def __init__(self, total: int, rate: int) -> None:
        self.total, self.rate, self.done = total, rate, 0
        self.bar: Any = None
        self.began = self.counted = self.written = time.monotonic()

    def __enter__(self) -> Meter:
        if draws():
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = TextColumn("sampling"), BarColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn()
            self.bar = Progress(*columns)
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total, speed="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, samples: int) -> None:
        """Counts so many more."""
        self.done += samples
        self.counted = now = time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, speed=self.speed)
        elif now - self.written >= EVERY and self.done < self.total:
            print(f"{self.done / self.rate:.1f} of {self.total / self.rate:.1f} s: {self.speed}", flush=True)
            self.written = now

    @property
    def speed(self) -> str:
        """Samples per second until the last were counted, and how that compares to the time that they take when played."""
        per_second = self.done / max(self.counted - self.began, 1e-9)
        return f"{per_second:,.0f} samples per second, {per_second / self.rate:.2f} times real time"
