"""Conditionals of a MADE: what the parameters of one feature mean."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkern import ops
from flowkern._checks import flag, number, whole_number
from flowkern.config import configured

COLDEST = 1e-6  # of temperatures by which logits are divided: what is colder counts as this, the most probable value's


def randn(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard-normal numbers with the dtype and on the device of a tensor."""
    # Named only where there is one: with generator=None, torch.compile takes no size that changes.
    source: Any = {} if generator is None else {"generator": generator}
    return torch.randn(shape, dtype=like.dtype, device=like.device, **source)


def normal_terms(z: Tensor) -> Tensor:
    """log N(z; 0, 1) of each number."""
    return -0.5 * (z.square() + math.log(2 * math.pi))


def uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers between 0 and 1 that are neither, with the dtype and on the device of a tensor."""
    source: Any = {} if generator is None else {"generator": generator}
    drawn = torch.rand(shape, dtype=like.dtype, device=like.device, **source)
    return drawn.clamp_(min=2.0**-25)  # zero becomes half of float32's least; 1 is never drawn


def divisor(temperature: float) -> float:
    """What logits are divided by for a temperature of at least 0."""
    return max(number("temperature", temperature, least=0), COLDEST)


def holding(levels: int, dtype: torch.dtype) -> torch.dtype:
    """A dtype, or float32 where it does not hold every whole number below ``levels``.

    >>> holding(256, torch.bfloat16), holding(300, torch.bfloat16)
    (torch.bfloat16, torch.float32)
    """
    return dtype if levels - 1 <= 2 / torch.finfo(dtype).eps else torch.promote_types(dtype, torch.float32)


class Head(nn.Module):
    """The conditional density of each feature given its parameters.

    ``outputs`` is their number per feature. ``log_prob(x, p)`` and ``sample(p, generator)`` take p
    (..., features, outputs) and work feature by feature, as ``mean(p)`` does; ``encode`` maps x to the input of the network.
    """

    outputs: int
    levels: int | None = None  # number of values of a feature, where those are whole numbers from 0 on

    @configured
    def __init__(self) -> None:
        super().__init__()

    def encode(self, x: Tensor) -> Tensor:
        return x

    def seen(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """What a network of this dtype sees of x: levels are encoded in float32 at least, which keeps them apart.

        They may be given in the dtype that holds them all; what is of any other, the network refuses.
        """
        if self.levels is None or x.dtype not in (dtype, holding(self.levels, dtype)):
            return self.encode(x)
        return self.encode(x.to(torch.promote_types(x.dtype, torch.float32))).to(dtype)

    def log_prob(self, x: Tensor, p: Tensor) -> Tensor:
        raise NotImplementedError

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        raise NotImplementedError

    def mean(self, p: Tensor) -> Tensor:
        raise NotImplementedError


class Bernoulli(Head):
    """Binary features in {0, 1}, or probabilities in between; one logit each.

    References:
        MADE (Germain et al., 2015), equation 1.
    """

    outputs = 1
    levels = 2

    def log_prob(self, x: Tensor, p: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(p[..., 0], x, reduction="none")

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.bernoulli(torch.sigmoid(p[..., 0]), generator=generator)

    def mean(self, p: Tensor) -> Tensor:
        return torch.sigmoid(p[..., 0])


def impossible_elsewhere(x: Tensor, levels: int, log_prob: Tensor) -> Tensor:
    """Log-probabilities of whole numbers from 0 to levels - 1, where x is one; it has none elsewhere."""
    valid = (x == x.round()) & (x >= 0) & (x <= levels - 1)
    return torch.where(valid, log_prob, torch.where(x.isnan(), x, -math.inf))


class Categorical(Head):
    """Whole numbers 0 to categories - 1, stored as floats; one logit per category.

    The network sees them scaled to [-1, 1].
    """

    @configured
    def __init__(self, categories: int) -> None:
        super().__init__()
        self.outputs = self.categories = self.levels = whole_number("categories", categories, 2)

    def encode(self, x: Tensor) -> Tensor:
        return x * (2 / (self.categories - 1)) - 1

    def log_prob(self, x: Tensor, p: Tensor) -> Tensor:
        index = x.long().clamp(0, self.categories - 1).unsqueeze(-1)
        found = F.log_softmax(p, -1).expand(*x.shape, -1).gather(-1, index).squeeze(-1)
        return impossible_elsewhere(x, self.categories, found)

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        draws = torch.multinomial(F.softmax(p, -1).reshape(-1, self.categories), 1, generator=generator)
        return draws.reshape(p.shape[:-1]).to(holding(self.categories, p.dtype))

    def mean(self, p: Tensor) -> Tensor:
        return (F.softmax(p, -1) * torch.arange(self.categories, device=p.device)).sum(-1)


class Gaussian(Head):
    """Mean and log-deviation.

    References:
        Masked Autoregressive Flow (Papamakarios et al., 2017), equation 3.
    """

    outputs = 2

    def log_prob(self, x: Tensor, p: Tensor) -> Tensor:
        mean, log_std = p.unbind(-1)
        return -0.5 * (((x - mean) * torch.exp(-log_std)).square() + math.log(2 * math.pi)) - log_std

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, log_std = p.unbind(-1)
        return mean + log_std.exp() * randn(mean.shape, p, generator)

    def mean(self, p: Tensor) -> Tensor:
        return p[..., 0]


class IsotropicGaussian(Gaussian):
    """A mean for each feature, and one deviation for all of them.

    Args:
        std: the deviation, at first where it is learned.
        learned: whether it is a parameter of the model.

    Raises:
        ValueError: for a deviation that is not positive.

    Example:
        >>> import torch
        >>> IsotropicGaussian(std=2.0).log_prob(torch.zeros(3), torch.zeros(3, 1))
        tensor([-1.6121, -1.6121, -1.6121])

    References:
        Simple and Effective VAE Training with Calibrated Decoders (Rybkin et al., 2021), section 4.
    """

    outputs = 1
    log_std: Tensor

    @configured
    def __init__(self, std: float = 1.0, learned: bool = False) -> None:
        super().__init__()
        std, learned = number("std", std, above=0), flag("learned", learned)
        log_std = torch.full((1,), math.log(std))  # torch shards no parameter without dimensions
        if learned:
            self.log_std = nn.Parameter(log_std)
        else:
            self.register_buffer("log_std", log_std)

    def log_prob(self, x: Tensor, p: Tensor) -> Tensor:
        return super().log_prob(x, self._with_deviation(p))

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return super().sample(self._with_deviation(p), generator)

    def _with_deviation(self, p: Tensor) -> Tensor:
        return torch.cat([p, self.log_std.expand(p.shape)], -1)


class MixtureOfGaussians(Head):
    """Logits, means and log-deviations of the components, in this order.

    References:
        Masked Autoregressive Flow (Papamakarios et al., 2017), section 4.2 (MADE MoG, MAF MoG).
    """

    @configured
    def __init__(self, components: int = 10) -> None:
        super().__init__()
        self.components = whole_number("components", components, 1)
        self.outputs = 3 * self.components

    def log_prob(self, x: Tensor, p: Tensor) -> Tensor:
        return ops.gaussian_mixture(x.to(p.dtype), *p.unflatten(-1, (3, self.components)).unbind(-2))

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        logits, mean, log_std = p.unflatten(-1, (3, self.components)).unbind(-2)
        draws = torch.multinomial(F.softmax(logits, -1).reshape(-1, self.components), 1, generator=generator)
        index = draws.reshape(*mean.shape[:-1], 1)
        mean, log_std = mean.gather(-1, index).squeeze(-1), log_std.gather(-1, index).squeeze(-1)
        return mean + log_std.exp() * randn(mean.shape, p, generator)

    def mean(self, p: Tensor) -> Tensor:
        logits, mean, _ = p.unflatten(-1, (3, self.components)).unbind(-2)
        return (F.softmax(logits, -1) * mean).sum(-1)


class MixtureOfLogistics(Head):
    """Logits, means and log-scales of the components, in this order.

    With ``levels``, features are whole numbers 0 to levels - 1, stored as floats, each with the probability of its interval;
    the network sees them scaled to [-1, 1]. Scales are then at least e^-2 of half a level, where an interval around a mean
    has the probability 0.999 (a log-scale of -7.5 for 8 bits), and at least e^-7 for real numbers. Everything is computed in
    float32 at least.

    Args:
        levels: number of values of a feature, ``None`` for real numbers.
        components: of the mixture.

    Example:
        >>> head = MixtureOfLogistics(256, components=5)
        >>> parameters = torch.zeros(3, 4, head.outputs)
        >>> x = head.sample(parameters)
        >>> head.log_prob(x, parameters).shape
        torch.Size([3, 4])

    References:
        PixelCNN++ (Salimans et al., 2017), section 2.1; see :func:`flowkern.ops.logistic_mixture`.
    """

    @configured
    def __init__(self, levels: int | None = None, components: int = 10) -> None:
        super().__init__()
        self.levels = None if levels is None else whole_number("levels", levels, 2)
        self.components = whole_number("components", components, 1)
        self.outputs = 3 * self.components
        self.log_scale_min = -7.0 if self.levels is None else -math.log(self.levels - 1) - 2

    def encode(self, x: Tensor) -> Tensor:
        return x if self.levels is None else x * (2 / (self.levels - 1)) - 1

    def log_prob(self, x: Tensor, p: Tensor) -> Tensor:
        parameters = self._parameters_of(p)
        found = ops.logistic_mixture(self.encode(x.to(parameters[0].dtype)), *parameters, **self._options)
        found = found.to(torch.promote_types(x.dtype, p.dtype))
        return found if self.levels is None else impossible_elsewhere(x, self.levels, found)

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        logits, means, log_scales = self._parameters_of(p)
        u, choice = (uniform(shape, logits, generator) for shape in (logits.shape[:-1], logits.shape))
        x = ops.logistic_mixture_sample(u, choice, logits, means, log_scales, **self._options)
        return x.to(p.dtype) if self.levels is None else torch.round(self._decode(x)).to(holding(self.levels, p.dtype))

    def mean(self, p: Tensor) -> Tensor:
        """The mean of the densities: of whole numbers it lies within them, and neglects what the last intervals gain."""
        logits, means, _ = self._parameters_of(p)
        x = (F.softmax(logits, -1) * means).sum(-1)
        return (x if self.levels is None else self._decode(x.clamp(-1, 1))).to(p.dtype)

    def _decode(self, x: Tensor) -> Tensor:
        assert self.levels is not None
        return (x + 1) * ((self.levels - 1) / 2)

    def _parameters_of(self, p: Tensor) -> tuple[Tensor, ...]:
        exact = p.to(torch.promote_types(p.dtype, torch.float32))
        return exact.unflatten(-1, (3, self.components)).unbind(-2)

    @property
    def _options(self) -> dict[str, Any]:
        return {"levels": self.levels, "log_scale_min": self.log_scale_min}


class Logistic(MixtureOfLogistics):
    """Whole numbers 0 to levels - 1 by one logistic: its mean and log-scale; see :class:`MixtureOfLogistics`.

    Args:
        levels: number of values of a feature.

    Example:
        >>> head = Logistic(256)
        >>> round(head.log_prob(torch.arange(256.0), torch.zeros(256, 2)).exp().sum().item(), 4)
        1.0

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016), appendix D.
    """

    @configured
    def __init__(self, levels: int = 256) -> None:
        super().__init__(whole_number("levels", levels, 2), components=1)
        self.outputs = 2

    def _parameters_of(self, p: Tensor) -> tuple[Tensor, ...]:
        mean, log_scale = p.to(torch.promote_types(p.dtype, torch.float32)).unsqueeze(-2).unbind(-1)
        return torch.zeros_like(mean), mean, log_scale
