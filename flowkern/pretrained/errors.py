"""What can be wrong with a saved model."""

from __future__ import annotations


class PretrainedError(ValueError):
    """A model that cannot be saved as it is, or files that hold none: the message names the file and what is wrong."""


def short(error: Exception) -> str:
    """One line of another error's message, which may quote what a file holds."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 300 else line[:300] + "..."
