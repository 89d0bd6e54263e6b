"""The processes that train together: torchrun's, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flowkern.nn import BatchNorm


@dataclass(frozen=True)
class Processes:
    """This process among those that work together."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes of a tensor that each of them has."""
        if self.count > 1:
            dist.all_reduce(values)
            values /= self.count
        return values

    def largest(self, *values: float) -> list[float]:
        """The largest over the processes of each of some numbers."""
        if self.count == 1:
            return list(values)
        both = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(both, dist.ReduceOp.MAX)
        return both.tolist()

    def barrier(self) -> None:
        """Waits for all."""
        if self.count > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """What each process has, at all of them."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found


@contextmanager
def processes(device: str | None = None) -> Iterator[Processes]:
    """Joins the processes that torchrun has started, or is this one alone; the device is a GPU where there is one."""
    cuda = torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"
    count = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    here = torch.device(device if device and ":" in device else f"cuda:{local}" if cuda else "cpu")
    if cuda:
        torch.cuda.set_device(here)
    if count == 1:
        yield Processes(device=here)
        return
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Processes(dist.get_rank(), count, here)
    finally:
        dist.destroy_process_group()


def synchronise_batch_norm(model: nn.Module, synchronised: bool) -> None:
    """Whether each batch-norm layer of a model takes the statistics of the whole batch, over all processes, in training."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.synchronised = synchronised
