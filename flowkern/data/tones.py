"""Audio that is synthesised, so that every command runs without any: the same on every call."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from flowkern._checks import whole_number
from flowkern.data.audio import FEATURES, Recording, audio_dataset
from flowkern.data.dataset import Dataset

NAME = "tones"
DESCRIPTION = "200 half seconds of synthesised audio, 16 kHz: harmonics with vibrato, bursts of noise, silences"
RATE = 16_000
RECORDINGS, ROWS = 100, 2  # and rows of each
SEGMENTS = ("tone", "burst", "tone", "silence")  # of a recording, in an order of its own
HARMONICS = 12
FLOOR = 1e-3  # deviation of the noise in silences, as recordings have it


def load(seed: int | None, features: int | None, rate: int | None) -> Dataset:
    """A hundred recordings of two rows each, which are held out whole.

    Args:
        seed, features: as for :func:`flowkern.data.load`.
        rate: in Hz, at which they are synthesised; ``None`` for 16,000.
    """
    features = FEATURES if features is None else whole_number("features", features, 1)
    rate = RATE if rate is None else whole_number("rate", rate, 1)
    length = ROWS * features
    samples = torch.cat([_recording(number, length, rate) for number in range(RECORDINGS)])
    those = [Recording(Path(f"{NAME} {n + 1}"), n * length, (n + 1) * length, rate) for n in range(RECORDINGS)]
    return audio_dataset(NAME, samples, {"train": those}, seed, features, rate)


def _recording(number: int, length: int, rate: int) -> Tensor:
    """One of them, (length,), float32, of 16 bits as in a file."""
    generator = torch.Generator().manual_seed(number)
    order = torch.randperm(len(SEGMENTS), generator=generator).tolist()
    sizes = [len(part) for part in torch.arange(length).tensor_split(len(SEGMENTS))]
    parts = [_segment(SEGMENTS[i], size, rate, generator) for i, size in zip(order, sizes, strict=True)]
    samples = torch.cat(parts) + FLOOR * torch.randn(length, generator=generator, dtype=torch.float64)
    return (samples.clamp(-1, 1) * 32767).round().div(32768).float()


def _segment(kind: str, length: int, rate: int, generator: torch.Generator) -> Tensor:
    """So many samples of a kind, which rise from zero and fall to it, float64."""
    pitch, speed, depth, loudness = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    noise = torch.randn(length, generator=generator, dtype=torch.float64)
    envelope = torch.sin(torch.linspace(0, math.pi, length, dtype=torch.float64)).clamp(min=0).sqrt() * (0.3 + 0.3 * loudness)
    if kind == "silence":
        return torch.zeros_like(noise)
    if kind == "burst":
        return envelope * noise / 4
    hertz, vibrato = 110 * 4**pitch, 4 + 3 * speed
    seconds = torch.arange(length, dtype=torch.float64) / rate
    swing = (0.005 + 0.01 * depth) * hertz / vibrato  # of the phase, in radians
    phase = 2 * math.pi * hertz * seconds + swing * torch.sin(2 * math.pi * vibrato * seconds)
    heard = [k for k in range(1, HARMONICS + 1) if 1.02 * k * hertz < rate / 2]
    tone = sum((torch.sin(k * phase) / k for k in heard), torch.zeros_like(phase))
    return envelope * tone / 2
