"""A chain of transforms, and how the CPU kernels read it: the plans and maps of all steps in one flat array of integers.

csrc/include/flowkern/chain_view.h reads that array; the two change together.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from flowkern._plan_encoding import bits
from flowkern._tensors import content, outside_modes
from flowkern.plan import AutoregressivePlan, MadeOnce
from flowkern.univariate import UnivariateMap

_VERSION = 3  # of the flat form
NORMALS = (None, "output", "input")
_known: dict[int, weakref.WeakSet[ChainPlan]] = {}
# What a GPU takes in one launch. Wider layers take longer than their launches do, and their cotangents, which a chain keeps
# for all steps until the gradients of all weights are summed, would double the memory of a training step. A kernel's arguments
# are 4 KB at most: 32 bytes for each linear map whose weights and biases are packed.
_WIDEST, _MOST_LINEARS = 255, 64


class Network(NamedTuple):
    """A transform of a masked network and a univariate map, or its inverse."""

    inverse: bool
    plan: AutoregressivePlan
    map: UnivariateMap


class Coupling(NamedTuple):
    """The same of the features ``transformed``, whose network reads the context and then the features ``passing``."""

    inverse: bool
    plan: AutoregressivePlan
    map: UnivariateMap
    passing: tuple[int, ...]
    transformed: tuple[int, ...]


class Permute(NamedTuple):
    """v_i = u_order[i]."""

    order: tuple[int, ...]


class Elementwise(NamedTuple):
    """v = u scale + shift, or its inverse (u - shift) / scale."""

    inverse: bool


class LULinear(NamedTuple):
    """v = L U u + bias with triangular L and U, or its inverse."""

    inverse: bool


Step = Network | Coupling | Permute | Elementwise | LULinear


class ChainPlan(MadeOnce):
    """What the kernels need to know of a chain, besides its weights.

    Args:
        steps: one after another; at least one is a network.
        normal: see :func:`flowkern.ops.autoregressive_chain`.
    """

    @outside_modes()
    def __init__(self, steps: Sequence[Step], normal: str | None = None) -> None:
        networks = [step for step in steps if isinstance(step, (Network, Coupling))]
        self.features, self.context = features_of(networks[0]), max(context_of(step) for step in networks)
        self.normal = normal
        self.joined: list[Network | Coupling | Elementwise | LULinear] = []  # the steps but for the permutations
        self.orders: list[Tensor] = []  # for each of them, where in the result of the one before each feature is
        self.tables: dict[object, object] = {}
        self.shapes: list[tuple[int, ...]] = []  # of the weights and biases, shifts and scales
        self.packed_size = self._rows = 0
        self._words: list[Tensor] = []
        self._length = 0
        self._places: dict[AutoregressivePlan, tuple[int, int]] = {}
        header = torch.zeros(11, dtype=torch.int64, device="cpu")
        self._put(header)
        order = torch.arange(self.features, device="cpu")
        records: list[int] = []
        for step in steps:
            if isinstance(step, Permute):
                order = order[torch.tensor(step.order, device="cpu")]
                continue
            self.joined.append(step)
            self.orders.append(order)
            records += self._vectors(step, order) if isinstance(step, (Elementwise, LULinear)) else self._network(step, order)
            order = torch.arange(self.features, device="cpu")
        self.count, self.final = len(self.joined), order
        work = self.packed_size  # of a row: a multiply-add for each of these numbers
        order_at, records_at = self._put(order), self._put(torch.tensor(records, device="cpu"))
        values = [_VERSION, self._length, self.count, self.features, self.context, NORMALS.index(normal)]
        values += [order_at, self.packed_size, self._rows, work, records_at]
        header.copy_(torch.tensor(values, device="cpu"))
        self.program = torch.cat(self._words)
        self.kept_rows = self.context + (self.count + 1) * self.features + self._rows
        self.key = int.from_bytes(hashlib.sha1(content(self.program), usedforsecurity=False).digest()[:7], "little")
        _known.setdefault(self.key, weakref.WeakSet()).add(self)

    @staticmethod
    def find(key: int) -> ChainPlan:
        """The chain with this key, or another that is the same to all kernels: an operator takes tensors and numbers only."""
        return next(iter(_known[key]))

    @cached_property
    def alike(self) -> bool:
        """Whether the kernels of a GPU, which are compiled for one kind of transform, take all steps in one launch.

        They do where all networks are narrow, go from data to noise, and differ in masks, widths and addends only. A flow's do.
        """
        if any(isinstance(s, (Coupling, LULinear)) for s in self.joined):
            return False
        networks = [s for s in self.joined if isinstance(s, Network)]
        kinds = {
            (s.inverse, s.map.key, p.parameters, p.activation, p.constant, p.skip, bool(p.gates), set(p.residuals) <= {None})
            for s, p in ((s, s.plan) for s in networks)
        }
        linears = sum(len(s.plan.masks) for s in networks) + 2 * (self.count - len(networks))
        narrow = all(s.plan.widest <= _WIDEST for s in networks)
        return len(kinds) == 1 and not networks[0].inverse and narrow and linears <= _MOST_LINEARS

    def _put(self, words: Tensor) -> int:
        self._words.append(words)
        at, self._length = self._length, self._length + len(words)
        return at

    def _network(self, step: Network | Coupling, order: Tensor) -> list[int]:
        plan = step.plan
        if features_of(step) != self.features:
            raise ValueError(f"steps: expected networks of {self.features} features, got one of {features_of(step)}")
        if plan not in self._places:
            padded = torch.zeros(-(-len(plan.mask_bytes) // 8) * 8, dtype=torch.uint8, device="cpu")
            padded[: len(plan.mask_bytes)] = plan.mask_bytes
            self._places[plan] = self._put(plan.meta), self._put(padded.view(torch.int64))
        plan_at, mask_at = self._places[plan]
        map_at = self._put(torch.tensor([bits(v) for v in step.map.numbers.tolist()], device="cpu"))
        if isinstance(step, Coupling):
            there = torch.tensor([*step.transformed, *step.passing], device="cpu")
            kind, order_at, passing = 4 + int(step.inverse), self._put(torch.cat([order[there], there])), len(step.passing)
        else:
            kind, order_at, passing = int(step.inverse), self._put(order[plan.feature_order]), 0
        record = [kind, order_at, plan_at, mask_at, map_at, self.packed_size, self._rows, passing]
        self.packed_size += plan.packed_size
        self._rows += plan.saved_rows
        self.shapes += [*plan.weight_shapes, *plan.bias_shapes]
        return record

    def _vectors(self, step: Elementwise | LULinear, order: Tensor) -> list[int]:
        kind = (2 if isinstance(step, Elementwise) else 6) + int(step.inverse)
        record = [kind, self._put(order), 0, 0, 0, self.packed_size, 0, 0]
        sizes = vector_sizes(step, self.features)
        self.packed_size += sum(sizes)
        self.shapes += [(n,) for n in sizes]
        return record


def vector_sizes(step: Elementwise | LULinear, features: int) -> list[int]:
    """Of the vectors of a step: shift and scale; or entries of L below its diagonal, of U above its own, this one, the bias."""
    triangle = features * (features - 1) // 2
    return [features] * 2 if isinstance(step, Elementwise) else [triangle, triangle, features, features]


def features_of(step: Network | Coupling) -> int:
    """Of the states before and after it."""
    return step.plan.features + (len(step.passing) if isinstance(step, Coupling) else 0)


def context_of(step: Network | Coupling) -> int:
    """What its network reads of the chain's context."""
    return step.plan.context - (len(step.passing) if isinstance(step, Coupling) else 0)
