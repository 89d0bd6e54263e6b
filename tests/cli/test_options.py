"""Options of a constructor: what can be one, what a text means, and what is said where it means nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

import pytest
import torch

from flowkern import flows, models
from flowkern.cli.errors import CommandError
from flowkern.cli.options import Option, assignments, check, check_names, describe, options_of, parse, shown
from flowkern.plan import ACTIVATIONS

NETWORK = ["hidden", "context", "activation", "order", "degrees", "residual", "skip"]
WHOLE_NUMBERS = "whole numbers separated by commas"


@dataclass
class Schedule:
    """A class of options that are not a module's.

    Args:
        rate: of the first step,
            in steps: see ``warm_up``.

            Positive.
        warm_up, decay: see :class:`flowkern.flows.MAF`.
        kind: of the curve.
        ends: where it
            changes.

    Example:
        rate: not an argument.
    """

    rate: float
    warm_up: int = 10
    decay: Optional[float] = None  # noqa: UP045
    kind: Literal["cosine", "linear", 2] | None = "cosine"
    ends: Sequence[float] = field(default_factory=lambda: [0.5, 1.0])
    made: list[int] = field(init=False)
    other: torch.Generator | Sequence[bytes] | None = None


@pytest.mark.parametrize(
    ("constructor", "names"),
    [
        (flows.MAF, {"features", "transforms", *NETWORK, "batch_norm", "scale", "placement", "constants", "memory"}),
        (flows.IAF, {"features", "transforms", *NETWORK, "gated", "batch_norm", "scale", "placement", "constants", "memory"}),
        (models.MADE, {"features", "head", *NETWORK, "categories", "components", "levels", "masks"}),
        (Schedule, {"rate", "warm_up", "decay", "kind", "ends"}),
    ],
)
def test_plain_arguments_are_options(constructor: Any, names: set[str]) -> None:
    options = options_of(constructor)
    assert set(options) == names
    for name, option in options.items():
        assert option.name == name
        assert option.help
        assert not re.search("[`]|:class:|:data:", option.help)


def test_options_build_the_same_model() -> None:
    """Every default is a text that means it."""
    for constructor in (flows.MAF, flows.IAF, models.MADE):
        options = options_of(constructor)
        texts = {"features": "3", **{name: shown(o.default) for name, o in options.items() if name != "features"}}
        texts["hidden"] = "8"
        model = constructor(**{name: parse(options[name], text) for name, text in texts.items()})
        assert model.config == constructor(3, hidden=(8,)).config
        assert constructor(**{name: check(o, model.config[name]) for name, o in options.items()}).config == model.config


def test_types_are_the_plain_members_of_a_union() -> None:
    options = options_of(models.MADE)
    assert options["head"].type == (str,)
    assert options["order"].type == (str, Sequence[int])
    assert options_of(flows.IAF)["constants"].type == (Sequence[float], type(None))
    assert options_of(Schedule)["decay"].type == (float, type(None))


def test_help_is_that_of_the_argument() -> None:
    options = options_of(Schedule)
    assert options["rate"].help == "of the first step, in steps: see warm_up. Positive."
    assert options["warm_up"].help == "see flowkern.flows.MAF."
    assert options["ends"].help == "where it changes."
    assert options["ends"].default == [0.5, 1.0]


def test_help_follows_references_to_a_class() -> None:
    maf, iaf, network = (options_of(c) for c in (flows.MAF, flows.IAF, models.MADE))
    assert iaf["hidden"].help == maf["hidden"].help == "widths of the hidden layers of each."
    assert iaf["residual"].help == network["residual"].help
    assert network["residual"].help.startswith("pre-activation residual blocks")
    assert network["activation"].help == f"one of {', '.join(ACTIVATIONS)}."


def test_arguments_of_a_function_are_options() -> None:
    def load(source: str, *others: int, seed: int = 0, **more: int) -> None:
        """Loads.

        Args:
            seed: of the split.
        """

    options = options_of(load)
    assert list(options) == ["source", "seed"]
    assert [option.help for option in options.values()] == ["", "of the split."]


def option(*types: Any, name: str = "x") -> Option:
    return Option(name, types, None, "")


@pytest.mark.parametrize(
    ("types", "text", "value"),
    [
        ((int,), "12", 12),
        ((int,), " -3 ", -3),
        ((float,), "1e-3", 1e-3),
        ((float,), "2", 2.0),
        ((bool,), "Yes", True),
        ((bool,), "0", False),
        ((str,), "none", "none"),
        ((str,), "3", "3"),
        ((str, type(None)), "none", None),
        ((int, type(None)), "None", None),
        ((Sequence[int],), "512,256", (512, 256)),
        ((Sequence[int],), "[512, 256]", (512, 256)),
        ((Sequence[int],), "(512,)", (512,)),
        ((Sequence[int],), "512", (512,)),
        ((Sequence[int],), "[]", ()),
        ((Sequence[float],), "1,2.5", (1.0, 2.5)),
        ((bool, Sequence[int]), "0", (0,)),
        ((bool, Sequence[int]), "true", True),
        ((str, Sequence[int]), "2,0,1", (2, 0, 1)),
        ((str, Sequence[int]), "random", "random"),
        ((Literal["a", 2], type(None)), "2", 2),
        ((Literal["a", 2], type(None)), "none", None),
        ((int, float), "3", 3),
        ((int, float), "3.5", 3.5),
        ((float,), "-.5", -0.5),
    ],
)
def test_a_text_means_a_value(types: tuple[Any, ...], text: str, value: Any) -> None:
    found = parse(option(*types), text)
    assert found == value
    assert type(found) is type(value)
    assert check(option(*types), list(value) if isinstance(value, tuple) else value) == value


@pytest.mark.parametrize(
    ("types", "text", "expected"),
    [
        ((int,), "3.5", "a whole number"),
        ((int,), "1e3", "a whole number"),
        ((int,), "1_000", "a whole number"),
        ((int,), "", "a whole number"),
        ((int,), "9" * 5000, "a whole number"),
        ((int, type(None)), "abc", "a whole number or none"),
        ((float,), "nan", "a number"),
        ((float,), "1e999", "a number"),
        ((float,), "1_0.5", "a number"),
        ((bool,), "maybe", "true or false"),
        ((Sequence[int],), "abc", WHOLE_NUMBERS),
        ((Sequence[int],), "", WHOLE_NUMBERS),
        ((Sequence[int],), ",", WHOLE_NUMBERS),
        ((Sequence[int],), "1,,2", WHOLE_NUMBERS),
        ((Sequence[int],), "[1,2)", WHOLE_NUMBERS),
        ((Sequence[int],), "512 512", WHOLE_NUMBERS),
        ((Sequence[int],), "1.5", WHOLE_NUMBERS),
        ((Sequence[int],), "none", WHOLE_NUMBERS),
        ((Literal["a", "b"],), "c", "one of a, b"),
    ],
)
def test_a_text_that_means_nothing(types: tuple[Any, ...], text: str, expected: str) -> None:
    with pytest.raises(CommandError) as error:
        parse(option(*types, name="hidden"), text)
    assert str(error.value) == f"--set hidden={text}: expected {expected}, got {text!r}"
    assert error.value.status == 2


@pytest.mark.parametrize(
    ("types", "value", "expected"),
    [
        ((int,), True, "a whole number"),
        ((int,), 3.0, "a whole number"),
        ((int,), "3", "a whole number"),
        ((float,), False, "a number"),
        ((float,), float("nan"), "a number"),
        ((bool,), 1, "true or false"),
        ((str,), None, "a word"),
        ((Sequence[int],), [1, 2.5], WHOLE_NUMBERS),
        ((Sequence[int],), 5, WHOLE_NUMBERS),
        ((Sequence[int],), "12", WHOLE_NUMBERS),
        ((str, Sequence[int]), {"a": 1}, f"a word or {WHOLE_NUMBERS}"),
        ((Literal[1],), True, "one of 1"),
        ((float,), float("inf"), "a number"),
        ((Literal["a", "b"], type(None)), "c", "one of a, b or none"),
    ],
)
def test_a_json_value_of_another_type(types: tuple[Any, ...], value: Any, expected: str) -> None:
    with pytest.raises(CommandError, match=f"^{re.escape(f'hidden: expected {expected}, got {value!r}')}$"):
        check(option(*types, name="hidden"), value)


def test_assignments() -> None:
    assert assignments(["a=1", " b = x=y", "c="]) == {"a": "1", "b": " x=y", "c": ""}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a"], "--set a: expected name=value, got 'a'"),
        (["=1"], "--set =1: expected name=value, got '=1'"),
        ([""], "--set : expected name=value, got ''"),
        (["a=1", "a=2"], "--set a=2: expected each option once, got a=1 before"),
    ],
)
def test_what_is_no_assignment(given: list[str], message: str) -> None:
    with pytest.raises(CommandError) as error:
        assignments(given)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "allowed", "expected"),
    [
        ("hiden", ["hidden", "order"], "did you mean hidden?"),
        ("orders", ["order", "order2", "hidden"], "did you mean order or order2?"),
        ("zzz", ["hidden", "order"], "there are the options hidden, order"),
        ("zzz", [], "there are none"),
    ],
)
def test_a_name_that_is_no_option(name: str, allowed: list[str], expected: str) -> None:
    check_names(allowed, allowed, "--set")
    with pytest.raises(CommandError) as error:
        check_names([*allowed, name], allowed, "--set")
    assert str(error.value) == f"--set: no option is called {name!r}; {expected}"


@pytest.mark.parametrize("columns", [5, 60, 120])
def test_the_description_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    options = options_of(flows.IAF)
    long = Option("a_name_longer_than_the_column", (Sequence[float],), (0.25,) * 4, "what it is.")
    options |= {long.name: long, "plain": Option("plain", (int,), 1, "")}
    lines = describe(options).splitlines()
    assert all(len(line) <= max(columns, 54) or line.strip().startswith(long.name) for line in lines)
    assert {line.split("  ")[1] for line in lines if line[2] != " "} == {
        name if name == "features" else f"{name}={shown(o.default)}" for name, o in options.items()
    }
    starts = {len(line) - len(line[2:].split("  ", 1)[1].lstrip()) for line in lines if "  " in line[2:].strip()}
    assert len(starts) == 1  # one column of help
    at = lines.index(f"  {long.name}=0.25,0.25,0.25,0.25")
    assert lines[at + 1].strip() == "what it is."
    text = " ".join(describe(options).split())
    assert "features number of features D. (a whole number; required)" in text
    assert "constants=none" in text
    assert "(numbers separated by commas or none)" in text
    assert lines[-1] == "  plain=1"
