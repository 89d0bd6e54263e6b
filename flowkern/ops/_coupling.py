"""A coupling as a step of a chain: what it is, its checks, and how it runs where no kernel takes it whole."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowkern import reference
from flowkern._checks import broadcast_batch, check_context, check_like
from flowkern._tensors import outside_modes
from flowkern.chain import Coupling, context_of, features_of
from flowkern.ops._context import outside
from flowkern.ops._network import optional_biases
from flowkern.ops._network_call import call_of, check_count
from flowkern.ops._network_checks import check_packed, check_parameters
from flowkern.ops.coupling import coupling
from flowkern.plan import AutoregressivePlan
from flowkern.reference.autoregressive import split_parameters
from flowkern.univariate import UnivariateMap


class CouplingStep(NamedTuple):
    """The univariate map of the features ``transformed``, whose parameters a network gives for the features ``passing``.

    Both together are all features. The arguments are those of :func:`autoregressive`, without addends. The plan is one whose
    network reads the context alone (see its ``features``): the chain's, then what passes. Its features are the transformed
    ones in their order here.
    """

    inverse: bool
    arguments: dict[str, Any]
    passing: tuple[int, ...]
    transformed: tuple[int, ...]


class CouplingCall:
    """The constants of a coupling, and how it runs where no chain does."""

    def __init__(self, step: Coupling) -> None:
        check_count(step.plan, step.map)
        self.step, self.plan = step, step.plan
        self.weights = len(step.plan.weight_shapes)
        self.parameters = self.weights + len(step.plan.bias_shapes)
        column = dict(zip(step.transformed, range(len(step.transformed)), strict=True))
        with outside_modes():
            self._columns = torch.tensor([column.get(f, -1) for f in range(features_of(step))], device="cpu")
            self._passing = torch.tensor(step.passing, dtype=torch.int64, device="cpu")
            self._transformed = torch.tensor(step.transformed, device="cpu")

    def in_plain_pytorch(self, x: Tensor, context: Tensor | None, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Differentiable as often as one likes."""
        return self._run(x, context, [t.to(x.dtype) for t in tensors], partial(reference.coupling, map=self.step.map.oracle))

    def by_operator(self, x: Tensor, context: Tensor | None, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """The network in PyTorch, and the operator for all that comes after it."""
        return self._run(x, context, tensors, partial(coupling, map=self.step.map))

    def _run(
        self, x: Tensor, context: Tensor | None, tensors: Sequence[Tensor], mapped: Callable[..., tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        plan, passes = self.plan, x.index_select(-1, self._passing.to(x.device))
        if context is not None and context_of(self.step):
            batch = broadcast_batch(x, [context], "context")
            passes = torch.cat([t.expand(*batch, t.shape[-1]) for t in (context, passes)], -1)
        weights, biases, addends = outside(plan, tensors[: self.weights], tensors[self.weights :], (), passes)
        found = reference.masked_mlp(
            passes[..., :0] if not plan.reads_features else x.index_select(-1, self._transformed.to(x.device)),
            weights,
            optional_biases(plan.outside, biases),
            plan.outside.masks_like(weights[0]),
            **plan.structure,
            **plan.outside.terms(addends),
        )
        parameters = split_parameters(found.to(x.dtype), plan.features, **plan.head)
        return mapped(x, *parameters, transformed=self._columns.to(x.device), inverse=self.step.inverse)


def coupling_call(step: CouplingStep) -> CouplingCall:
    """What is constant about a step, made at the first call and kept with its plan, as a network's."""
    get = step.arguments.get
    # A compiler may take the numbers of features for symbols, with which nothing can be made: an index is a number.
    passing, transformed = (tuple(map(operator.index, part)) for part in (step.passing, step.transformed))
    placed = get("scale", "exp"), get("placement", "standardize"), get("constants"), get("map")
    make = partial(_made, step.inverse, passing, transformed)
    return call_of(("coupling", step.inverse, passing, transformed), make, step.arguments["plan"], *placed)


def _made(
    inverse: bool, passing: tuple[int, ...], transformed: tuple[int, ...], plan: AutoregressivePlan, map: UnivariateMap
) -> CouplingCall:
    return CouplingCall(Coupling(inverse, plan, map, passing, transformed))


def check_coupling(x: Tensor, step: CouplingStep, context: Tensor | None) -> bool:
    """Raises for what does not fit, and says whether the network reads a context besides what passes."""
    a, plan, features = step.arguments, step.arguments["plan"], x.shape[-1]
    if sorted((*step.passing, *step.transformed)) != list(range(features)) or plan.features != len(step.transformed):
        raise ValueError(
            f"passing, transformed: expected each of {features} features once, {plan.features} of them transformed, "
            f"got {step.passing} and {step.transformed}"
        )
    if plan.context < len(step.passing) or plan.levels > 1:
        raise ValueError(f"plan: expected a network of the {len(step.passing)} features that pass alone, got {plan}")
    if plan.addend_widths or a.get("addends"):
        raise ValueError(f"addends: a coupling takes none, the plan {len(plan.addend_widths)}, got {len(a.get('addends', ()))}")
    check_parameters(a["weights"], a["biases"], plan)
    check_like("x", x, a["weights"][0], "weights[0]")
    own = plan.context - len(step.passing)
    if own or context is not None:
        check_context("network", context if own else None, own, a["weights"][0], "weights[0]")
    if a.get("packed") is not None:
        check_packed(a["packed"], plan, x)
    return own > 0
