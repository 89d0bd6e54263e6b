"""What a univariate map is to operators and kernels."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from flowkern._tensors import outside_modes

OPTIONS = CONSTANTS = 8  # at most; csrc/include/flowkern/univariate.h has room for so many


class Reads(NamedTuple):
    """What the gradients of a map depend on: its output in place of its input, and which of its parameters."""

    output: bool
    parameters: tuple[int, ...]


class UnivariateMap:
    """A monotone map u -> v of single numbers, with parameters for every feature.

    A value: it cannot be changed, is hashable, and equal to every map of its family with the same fields. A family of maps is a
    subclass under ``@dataclass(unsafe_hash=True)``, whose fields say in words what ``options`` and ``constants`` say in
    numbers. It gives its oracle; its kernels, where there are any, are in files with its name:
    ``csrc/include/flowkern/maps/<family>.h`` and ``kernels/maps/<family>.py``.

    Attributes:
        family: the name of its files.
        kind: its number in the C++ kernels.
        names: what errors call the parameters of a feature.
        options: whole numbers that kernels branch on.
        constants: numbers that they compute with.
        count: parameters of a feature.
        key: the map as a string, which torch.compile takes for a constant.
        numbers: the map as the CPU kernels take it: kind, count, options and constants, one vector of doubles on the CPU.
        gpu_obstacle: why a GPU's kernels cannot serve this map, or ``None`` if they can.
    """

    family: ClassVar[str]
    kind: ClassVar[int]
    # A family gives the first three, in any way; the others follow from them.
    names: tuple[str, ...]
    options: tuple[int, ...]
    constants: tuple[float, ...]
    count: int
    key: str
    numbers: Tensor
    gpu_obstacle: str | None = None

    def __post_init__(self) -> None:
        """Made at once, since a call that is traced cannot; a family that checks its fields calls this at the end."""
        options, constants = self.options, self.constants
        self.count = len(self.names)
        self.key = f"{self.family}{options}{constants}"
        if len(options) > OPTIONS or len(constants) > CONSTANTS:
            raise ValueError(f"{type(self).__name__}: at most {OPTIONS} options and {CONSTANTS} constants fit, got {self.key}")
        words: list[float] = [self.kind, self.count, *options, *[0] * (OPTIONS - len(options)), *constants]
        words += [0] * (CONSTANTS - len(constants))
        with outside_modes():
            self.numbers = torch.tensor(words, dtype=torch.float64, device="cpu")

    def __setattr__(self, name: str, value: Any) -> None:
        """Frozen from then on. Not by the dataclass: of a frozen one torch.compile sees the fields only."""
        if "numbers" in self.__dict__:
            raise AttributeError(f"{name}: {type(self).__name__} is a value, it cannot be changed; make another")
        super().__setattr__(name, value)

    def oracle(self, u: Tensor, *parameters: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """v and log|dv/du|, or for the inverse u and log|du/dv|, element by element, in plain PyTorch, differentiable twice.

        Where the input is not finite, the second is NaN.
        """
        raise NotImplementedError

    def reads(self, inverse: bool) -> Reads:
        """What the kernels of the gradient read; a family that needs less may say so, and less is kept."""
        return Reads(False, tuple(range(self.count)))

    @property
    def words(self) -> tuple[str, tuple[int, ...], tuple[float, ...]]:
        """The map as the kernels of a GPU take it."""
        return self.family, self.options, self.constants

    @property
    def config(self) -> dict[str, Any]:
        """What builds the map again, as JSON has it."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]  # a family is a dataclass
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}

    def __deepcopy__(self, memo: dict) -> UnivariateMap:
        return self  # immutable


def check_map(map: Any) -> UnivariateMap:
    """The map itself, if it is one."""
    if not isinstance(map, UnivariateMap):
        raise TypeError(f"map: expected a flowkern.univariate.UnivariateMap, got {type(map).__name__}")
    return map
