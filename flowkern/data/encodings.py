"""Between the units of the data and the numbers that a model sees, with the densities that belong to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from flowkern._checks import check_generator, check_tensor, number, sizes, whole_number
from flowkern.config import configured
from flowkern.data.dataset import DataError, Dataset, Indexed, Rows

MARGIN = 0.05


class Encoding(nn.Module):
    """The way from rows of the data to what a model sees, and back.

    A subclass sets ``event_shape`` and what differs from here: real numbers, no noise.
    """

    space: ClassVar[str]  # what the model's units are called
    event_shape: torch.Size
    levels: int | None = None  # values that a feature of an encoded row can take: 0 to levels - 1; None for real numbers
    data_levels: int | None = None  # the same of a row of the data
    rate: int | None = None  # of audio, in Hz

    @property
    def features(self) -> int:
        """Numbers of an encoded row."""
        return self.event_shape.numel()

    def noise(self, rows: int, generator: torch.Generator | None = None) -> Tensor | None:
        """The random numbers that :meth:`encode` uses for so many rows; ``None`` where it uses none."""
        return None

    def encode(self, rows: Tensor, noise: Tensor | None = None) -> Tensor:
        """Rows (n, *event_shape) of the data, of any real dtype, as a model sees them: the same shape, float32.

        Args:
            rows: in the units of the data.
            noise: as :meth:`noise` gives it; drawn here by torch's own generator if there is none.
        """
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        """A model's samples (n, *event_shape) in the units of the data."""
        raise NotImplementedError

    def log_det(self, z: Tensor) -> Tensor:
        """log |dz / dx| per row (n,), float64: added to a model's log-density it gives that of the data. Here it is zero."""
        self._check("z", z)
        return z.new_zeros(len(z), dtype=torch.float64)

    def _check(self, name: str, t: Tensor) -> None:
        check_tensor(name, t)
        if t.dim() == 0 or t.shape[1:] != self.event_shape:
            raise ValueError(f"{name}: expected shape {('n', *self.event_shape)}, got {tuple(t.shape)}".replace("'", ""))


class _Uniform(Encoding):
    """An encoding with a number u, uniform in [0, 1), for every feature."""

    data_levels: int

    def noise(self, rows: int, generator: torch.Generator | None = None) -> Tensor:
        """Uniform numbers (rows, *event_shape), float32, on the generator's device."""
        check_generator(generator)
        device = None if generator is None else generator.device
        return torch.rand((rows, *self.event_shape), generator=generator, device=device)

    def _drawn(self, rows: Tensor, noise: Tensor | None) -> Tensor:
        self._check("rows", rows)
        if noise is None:
            return torch.rand(rows.shape, device=rows.device)
        if noise.shape != rows.shape:
            raise ValueError(f"noise: expected shape {tuple(rows.shape)} like rows, got {tuple(noise.shape)}")
        return noise.to(rows.device)


class Identity(Encoding):
    """Data as they are: whole numbers for models of categories, or real numbers.

    Args:
        event_shape: of one row.
        levels: whole numbers from 0 to levels - 1; ``None`` for real numbers.

    Example:
        >>> Identity((2,), levels=5).encode(torch.tensor([[0, 4]], dtype=torch.uint8))
        tensor([[0., 4.]])
    """

    space = "data"

    @configured
    def __init__(self, event_shape: Sequence[int], levels: int | None = None) -> None:
        super().__init__()
        self.event_shape = sizes("event_shape", event_shape)
        self.levels = self.data_levels = None if levels is None else whole_number("levels", levels, 2)

    def encode(self, rows: Tensor, noise: Tensor | None = None) -> Tensor:
        """Rows (n, *event_shape) in float32."""
        self._check("rows", rows)
        return rows.float()

    def decode(self, z: Tensor) -> Tensor:
        """The samples themselves."""
        self._check("z", z)
        return z


class Waveform(Identity):
    """Audio as it is: samples in [-1, 1], so many in a second.

    Args:
        event_shape: of one row, (samples,).
        rate: in Hz.

    Example:
        >>> Waveform((3,), rate=16000).decode(torch.tensor([[0.5, -1.25, 1.5]]))  # what would be too loud
        tensor([[ 0.5000, -1.0000,  1.0000]])
    """

    space = "data"

    @configured
    def __init__(self, event_shape: Sequence[int], rate: int) -> None:
        super().__init__(event_shape)
        self.rate = whole_number("rate", rate, 1)

    def decode(self, z: Tensor) -> Tensor:
        """The samples, in [-1, 1]."""
        return super().decode(z).clamp(-1, 1)


class Standardised(Encoding):
    """z = (x - mean) / std, in float64; only then rounded to a model's float32.

    Args:
        mean, std: (*event_shape); kept as float64.

    Raises:
        ValueError: if their shapes differ, or a number is not finite or a deviation not positive.

    Example:
        >>> x = 1.7e9 + 60 * torch.randn(1000, 2, dtype=torch.float64)  # times in seconds: 4 numbers in float32
        >>> scale = Standardised.fit(Rows(x))
        >>> z = scale.encode(x)
        >>> z.dtype, bool((scale.decode(z) - x).abs().max() < 1e-4)
        (torch.float32, True)
    """

    space = "standardised"
    mean: Tensor
    std: Tensor

    @configured
    def __init__(self, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> None:
        super().__init__()
        mean, std = (torch.as_tensor(constant, dtype=torch.float64) for constant in (mean, std))
        if mean.shape != std.shape:
            raise ValueError(f"mean, std: expected one shape for both, got {tuple(mean.shape)} and {tuple(std.shape)}")
        bad = ~(mean.isfinite() & std.isfinite() & (std > 0))
        if bad.any():
            raise ValueError(
                "mean, std: expected finite means and positive deviations, "
                f"got {mean[bad][0]:g} and {std[bad][0]:g} for feature {', '.join(map(str, bad.nonzero()[0].tolist()))}"
            )
        self.event_shape = mean.shape
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def fit(cls, rows: Rows, keep: Sequence[int] = ()) -> Standardised:
        """The encoding with the mean and the deviation of rows, of which no feature may be constant.

        The features ``keep`` are left as they are.

        The source may be larger than memory: it is read twice, in chunks. Values may have any size: each feature is divided
        by its largest, lest squares leave the range of float64.

        References:
            Updating formulae and a pairwise algorithm for computing sample variances (Chan, Golub and LeVeque, 1979).
        """
        low, high = rows.extremes
        largest = torch.maximum(low.abs(), high.abs())
        count, mean, squares = 0, torch.zeros_like(largest), torch.zeros_like(largest)
        for chunk in rows.chunks():
            x = chunk.double() / largest
            count += len(x)
            centre = x.mean(0)
            shift = centre - mean
            squares += (x - centre).square().sum(0) + shift.square() * (len(x) * (count - len(x)) / count)
            mean += shift * (len(x) / count)
        mean, std = mean * largest, (squares / (count - 1)).sqrt() * largest
        mean[list(keep)], std[list(keep)] = 0, 1
        return cls(mean, std)

    def encode(self, rows: Tensor, noise: Tensor | None = None) -> Tensor:
        """Rows (n, *event_shape) standardised, float32."""
        self._check("rows", rows)
        return ((rows.double() - self.mean) / self.std).float()

    def decode(self, z: Tensor) -> Tensor:
        """Samples (n, *event_shape) in the units of the data, float64."""
        self._check("z", z)
        return z.double() * self.std + self.mean

    def log_det(self, z: Tensor) -> Tensor:
        """log |dz / dx| per row (n,), the same for all."""
        self._check("z", z)
        return -self.std.double().log().sum().expand(len(z))


class Dequantised(_Uniform):
    """Images of n levels, as real numbers z = logit(margin + (1 - 2 margin) (k + u) / n) with u uniform in [0, 1).

    Args:
        levels: n; pixels are whole numbers k from 0 to n - 1.
        event_shape: of one image, such as (channels, height, width).
        margin: keeps the logit finite, in (0, 1/2); the paper's lambda.

    Example:
        >>> images = Dequantised(levels=17, event_shape=(1, 8, 8))
        >>> k = torch.randint(17, (5, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        >>> z = images.encode(k, images.noise(5, torch.Generator().manual_seed(1)))
        >>> bool((images.decode(z) == k).all())
        True

    References:
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), appendix D.
    """

    space = "logit"

    @configured
    def __init__(self, levels: int, event_shape: Sequence[int], margin: float = MARGIN) -> None:
        super().__init__()
        self.data_levels, self.event_shape = whole_number("levels", levels, 2), sizes("event_shape", event_shape)
        self.margin = number("margin", margin, above=0, below=0.5)

    def encode(self, rows: Tensor, noise: Tensor | None = None) -> Tensor:
        """Levels (n, *event_shape) with noise, which is fresh in every call, as logits."""
        # In float64: 255 + u has 16 bits for u in float32, and 1 - s of a margin of 1e-6 has 4.
        x = (rows.double() + self._drawn(rows, noise)) / self.data_levels
        return torch.logit(self.margin + (1 - 2 * self.margin) * x).float()

    def decode(self, z: Tensor) -> Tensor:
        """The levels that logits come from, float32: the noise is cut off, as whole numbers were before it."""
        self._check("z", z)
        x = (torch.sigmoid(z.double()) - self.margin) / (1 - 2 * self.margin)
        return (x * self.data_levels).floor().clamp(0, self.data_levels - 1).float()

    def log_det(self, z: Tensor) -> Tensor:
        """log |dz / d(k + u)| per row (n,), float64; with it the mean is a lower bound of the images' log-probability."""
        self._check("z", z)
        z = z.double().flatten(1)
        slope = math.log((1 - 2 * self.margin) / self.data_levels)
        return (slope - logsigmoid(z) - logsigmoid(-z)).sum(1)


class Binarised(_Uniform):
    """Images of n levels whose pixels are 1 with probability k / (n - 1), drawn anew at every call; else 0.

    Args:
        event_shape: of one image, such as (channels, height, width).
        levels: n; pixels are whole numbers k from 0 to n - 1.

    Example:
        >>> images = Binarised((1, 1, 3), levels=256)
        >>> images.encode(torch.tensor([[[[0, 100, 255]]]]), noise=torch.full((1, 1, 1, 3), 0.5)).flatten().tolist()
        [0.0, 0.0, 1.0]

    References:
        On the Quantitative Analysis of Deep Belief Networks (Salakhutdinov and Murray, 2008).
    """

    space = "data"
    levels = 2

    @configured
    def __init__(self, event_shape: Sequence[int], levels: int) -> None:
        super().__init__()
        self.data_levels, self.event_shape = whole_number("levels", levels, 2), sizes("event_shape", event_shape)

    def encode(self, rows: Tensor, noise: Tensor | None = None) -> Tensor:
        """Levels (n, *event_shape) as zeros and ones."""
        return (self._drawn(rows, noise) < rows.float() / (self.data_levels - 1)).float()

    def decode(self, z: Tensor) -> Tensor:
        """Zeros and ones (n, *event_shape) as the first and the last level."""
        self._check("z", z)
        return z * (self.data_levels - 1)


class OneHot(Encoding):
    """Labels as vectors with a one in the place of their class: what a model is given, from which no way leads back.

    Args:
        classes: labels are whole numbers from 0 to classes - 1.

    Example:
        >>> OneHot(3).encode(torch.tensor([[2], [0]])).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """

    space = "classes"
    data_levels: int
    event_shape = torch.Size((1,))

    @configured
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.data_levels = whole_number("classes", classes, 2)

    @property
    def features(self) -> int:
        """One for each class."""
        return self.data_levels

    def encode(self, rows: Tensor, noise: Tensor | None = None) -> Tensor:
        """Labels (n, 1), of any real dtype, as (n, classes), float32.

        Raises:
            ValueError: for a label of no class.
        """
        self._check("rows", rows)
        found = rows == torch.arange(self.data_levels, device=rows.device)
        bad = ~found.any(1)
        if bad.any():
            raise ValueError(f"rows: expected labels from 0 to {self.data_levels - 1}, got {float(rows[bad][0]):g}")
        return found.float()


@dataclass
class EncodedRows:
    """Rows as a model sees them, encoded when they are asked for.

    Args:
        rows: in the units of the data.
        encoding: one without noise.

    Example:
        >>> EncodedRows(Rows(torch.tensor([[1], [0]])), OneHot(2))[torch.tensor([0])].tolist()
        [[0.0, 1.0]]
    """

    rows: Indexed
    encoding: Encoding

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The rows of these numbers (k,)."""
        return self.encoding.encode(self.rows[rows])


def conditioned(rows: Rows, encoding: Encoding | None) -> Rows:
    """Rows whose context is a model's view of it; the same rows where there is no encoding of it."""
    if rows.context is None or encoding is None:
        return rows
    return replace(rows, context=EncodedRows(rows.context, encoding))


def context_encoding(dataset: Dataset) -> Encoding | None:
    """The encoding of what the rows of a data set are given: classes as vectors, numbers standardised; ``None`` of nothing.

    Raises:
        DataError: for labels of one class.

    Example:
        >>> table, columns = torch.randn(30, 3), torch.tensor([1])
        >>> rows = Rows(table, columns=torch.tensor([0, 2]), context=Rows(table, columns=columns))
        >>> context_encoding(Dataset("three columns", rows, rows, rows)).features
        1
    """
    if dataset.classes == 1:
        raise DataError(f"{dataset.name}: given: all rows for training have one label, which tells nothing of them")
    if dataset.classes is not None:
        return OneHot(dataset.classes)
    context = dataset.train.context
    return Standardised.fit(context) if isinstance(context, Rows) else None


def encoding(dataset: Dataset, levels: int | None = None, margin: float | None = None, keep: Sequence[int] = ()) -> Encoding:
    """The encoding of a data set for a model.

    Args:
        dataset: as :func:`flowkern.data.load` gives it.
        levels: the model is one of whole numbers from 0 to levels - 1; ``None`` for one of real numbers, for which tables are
            standardised by their rows for training and images dequantised; audio is left as it is.
        margin: of :class:`Dequantised`, 0.05 by default.
        keep: columns of a table that are not standardised, such as angles.

    Raises:
        DataError: if the model takes other data, or if a column that is to be standardised is constant.

    Example:
        >>> zeros = Rows(torch.zeros(30, 1, 8, 8, dtype=torch.uint8))
        >>> images = Dataset("zeros", zeros, zeros, zeros, levels=17)
        >>> encoding(images).space, encoding(images, levels=17).space, encoding(images, levels=2).data_levels
        ('logit', 'data', 17)
    """
    real = levels is None
    if margin is not None and not (real and dataset.images):
        raise DataError("margin: only images under a model of real numbers are dequantised and have a margin")
    if real and dataset.rate is not None:
        return Waveform(dataset.event_shape, dataset.rate)
    if real and dataset.images and dataset.levels is not None:
        return Dequantised(dataset.levels, dataset.event_shape, MARGIN if margin is None else margin)
    if real:
        constant = constant_column(dataset.train)
        if constant is not None:
            raise DataError(f"{dataset.name}: {constant}")
        return Standardised.fit(dataset.train, keep)
    if levels == dataset.levels:
        return Identity(dataset.event_shape, levels)
    if levels == 2 and dataset.images and dataset.levels is not None:
        return Binarised(dataset.event_shape, dataset.levels)
    has = "real numbers" if dataset.levels is None else f"whole numbers of {dataset.levels} levels"
    raise DataError(f"{dataset.name}: has {has}, the model takes whole numbers of {levels} levels")


def constant_column(rows: Rows) -> str | None:
    """That a column is constant, in words, where one is."""
    low, high = rows.extremes
    constant = (low == high).nonzero()
    if len(constant) == 0:
        return None
    return f"column {int(constant[0]) + 1} is constant in the rows for training; it has no density"


def bits_per_dimension(nats: float, features: int) -> float:
    """A mean log-density of images in the units of the data, in nats per image, as bits for each of their features.

    Args:
        nats: the mean of a model's log-density and :meth:`Dequantised.log_det`, or of a log-probability of levels.
        features: channels x height x width.

    Example:
        >>> images = Dequantised(levels=256, event_shape=(1, 2, 2))  # uniform levels under the uniform density
        >>> bits_per_dimension(nats=4 * math.log(1 / 256), features=4)
        8.0

    References:
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), appendix E.2.
    """
    return -nats / (features * math.log(2))
