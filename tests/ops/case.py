"""What a file in ``cases/`` says of its operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accuracy import stands_in
from calls import Example, evaluate
from torch import Tensor

from flowkern.operators import OPERATORS

Variation = Mapping[str, Any]


def unless_a_spline(variation: Variation) -> Sequence[torch.dtype]:
    """Both dtypes but for splines: in float64 their oracle is less exact than the kernels, which the rule does not foresee.

    There the rule has longer numbers for its judge, in tests/maps/test_splines.py.
    """
    return (torch.float32,) if "map" in variation else (torch.float32, torch.float64)


Bad = tuple[Callable[[dict[str, Any]], dict[str, Any]], type[Exception], str]


@dataclass(frozen=True)
class Case:
    """An operator as the contract takes it.

    Args:
        operator: the public function; its name is the operator's.
        outputs: what it returns, by name.
        draw: from a number of rows, a seed and a variation to a call. Without a variation it is the typical call.
        variations: each is held to the rule of accuracy, with gradients, on all kernels.
        smooth: small calls with derivatives of every order at what is drawn.
        any: draws a variation with hypothesis.
        bad: from the arguments of a good call to those that are replaced, the exception, what its message matches.
        oracle: in place of the operator under ``backend("reference")``.
        layouts: variations that are held to the rule with every layout of memory.
        compiled: variations that torch.compile and opcheck see; by default the first smooth one.
        low: variations for kernels that multiply in half precision, where a kink would jump; by default the smooth ones.
        large: a variation that occupies several threads.
        shows: the output that is not finite where the first tensor of a row is not, or ``None``.
        rounds_once: whether half precision rounds nothing but inputs and outputs on the CPU.
        oracle_compiles: whether torch.compile takes its oracle.
        dtypes: those in which a variation is held to the rule of accuracy.
        most_rows: that a call has; few where each row is a sequence.
        stand_in_rows: the same in Triton's interpreter, where each program takes milliseconds.
        leaves_out: kernels that another case of the same operator holds to the contract.
    """

    operator: Callable[..., Any]
    outputs: tuple[str, ...]
    draw: Callable[..., Example]
    variations: Mapping[str, Variation]
    smooth: Mapping[str, Variation]
    any: Callable[[Callable[..., Any]], Variation]
    bad: Mapping[str, Bad]
    oracle: Callable[..., Any] | None = None
    layouts: Mapping[str, Variation] = field(default_factory=lambda: {"typical": {}})
    compiled: Mapping[str, Variation] = field(default_factory=dict)
    low: Mapping[str, Variation] = field(default_factory=dict)
    large: Variation = field(default_factory=dict)
    shows: str | None = "log_det"
    rounds_once: bool = True
    oracle_compiles: bool = True
    dtypes: Callable[[Variation], Sequence[torch.dtype]] = lambda variation: (torch.float32, torch.float64)
    most_rows: int | None = None
    stand_in_rows: int | None = None
    leaves_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        first = dict([next(iter(self.smooth.items()))])
        object.__setattr__(self, "compiled", self.compiled or first)
        object.__setattr__(self, "low", self.low or self.smooth)

    @property
    def name(self) -> str:
        return self.operator.__name__

    @property
    def kernels(self) -> tuple[str, ...]:
        """What serves it, by the table of operators: "native" (the CPU's), "triton", "cuda" (native on a GPU)."""
        kinds = ("native" if kind == "cpu" else kind for kind in OPERATORS[self.name].kernels)
        return tuple(kind for kind in kinds if kind not in self.leaves_out)

    def rows(self, kernels: str, many: int) -> int:
        """So many rows, or as many of them as a call takes."""
        most = self.stand_in_rows if stands_in(kernels) else self.most_rows
        return many if most is None else min(many, most)

    def evaluate(self, example: Example, dtype: torch.dtype, backend: str, **options: Any) -> dict[str, Tensor]:
        """Outputs and gradients of a call, see :func:`calls.evaluate`."""
        operator = self.oracle if self.oracle is not None and backend == "reference" else self.operator
        return evaluate(operator, self.outputs, example, dtype, backend, **options)
