"""Parallel WaveNet's student: audio in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowkern import nn as fnn
from flowkern._checks import check_generator, one_of, sizes, widths
from flowkern.config import configured
from flowkern.models.audio import AudioModel, Given, Player
from flowkern.nn.heads import normal_terms

CYCLE = 10
AUDIBLE = -3.0  # log-scale of a new model's samples, which without it would be as loud as the noise


class Noise(NamedTuple):
    """What a student's samples are made of, number by number."""

    quantile: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor], Tensor]
    entropy: float  # in nats


def _logistic(z: Tensor) -> Tensor:
    return F.logsigmoid(z) + F.logsigmoid(-z)


NOISES = {
    "logistic": Noise(torch.logit, _logistic, 2.0),
    "gaussian": Noise(torch.special.ndtri, normal_terms, 0.5 * math.log(2 * math.pi * math.e)),
}


class Synthesis(NamedTuple):
    """Audio made of noise z, and its conditionals given the noise before: x_t = z_t exp(log_scale_t) + mean_t."""

    x: Tensor
    mean: Tensor
    log_scale: Tensor


class ParallelWaveNet(AudioModel):
    r"""Audio made of noise in one pass through inverse autoregressive flows, whose conditioners are WaveNets.

    z_t is logistic or Gaussian noise; of each flow x^i_t = x^{i-1}_t s^i(x^{i-1}_{<t}) + mu^i(x^{i-1}_{<t}). In all
    x_t = z_t s_t + mu_t, with s_t and mu_t from the noise before t, so that p(x_t | z_{<t}) is known. Samples are made at once.
    ``log_prob`` of any other audio inverts the flows sample by sample: exact, with gradients, and very slow (each of T samples
    takes a pass over the receptive field); so is a ``prime`` of :meth:`stream`. Samples are not clamped to [-1, 1], as a stream
    is. Train by :class:`flowkern.models.Distillation`.

    Args:
        features: length of what ``sample`` draws; any length has a density.
        layers: of the conditioner of each flow; dilations begin at 1 again after every ten.
        residual: channels that a layer reads, and of its gates.
        skip: channels of the last layers.
        kernel: taps of a convolution.
        noise: ``"logistic"``, or ``"gaussian"``, as of ClariNet.
        context: features of the global condition, such as a speaker's.
        mels: bands of the local condition, a log-mel spectrogram; 0 for none.
        upsample: factors by which its frames become samples; their product is the hop.
        rate: samples per second.

    Example:
        >>> import torch, flowkern as fk
        >>> student = fk.models.ParallelWaveNet(50, layers=(2, 2), residual=8, skip=8)
        >>> made = student.synthesize(student.noise_of(3, 50))
        >>> log_prob = student.log_prob_of(made)
        >>> torch.allclose(student.log_prob(made.x), log_prob, rtol=1e-3)
        True

    References:
        Parallel WaveNet: Fast High-Fidelity Speech Synthesis (van den Oord et al., 2018), section 3; ClariNet (Ping et al.,
        2019), section 3.2.
    """

    chunk = 32768  # each begins with a receptive field that was passed before

    @configured
    def __init__(
        self,
        features: int,
        layers: Sequence[int] = (10, 10, 10, 30),
        residual: int = 64,
        skip: int = 64,
        kernel: int = 3,
        *,
        noise: str = "logistic",
        context: int = 0,
        mels: int = 0,
        upsample: Sequence[int] = (4, 4, 4, 4),
        rate: int = 16000,
    ) -> None:
        super().__init__(features, context, mels, upsample, rate)
        one_of("noise", noise, NOISES)
        self.noise = noise
        depths = widths("layers", layers)
        if not depths:
            raise ValueError("layers: expected those of at least one flow, got none")
        self.flows: Any = nn.ModuleList(
            fnn.WaveNet(2, 1, depth, CYCLE, residual, skip, kernel, self.context, self.mels) for depth in depths
        )
        flow: Any
        for flow in self.flows:
            nn.init.constant_(flow.last.bias[1:], AUDIBLE / len(depths))

    @property
    def law(self) -> Noise:
        """Of the noise."""
        return NOISES[self.noise]

    @property
    def receptive_field(self) -> int:
        """Numbers of the noise before it that a sample depends on."""
        return sum(flow.receptive_field for flow in self.flows)

    # -- one pass ---------------------------------------------------------------------------------------------------

    def noise_of(self, rows: int, time: int, generator: torch.Generator | None = None) -> Tensor:
        """Noise (rows, time), as :meth:`synthesize` takes it."""
        return self.law.quantile(self._uniform(rows, time, 1, generator)[..., 0])

    def synthesize(self, z: Tensor, context: Tensor | None = None, local: Tensor | None = None) -> Synthesis:
        """The audio of noise (..., time), with mean and log-scale of every sample given the noise before it; with gradients.

        Args:
            z: noise (..., time).
            context: global conditions (..., context features).
            local: spectrograms (..., mels, ceil(time / hop)), which a model with mels needs.
        """
        rows, given, batch = self._rows("z", z, context, local)
        pasts = [rows.new_zeros(len(rows), 1) for _ in self.flows]
        made, _ = self._advance(rows, pasts, given, 0)
        return Synthesis(*(t.reshape(*batch, t.shape[-1]) for t in made))

    def log_prob_of(self, made: Synthesis) -> Tensor:
        """Log-density in nats of what :meth:`synthesize` made, with the batch's shape: no further pass."""
        z = (made.x - made.mean) * torch.exp(-made.log_scale)
        return (self.law.log_prob(z) - made.log_scale).sum(-1)

    def entropy_of(self, made: Synthesis) -> Tensor:
        """Entropy in nats of each sample given the noise before it (..., time); its mean over the noise is the model's."""
        return made.log_scale + self.law.entropy

    def rsample_and_log_prob(
        self,
        shape: Sequence[int] = (),
        context: Tensor | None = None,
        local: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples with gradients, and their log-densities, from one pass."""
        check_generator(generator)
        batch = sizes("shape", shape) + self._check_conditions(context, local, self.features, exactly=True)
        z = self.noise_of(batch.numel(), self.features, generator).reshape(*batch, self.features)
        made = self.synthesize(z, context, local)
        return made.x, self.log_prob_of(made)

    def _advance(self, z: Tensor, pasts: list[Tensor], given: Given, start: int) -> tuple[Synthesis, list[Tensor]]:
        """Audio of noise (rows, n) from the sample ``start`` on, and the pasts of what comes after it.

        ``pasts``: what each flow heard before, silence and its input, of which no more than its receptive field is kept.
        """
        n, kept = z.shape[1], []
        condition = self._condition(given, start + 1 - max(p.shape[1] for p in pasts), start + n, self._like.dtype)
        x, mean, log_scale = z, torch.zeros_like(z), torch.zeros_like(z)
        for flow, past in zip(self.flows, pasts, strict=True):
            heard = torch.cat([past, x], 1)
            kept.append(heard[:, -flow.receptive_field :])
            here = None if condition is None else condition[..., 1 - heard.shape[1] :]
            shift, log_s = flow(heard[:, :-1], given.context, here)[:, -n:].unbind(-1)
            scale = torch.exp(log_s)
            x, mean, log_scale = x * scale + shift, mean * scale + shift, log_scale + log_s
        return Synthesis(x, mean, log_scale), kept

    def _player(
        self, rows: int, given: Given, temperature: float, prime: Tensor | None, generator: torch.Generator | None
    ) -> Player:
        silence = self._like.new_zeros(rows, 1, dtype=self._exact)
        past = silence[:, :0] if prime is None else prime
        done, inputs = past.shape[1], self._inverted(past, given)[-1]
        fields = [flow.receptive_field for flow in self.flows]
        pasts = [torch.cat([silence, x], 1)[:, -field:] for x, field in zip(inputs, fields, strict=True)]

        def play(n: int) -> Tensor:
            nonlocal pasts, done
            made, pasts = self._advance(temperature * self.noise_of(rows, n, generator), pasts, given, done)
            done += n
            return made.x

        return play

    # -- any audio --------------------------------------------------------------------------------------------------

    def _log_prob(self, x: Tensor, given: Given) -> Tensor:
        z, log_scale, _ = self._inverted(x, given)
        return (self.law.log_prob(z) - log_scale).sum(-1)

    def _inverted(self, x: Tensor, given: Given) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The noise of audio (rows, time), the log-scales that it had in all, and the input of each flow."""
        condition = self._condition(given, 0, x.shape[1], self._like.dtype)
        log_scale = torch.zeros_like(x)
        inputs: list[Tensor] = []
        for flow in reversed(self.flows):
            x, log_s = _inverse(flow, x, given.context, condition)
            log_scale = log_scale + log_s
            inputs.insert(0, x)
        return x, log_scale, inputs


def _inverse(flow: fnn.WaveNet, y: Tensor, context: Tensor | None, condition: Tensor | None) -> tuple[Tensor, Tensor]:
    """The input x of a flow that made y (rows, time), sample by sample, and its log-scales."""
    heard, log_scales = y.new_zeros(len(y), 1), []
    for t in range(y.shape[1]):
        first = max(0, t + 1 - flow.receptive_field)
        here = None if condition is None else condition[..., first : t + 1]
        shift, log_s = flow(heard[:, first:], context, here)[:, -1].unbind(-1)
        heard = torch.cat([heard, ((y[:, t] - shift) * torch.exp(-log_s))[:, None]], 1)
        log_scales.append(log_s)
    return heard[:, 1:], torch.stack(log_scales, 1) if log_scales else y
