"""Modules and maps as JSON has them: the names of their classes, and their configs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any

from torch import nn

from flowkern._checks import meant
from flowkern.pretrained.errors import PretrainedError, short
from flowkern.univariate import UnivariateMap

HOMES = ("data", "flows", "models", "nn", "univariate")
_KINDS = (nn.Module, UnivariateMap)
_PART, _GIVEN = {"class", "config"}, {"given", "type"}


@cache
def classes() -> dict[str, type]:
    """What a file may name: the public modules and maps of flowkern, as ``"flows.MAF"``."""
    public = {f"{home}.{name}": value for home in HOMES for name, value in _public(home).items()}
    return {name: value for name, value in public.items() if inspect.isclass(value) and issubclass(value, _KINDS)}


def _public(home: str) -> dict[str, Any]:
    module = import_module(f"flowkern.{home}")
    return {name: getattr(module, name) for name in module.__all__}


def class_named(name: Any, source: str) -> type:
    """The class, or a PretrainedError with names like it."""
    if not isinstance(name, str) or name not in classes():
        hint = meant(str(name), "classes", classes())
        raise PretrainedError(f"{source}: class: this flowkern has no {str(name)[:100]!r}; {hint}")
    return classes()[name]


class Written:
    """A model as JSON has it.

    Attributes:
        name: of its class.
        config: its arguments. A part is ``{"class": name, "config": arguments}``; an object that is no part of flowkern's is
            ``{"given": keyword, "type": its class}``.
        given: these objects, by keyword.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {cls: name for name, cls in classes().items()}
        if type(model) not in self._names:
            raise PretrainedError(
                f"{type(model).__qualname__}: only flowkern's own models can be saved, since only these can be found by name; "
                "save the state_dict of one of your own"
            )
        self.given: dict[str, Any] = {}
        self.name, self.config = self._names[type(model)], self._arguments(model, "")

    def _arguments(self, part: Any, keyword: str) -> dict[str, Any]:
        inside = set(part.modules()) if isinstance(part, nn.Module) else set()
        prefix = keyword + "_" if keyword else ""
        for name, value in part.config.items():
            items = value if isinstance(value, list) else [value]
            if any(isinstance(item, nn.Module) and item not in inside for item in items):
                raise PretrainedError(f"{prefix}{name}: the model no longer has the module that it was built with")
        return {name: self._value(value, prefix + name) for name, value in part.config.items()}

    def _value(self, value: Any, keyword: str) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            raise PretrainedError(f"{keyword}: {value} cannot be written as JSON")
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, list):
            return [self._value(item, f"{keyword}_{i}") for i, item in enumerate(value)]
        if type(value) in self._names and hasattr(value, "config"):
            return {"class": self._names[type(value)], "config": self._arguments(value, keyword)}
        known = [name for name, other in self.given.items() if other is value]
        self.given.setdefault(known[0] if known else keyword, value)
        return {"given": known[0] if known else keyword, "type": type(value).__qualname__}


class Builder:
    """Builds parts again.

    Args:
        given: the objects that a file does not hold, by keyword.
        largest: the largest whole number that a file of this size may hold.
        source: name of the file.
    """

    def __init__(self, given: Mapping[str, Any], largest: int, source: str) -> None:
        self.given, self.largest, self.source = given, largest, source

    def build(self, name: Any, config: Any) -> Any:
        cls = class_named(name, self.source)
        if not isinstance(config, dict):
            raise PretrainedError(f"{self.source}: config: expected the arguments of {name}, got {type(config).__name__}")
        arguments = {argument: self._value(value) for argument, value in config.items()}
        try:
            return cls(**arguments)
        except PretrainedError:
            raise
        except Exception as error:  # whatever a constructor makes of what a file says
            raise PretrainedError(f"{self.source}: {name} cannot be built: {short(error)}") from error

    def _value(self, value: Any) -> Any:
        if isinstance(value, int) and abs(value) > self.largest:
            raise PretrainedError(f"{self.source}: {value} is beyond {self.largest}, the most that weights of this size allow")
        if isinstance(value, list):
            return [self._value(item) for item in value]
        if not isinstance(value, dict):
            return value
        if value.keys() == _PART:
            return self.build(value["class"], value["config"])
        if value.keys() == _GIVEN:
            return self.given[value["given"]]
        raise PretrainedError(f"{self.source}: config: expected 'class' and 'config', got {', '.join(map(repr, value))[:100]}")


def check_given(config: Any, given: Mapping[str, Any], source: str) -> None:
    """Raises a TypeError, as calls with wrong arguments do, unless just those objects are given that a file does not hold."""
    wanted = dict(_wanted(config, source))
    missing = [f"{name}=... (a {kind[:100]} when it was saved)" for name, kind in wanted.items() if name not in given]
    if missing:
        raise TypeError(f"{source}: the model has parts of your own, which from_pretrained must be given: {', '.join(missing)}")
    extra = [name for name in given if name not in wanted]
    if extra:
        takes = ", ".join(wanted) or "none"
        raise TypeError(f"{extra[0]}: from_pretrained takes the parts that {source} does not hold: {takes}")


def _wanted(value: Any, source: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value.keys() == _GIVEN:
        name, kind = value["given"], value["type"]
        if not isinstance(name, str) or not isinstance(kind, str):
            raise PretrainedError(f"{source}: config: 'given' and 'type': expected strings")
        yield name, kind
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _wanted(item, source)
