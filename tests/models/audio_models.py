"""What the tests of the models of audio share: their conditions, and a source of random numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkern.models import ParallelWaveNet, WaveNet

CONDITIONS: dict[str, dict[str, Any]] = {
    "alone": {},
    "global": {"context": 2},
    "local": {"mels": 4, "upsample": (3, 2)},
    "both": {"context": 2, "mels": 4, "upsample": (5,)},
}
ROWS = 3


def given(model: WaveNet | ParallelWaveNet, time: int | None = None, rows: int = ROWS) -> dict[str, Tensor]:
    """Conditions for so many samples of the model, as many as its chunks have where nothing is said."""
    time = model.features if time is None else time
    found = {}
    if model.context:
        found["context"] = torch.randn(rows, model.context, dtype=torch.float64)
    if model.mels:
        found["local"] = torch.rand(rows, model.mels, -(-time // model.hop), dtype=torch.float64)
    return found


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
