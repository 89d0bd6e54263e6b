"""What the parameters of one sample of audio mean: the conditionals of a WaveNet."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkern import ops
from flowkern._checks import one_of, whole_number
from flowkern.nn import MixtureOfLogistics

LOG_SCALE = -2.0  # of a new model: at 0 it is white noise as loud as can be, far below -2 its means, drawn at random, cost more
DENSITY_LOG_SCALE_MIN = -7.0  # of densities of real numbers
GAUSSIAN_LOG_STD_MIN = -9.0  # ClariNet's, of a teacher


class Output:
    """A conditional of a sample x from -1 to 1, given parameters p (..., outputs)."""

    inputs = 1  # classes that the network hears, 1 where it hears numbers
    outputs: int
    noise: int  # random numbers that a sample takes
    log_scales: slice  # among the parameters

    def heard(self, x: Tensor) -> Tensor:
        """What the network hears of x."""
        return x

    def audio(self, drawn: Tensor, dtype: torch.dtype) -> Tensor:
        """The audio of what :func:`flowkern.ops.wavenet_generate` draws."""
        return drawn.to(dtype)

    def log_prob(self, x: Tensor, p: Tensor) -> Tensor:
        """Log-probability, or log-density, of each sample."""
        raise NotImplementedError

    def random(self, u: Tensor) -> Tensor:
        """The operator's random numbers, of uniform ones (..., noise)."""
        return u

    def last_layer(self, weight: Tensor, bias: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """The last layer at a temperature, as the operator takes it."""
        raise NotImplementedError

    def options(self, temperature: float) -> dict[str, Any]:
        """The operator's."""
        raise NotImplementedError


class MuLaw(Output):
    """Classes by their logits: the levels of the mu-law, mu = categories - 1."""

    noise = 1
    log_scales = slice(0)

    def __init__(self, categories: int) -> None:
        self.categories = self.inputs = self.outputs = whole_number("categories", categories, 2)

    def heard(self, x: Tensor) -> Tensor:
        mu = self.categories - 1
        exact = x.to(torch.promote_types(x.dtype, torch.float32)).nan_to_num().clamp(-1, 1)
        compressed = exact.sign() * torch.log1p(mu * exact.abs()) / math.log1p(mu)
        return ((compressed + 1) * (mu / 2) + 0.5).long()

    def audio(self, drawn: Tensor, dtype: torch.dtype) -> Tensor:
        mu = self.categories - 1
        compressed = drawn.to(dtype) * (2 / mu) - 1
        return compressed.sign() * torch.expm1(compressed.abs() * math.log1p(mu)) / mu

    def log_prob(self, x: Tensor, p: Tensor) -> Tensor:
        found = -F.cross_entropy(p.flatten(0, -2), self.heard(x).flatten(), reduction="none").reshape(x.shape)
        return torch.where(x.isnan(), x.to(found.dtype), found)

    def last_layer(self, weight: Tensor, bias: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        return weight / temperature, bias / temperature

    def options(self, temperature: float) -> dict[str, Any]:
        return {"output": "categorical"}


class Logistics(Output):
    """A mixture of logistics: logits, means and log-scales, of the probability of a level or of the density."""

    def __init__(self, levels: int | None, components: int) -> None:
        head = MixtureOfLogistics(levels, components)
        self.levels, self.components, self.outputs = head.levels, head.components, head.outputs
        self.log_scale_min, self.noise = head.log_scale_min, head.components + 1
        self.log_scales = slice(2 * head.components, None)

    def log_prob(self, x: Tensor, p: Tensor) -> Tensor:
        if self.levels is None:
            return self.log_density(x, p)
        x = x.to(p.dtype).clamp(-1, 1)
        return ops.logistic_mixture(x, *_triple(p), levels=self.levels, log_scale_min=self.log_scale_min)

    def log_density(self, x: Tensor, p: Tensor) -> Tensor:
        """Of real numbers, which is what a student's samples are."""
        return ops.logistic_mixture(x.to(p.dtype), *_triple(p), log_scale_min=DENSITY_LOG_SCALE_MIN)

    def last_layer(self, weight: Tensor, bias: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        logits, means, log_scales = bias.chunk(3)
        cooler = torch.cat([weight[: self.components] / temperature, weight[self.components :]])
        return cooler, torch.cat([logits / temperature, means, log_scales + math.log(temperature)])

    def options(self, temperature: float) -> dict[str, Any]:
        least = self.log_scale_min + math.log(temperature)
        return {"output": "logistics", "levels": self.levels, "log_scale_min": least, "bound": 1.0}


class Gaussian(Output):
    """Mean and log-deviation."""

    outputs = 2
    noise = 2
    log_scales = slice(1, None)

    def log_prob(self, x: Tensor, p: Tensor) -> Tensor:
        mean, log_std = self.mean_and_log_std(p)
        return -0.5 * (((x - mean) * torch.exp(-log_std)).square() + math.log(2 * math.pi)) - log_std

    log_density = log_prob

    def mean_and_log_std(self, p: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = p.unbind(-1)
        return mean, log_std.clamp(min=GAUSSIAN_LOG_STD_MIN)

    def random(self, u: Tensor) -> Tensor:
        return torch.cat([u[..., :1], torch.special.ndtri(u[..., 1:])], -1)

    def last_layer(self, weight: Tensor, bias: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """With a first row of zeros: the logit of the only component of the operator's mixture."""
        cooler = torch.stack([torch.zeros_like(bias[0]), bias[0], bias[1] + math.log(temperature)])
        return torch.cat([torch.zeros_like(weight[:1]), weight]), cooler

    def options(self, temperature: float) -> dict[str, Any]:
        return {"output": "gaussians", "log_scale_min": GAUSSIAN_LOG_STD_MIN + math.log(temperature), "bound": 1.0}


def _triple(p: Tensor) -> tuple[Tensor, ...]:
    return p.unflatten(-1, (3, -1)).unbind(-2)


def output_named(name: str, categories: int, levels: int | None, components: int) -> MuLaw | Logistics | Gaussian:
    """The conditional of a name."""
    known: dict[str, MuLaw | Logistics | Gaussian] = {
        "categorical": MuLaw(categories),
        "logistics": Logistics(levels, components),
        "gaussian": Gaussian(),
    }
    one_of("output", name, known)
    return known[name]
