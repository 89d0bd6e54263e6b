"""Commands in several processes: one of them speaks and writes, and all fail together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from flowkern.cli.errors import CommandError

if TYPE_CHECKING:
    from flowkern.training import Processes

Result = TypeVar("Result")


@contextmanager
def joined(device: str | None) -> Iterator[Processes]:
    """The processes that torchrun has started, on a device that is there; that another one ended is told in a line."""
    from flowkern.training import processes

    try:
        with processes(_checked(device)) as here:
            yield here
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or "gloo" in str(error)
        if not lost:
            raise
        raise CommandError("another process has ended, or cannot be reached; --resume continues a run", status=1) from None


def _checked(name: str | None) -> str | None:
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    there = ["cpu", *(["cuda", *gpus] if gpus else [])]
    if name is not None and name not in there:
        raise CommandError(f"--device: expected {', '.join(there)}, got {name!r}")
    return name


def first_does(here: Processes, function: Callable[[], Result]) -> Result | None:
    """What the function finds in the first process, None in the others; where it fails, all do."""
    found: Any = None
    if here.first:
        try:
            found = function()
        except CommandError as error:
            found = error
    failed = here.gather(found if isinstance(found, CommandError) else None)[0]
    if failed is not None:
        raise failed
    return found


def all_do(here: Processes, function: Callable[[], Result]) -> Result:
    """What the function finds in each process; where it fails in one, all fail, lest the others wait for it."""
    try:
        found, error = function(), None
    except CommandError as raised:
        error = raised
    failed = [(rank, other) for rank, other in enumerate(here.gather(error)) if other is not None]
    if failed:
        rank, first = failed[0]
        raise CommandError(f"rank {rank}: {first}" if rank else str(first), first.status)
    return found


def say(here: Processes, text: str) -> None:
    """Prints in the first process."""
    if here.first:
        print(text, flush=True)
