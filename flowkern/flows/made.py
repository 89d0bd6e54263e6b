"""MADE as a density model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flowkern import nn as fnn
from flowkern.flows.base import sample_size
from flowkern.ops._network import optional_biases
from flowkern.ops._sweep import sweep

HEADS = ("bernoulli", "categorical", "gaussian", "mixture")


class MADE(nn.Module):
    r"""p(x) = prod_d p(x_d | x_{<d}) with the conditionals of one masked network.

    With several mask sets, each ``log_prob`` in training uses the next set; in evaluation the densities of all sets are
    averaged (order- and connectivity-agnostic training). Samples come from the first set in training, in evaluation
    from a set drawn at random for each call.

    Args:
        features: number of features.
        head: ``"bernoulli"``, ``"categorical"``, ``"gaussian"``, ``"mixture"``, or a :class:`flowkern.nn.Head`.
        categories: number of categories of the categorical head.
        components: number of components of the mixture of Gaussians.
        hidden, context, activation, order, degrees, residual, skip, masks, generator: the network, see
            :class:`flowkern.nn.MADE`.

    Example:
        >>> import torch, flowkern as fk
        >>> model = fk.flows.MADE(4, head="bernoulli", hidden=(16,))
        >>> model.log_prob(torch.ones(5, 4)).shape, model.sample((2,)).shape
        (torch.Size([5]), torch.Size([2, 4]))

    References:
        MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015).
    """

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
        degrees: str = "sequential",
        residual: bool = False,
        skip: bool = False,
        masks: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if isinstance(head, str) and head not in HEADS:
            raise ValueError(f"head: expected one of {', '.join(HEADS)} or a Head, got {head!r}")
        named: dict[str, Callable[[], fnn.Head]] = {
            "bernoulli": fnn.Bernoulli,
            "categorical": lambda: fnn.Categorical(categories),
            "gaussian": fnn.Gaussian,
            "mixture": lambda: fnn.MixtureOfGaussians(components),
        }
        self.head: fnn.Head = named[head]() if isinstance(head, str) else head
        self.network = fnn.MADE(
            features, self.head.outputs, hidden, context, activation, order, degrees, residual, skip, masks, generator
        )
        self.features = features
        self._next = 0

    @property
    def conditional(self) -> bool:
        """Whether the model depends on a context."""
        return self.network.context > 0

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The log-probability, so that wrappers of modules (DistributedDataParallel, torch.compile) apply."""
        return self.log_prob(x, context)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-probability (or log-density) in nats, with the batch's shape."""
        if not self.training and self.network.masks > 1:
            all_sets = [self._log_prob(x, context, i) for i in range(self.network.masks)]
            return torch.logsumexp(torch.stack(all_sets), 0) - math.log(len(all_sets))
        mask, self._next = self._next, (self._next + 1) % self.network.masks
        return self._log_prob(x, context, mask)

    def _log_prob(self, x: Tensor, context: Tensor | None, mask: int) -> Tensor:
        parameters = self.network(self.head.encode(x), context, mask)
        return self.head.log_prob(x.expand(parameters.shape[:-1]), parameters).sum(-1)

    @torch.no_grad()
    def sample(
        self, shape: Sequence[int] = (), context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Samples (*shape, features), or (*shape, *context batch, features): one sweep over the levels."""
        mask = 0
        if not self.training and self.network.masks > 1:
            mask = int(torch.randint(self.network.masks, (), generator=generator))
        arguments = self.network.arguments(context, mask)
        batch = sample_size(shape) + (torch.Size() if context is None else context.shape[:-1])
        drawn: list[Tensor] = []

        def solve(features: Tensor, parameters: Tensor) -> Tensor:
            drawn.append(self.head.sample(parameters, generator))
            return self.head.encode(drawn[-1])

        plan = arguments["plan"]
        biases = optional_biases(plan, arguments["biases"])
        sweep(solve, arguments["weights"], biases, plan, arguments["addends"], batch)
        return torch.cat(drawn, -1)[..., torch.argsort(plan.feature_order)]
