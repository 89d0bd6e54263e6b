"""A pytest plugin that accelerates every layer after its ``__init__``: runs the test suite of a library against flowkern.

``pytest -p flowkern.adapters.pytest_plugin`` in a checkout of zuko, nflows, normflows or Pyro. The summary says how many
layers it accelerated and how many of them passed their self-check in use. With FLOWKERN_MEMORY=reversible in the
environment layers rebuild their inputs.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

from flowkern.adapters import library, state
from flowkern.adapters.network import UnsupportedError, differs
from flowkern.adapters.reversible import Stack

_made: list[state.State] = []


def _wrap(cls: type, layer: library.Layer) -> None:
    original: Any = cls.__init__  # type: ignore[misc]

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        if type(self) is cls:  # the constructor of a subclass is still at work
            try:
                state.attach(self, layer)
            except UnsupportedError:
                return
            _made.append(self.__dict__[state.STATE])

    cls.__init__ = __init__  # type: ignore[misc]


def _wrap_container(cls: type, path: str, how: library.Container) -> None:
    original: Any = cls.__init__  # type: ignore[misc]

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, *args, **kwargs)
        if not state.is_accelerated(self) and differs(type(self), path) is None:
            rebuilds = how.stacks and os.environ.get("FLOWKERN_MEMORY") == "reversible"
            state.hold(self, how, Stack() if rebuilds else None)

    cls.__init__ = __init__  # type: ignore[misc]


def pytest_collection_finish() -> None:
    """Wraps the constructors of the classes that flowkern accelerates in the libraries that the tests imported."""
    for table in library.libraries():
        known: dict[str, library.Layer | library.Container] = {**table.layers, **table.containers}
        for path, how in known.items():
            module, _, name = path.rpartition(".")
            if module not in sys.modules:
                continue
            cls = getattr(sys.modules[module], name)
            if isinstance(how, library.Container):
                _wrap_container(cls, path, how)
            else:
                _wrap(cls, how)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How much of the suite ran accelerated."""
    passed = sum(made.verdict is None for made in _made)
    terminalreporter.write_line(f"flowkern accelerated {len(_made)} layers; {passed} passed the check at their first use")
