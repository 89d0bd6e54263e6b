"""What commands tell of a trained model: its score in words, and pictures of its samples beside the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowkern.cli import pictures
from flowkern.cli.errors import CommandError
from flowkern.flows import Flow
from flowkern.models import VAE
from flowkern.training import Score

if TYPE_CHECKING:
    from flowkern.data import Dataset, Rows
    from flowkern.models import Encoded

SIDE = 8  # of a grid of images
SHOWN = 10_000  # rows of a table in a picture
HEARD = 3  # of audio
TEMPERATURES = 0.5, 0.7, 1.0


def verdict(score: Score, model: Encoded) -> str:
    """A score as a sentence that says in which units it is."""
    encoding = model.encoding
    text = f"log-likelihood of {score.rows:,} rows: {score.nats:.3f} +- {score.error:.3f} nats per row in the units of the data"
    if encoding.rate is not None:
        text += f", {-score.nats / model.event_shape.numel():.3f} nats or {score.bits_per_dimension:.3f} bits per sample"
    elif score.bits_per_dimension is not None:
        text += f", {score.bits_per_dimension:.3f} bits per dimension"
    return text if encoding.space == "data" else f"{text} ({score.model_nats:.3f} nats in {encoding.space} units)"


def distance(terms: dict[str, float]) -> str:
    """How far a student is from its teacher, by the terms of its loss, as a sentence."""
    others = ", ".join(f"{name.replace('_', '-')} {value:.4g}" for name, value in terms.items() if name not in ("loss", "kl"))
    return f"KL divergence from the teacher {terms['kl']:.4g} nats per sample, loss {terms['loss']:.4g} ({others})"


def check_finite(samples: Tensor, left: str) -> None:
    """Raises for samples that are not finite; ``left``: what there is all the same."""
    bad = int((~samples.isfinite()).flatten(1).any(1).sum())
    if bad:
        raise CommandError(f"{bad} of {len(samples)} samples are not finite; {left}", status=1)


def portraits(model: Encoded, dataset: Dataset, samples: Tensor, seed: int) -> dict[str, bytes]:
    """Pictures of samples beside the data by the names of their files, and of the density where there are two columns."""
    if dataset.rate is not None:
        rows = dataset.test[spread(dataset.test, len(samples))[:HEARD]]  # what samples are given is of these
        sounds = {"data": list(rows), "samples": list(samples[:HEARD])}
        return {"samples.png": pictures.recordings(sounds, dataset.rate)}
    if dataset.images:
        real = dataset.test[spread(dataset.test, len(samples))]
        grids = {"samples.png": {"real images": real, "samples": samples}}
        if isinstance(model.model, VAE):
            grids["latents.png"] = latents(model.cpu(), model.model, real)
        if isinstance(model.model, Flow) and not model.conditional:
            grids |= between_and_around(model, model.model, real, seed)
        return {name: pictures.image_grids(of, dataset.levels or 256) for name, of in grids.items()}
    columns = column_names(dataset)
    real = dataset.train[spread(dataset.train, SHOWN)]
    found = {"samples.png": pictures.corner(real, samples, columns)}
    if len(columns) == 2 and model.model.levels is None and not model.conditional:
        with torch.no_grad():
            found["density.png"] = pictures.density_map(model.cpu().log_prob, real, samples, columns)
    return found


@torch.no_grad()
def latents(model: Encoded, vae: VAE, images: Tensor) -> dict[str, Tensor]:
    """Grids of means of a VAE, in the units of the data, by their titles.

    Of images what is left of each; the way from each of some to another; and the first image where one dimension of z after
    another, those of most variance over the images, takes values from -3 to 3.
    """
    images = images[: SIDE * SIDE]
    noise = model.encoding.noise(len(images), torch.Generator().manual_seed(0))
    x = model.encoding.encode(images, noise).reshape(-1, *vae.event_shape)
    ends = torch.arange(SIDE) % len(x), (torch.arange(SIDE) + SIDE) % len(x)
    ways = vae.interpolate(x[ends[0]], x[ends[1]], SIDE).transpose(0, 1)
    dimensions = vae.encode(x).var(0, correction=0).argsort(descending=True)[:SIDE]
    values = torch.linspace(-3, 3, SIDE).tolist()
    traversals = torch.stack([vae.traverse(x[0], int(d), values) for d in dimensions])
    grids = {"images": x, "reconstructions": vae.reconstruct(x), "interpolations": ways, "traversals": traversals}
    return {title: model.encoding.decode(grid.reshape(-1, *model.event_shape)) for title, grid in grids.items()}


@torch.no_grad()
def between_and_around(model: Encoded, flow: Flow, images: Tensor, seed: int) -> dict[str, dict[str, Tensor]]:
    """Grids of images by their pictures and titles: a flow's samples at temperatures, and ways between real images."""
    z, _ = model.encode(images[spread(images, 2 * SIDE)])
    noise, _ = flow.transform(z)
    drawn = {}
    for t in TEMPERATURES:
        generator = torch.Generator(noise.device).manual_seed(seed)
        drawn[f"temperature {t:g}"] = flow.sample((SIDE**2,), generator=generator, temperature=t)
    first, last = (part.unsqueeze(1) for part in noise.tensor_split([min(SIDE, len(noise) // 2)]))
    step = torch.linspace(0, 1, SIDE, device=noise.device).reshape(1, -1, *(1 for _ in flow.noise_shape))
    ways = flow.transform.inverse(torch.lerp(first, last[: len(first)], step).flatten(0, 1))[0]
    grids = {"temperatures.png": drawn, "interpolations.png": {"from one real image to another": ways}}
    decode, event = model.encoding.decode, model.event_shape
    return {name: {title: decode(z.cpu().reshape(-1, *event)) for title, z in of.items()} for name, of in grids.items()}


@torch.no_grad()
def round_trip(model: Encoded, dataset: Dataset) -> dict[str, float]:
    """The largest difference between test rows, as a flow sees them, and what its inverse makes of their noise."""
    flow, rows = model.model, dataset.test
    if not isinstance(flow, Flow) or flow.conditional or dataset.rate is not None:
        return {}
    z, _ = model.encode(rows[torch.arange(min(len(rows), SHOWN // 10))])
    return {"round_trip_error": float((flow.transform.inverse(flow.transform(z)[0])[0] - z).abs().max())}


def spread(rows: Rows | Tensor, most: int) -> Tensor:
    """The numbers of some rows from the first to the last: those of a file may be sorted by class."""
    return torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()


def column_names(dataset: Dataset) -> list[str]:
    """Those of a table, or numbers where it has none."""
    return list(dataset.columns or [f"column {i + 1}" for i in range(dataset.event_shape.numel())])
