"""Pictures of what the commands made, as the contents of PNG files."""

from __future__ import annotations

import io
import itertools
import math
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from flowkern._optional import optional

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

DPI = 150
COLORS = {"data": "C0", "samples": "C1"}
IMAGES = (8, 8)  # of a grid at most: rows, columns
CORNER_COLUMNS = 8
CONTOURS = (0.5, 0.9)  # shares of the rows inside
POINTS = 5000  # more hide each other
GRID = 200  # points of a density on each axis
STRETCHES = 800  # of a sound in a picture
DECIBELS = 80  # from the darkest to the brightest of a spectrogram
POWERS = (-3, 4)  # of ten: numbers on an axis outside of these have a common factor


def learning_curve(train: list[float], validation: list[float], best: int, unit: str) -> bytes:
    """The loss of each epoch on training and validation rows, the best epoch marked.

    Where losses of a few epochs are so far off that the others would become a flat line, they lie beyond the axis.

    Args:
        train, validation: losses, finite, as many as epochs: at least one.
        best: index of the best epoch.
        unit: of the losses, such as ``"nats per row, standardised units"``.

    Example:
        >>> png = learning_curve([5.0, 3.0, 2.5], [5.1, 3.2, 3.3], best=1, unit="nats per row, standardised units")
    """
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    epochs = np.arange(1, len(validation) + 1)
    marker = "o" if len(epochs) == 1 else None  # one point makes no line
    axis.plot(epochs, train, marker=marker, color=COLORS["data"], label="training")
    axis.plot(epochs, validation, marker=marker, color=COLORS["samples"], label="validation")
    axis.axvline(best + 1, color="grey", linestyle=":", label=f"best epoch ({best + 1})")
    axis.set(xlabel="epoch", ylabel=f"loss ({unit})")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    losses = np.array([*train, *validation])
    low, high = _readable(losses, validation[best])
    beyond = losses[(losses < low) | (losses > high)]
    if len(beyond):
        margin = 0.05 * (high - low)
        axis.set_ylim(low - margin, high + margin)
        furthest = beyond[np.abs(beyond - validation[best]).argmax()]
        axis.set_title(f"beyond the axis: {len(beyond)} of {len(losses)} losses, as far as {furthest:.3g}", fontsize="medium")
    axis.legend()
    return _png(figure)


def _readable(losses: np.ndarray, best: float) -> tuple[float, float]:
    """Lowest and highest loss to show: all, or those near the best one where the others are very far away."""
    far = np.abs(losses - best)
    reach = 10 * float(np.median(far))
    if far.max() <= 3 * reach or reach == 0:
        return losses.min(), losses.max()
    return max(losses.min(), best - reach), min(losses.max(), best + reach)


def image_grids(images: Mapping[str, Tensor], levels: int) -> bytes:
    """Images side by side, by their title the first 64 of each, a pixel as a square of whole pixels.

    Args:
        images: (n, channels, height, width), all of one shape, of one channel, drawn as ink on paper, or of red, green and
            blue; whole numbers from 0 to ``levels`` - 1.
        levels: number of values a pixel can have.

    Raises:
        ValueError: for another number of channels.

    Example:
        >>> png = image_grids({"samples": torch.randint(17, (64, 1, 8, 8))}, levels=17)
    """
    channels = next(iter(images.values())).shape[1]
    if channels not in (1, 3):
        raise ValueError(f"images: expected 1 or 3 channels, got {channels}")
    shown = min(max(map(len, images.values())), math.prod(IMAGES))
    columns = min(math.ceil(math.sqrt(shown)), IMAGES[1])
    grids = [_grid(some.cpu(), math.ceil(shown / columns), columns, (levels - 1) / 2) for some in images.values()]
    height, width = grids[0].shape[:2]
    width = max(width, 130)  # room for a title
    border, head = 20, 45  # pixels, around the grids and for their titles
    size = (len(grids) * (width + border) + border, height + border + head)
    figure = plt.figure(figsize=(size[0] / DPI, size[1] / DPI))
    for i, (title, grid) in enumerate(zip(images, grids, strict=True)):
        left = border + i * (width + border)
        axis = figure.add_axes((left / size[0], border / size[1], width / size[0], height / size[1]))
        if channels == 1:
            axis.imshow(grid[..., 0].numpy(), cmap="gray_r", vmin=0, vmax=levels - 1, interpolation="nearest")
        else:
            axis.imshow((grid / (levels - 1)).clamp(0, 1).numpy(), interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
    return _png(figure)


def _grid(images: Tensor, rows: int, columns: int, grey: float) -> Tensor:
    """Images side by side as one (height, width, channels), with grey lines around each, and grey where there are no more."""
    images = images[: rows * columns].double()
    zoom = max(1, 512 // (columns * max(images.shape[2:])))
    line = min(max(2, zoom // 2), 4)
    images = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    images = torch.nn.functional.pad(images, (0, line, 0, line), value=grey)  # on the right and below each
    n, channels, height, width = images.shape
    cells = images.new_full((rows * columns, channels, height, width), grey)
    cells[:n] = images
    grid = cells.reshape(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    grid = grid.reshape(rows * height, columns * width, channels)
    return torch.nn.functional.pad(grid, (0, 0, line, 0, line, 0), value=grey)  # on the left and above all


def corner(data: Tensor, samples: Tensor, columns: Sequence[str]) -> bytes:
    """Every column as a histogram and every pair of columns as contours, samples over data; of a wide table its first columns.

    The legend counts the rows that lie beyond the axes, which leave outliers out. Few rows are points, not contours.

    Args:
        data, samples: rows (n, columns) in the units of the data; of the data at least one, all finite.
        columns: their names.

    Example:
        >>> png = corner(torch.randn(500, 3), torch.randn(1000, 3), ["width", "height", "mass"])
    """
    shown = min(len(columns), CORNER_COLUMNS)
    tables = _tables(data[:, :shown], samples[:, :shown])
    edges = _edges(tables)
    panel = max(1.6, 5 / shown)  # inches
    size = (shown * panel + 1.5, shown * panel + 1.8)
    figure, axes = plt.subplots(shown, shown, figsize=size, layout="constrained", squeeze=False)
    for row, column in itertools.product(range(shown), repeat=2):
        axis = axes[row, column]
        if row < column:
            axis.set_axis_off()
            continue
        for name, table in tables.items():
            if row == column:
                _histogram(axis, table[:, row], edges[row], COLORS[name])
            else:
                _contours(axis, table[:, [column, row]], (edges[column], edges[row]), COLORS[name])
        _scale(axis.xaxis, edges[column], columns[column], panel, shown=row == shown - 1)
        if row == column:
            axis.set_ylim(bottom=0)
            axis.yaxis.set_major_locator(MaxNLocator(4) if shown == 1 else NullLocator())
        else:
            _scale(axis.yaxis, edges[row], columns[row], panel, shown=column == 0)
    axes[0, 0].set_ylabel("share of rows")
    figure.align_labels()
    lines = [plt.Line2D([], [], color=COLORS[name], label=_count(name, table, edges)) for name, table in tables.items()]
    notes = ["lines around {:.0%} and {:.0%} of the rows".format(*CONTOURS)] if shown > 1 else []
    if shown < len(columns):
        notes.append(f"the first {shown} of {len(columns)} columns")
    figure.legend(handles=lines, title="\n".join(notes), loc="outside upper center", frameon=False)
    return _png(figure)


def density_map(log_prob: Callable[[Tensor], Tensor], data: Tensor, samples: Tensor, columns: Sequence[str]) -> bytes:
    """The model's density over two columns, beside the first 5,000 rows of the data and of its samples.

    Args:
        log_prob: of rows (n, 2), float64, in the units of the data: their log-densities (n,) in nats.
        data, samples: rows (n, 2) in the units of the data; of the data at least one, all finite.
        columns: names of the two.

    Example:
        >>> normal = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1)
        >>> png = density_map(normal.log_prob, torch.randn(500, 2), normal.sample((500,)), ["width", "height"])
    """
    tables = _tables(data[:POINTS], samples[:POINTS])
    edges = _edges(tables)
    figure, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
    grid = [np.linspace(of_column[0], of_column[-1], GRID + 1) for of_column in edges]
    centres = np.stack(np.meshgrid(*(_middles(line) for line in grid)), -1)
    density = _density(log_prob, centres.reshape(-1, 2)).reshape(GRID, GRID)
    # A narrow peak must not leave the rest dark. A normal density is up to four times its lower quartile over the rows.
    quartile = np.quantile(_density(log_prob, tables["data"]), 0.25)
    high = min(density.max(), 6 * quartile) or density.max() or 1.0
    mesh = axes[0].pcolormesh(*grid, density, vmin=0, vmax=high)
    axes[0].set_title("model", fontsize="medium")
    bar = figure.colorbar(mesh, ax=axes[0], extend="max" if density.max() > high else "neither")
    bar.ax.ticklabel_format(axis="y", scilimits=POWERS)
    _name(bar.ax.yaxis, "density (per unit of each column)", 4)
    for axis, (name, table) in zip(axes[1:], tables.items(), strict=True):
        axis.scatter(*table.T, s=np.clip(2000 / max(len(table), 1), 2, 20), linewidths=0, color=COLORS[name])
        axis.set_title(_count(name, table, edges).replace(" ", "\n", 1), fontsize="medium")
    for axis in axes:
        _scale(axis.xaxis, edges[0], columns[0], 3, shown=True)
        _scale(axis.yaxis, edges[1], columns[1], 3, shown=axis is axes[0])
    return _png(figure)


def _density(log_prob: Callable[[Tensor], Tensor], rows: np.ndarray) -> np.ndarray:
    """The density of each row, in parts that bound the memory; 0 where it is not a number."""
    with torch.no_grad():
        nats = torch.cat([log_prob(part).double().cpu() for part in torch.from_numpy(rows).split(8192)])
    return nats.clamp(max=700).exp().nan_to_num(0).numpy()  # exp(710) overflows


def _tables(data: Tensor, samples: Tensor) -> dict[str, np.ndarray]:
    """Both as float64, in the order in which they are drawn."""
    return {"data": data.double().cpu().numpy(), "samples": samples.double().cpu().numpy()}


def _edges(tables: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Of each column the edges of its histogram's bars, which the axes begin and end with."""
    return [_bars(data, samples) for data, samples in zip(tables["data"].T, tables["samples"].T, strict=True)]


def _bars(data: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Edges over the bulk of the data, and of the samples where these are not too far away; whole numbers are in the middle."""
    low, high = _bulk(data)
    samples = samples[np.isfinite(samples)]
    if len(samples):
        near, far = _bulk(samples)
        low, high = max(min(low, near), 2 * low - high), min(max(high, far), 2 * high - low)
    bars = int(np.clip(math.sqrt(len(data)), 8, 40))
    if (data == data.round()).all() and abs(data).max() < 2**50:
        low, high = round(low), round(high)
        width = math.ceil((high - low + 1) / bars)
        return np.arange(low, high + width + 1, width) - 0.5
    margin = (high - low) / 20 or max(0.5, abs(low) / 1000)
    return np.linspace(low - margin, high + margin, bars + 1)


def _bulk(values: np.ndarray) -> tuple[float, float]:
    """Least and greatest value, without those among the outermost 2 % (at least one) that are three quartile ranges off."""
    values = np.sort(values)
    few = min(max(1, len(values) // 50), (len(values) - 1) // 2)
    first, third = np.quantile(values, (0.25, 0.75))
    low = min(first - 3 * (third - first), values[few])
    high = max(third + 3 * (third - first), values[-1 - few])
    inside = values[(low <= values) & (values <= high)]
    return inside[0], inside[-1]


def _histogram(axis: Any, values: np.ndarray, edges: np.ndarray, color: str) -> None:
    """The share of all rows, also of those beyond the axis, in each bar."""
    axis.stairs(np.histogram(values, edges)[0] / max(len(values), 1), edges, color=color, linewidth=1.5)


def _contours(axis: Any, pairs: np.ndarray, edges: Sequence[np.ndarray], color: str) -> None:
    """Lines of equal smoothed density around shares of all rows, also of those beyond the axes."""
    rows, pairs = len(pairs), pairs[np.isfinite(pairs).all(1)]
    if len(pairs) < 100:
        axis.plot(*pairs.T, "o", color=color, markersize=3, markeredgewidth=0)
        return
    # 64 bins between the edges, and 16 beyond each, so that lines go on there.
    grid = [np.linspace(e[0] - (e[-1] - e[0]) / 4, e[-1] + (e[-1] - e[0]) / 4, 97) for e in edges]
    counts = np.histogram2d(pairs[:, 0], pairs[:, 1], bins=grid)[0]
    # Scott's rule. Between the quartiles of a normal column are 1.35 of its standard deviations; where there are several
    # modes, none is wider than if seven of its own filled the axis.
    first, third = np.quantile(pairs, (0.25, 0.75), axis=0)
    deviations = (third - first) / 1.35 / [line[1] - line[0] for line in grid]
    widths = np.clip(deviations.clip(max=64 / 7) * len(pairs) ** (-1 / 6), 1, None)
    density = optional("scipy.ndimage", "train").gaussian_filter(counts, widths)
    falling = np.sort(density, axis=None)[::-1]
    inside = falling.cumsum() / rows
    levels = [falling[inside.searchsorted(share)] for share in CONTOURS if share < inside[-1]]
    if levels:
        axis.contour(*map(_middles, grid), density.T, np.unique(levels), colors=color, linewidths=1)


def _middles(edges: np.ndarray) -> np.ndarray:
    return (edges[1:] + edges[:-1]) / 2


def _scale(axis: Any, edges: np.ndarray, name: str, inches: float, shown: bool) -> None:
    """One axis from the first edge to the last, few ticks; where it is shown with their numbers and its name."""
    axis.axes.set(**{f"{axis.axis_name}lim": (edges[0], edges[-1])})
    whole = bool((edges % 1 == 0.5).all())  # numbers in the middle of their bars
    axis.set_major_locator(MaxNLocator(4, integer=whole, min_n_ticks=1))
    axis.get_major_formatter().set_powerlimits(POWERS)
    if shown:
        _name(axis, name, inches)
        if axis.axis_name == "x" and inches < 3:  # numbers of neighbours would touch
            axis.set_tick_params(rotation=45)
    else:
        axis.set_tick_params(labelleft=False, labelbottom=False)
        axis.offsetText.set_visible(False)


def _name(axis: Any, name: str, inches: float) -> None:
    """Labels an axis of that length; what matplotlib takes out of all its numbers is part of the label, where it has room."""
    room = int(9 * inches)  # letters
    whole = name if len(name) <= 2 * room else f"{name[: 2 * room - 1]}…"
    lines = textwrap.wrap(whole, room, max_lines=2, placeholder="…")
    formatter = axis.get_major_formatter()
    formatter.set_locs(axis.get_majorticklocs())
    offset = formatter.get_offset()
    axis.offsetText.set_visible(False)
    if offset:
        lines.append(f"({offset})" if offset[0] in "+-\N{MINUS SIGN}" else f"(times {offset})")
    axis.set_label_text("\n".join(lines), parse_math=False)


def _count(name: str, table: np.ndarray, edges: Sequence[np.ndarray]) -> str:
    """What is drawn, and what is not, as in "data (1,000 rows, 3 beyond the axes)"."""
    low, high = (np.array([e[end] for e in edges]) for end in (0, -1))
    beyond = len(table) - int(((low <= table) & (table <= high)).all(1).sum())
    return f"{name} ({len(table):,} rows" + (f", {beyond:,} beyond the axes)" if beyond else ")")


def recordings(sounds: Mapping[str, Sequence[Tensor]], rate: int) -> bytes:
    """Waveforms above their spectrograms, by their title some of each in a column; one scale for all.

    Args:
        sounds: each (samples,) in [-1, 1], or of int16, as a file holds it; at least one of each title.
        rate: in Hz.

    Example:
        >>> seconds = torch.arange(8000) / 16000
        >>> png = recordings({"a tone": [torch.sin(2 * math.pi * 440 * seconds)]}, rate=16000)
    """
    rows, columns = max(map(len, sounds.values())), len(sounds)
    envelopes = {title: [_envelope(sound) for sound in some] for title, some in sounds.items()}
    spectra = {title: [_spectrogram(sound, rate) for sound in some] for title, some in sounds.items()}
    loudest = max(abs(e).max() for some in envelopes.values() for e in some) or 1.0
    peak = max(s.max() for some in spectra.values() for s in some)
    size = (10 if columns == 1 else 5.5 * columns, 1 + 3 * rows)
    heights = [1, 2] * rows
    figure, axes = plt.subplots(2 * rows, columns, figsize=size, layout="constrained", squeeze=False, height_ratios=heights)
    for axis in axes.flat:
        axis.set_axis_off()
    for column, (title, some) in enumerate(sounds.items()):
        axes[0, column].set_title(title, parse_math=False)
        for row, sound in enumerate(some):
            wave, spectrum = axes[2 * row : 2 * row + 2, column]
            seconds = len(sound) / rate
            low, high = envelopes[title][row]
            wave.fill_between(np.linspace(0, seconds, len(low)), low, high, color=COLORS.get(title, "C0"), linewidth=0.6)
            wave.set(xlim=(0, seconds), ylim=(-1.05 * loudest, 1.05 * loudest), xticks=[])
            mesh = spectrum.imshow(
                spectra[title][row] - peak,
                aspect="auto",
                origin="lower",
                extent=(0, seconds, 0, rate / 2000),
                vmin=-DECIBELS,
                vmax=0,
            )
            spectrum.set(ylabel="kHz")
            for axis in (wave, spectrum):
                axis.set_axis_on()
        axes[2 * len(some) - 1, column].set_xlabel("seconds")
    figure.colorbar(mesh, ax=axes[1::2], label="decibels below the loudest", format=lambda value, _: f"{abs(value):g}")
    return _png(figure)


def _envelope(sound: Tensor) -> np.ndarray:
    """The least and the greatest sample (2, columns) of as many stretches as a picture has columns; of few samples each."""
    width = max(1, len(sound) // STRETCHES)
    stretches = sound[: len(sound) // width * width].reshape(-1, width)
    return np.stack([_numbers(stretches.amin(1)), _numbers(stretches.amax(1))])


def _spectrogram(sound: Tensor, rate: int) -> np.ndarray:
    """Decibels (frequencies, columns) of stretches of about 30 ms; of long sounds only some of the stretches are read."""
    length = 2 ** round(math.log2(0.032 * rate)) if rate >= 100 else 4
    if len(sound) < length:
        sound = torch.nn.functional.pad(sound, (0, length - len(sound)))
    windows = sound.unfold(0, length, 1)
    begin = (
        torch.linspace(0, len(windows) - 1, min(STRETCHES, 1 + 4 * len(windows) // length), dtype=torch.float64).round().long()
    )
    stretches = _numbers(windows.index_select(0, begin)) * np.hanning(length)
    return 20 * np.log10(np.maximum(np.abs(np.fft.rfft(stretches)), 1e-7)).T


def _numbers(samples: Tensor) -> np.ndarray:
    return samples.double().cpu().numpy() / (32768 if samples.dtype is torch.int16 else 1)


def throughputs(rates: dict[str, dict[str, float]]) -> bytes:
    """Rows per second, a panel for each kind of work; points, since a bar on a logarithmic axis has no origin."""
    layout = ConstrainedLayoutEngine(w_pad=0.2)  # inches: between the numbers of the two axes
    figure, axes = plt.subplots(1, 2, figsize=(9, 1.2 + 0.4 * len(rates)), layout=layout, sharey=True)
    colors = ["C1" if name == "flowkern" else "C0" for name in rates]
    for axis, work in zip(axes, ("training", "sampling"), strict=True):
        values = {name: rate[work] for name, rate in rates.items()}
        _points(axis, values, "{:,.0f}", colors, low=min(values.values()))
        axis.set(xlabel="rows per second (logarithmic)", title=work)
    return _png(figure)


def ratios(values: dict[str, float], baseline: str) -> bytes:
    """Speed-ups as points joined to 1, where both are equally fast."""
    figure, axis = plt.subplots(figsize=(10, 1.4 + 0.3 * len(values)), layout="constrained")
    _points(axis, values, "{:,.1f}x", ["C1"] * len(values), low=min(1.0, *values.values()))
    axis.hlines(range(len(values)), 1, list(values.values()), color="C1", linewidth=1)
    axis.axvline(1, color="grey", linewidth=1)
    axis.set_xlabel(f"times as fast as {baseline} (logarithmic)")
    figure.suptitle(f"flowkern against {baseline}, same architecture, one run")
    return _png(figure)


def _points(axis: Any, values: dict[str, float], label: str, colors: list[str], low: float) -> None:
    """A line for each name from top to bottom, with a point and its value; whole decades from that of ``low`` on."""
    axis.scatter(values.values(), range(len(values)), color=colors, zorder=3, clip_on=False)
    for line, value in enumerate(values.values()):
        axis.annotate(label.format(value), (value, line), (6, 0), textcoords="offset points", va="center")
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:,.9g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    high = 6 * max(values.values())  # room for the labels
    axis.set_xlim(10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high)))
    axis.set_yticks(range(len(values)), values)
    axis.set_ylim(len(values) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a column's name: the picture has a box for it
        figure.savefig(file, format="png", dpi=DPI)
    plt.close(figure)
    return file.getvalue()
