"""An inverse autoregressive flow as a VAE's posterior, in flowkern, Pyro and nflows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import flowkern as fk

LIBRARIES = ("Pyro", "nflows")


def posterior_loss(by: str, z: int, hidden: int, steps: int, context: Tensor) -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    """A flow of so many steps with two hidden layers, and a loss of a draw for each row of the context and its log-density."""
    width, rows = context.shape[1], len(context)
    model: Any
    if by == "flowkern":
        model = fk.flows.IAF(z, steps, (hidden, hidden), context=width)
        draw = lambda: model.rsample_and_log_prob((), context)  # noqa: E731
    elif by == "Pyro":
        dist = pytest.importorskip("pyro.distributions")
        from pyro.nn import ConditionalAutoRegressiveNN

        make = dist.transforms.ConditionalAffineAutoregressive
        model = torch.nn.ModuleList(make(ConditionalAutoRegressiveNN(z, width, [hidden, hidden])) for _ in range(steps))
        base = dist.Normal(torch.zeros(rows, z), torch.ones(rows, z)).to_event(1)

        def draw() -> tuple[Tensor, Tensor]:
            flow = dist.ConditionalTransformedDistribution(base, list(model)).condition(context)
            x = flow.rsample()
            return x, flow.log_prob(x)

    else:
        flows = pytest.importorskip("nflows.flows")
        from nflows import distributions, transforms

        make = transforms.MaskedAffineAutoregressiveTransform
        layers = [
            transforms.InverseTransform(make(z, hidden, context_features=width, num_blocks=2, use_residual_blocks=False))
            for _ in range(steps)
        ]
        model = flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([z]))

        def draw() -> tuple[Tensor, Tensor]:
            x, log_q = model.sample_and_log_prob(1, context)
            return x[:, 0], log_q[:, 0]

    def loss() -> Tensor:
        x, log_q = draw()
        return (log_q + x.square().sum(-1)).mean()

    return model, loss
