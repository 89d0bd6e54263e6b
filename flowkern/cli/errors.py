"""Errors that a user can mend."""

from __future__ import annotations

from collections.abc import Sequence

from flowkern._optional import optional


class CommandError(Exception):
    """A message for the user, without a traceback. ``status`` is 2 for bad input, 1 for a run that failed."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


def require(modules: Sequence[str], extra: str) -> None:
    """Raises if a module of an optional dependency is missing, naming the command that installs it."""
    for name in modules:
        try:
            optional(name, extra)
        except ImportError as error:
            raise CommandError(str(error)) from None
