"""What builds a module again: the arguments of its constructor, kept when it is built."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch import nn

Init = TypeVar("Init", bound=Callable[..., None])


def configured(init: Init) -> Init:
    """Decorator of an ``__init__``: keeps its arguments as ``config``, from which ``Class(**config)`` builds the module again.

    Numbers, names and tables are plain values that JSON can hold: tensors, arrays and tuples become lists. ``generator`` is
    left out: what it drew, orders and degrees, is in the state.

    A part that was passed as a module or another object, such as a base or an embedding, is kept as it is. If it has a
    ``config`` of its own, as all of flowkern's have, its class and that build it again. Any other is the user's own, and must
    be given by whoever builds the module again, under the same argument's name.

    A subclass with an ``__init__`` of its own has a config if that is decorated too.

    Example:
        >>> import flowkern as fk
        >>> fk.nn.BatchNorm(3, momentum=0.2).config
        {'features': 3, 'eps': 1e-05, 'momentum': 0.2}
    """
    _, *parameters = inspect.signature(init).parameters.values()
    defaults = {p.name: p.default for p in parameters}

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        # What can be iterated over only once is needed twice.
        args = tuple(list(a) if isinstance(a, Iterator) else a for a in args)
        kwargs = {name: list(a) if isinstance(a, Iterator) else a for name, a in kwargs.items()}
        init(self, *args, **kwargs)
        if type(self).__init__ is wrapped:  # and not the one of a base class
            given = {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}
            self.config = {name: plain(value) for name, value in given.items() if name != "generator"}

    return wrapped  # type: ignore[return-value]


def plain(value: Any) -> Any:
    """A value as JSON has it, where it can be one."""
    if hasattr(value, "tolist"):  # tensors, arrays, and the numbers in them
        return value.tolist()
    if isinstance(value, (Sequence, nn.ModuleList)) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value
