"""MADE as a density model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowkern import nn as fnn
from flowkern._checks import check_context, check_generator, check_tensor, chunks, sizes, whole_number
from flowkern.config import configured
from flowkern.model import Model
from flowkern.nn.checks import check_event
from flowkern.ops._context import outside
from flowkern.ops._network import optional_biases
from flowkern.ops._sweep import sweep
from flowkern.plan import AutoregressivePlan

HEADS = ("bernoulli", "categorical", "gaussian", "mixture", "logistics")


class MADE(Model):
    r"""p(x) = prod_d p(x_d | x_{<d}) with the conditionals of one masked network.

    With several mask sets, each ``log_prob`` in training uses the next set; in evaluation the densities of all sets are
    averaged (order- and connectivity-agnostic training). Samples come from the first set in training, in evaluation
    from a set drawn at random for each call.

    Args:
        features: number of features.
        head: ``"bernoulli"``, ``"categorical"``, ``"gaussian"``, ``"mixture"`` (of Gaussians), ``"logistics"`` (a mixture of
            them), or a :class:`flowkern.nn.Head`.
        categories: number of categories of the categorical head.
        components: number of components of a mixture.
        levels: number of values of a feature for the mixture of logistics, ``None`` for real numbers.
        hidden, context, activation, order, degrees, residual, skip, masks, generator: the network, see
            :class:`flowkern.nn.MADE`.

    Example:
        >>> import torch, flowkern as fk
        >>> model = fk.models.MADE(4, head="bernoulli", hidden=(16,))
        >>> model.log_prob(torch.ones(5, 4)).shape, model.sample((2,)).shape
        (torch.Size([5]), torch.Size([2, 4]))

    References:
        MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015).
    """

    @configured
    def __init__(
        self,
        features: int,
        head: str | fnn.Head = "gaussian",
        hidden: Sequence[int] = (512, 512),
        context: int = 0,
        activation: str = "relu",
        order: str | Sequence[int] | Tensor = "natural",
        *,
        categories: int = 2,
        components: int = 10,
        levels: int | None = None,
        degrees: str = "sequential",
        residual: bool = False,
        skip: bool = False,
        masks: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if head not in HEADS if isinstance(head, str) else not isinstance(head, fnn.Head):
            raise ValueError(f"head: expected one of {', '.join(HEADS)} or a Head, got {head!r}")
        categories, components = whole_number("categories", categories, 2), whole_number("components", components, 1)
        levels = None if levels is None else whole_number("levels", levels, 2)
        named: dict[str, Callable[[], fnn.Head]] = {
            "bernoulli": fnn.Bernoulli,
            "categorical": lambda: fnn.Categorical(categories),
            "gaussian": fnn.Gaussian,
            "mixture": lambda: fnn.MixtureOfGaussians(components),
            "logistics": lambda: fnn.MixtureOfLogistics(levels, components),
        }
        self.head: fnn.Head = named[head]() if isinstance(head, str) else head
        self.network = fnn.MADE(
            features, self.head.outputs, hidden, context, activation, order, degrees, residual, skip, masks, generator
        )
        self.features = self.network.features
        self.event_shape = torch.Size((self.features,))
        self.levels = self.head.levels
        self.next_mask = 0  # named as in the state dict, whose entries torch's sharded ones look up

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.network.masks > 1:  # a run that is continued goes on with the mask set whose turn it is
            destination[f"{prefix}next_mask"] = torch.tensor(self.next_mask)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        self.next_mask = int(state_dict.pop(f"{prefix}next_mask", 0))
        super()._load_from_state_dict(state_dict, prefix, *others)

    @property
    def conditional(self) -> bool:
        """Whether the model depends on a context."""
        return self.network.context > 0

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-probability (or log-density) in nats, with the batch's shape.

        x has the weights' dtype; levels that this does not hold are given in float32, as they are sampled.
        """
        check_tensor("x", x)
        check_event("x", x, self.event_shape)
        if not self.training and self.network.masks > 1:
            all_sets = [self._log_prob(x, context, i) for i in range(self.network.masks)]
            return torch.logsumexp(torch.stack(all_sets), 0) - math.log(len(all_sets))
        mask, self.next_mask = self.next_mask, (self.next_mask + 1) % self.network.masks
        return self._log_prob(x, context, mask)

    def _log_prob(self, x: Tensor, context: Tensor | None, mask: int) -> Tensor:
        parameters = self.network(self.head.seen(x, next(self.network.parameters()).dtype), context, mask)
        return self.head.log_prob(x.expand(parameters.shape[:-1]), parameters).sum(-1)

    @torch.no_grad()
    def sample(
        self,
        shape: Sequence[int] = (),
        context: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Samples (*shape, features), or (*shape, *context batch, features): one sweep over the levels.

        Args:
            shape: sample shape, as in torch.distributions.
            context: conditions (*batch, context features).
            generator: source of the random numbers.
            chunk_size: samples drawn at once, for each row of the context; bounds the memory of the intermediate results.
                Random numbers are drawn feature by feature, so another chunk size gives other samples.
        """
        size = sizes("shape", shape)
        check_generator(generator)
        mask = 0
        if not self.training and self.network.masks > 1:
            device = "cpu" if generator is None else generator.device
            mask = int(torch.randint(self.network.masks, (), generator=generator, device=device))
        arguments = self.network.arguments(mask)
        plan, weights, biases = arguments["plan"], arguments["weights"], arguments["biases"]
        check_context("network", context, plan.context, weights[0], "the weights")
        batch = torch.Size() if context is None else context.shape[:-1]
        addends: list[Tensor] = []
        if context is not None:
            weights, biases, addends = outside(plan, weights, biases, [], context)
            plan = plan.outside
        shapes = [torch.Size((rows, *batch)) for rows in chunks(size.numel(), chunk_size)]
        drawn = torch.cat([self._sample(plan, weights, biases, addends, part, generator) for part in shapes])
        return drawn.reshape(*size, *batch, self.features)

    def _sample(
        self,
        plan: AutoregressivePlan,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        addends: Sequence[Tensor],
        size: torch.Size,
        generator: torch.Generator | None,
    ) -> Tensor:
        drawn: list[Tensor] = []

        def solve(features: Tensor, parameters: Tensor) -> Tensor:
            drawn.append(self.head.sample(parameters, generator))
            return self.head.seen(drawn[-1], parameters.dtype).to(parameters.dtype)

        sweep(solve, weights, optional_biases(plan, biases), plan, addends, size)
        return torch.cat(drawn, -1)[..., torch.argsort(plan.feature_order)]
