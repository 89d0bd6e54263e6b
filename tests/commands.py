"""Commands of the tests: those that are refused, those in a process of their own, and disks without room."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flowkern.cli import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    """The one line that a command says."""
    capsys.readouterr()
    assert main(arguments) == status
    _, err = capsys.readouterr()
    assert err.count("\n") == 1, err
    assert err.startswith("flowkern: error: ")
    return err.removeprefix("flowkern: error: ").rstrip("\n")


def start(*arguments: str, **options: Any) -> subprocess.Popen:
    """A command in a process of its own, which Ctrl-C ends (pytest-xdist's workers ignore it)."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def wait(condition: Callable[[], Any], process: subprocess.Popen) -> None:
    """Until something is so, as long as the process lives."""
    until = time.monotonic() + 120
    while not condition() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert condition(), process.communicate()[0]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """As on a disk with so little room: longer files cannot be written."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
