"""What a trained model is worth on rows, and samples of it; both shared by the processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowkern.data import Rows, bits_per_dimension, conditioned
from flowkern.model import Model
from flowkern.models.encoded import Encoded
from flowkern.training.batches import Batches, Encoder, seeded
from flowkern.training.distributed import Processes

CHUNK = 1000  # samples that a seed belongs to
ROWS = 1000  # evaluated at once, by all processes together: the noise of a row follows from its place in such batches
AUDIO = 2**17  # numbers of audio, of which each has many inside of a network
IMAGES = 2**14  # numbers of images at once on a CPU, likewise: what is much larger comes as fresh pages in every operation


@dataclass(frozen=True)
class Score:
    """Mean log-likelihood of rows.

    Attributes:
        rows: their number.
        nats: the mean per row, in the units of the data; of dequantised images a lower bound.
        error: the standard error of that mean.
        model_nats: the mean in the units of the model, in which papers state images.
        bits_per_dimension: of whole numbers, and of audio for each sample, else None.
    """

    rows: int
    nats: float
    error: float
    model_nats: float
    bits_per_dimension: float | None


@torch.no_grad()
def evaluate(
    model: Encoded, rows: Rows, processes: Processes, seed: int = 0, density: str = "log_prob"
) -> tuple[Score, Tensor]:
    """How probable rows are under a model: the score of all, and the log-density (n,) of each in nats, float64.

    The noise of an encoding comes from the seed: any number of processes finds the same. ``density`` is the model's method
    that gives it, such as ``elbo`` of a VAE.
    """
    score_of: Callable[..., Tensor] = getattr(model.model, density)
    _place(model, processes)
    size = model.event_shape.numel()
    at_once = ROWS if model.encoding.rate is None else max(1, AUDIO // size)
    batches = Batches(
        conditioned(rows, model.context_encoding), model.encoding, at_once, model.model.event_shape, seed, processes
    )
    whole = processes.device.type != "cpu" or len(model.model.event_shape) < 3 or model.model.draws_noise
    part = at_once if whole else max(1, IMAGES // size)
    own: list[Tensor] = []
    for batch in batches.in_order():
        log_det = model.encoding.log_det(batch.parts[0].cpu().reshape(-1, *model.event_shape))
        nats = torch.cat([score_of(*parts) for parts in zip(*(t.split(part) for t in batch.parts), strict=True)])
        both = torch.stack([nats.double().cpu() + log_det, log_det])
        own.append(both if batch.weight else both[:, :0])
    nats, log_det = torch.cat([part for of_batch in zip(*processes.gather(own), strict=True) for part in of_batch], 1)
    mean, n = float(nats.mean()), len(nats)
    error = float(nats.std()) / math.sqrt(n) if n > 1 else math.inf
    counted = model.encoding.data_levels is not None or model.encoding.rate is not None
    bits = bits_per_dimension(mean, size) if counted else None
    return Score(n, mean, error, float((nats - log_det).mean()), bits), nats


@torch.no_grad()
def mean_terms(model: Model, rows: Rows, encoding: Encoder | None, processes: Processes, seed: int = 0) -> dict[str, float]:
    """The terms of a model's loss, see :meth:`flowkern.model.Model.loss`, each the mean over rows."""
    model.eval().to(processes.device)
    at_once = max(1, AUDIO // model.event_shape.numel())
    total: dict[str, Tensor] = {}
    for batch in Batches(rows, encoding, at_once, model.event_shape, seed, processes).in_order():
        for name, term in model.loss(batch.parts).items():
            total[name] = total.get(name, torch.zeros(())) + term.double().cpu() * (batch.weight * batch.rows)
    parts = processes.gather({name: float(t) for name, t in total.items()})
    return {name: sum(part[name] for part in parts) / (len(rows) * len(parts)) for name in total}


@torch.no_grad()
def sample(
    model: Encoded,
    n: int,
    processes: Processes,
    seed: int = 0,
    context: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """n samples (n, *event_shape) in the data's units, on the CPU; the same for any number of processes.

    Where a context (n, ...) is given, each belongs to a row of it. A temperature other than 1 is for models whose ``sample``
    takes one.
    """
    _place(model, processes)
    starts = range(0, n, CHUNK)
    options: dict[str, Any] = {} if temperature == 1 else {"temperature": temperature}
    own = {}
    for i in range(processes.rank, len(starts), processes.count):
        generator = torch.Generator(processes.device).manual_seed(seeded(seed, i).initial_seed())
        count = min(CHUNK, n - starts[i])
        given = None if context is None else model.encode_context(context[starts[i] :][:count])
        z = model.model.sample((count,) if given is None else (), given, generator=generator, **options).cpu()
        own[i] = model.encoding.decode(z.reshape(-1, *model.event_shape))
    all_chunks = {i: chunk for part in processes.gather(own) for i, chunk in part.items()}
    return torch.cat([all_chunks[i] for i in range(len(starts))])


def _place(model: Encoded, processes: Processes) -> None:
    """The model on the process's device, its encodings where the rows are."""
    model.eval().to(processes.device)
    for encoding in (model.encoding, model.context_encoding):
        if encoding is not None:
            encoding.cpu()
