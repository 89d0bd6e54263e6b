"""Loads the extension, or says why there is none."""

from __future__ import annotations

import importlib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

import torch  # noqa: F401, the extension needs its libraries

_HERE = Path(__file__).parent
_IN_SOURCES = (_HERE.parent / "csrc" / "module.cpp").exists()
REBUILD = f"`pip install --no-build-isolation {'-e .`' if _IN_SOURCES else '.` in the sources of flowkern'}"


class BuildError(NamedTuple):
    """Why there is no extension, what mends it, and the last lines of the build that failed."""

    reason: str
    cure: str
    log: str = ""

    def __str__(self) -> str:
        return f"the extension is missing ({self.reason}); {self.cure}"


def _build_error(error: ImportError) -> BuildError:
    """What the file says that setup.py leaves in the place of an extension; else what can be seen from here."""
    built = sorted(_HERE.glob("_C.*"))
    if any(file.name == f"_C{suffix}" for file in built for suffix in EXTENSION_SUFFIXES):
        return BuildError(f"it does not load: {error}", f"build it again, for this torch: {REBUILD}")
    record = _HERE / "_build_error.txt"
    if record.exists():
        reason, _, rest = record.read_text("utf-8").partition("\n")
        cure, _, log = rest.partition("\n")
        return BuildError(reason, f"{cure}, then run {REBUILD}", log)
    if built:
        return BuildError(f"it was built for another Python: {built[0].name}", f"run {REBUILD}")
    return BuildError("it was never built", f"run {REBUILD}, which needs a C++20 compiler")


BUILD_ERROR: BuildError | None = None
_C: Any = None
try:
    _C = importlib.import_module("flowkern._C")
except ImportError as error:
    BUILD_ERROR = _build_error(error)

MAPS: frozenset[int] = frozenset() if _C is None else frozenset(_C.build_info()["maps"])  # kinds of univariate maps
