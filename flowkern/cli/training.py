"""Maximum-likelihood training with early stopping, for the demo."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from flowkern.cli.data import Dataset
from flowkern.cli.errors import CommandError
from flowkern.flows import Flow

PATIENCE = 20  # epochs without a better validation score


@dataclass
class History:
    """Mean negative log-likelihood in nats, one entry per epoch."""

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best: int = -1
    interrupted: bool = False


def train(
    flow: Flow,
    data: Dataset,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    checkpoint: Path,
    generator: torch.Generator,
    report: Callable[[int, History], None],
) -> History:
    """Trains in place and leaves the parameters of the best epoch, which are also in ``checkpoint``.

    Ctrl-C ends the training like early stopping does. A loss that is not finite ends the run with an error; the
    checkpoint keeps the best epoch before it.
    """
    optimizer = torch.optim.Adam(flow.parameters(), lr=learning_rate, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    history = History()
    state = copy.deepcopy(flow.state_dict())
    validation = encode(data, data.validation, generator)
    try:
        for epoch in range(epochs):
            history.train.append(_epoch(flow, data, optimizer, batch_size, epoch, checkpoint, generator))
            schedule.step()
            with torch.no_grad():
                history.validation.append(-float(flow.log_prob(validation).mean()))
            if history.best < 0 or history.validation[-1] < history.validation[history.best]:
                history.best = epoch
                state = copy.deepcopy(flow.state_dict())
                save(state, checkpoint)
            report(epoch, history)
            if epoch - history.best >= PATIENCE:
                break
    except KeyboardInterrupt:
        history.interrupted = True
        del history.train[len(history.validation) :]
    flow.load_state_dict(state)
    return history


def _epoch(
    flow: Flow,
    data: Dataset,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    epoch: int,
    checkpoint: Path,
    generator: torch.Generator,
) -> float:
    total = 0.0
    rows = encode(data, data.train, generator)[torch.randperm(len(data.train), generator=generator)]
    batches = rows.split(batch_size)
    for i, batch in enumerate(batches):
        optimizer.zero_grad()
        loss = -flow.log_prob(batch).mean()
        if not torch.isfinite(loss):
            kept = f"; the best epoch before is in {checkpoint}" if checkpoint.exists() else ""
            where = f"step {epoch * len(batches) + i + 1} (epoch {epoch + 1}, batch {i + 1} of {len(batches)})"
            raise CommandError(f"the loss is {loss.item()} at {where}{kept}", status=1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimizer.step()
        total += float(loss.detach()) * len(batch)
    return total / len(rows)


def encode(data: Dataset, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Rows as the flow sees them: images with fresh dequantisation noise."""
    return rows if data.images is None else data.images.encode(rows, generator)


def save(state: dict, path: Path) -> None:
    """Writes a checkpoint so that an interrupted write leaves the one before."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)
