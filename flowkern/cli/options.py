"""Options of a command that are the arguments of a constructor: ``--set hidden=512,512``."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
import pydoc
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flowkern._checks import meant
from flowkern.cli.errors import CommandError

REQUIRED = inspect.Parameter.empty
# What a type's values are called, in the order in which a text is tried: "3" is a number before it is a word, and so is "1".
EXPECTED = {
    type(None): "none",
    int: "a whole number",
    float: "a number",
    Sequence[int]: "whole numbers separated by commas",
    Sequence[float]: "numbers separated by commas",
    bool: "true or false",
    str: "a word",
    Sequence[str]: "names separated by commas",
}
WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Option:
    """An argument that can be written as text or in JSON.

    Args:
        name: of the argument.
        type: the types that it may have: keys of ``EXPECTED``, and ``Literal``.
        default: its default, or ``REQUIRED``.
        help: what it is, without markup.
    """

    name: str
    type: tuple[Any, ...]
    default: Any
    help: str

    @property
    def expected(self) -> str:
        """What it may be, in words."""
        return " or ".join(_expected(of) for of in sorted(self.type, key=_turn, reverse=True))


def options_of(constructor: Callable[..., Any]) -> dict[str, Option]:
    """The arguments of a class or function that can be options, by name; modules, tensors and the like are left out.

    Types are those of the annotations, of a union the ones that text can give; help is what the docstring's ``Args:`` say.

    Example:
        >>> from flowkern.models import MADE
        >>> options = options_of(MADE)
        >>> options["hidden"].default, options["hidden"].expected
        ((512, 512), 'whole numbers separated by commas')
        >>> "generator" in options
        False
    """
    function = constructor.__init__ if isinstance(constructor, type) else constructor  # type: ignore[misc]
    of_fields = dataclasses.is_dataclass(constructor)
    hints = typing.get_type_hints(constructor if of_fields else inspect.unwrap(function))
    made = {f.name: f.default_factory for f in (dataclasses.fields(constructor) if of_fields else ())}  # type: ignore[arg-type]
    options: dict[str, Option] = {}
    for name, parameter in inspect.signature(constructor).parameters.items():
        plain = _plain(hints.get(name))
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or not plain:
            continue
        factory = made.get(name, dataclasses.MISSING)
        default = parameter.default if factory is dataclasses.MISSING else factory()
        options[name] = Option(name, plain, default, _help_of(name, constructor))
    return options


def _plain(annotation: Any) -> tuple[Any, ...]:
    """Members of a union, or the one type, that an option can have; none where nothing but ``None`` is left."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = typing.get_args(annotation) if union else (annotation,)
    plain = tuple(of for of in members if _literals(of) or of in EXPECTED)
    return plain if set(plain) - {type(None)} else ()


def _literals(of: Any) -> tuple[Any, ...]:
    return typing.get_args(of) if typing.get_origin(of) is Literal else ()


def _expected(of: Any) -> str:
    return _one_of(map(shown, _literals(of))) if _literals(of) else EXPECTED[of]


def _one_of(names: Iterable[str]) -> str:
    return f"one of {', '.join(names) or 'none'}"


def _turn(of: Any) -> float:
    return 0.5 if _literals(of) else list(EXPECTED).index(of)  # after none


def _help_of(name: str, constructor: Any) -> str:
    """What the documentation says about an argument, or that of the class to which it only refers."""
    text = _documented(constructor).get(name, "")
    reference = re.search(r"(?:see|as in) :class:`([\w.]+)`\.?$", text)
    return (_help_of(name, pydoc.locate(reference[1])) if reference else "") or _words(text)


def _documented(constructor: Any) -> dict[str, str]:
    """What the section ``Args:`` says about each name; an entry may be about several."""
    _, _, after = (inspect.getdoc(constructor) or "").partition("\nArgs:\n")
    section = itertools.takewhile(lambda line: not line or line[0].isspace(), after.splitlines())
    entries: list[str] = []
    for line in textwrap.dedent("\n".join(section)).splitlines():
        if line and not line[0].isspace():
            entries.append(line)
        elif line and entries:
            entries[-1] += f" {line.strip()}"
    found: dict[str, str] = {}
    for entry in entries:
        names, _, text = entry.partition(":")
        found |= dict.fromkeys(re.split(r",\s*", names), text.strip())
    return found


def _words(text: str) -> str:
    """Text without markup; in place of a list's name what is in it."""

    def members(match: re.Match[str]) -> str:
        found = pydoc.locate(match[1])
        return ", ".join(found) if isinstance(found, (tuple, list, Mapping)) else match[0]

    text = re.sub(r":data:`([\w.]+)`", members, text)
    return re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("`", "")


def parse(option: Option, text: str) -> Any:
    """The value that a text means.

    Raises:
        CommandError: with what was expected, and what came.

    Example:
        >>> from flowkern.models import MADE
        >>> options = options_of(MADE)
        >>> parse(options["hidden"], "64,64"), parse(options["skip"], "yes"), parse(options["order"], "2,0,1")
        ((64, 64), True, (2, 0, 1))
    """
    for of in sorted(option.type, key=_turn):
        try:
            return _read(of, text.strip())
        except (KeyError, ValueError):
            continue
    raise CommandError(f"--set {option.name}={text}: expected {option.expected}, got {text!r}")


def _read(of: Any, text: str) -> Any:
    """The value of a type, or a KeyError or ValueError."""
    if _literals(of):
        return {shown(value): value for value in _literals(of)}[text]
    if of is type(None):
        return {"none": None}[text.lower()]
    if of is bool:
        return WORDS[text.lower()]
    if of is int:
        if not re.fullmatch(r"[+-]?\d+", text, re.ASCII):  # int would take 1_000
            raise ValueError(text)
        return int(text)
    if of is float:
        value = float(text)
        if "_" in text or not math.isfinite(value):
            raise ValueError(text)
        return value
    if of is str:
        return text
    (item,) = typing.get_args(of)
    inside = text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else text
    if not inside.strip() and inside != text:
        return ()
    return tuple(_read(item, part.strip()) for part in re.sub(r",\s*$", "", inside).split(","))


def check(option: Option, value: Any) -> Any:
    """A value that comes from JSON, as :func:`parse` gives it: sequences are tuples.

    Raises:
        CommandError: with what was expected, and what came.

    Example:
        >>> from flowkern.models import MADE
        >>> check(options_of(MADE)["hidden"], [64, 64])
        (64, 64)
    """
    if not any(_fits(of, value) for of in option.type):
        raise CommandError(f"{option.name}: expected {option.expected}, got {value!r}")
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _fits(of: Any, value: Any) -> bool:
    if _literals(of):
        return any(type(value) is type(literal) and value == literal for literal in _literals(of))
    if of is float:
        return type(value) in (int, float) and abs(value) < math.inf
    if of in (Sequence[int], Sequence[float], Sequence[str]):
        (item,) = typing.get_args(of)
        return isinstance(value, (list, tuple)) and all(_fits(item, one) for one in value)
    return type(value) is of  # True is no whole number


def assignments(given: Iterable[str]) -> dict[str, str]:
    """Texts ``name=value`` as a map.

    Raises:
        CommandError: where there is no ``=``, no name, or a name twice.

    Example:
        >>> assignments(["hidden=64,64", "order=random"])
        {'hidden': '64,64', 'order': 'random'}
    """
    values: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise CommandError(f"--set {text}: expected name=value, got {text!r}")
        if name in values:
            raise CommandError(f"--set {text}: expected each option once, got {name}={values[name]} before")
        values[name] = value
    return values


def check_names(given: Iterable[str], allowed: Iterable[str], source: str) -> None:
    """Raises CommandError for the first name that is not allowed, with those that look like it, or else with all."""
    allowed = list(allowed)
    for name in given:
        if name not in allowed:
            raise CommandError(f"{source}: no option is called {name!r}; {meant(name, 'options', allowed)}")


def describe(options: Mapping[str, Option]) -> str:
    """Lines ``name=default  help`` as wide as the terminal.

    Example:
        >>> print(describe({"bins": Option("bins", (int,), 8, "pieces of a spline")}))
          bins=8  pieces of a spline
    """
    heads = {name: name if o.default is REQUIRED else f"{name}={shown(o.default)}" for name, o in options.items()}
    column = min(max(map(len, heads.values()), default=0), 30) + 4
    width = max(shutil.get_terminal_size().columns, column + 20)
    lines: list[str] = []
    for name, option in options.items():
        head = f"  {heads[name]}"
        if len(head) + 2 > column:
            lines.append(head)
            head = ""
        head = head.ljust(column)
        lines += textwrap.wrap(_help(option), width, initial_indent=head, subsequent_indent=" " * column) or [head.rstrip()]
    return "\n".join(lines)


def _help(option: Option) -> str:
    """What an option is, and where its default does not show it, what it may be."""
    if option.default is REQUIRED:
        return f"{option.help} ({option.expected}; required)".lstrip()
    if option.default is None or any(map(_literals, option.type)):
        return f"{option.help} ({option.expected})".lstrip()
    return option.help


def shown(value: Any) -> str:
    """A value as :func:`parse` reads it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(shown, value)) or "[]"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
