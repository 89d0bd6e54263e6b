"""Spectra of audio, by torch's short-time Fourier transform, with gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR = 1e-5  # magnitudes below it, 100 dB under a full-scale sine, are silence


def power_spectrum(x: Tensor) -> Tensor:
    """|STFT|^2 of x (..., time), averaged over time, for white noise its variance in every bin (..., bins).

    Hann windows of 1024 samples, or of the whole where it is shorter, at every fourth of one.
    """
    size = min(1024, x.shape[-1])
    window = torch.hann_window(size, dtype=_exact(x).dtype, device=x.device)
    spectra = _stft(x, window, max(1, size // 4))
    return (spectra.real.square() + spectra.imag.square()).mean(-1) / window.square().sum()


def log_mel_spectrogram(x: Tensor, mels: int, rate: int, hop: int) -> Tensor:
    """The loudness of x (..., time) in mel bands (..., mels, ceil(time / hop)): 0 is silence, 1 a sine of amplitude 1.

    1 + log10(max(m, 1e-5)) / 5, where m sums magnitudes of a Hann window of 4 hops, around the middle of the frame's samples,
    with weights that fall linearly from a band's centre to those of its neighbours, which are equally far apart on the scale
    2595 log10(1 + f / 700). Beyond the ends is silence.

    >>> tone = torch.sin(2 * torch.pi * 1000 / 16000 * torch.arange(4000))
    >>> loudness = log_mel_spectrogram(tone, mels=40, rate=16000, hop=200)
    >>> loudness.shape, int(loudness[:, 10].argmax()), round(float(loudness[:, 10].max()), 1)
    (torch.Size([40, 20]), 13, 1.0)
    """
    frames, size = -(-x.shape[-1] // hop), 4 * hop
    before = (size - hop) // 2
    window = torch.hann_window(size, dtype=_exact(x).dtype, device=x.device)
    padded = F.pad(x, (before, (frames - 1) * hop + size - before - x.shape[-1]))
    magnitudes = _stft(padded, window, hop).abs() * (2 / window.sum())
    with torch.autocast(x.device.type, enabled=False):
        bands = mel_filters(mels, rate, magnitudes[..., 0]) @ magnitudes
    return 1 + bands.clamp(min=FLOOR).log10() / 5


def mel_filters(mels: int, rate: int, like: Tensor) -> Tensor:
    """Weights (mels, bins) of the magnitudes (..., bins) from 0 to half of the rate."""
    options = {"dtype": like.dtype, "device": like.device}
    frequencies = torch.linspace(0, rate / 2, like.shape[-1], **options)  # type: ignore[call-overload]
    highest = 2595 * torch.log10(torch.tensor(1 + rate / 1400, dtype=torch.float64))
    edges = 700 * (10 ** (torch.linspace(0, float(highest), mels + 2, **options) / 2595) - 1)  # type: ignore[call-overload]
    below, centre, above = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - below) / (centre - below), (above - frequencies) / (above - centre)
    return torch.minimum(rising, falling).clamp(min=0)


def _stft(x: Tensor, window: Tensor, hop: int) -> Tensor:
    """Spectra (..., bins, frames) of whole windows, in float32 at least."""
    size, rows = len(window), _exact(x).reshape(-1, x.shape[-1])
    if len(rows) == 0:  # which torch's transform refuses
        shape = *x.shape[:-1], size // 2 + 1, (x.shape[-1] - size) // hop + 1
        return rows.new_zeros(shape, dtype=rows.dtype.to_complex())
    spectra = torch.stft(rows, size, hop, window=window, center=False, return_complex=True)
    return spectra.reshape(*x.shape[:-1], *spectra.shape[1:])


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
