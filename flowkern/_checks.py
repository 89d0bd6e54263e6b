"""Checks of arguments: each message names the argument, what was expected and what came."""

from __future__ import annotations

import difflib
import math
import operator
import typing
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from flowkern.univariate import UnivariateMap

HALF = (torch.bfloat16, torch.float16)  # computed in float32
FLOATS = (torch.float32, torch.float64, *HALF)


def whole_number(name: str, value: Any, least: int) -> int:
    """A whole number of at least ``least``, NumPy's included."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or isinstance(value, bool):
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    return number


def number(
    name: str, value: Any, *, least: float | None = None, above: float | None = None, below: float | None = None
) -> float:
    """A finite number within bounds, NumPy's included."""
    try:
        found = math.nan if isinstance(value, (bool, str, bytes)) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        found = math.nan
    fits = (least is None or found >= least) and (above is None or found > above) and (below is None or found < below)
    if not (-math.inf < found < math.inf and fits):  # math.isfinite would break a graph in the making
        bounds = {"of at least": least, "above": above, "and below": below}
        wanted = "".join(f" {words} {bound:g}" for words, bound in bounds.items() if bound is not None)
        raise ValueError(f"{name}: expected a number{wanted}, got {value!r}")
    return found


def flag(name: str, value: Any) -> bool:
    """True or False, NumPy's included."""
    found = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(found, bool):
        raise ValueError(f"{name}: expected True or False, got {value!r}")
    return found


def floats(given: Any) -> tuple[float, ...]:
    """Numbers, or a TypeError or ValueError: also for names and truth values, which Python's float takes."""
    values = tuple(given)
    if any(isinstance(value, (bool, str)) for value in values):
        raise TypeError
    return tuple(map(float, values))


def interval(name: str, given: Any) -> tuple[float, float]:
    """Two finite ends in order."""
    try:
        lower, upper = floats(given)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected two numbers such as (-5, 5), got {given!r}") from None
    if not (math.isfinite(upper - lower) and lower < upper):
        raise ValueError(f"{name}: expected finite ends in order, got ({lower}, {upper})")
    return lower, upper


def one_of(name: str, value: Any, choices: Iterable[Any]) -> None:
    """One of some names."""
    if value not in (choices := tuple(choices)):
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def choices_of(annotated: Any) -> dict[str, tuple[Any, ...]]:
    """Of what is annotated as a Literal, a field or an argument, its values."""
    hints = typing.get_type_hints(annotated)
    return {name: typing.get_args(of) for name, of in hints.items() if typing.get_origin(of) is typing.Literal}


def chunks(rows: int, chunk_size: int | None) -> list[int]:
    """The sizes of parts of at most ``chunk_size`` rows, a part of none if there are none."""
    size = max(rows, 1) if chunk_size is None else whole_number("chunk_size", chunk_size, 1)
    return [min(size, rows - first) for first in range(0, rows, size)] or [0]


def meant(name: str, kind: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is none: what it may have been, or else all that there are, if they are few."""
    known = list(known)
    near = difflib.get_close_matches(name[:100], known)  # comparing takes long with a long one
    if near:
        return f"did you mean {' or '.join(near)}?"
    if len(known) > 40:
        return f"none of {len(known)} {kind} has a name like it"
    return f"there are the {kind} {', '.join(known)}" if known else "there are none"


def widths(name: str, given: Any) -> tuple[int, ...]:
    """The widths of some layers."""
    try:
        return tuple(whole_number(name, width, 1) for width in given)
    except TypeError:
        raise TypeError(f"{name}: expected a sequence of widths such as (64, 64), got {given!r}") from None
    except ValueError:
        raise ValueError(f"{name}: expected positive widths, got {tuple(given)}") from None


def sizes(name: str, given: Any) -> torch.Size:
    """A shape."""
    try:
        size = torch.Size(given)
        if any(isinstance(n, bool) for n in given):  # which torch takes for 0 and 1
            raise TypeError
    except TypeError:
        example = given if isinstance(given, int) else 3
        raise TypeError(f"{name}: expected a tuple of sizes such as ({example},), got {given!r}") from None
    if not torch.compiler.is_compiling() and any(n < 0 for n in size):  # a size may be unknown while a graph is made
        raise ValueError(f"{name}: expected sizes of at least 0, got {tuple(size)}")
    return size


def numbers(name: str, given: Any, device: str | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor, made of an array or a nested list where it is none."""
    try:
        return torch.as_tensor(given, device=device, dtype=dtype)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: expected a tensor or a list of numbers, got {given!r}") from None


def permutation(name: str, given: Any, features: int | None = None) -> Tensor:
    """A permutation of 0 to features - 1, on the CPU; ``None`` for any number of features."""
    order = numbers(name, given, "cpu")
    n = order.numel() if features is None else features
    if order.shape != (n,) or n == 0 or sorted(order.tolist()) != list(range(n)):
        last = "n - 1" if features is None else n - 1
        raise ValueError(f"{name}: expected a permutation of 0 to {last}, got {order.tolist()}")
    return order.long()


def check_generator(generator: Any) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator: expected a torch.Generator such as torch.Generator().manual_seed(0), got {type(generator).__name__}"
        )


def check_tensor(name: str, t: Any) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(t).__name__}")


def check_float(name: str, t: Tensor) -> None:
    if isinstance(t, Tensor) and t.dtype in FLOATS:
        return
    check_tensor(name, t)
    raise TypeError(f"{name}: expected a floating-point tensor, got dtype {t.dtype}")


def check_device(name: str, t: Tensor, other: Tensor, other_name: str = "x") -> None:
    if t.device != other.device:
        raise ValueError(f"{name}: expected device {other.device} like {other_name}, got {t.device}")


def check_like(name: str, t: Tensor, other: Tensor, other_name: str = "x", index: int | None = None) -> None:
    """Same device and dtype as another argument; ``index`` is the place of t in a list."""
    if t.dtype is other.dtype and t.device == other.device:
        return
    name = name if index is None else f"{name}[{index}]"
    check_device(name, t, other, other_name)
    raise TypeError(f"{name}: expected dtype {other.dtype} like {other_name}, got {t.dtype}")


def check_features(name: str, t: Tensor, features: int) -> None:
    if t.dim() == 0 or t.shape[-1] != features:
        raise ValueError(f"{name}: expected shape (..., {features}), got {tuple(t.shape)}")


def check_context(taker: str, context: Tensor | None, features: int, like: Tensor, like_name: str) -> None:
    """A context of so many features, none for zero; its dtype is free under autocast. ``taker``: a network, a layer."""
    if context is not None:
        check_tensor("context", context)
    if (context is None) is bool(features):  # the number may be a symbol, while a graph is made
        got = "None" if context is None else f"shape {tuple(context.shape)}"
        takes = f"{features} context features" if features else "no context"
        raise ValueError(f"context: this {taker} takes {takes}, got {got}")
    if context is not None:
        check_features("context", context, features)
        if not autocasts(context):
            check_like("context", context, like, like_name)


def autocasts(t: Tensor) -> bool:
    """Whether products on the device of a tensor take another dtype; the device of tensors without values knows none."""
    return not t.is_meta and torch.is_autocast_enabled(t.device.type)


def check_parameters(map: UnivariateMap, parameters: Sequence[Tensor | None]) -> None:
    """As many parameters as a univariate map takes; ``None`` stands for those that it does not take."""
    names = map.names
    for i, name in enumerate(names):
        if i >= len(parameters) or parameters[i] is None:
            raise ValueError(f"{name}: expected a tensor, since {map} takes {', '.join(names)}, got None")
    if any(p is not None for p in parameters[len(names) :]):
        raise ValueError(f"parameters: {map} takes {', '.join(names)}, got {len(parameters)} tensors")


def check_shapes(name: str, tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> None:
    if len(tensors) != len(shapes):
        raise ValueError(f"{name}: expected {len(shapes)} tensors, got {len(tensors)}")
    for i, (t, shape) in enumerate(zip(tensors, shapes, strict=True)):
        if t.shape != shape:
            raise ValueError(f"{name}[{i}]: expected shape {tuple(shape)}, got {tuple(t.shape)}")


def broadcast_batch(x: Tensor, others: Sequence[Tensor], name: str, event_dims: int = 1) -> torch.Size:
    """The common batch shape of x and of tensors whose last dimension may differ; ``event_dims`` are those of x."""
    batch = x.shape[: x.dim() - event_dims]
    # torch.broadcast_shapes takes longer than a small network; a graph in the making must not compare sizes.
    if not torch.compiler.is_compiling() and all(t.shape[:-1] == batch for t in others):
        return batch
    try:
        return torch.broadcast_shapes(batch, *(t.shape[:-1] for t in others))
    except RuntimeError:
        got = ", ".join(str(tuple(t.shape)) for t in others)
        raise ValueError(f"{name}: expected batch shapes that broadcast with {tuple(batch)}, got shapes {got}") from None
