"""Packages that only parts of flowkern need."""

from __future__ import annotations

import importlib
from types import ModuleType


def optional(name: str, extra: str) -> ModuleType:
    """The module, or an ImportError with the command that installs the extra it belongs to."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is missing; install it with: pip install 'flowkern[{extra}]' ({error})") from None
