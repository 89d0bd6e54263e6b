"""Training steps of a VAE: what an inverse autoregressive posterior costs beside a diagonal one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import measure

import flowkern as fk


@pytest.mark.parametrize("implementation", ["iaf", "diag"])
@pytest.mark.parametrize("network", ["mlp", "resnet"])
def test_training_step(benchmark: Any, network: Any, implementation: Any) -> None:
    """Binary images of 28 x 28, z = 32, networks of 512x2 or three stages of convolutions, four steps of width 320."""
    torch.manual_seed(0)
    model = fk.models.VAE((1, 28, 28), 32, implementation, network=network, hidden=(512, 512), transforms=4)
    x = torch.bernoulli(torch.full((128, 1, 28, 28), 0.2))
    adam = torch.optim.Adam(model.parameters(), fused=True)

    def step() -> None:
        adam.zero_grad()
        model.loss(x)["loss"].backward()
        adam.step()

    measure(benchmark, step, f"VAE training step, {network}, 28 x 28, z=32, IAF of 4 steps or diagonal, B=128", implementation)
