"""A small saved model, all of whose bits can be compared."""

from __future__ import annotations

from typing import Any

import torch

from flowkern import nn as fnn
from flowkern.flows import MAF
from flowkern.models import Model
from flowkern.univariate import Affine

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def flow(seed: int) -> MAF:
    torch.manual_seed(seed)
    return MAF(3, 1, (4,), standardize=fnn.Standardize(torch.randn(3), torch.ones(3)), map=Affine("exp")).eval()


def bits(model: Model) -> Any:
    """All that the model is."""
    parts = [(type(m), {k: v for k, v in m.config.items() if isinstance(v, (int, float, str))}) for m in model.modules()
             if hasattr(m, "config")]  # fmt: skip
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    return parts, model.log_prob(x).tolist(), {name: t.tolist() for name, t in model.state_dict().items()}
