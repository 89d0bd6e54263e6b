"""What a run shows while it goes on: a bar, or a line now and then where none can be drawn."""

from __future__ import annotations

import importlib.util
import sys
import time
from types import TracebackType
from typing import Any

from flowkern.training.history import History
from flowkern.training.settings import Settings

EVERY = 10.0  # seconds between lines


class Progress:
    """Shows epochs, losses and the time that is left, from a history.

    Args:
        settings: of the run.
        unit: what losses are measured in; None shows nothing at all.
    """

    def __init__(self, settings: Settings, unit: str | None) -> None:
        self.settings, self.unit = settings, unit
        self.bar: Any = None
        self.written = time.monotonic()

    def __enter__(self) -> Progress:
        if self.unit is not None and draws():
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            columns = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("at most"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[losses]}"),
            )
            self.bar = Progress(*columns)
            self.bar.start()
            self.task = self.bar.add_task("", total=self.settings.epochs, losses="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, history: History, part: float) -> None:
        """Shows where a run is: epochs that are done, and the part of the one that goes on."""
        if self.bar is not None:
            self.bar.update(self.task, completed=round(len(history.train) + part, 2), losses=self._losses(history))
            return
        now = time.monotonic()
        if self.unit is not None and (history.ended or now - self.written >= EVERY):
            print(self._line(history, part), flush=True)
            self.written = now

    def _line(self, history: History, part: float) -> str:
        """An epoch that goes on tells how far it is: one may take many minutes."""
        done, losses = len(history.train), self._losses(history)
        if part:
            after = f", after {losses}" if losses else ""
            return f"epoch {done + 1} of {self.settings.epochs}: {100 * part:.0f} %{after}"
        return f"epoch {done} of {self.settings.epochs}: {losses}"

    def _losses(self, history: History) -> str:
        if not history.train:
            return ""
        unit = f" {self.unit}" if self.unit else ""
        return f"loss {history.train[-1]:.4g}, validation {history.validation[-1]:.4g}{unit} (best in epoch {history.best + 1})"


def draws() -> bool:
    """Whether rich can draw a bar that moves: in a terminal, or in a notebook that has widgets."""
    if importlib.util.find_spec("rich") is None:
        return False
    from rich import get_console

    console = get_console()
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal and sys.stdout is not None
