"""WaveNet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkern import nn as fnn
from flowkern import ops
from flowkern.config import configured
from flowkern.model import parts_of
from flowkern.models.audio import AudioModel, Given, Player
from flowkern.models.audio_outputs import LOG_SCALE, output_named
from flowkern.reference import WaveNetState


class WaveNet(AudioModel):
    r"""Audio sample by sample: p(x) = prod_t p(x_t | x_{<t}) with the conditionals of a stack of dilated convolutions.

    x is one channel from -1 to 1; values beyond count as these, but for densities of real numbers. With ``mels`` it is a
    vocoder: the density of audio given its spectrogram, which ``log_prob`` and ``loss`` take from x where none is given.

    Args:
        features: length of a training chunk, and of what ``sample`` draws; any length has a density.
        output: ``"categorical"`` (classes of the mu-law), ``"logistics"`` (a mixture of them) or ``"gaussian"``.
        categories: number of classes of the categorical output.
        levels: values of a sample of the mixture of logistics, such as 65536 for 16 bits, ``None`` for real numbers.
        components: of the mixture of logistics.
        layers: number of layers.
        cycle: layers after which the dilation, which doubles from layer to layer, begins at 1 again.
        residual: channels that a layer reads, and of its gates.
        skip: channels of the last layers.
        kernel: taps of a convolution.
        context: features of the global condition, such as a speaker's.
        mels: bands of the local condition, a log-mel spectrogram; 0 for none.
        upsample: factors by which its frames become samples; their product is the hop.
        rate: samples per second.

    Example:
        >>> import torch, flowkern as fk
        >>> model = fk.models.WaveNet(400, layers=6, cycle=3, residual=8, skip=8, rate=8000)
        >>> x = torch.sin(torch.arange(400) / 5).expand(2, 400)
        >>> terms = model.loss(x)
        >>> sorted(terms), model.receptive_field
        (['bits_per_sample', 'loss'], 15)
        >>> [chunk.shape[1] for chunk in model.stream(1000, chunk=400, prime=x[0])]
        [400, 400, 200]

    References:
        WaveNet: A Generative Model for Raw Audio (van den Oord et al., 2016); Parallel WaveNet (van den Oord et al., 2018),
        section 2.1, for the mixture of logistics; ClariNet (Ping et al., 2019), section 3.1, for the Gaussian.
    """

    @configured
    def __init__(
        self,
        features: int,
        output: str = "categorical",
        *,
        categories: int = 256,
        levels: int | None = 65536,
        components: int = 10,
        layers: int = 30,
        cycle: int = 10,
        residual: int = 64,
        skip: int = 128,
        kernel: int = 2,
        context: int = 0,
        mels: int = 0,
        upsample: Sequence[int] = (4, 4, 4, 4),
        rate: int = 16000,
    ) -> None:
        super().__init__(features, context, mels, upsample, rate)
        self.output = output_named(output, categories, levels, components)
        self.network = fnn.WaveNet(
            self.output.outputs, self.output.inputs, layers, cycle, residual, skip, kernel, self.context, self.mels
        )
        nn.init.constant_(self.network.last.bias[self.output.log_scales], LOG_SCALE)

    @property
    def receptive_field(self) -> int:
        """Samples before it that a sample depends on."""
        return self.network.receptive_field

    def loss(self, batch: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
        """The mean negative log-likelihood of a chunk in nats, and the bits per sample that this is."""
        terms = super().loss(batch)
        time = parts_of(batch)[0].shape[-1]
        return {**terms, "bits_per_sample": terms["loss"].detach() / (time * math.log(2))}

    def _log_prob(self, x: Tensor, given: Given) -> Tensor:
        return self.output.log_prob(x, self._parameters_of(x, given)).sum(-1)

    def _parameters_of(self, x: Tensor, given: Given) -> Tensor:
        """Parameters (rows, time, outputs) of each sample of x (rows, time), from those before it."""
        return self.network(self._heard(x), given.context, self._condition(given, 0, x.shape[-1], self._like.dtype))

    def _heard(self, x: Tensor) -> Tensor:
        """What the network hears before each sample: silence, then x but for the last."""
        return self.output.heard(torch.cat([x.new_zeros(len(x), 1), x[:, :-1]], 1))

    def _player(
        self, rows: int, given: Given, temperature: float, prime: Tensor | None, generator: torch.Generator | None
    ) -> Player:
        dtype, output = self._exact, self.output
        network = self.network.generating(dtype, given.context)
        weights, biases = network["weights"], network["biases"]
        weights[-1], biases[-1] = output.last_layer(weights[-1], biases[-1], temperature)
        options = output.options(temperature)
        past = self._like.new_zeros(rows, 0, dtype=dtype) if prime is None else prime
        state, done = self._state_after(past, given), past.shape[1]

        def play(n: int) -> Tensor:
            nonlocal state, done
            noise = output.random(self._uniform(rows, n, output.noise, generator))
            condition = self._condition(given, done, done + n, dtype)
            drawn, state = ops.wavenet_generate(noise, state, condition=condition, **network, **options)
            done += n
            return output.audio(drawn, dtype)

        return play

    def _state_after(self, past: Tensor, given: Given) -> WaveNetState:
        """Where to go on after audio (rows, n), of which the receptive field is read."""
        n = past.shape[1]
        start = max(0, n - self.receptive_field)
        heard = torch.cat([past.new_zeros(len(past), 1), past], 1)
        condition = self._condition(given, start, n, self._like.dtype)
        queues = self.network.queues(self.output.heard(heard[:, start:n]), given.context, condition)
        return WaveNetState(self.output.heard(heard[:, -1]), queues.to(self._exact))
