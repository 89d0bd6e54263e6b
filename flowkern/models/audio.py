"""What the models of audio share: their conditions, and samples of any length, whole or as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from flowkern import nn as fnn
from flowkern._checks import (
    autocasts,
    check_context,
    check_device,
    check_float,
    check_generator,
    check_like,
    sizes,
    whole_number,
)
from flowkern.model import Model
from flowkern.nn.heads import divisor, uniform
from flowkern.nn.spectra import log_mel_spectrogram
from flowkern.nn.wavenet import upsampling

Player = Callable[[int], Tensor]


class Given(NamedTuple):
    """The conditions of some rows: global (rows, context features) and local (rows, mels, frames)."""

    context: Tensor | None
    local: Tensor | None


class AudioModel(Model):
    """A density of audio x (..., time), one channel from -1 to 1, with a global and a local condition.

    A subclass gives ``_log_prob`` of rows and ``_player`` of new samples.

    Args:
        features: length of a training chunk, and of what ``sample`` draws.
        context: features of the global condition, such as a speaker's.
        mels: bands of the local condition, a spectrogram; 0 for none.
        upsample: factors by which its frames become samples; their product is the hop.
        rate: samples per second.
    """

    settings: ClassVar[Mapping[str, Any]] = {"batch_size": 8}  # rows of thousands of samples
    takes_float32 = True  # bfloat16 has 8 bits
    chunk = 4096  # samples that are made at once

    def __init__(self, features: int, context: int, mels: int, upsample: Sequence[int], rate: int) -> None:
        super().__init__()
        self.features, self.context = whole_number("features", features, 1), whole_number("context", context, 0)
        self.mels, self.rate = whole_number("mels", mels, 0), whole_number("rate", rate, 1)
        self.event_shape = torch.Size((self.features,))
        upsample = upsampling("upsample", upsample)
        self.upsample = fnn.Upsample(self.mels, upsample) if self.mels else None

    @property
    def conditional(self) -> bool:
        """Whether the density depends on a context."""
        return self.context > 0

    # -- conditions -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def log_mel(self, x: Tensor) -> Tensor:
        """The local condition (..., mels, ceil(time / hop)) of audio (..., time).

        See :func:`flowkern.nn.spectra.log_mel_spectrogram`; it has no gradient.
        """
        _check_audio("x", x)
        return log_mel_spectrogram(x, self.mels, self.rate, self.hop)

    @property
    def hop(self) -> int:
        """Samples of a frame of the local condition."""
        return self._upsampling.hop

    @property
    def _upsampling(self) -> fnn.Upsample:
        if self.upsample is None:
            raise ValueError("local: this model has no local condition; it was built with mels=0")
        return self.upsample

    def _check_conditions(self, context: Tensor | None, local: Tensor | None, time: int, exactly: bool) -> torch.Size:
        """The batch shape that the conditions of so many samples have."""
        check_context("model", context, self.context, self._like, "the parameters")
        if (local is None) != (self.mels == 0):
            got = "None" if local is None else f"shape {tuple(local.shape)}"
            raise ValueError(f"local: this model takes {f'{self.mels} mel bands' if self.mels else 'none'}, got {got}")
        shapes = [] if context is None else [context.shape[:-1]]
        if local is not None:
            check_float("local", local)
            frames = -(-time // self.hop)
            fits = local.dim() > 1 and (local.shape[-1] == frames if exactly else local.shape[-1] >= frames)
            if not fits or local.shape[-2] != self.mels:
                least = "" if exactly else "at least "
                raise ValueError(
                    f"local: expected shape (..., {self.mels}, {least}{frames}) for {time} samples, got {tuple(local.shape)}"
                )
            shapes.append(local.shape[:-2])
        return _broadcast("context and local", *shapes)

    def _given(self, context: Tensor | None, local: Tensor | None, batch: torch.Size) -> Given:
        """Conditions of every row of a batch of any shape."""
        rows, like = batch.numel(), self._like
        if context is not None:
            context = context.expand(*batch, self.context).reshape(rows, self.context).to(like.dtype)
        if local is not None:
            local = local.expand(*batch, *local.shape[-2:]).reshape(rows, *local.shape[-2:]).to(like)
        return Given(context, local)

    def _condition(self, given: Given, start: int, stop: int, dtype: torch.dtype) -> Tensor | None:
        """The local condition (rows, mels, stop - start) of samples."""
        return None if given.local is None else self._upsampling.between(given.local, start, stop).to(dtype)

    @property
    def _like(self) -> Tensor:
        return next(self.parameters())

    @property
    def _exact(self) -> torch.dtype:
        """In which samples are computed."""
        return torch.promote_types(self._like.dtype, torch.float32)

    # -- densities --------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, context: Tensor | None = None, local: Tensor | None = None) -> Tensor:
        """Log-probability (or log-density) in nats, with the batch's shape.

        Args:
            x: audio (..., time), of any length.
            context: global conditions (..., context features).
            local: spectrograms (..., mels, ceil(time / hop)); where the model has mels and none are given, those of x.
        """
        if self.mels and local is None:
            local = self.log_mel(x)
        rows, given, batch = self._rows("x", x, context, local)
        return self._log_prob(rows, given).reshape(batch)

    def _log_prob(self, x: Tensor, given: Given) -> Tensor:
        """Of rows (rows, time)."""
        raise NotImplementedError

    def _rows(self, name: str, x: Tensor, context: Tensor | None, local: Tensor | None) -> tuple[Tensor, Given, torch.Size]:
        """Audio or noise as rows (rows, time) in float32 at least, their conditions, and the batch shape that they have."""
        _check_audio(name, x)
        if x.dtype != self._exact and not autocasts(x):
            check_like(name, x, self._like, "the parameters")
        check_device(name, x, self._like, "the parameters")
        time = x.shape[-1]
        batch = _broadcast(name, x.shape[:-1], self._check_conditions(context, local, time, exactly=True))
        return x.to(self._exact).expand(*batch, time).reshape(-1, time), self._given(context, local, batch), batch

    # -- samples ----------------------------------------------------------------------------------------------------

    def sample(
        self,
        shape: Sequence[int] = (),
        context: Tensor | None = None,
        local: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> Tensor:
        """Samples (*shape, *batch of the conditions, features) in float32 at least, without a gradient.

        Args:
            shape: sample shape, as in torch.distributions.
            context: global conditions (*batch, context features).
            local: spectrograms (*batch, mels, ceil(features / hop)), which a model with mels needs.
            generator: source of the random numbers.
            chunk_size: rows drawn at once, for each row of the conditions; bounds the memory of the intermediate results.
        """
        size = sizes("shape", shape)
        check_generator(generator)
        batch = self._check_conditions(context, local, self.features, exactly=True)
        at_once = size.numel() if chunk_size is None else whole_number("chunk_size", chunk_size, 1)
        drawn = []
        for first in range(0, size.numel(), max(at_once, 1)):
            rows = torch.Size((min(at_once, size.numel() - first), *batch))
            given = self._given(context, local, rows)
            chunks = self._chunks(rows.numel(), self.features, self.chunk, given, 1.0, None, generator)
            drawn.append(torch.cat(list(chunks), 1))
        found = torch.cat(drawn) if drawn else self._like.new_empty(0, dtype=self._exact)
        return found.reshape(*size, *batch, self.features)

    def generate(
        self,
        time: int,
        context: Tensor | None = None,
        local: Tensor | None = None,
        temperature: float = 1.0,
        prime: Tensor | None = None,
        batch: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """New audio (batch, time), all at once; see :meth:`stream`, which gives the same."""
        return torch.cat(list(self.stream(time, context, local, temperature, prime=prime, batch=batch, generator=generator)), 1)

    def stream(
        self,
        time: int,
        context: Tensor | None = None,
        local: Tensor | None = None,
        temperature: float = 1.0,
        chunk: int | None = None,
        prime: Tensor | None = None,
        batch: int = 1,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """New audio as it is made, in chunks (batch, n) from -1 to 1 that a player can take; its memory knows no length.

        Any chunk size gives the same samples on a CPU; float32 rounds differently.

        Args:
            time: samples in all.
            context: global conditions (context features) or (batch, context features).
            local: spectrograms (mels, frames) or (batch, mels, frames), of ``prime`` and the new samples; frames beyond these
                are left out.
            temperature: at least 0; below 1 samples are more probable, above 1 less: of classes and of the components of a
                mixture probabilities become p^(1 / temperature), scales and deviations are multiplied by it. What is below
                1e-6 counts as this.
            chunk: samples of a chunk, of which the last may have less; ``None`` for a number that is fast.
            prime: audio (n,) or (batch, n) that the new samples continue, such as what was made before.
            batch: sequences, where nothing else says how many.
            generator: source of the random numbers.

        Raises:
            TypeError, ValueError: for arguments that do not fit, before anything is made.

        Example:
            >>> import torch, flowkern as fk
            >>> model = fk.models.WaveNet(100, layers=3, residual=8, skip=8, mels=5, upsample=(4, 5), rate=8000)
            >>> spectrogram = model.log_mel(torch.randn(2, 300))
            >>> for chunk in model.stream(300, local=spectrogram, chunk=200):
            ...     print(chunk.shape)
            torch.Size([2, 200])
            torch.Size([2, 100])
        """
        time = whole_number("time", time, 1)
        chunk = self.chunk if chunk is None else whole_number("chunk", chunk, 1)
        temperature = divisor(temperature)
        check_generator(generator)
        shapes = [torch.Size((whole_number("batch", batch, 0),))]
        if prime is not None:
            check_float("prime", prime)
            if prime.dim() == 0:
                raise ValueError("prime: expected audio of shape (n,) or (batch, n), got a single number")
            shapes.append(prime.shape[:-1])
        past = 0 if prime is None else prime.shape[-1]
        shapes.append(self._check_conditions(context, local, past + time, exactly=False))
        rows = _broadcast("prime, context, local and batch", *shapes)
        if len(rows) != 1:
            raise ValueError(f"batch: expected conditions and prime of one batch dimension at most, got {tuple(rows)}")
        if prime is not None:
            prime = prime.to(self._like.device, self._exact).expand(*rows, past)
        given = self._given(context, local, rows)
        chunks = self._chunks(rows.numel(), time, chunk, given, temperature, prime, generator)
        return (drawn.clamp(-1, 1) for drawn in chunks)

    def _chunks(
        self,
        rows: int,
        time: int,
        chunk: int,
        given: Given,
        temperature: float,
        prime: Tensor | None,
        generator: torch.Generator | None,
    ) -> Iterator[Tensor]:
        """New samples (rows, up to chunk), ``time`` of them in all; as the weights say, also under autocast."""
        play: Player | None = None
        for start in range(0, time, chunk):
            # Left before each yield: whoever takes the chunks is in a context of its own.
            with torch.no_grad(), torch.autocast(self._like.device.type, enabled=False):
                play = play or self._player(rows, given, temperature, prime, generator)
                drawn = play(min(chunk, time - start))
            yield drawn

    def _player(
        self, rows: int, given: Given, temperature: float, prime: Tensor | None, generator: torch.Generator | None
    ) -> Player:
        """What gives the next n samples (rows, n) at every call, from those after ``prime`` on."""
        raise NotImplementedError

    def _uniform(self, rows: int, time: int, numbers: int, generator: torch.Generator | None) -> Tensor:
        """Random numbers (rows, time, numbers), drawn time by time: cut anywhere, they are the same."""
        like = torch.empty(0, dtype=self._exact, device=self._like.device)
        return uniform((time, rows, numbers), like, generator).transpose(0, 1)


def _check_audio(name: str, x: Tensor) -> None:
    check_float(name, x)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"{name}: expected shape (..., time) of at least one sample, got {tuple(x.shape)}")


def _broadcast(name: str, *shapes: torch.Size) -> torch.Size:
    if not torch.compiler.is_compiling() and len(set(shapes)) < 2:  # torch.broadcast_shapes imports sympy
        return shapes[0] if shapes else torch.Size()
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        got = ", ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"{name}: expected batch shapes that broadcast, got {got}") from None
