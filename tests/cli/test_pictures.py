"""Pictures show what they say."""

from __future__ import annotations

import io
import itertools
import math
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")

from matplotlib import pyplot

from flowkern.cli import pictures

pytestmark = pytest.mark.filterwarnings("error")  # a user would see them between the lines of the command


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were drawn, before they become files."""
    drawn: list[Any] = []
    png = pictures._png

    def keep(figure: Any) -> bytes:
        drawn.append(figure)
        return png(figure)

    monkeypatch.setattr(pictures, "_png", keep)
    return drawn


def points(axis: Any) -> list[float]:
    return axis.collections[0].get_offsets()[:, 0].tolist()


def test_rates_are_points_on_their_axis(figures: list[Any]) -> None:
    rates = {"plain PyTorch": {"training": 10.0, "sampling": 2.0}, "flowkern": {"training": 30.0, "sampling": 900.0}}
    assert pictures.throughputs(rates).startswith(b"\x89PNG")
    training, sampling = figures[0].axes
    assert (points(training), points(sampling)) == ([10.0, 30.0], [2.0, 900.0])
    assert not training.patches  # no bars, which a logarithmic axis would cut off where it likes
    assert [text.get_text() for text in sampling.texts] == ["2", "900"]
    assert [label.get_text() for label in training.get_yticklabels()] == list(rates)


def test_ratios_begin_at_one(figures: list[Any]) -> None:
    values = {"slower": 0.2, "faster": 150.0}
    assert pictures.ratios(values, "zuko").startswith(b"\x89PNG")
    axis = figures[0].axes[0]
    assert points(axis) == [0.2, 150.0]
    assert [path.vertices[:, 0].tolist() for path in axis.collections[1].get_paths()] == [[1.0, 0.2], [1.0, 150.0]]
    assert axis.get_xlim()[0] < 0.2
    assert "zuko" in axis.get_xlabel()


def image(content: bytes) -> torch.Tensor:
    """The pixels of a PNG (height, width, 3), from 0 to 1."""
    return torch.as_tensor(pyplot.imread(io.BytesIO(content)))[..., :3]


def assert_nothing_overlaps(figure: Any) -> None:
    """Panels, names, titles and legends are apart from each other and inside the figure."""
    figure.set_dpi(pictures.DPI)
    figure.canvas.draw()
    boxes: dict[Any, Any] = {("legend", i): legend.get_window_extent() for i, legend in enumerate(figure.legends)}
    for i, axes in enumerate(axes for axes in figure.axes if axes.axison):
        parts = {"panel": axes.bbox, "y-axis": axes.yaxis.get_tightbbox()}
        parts |= {text.get_text(): text.get_window_extent() for text in (axes.xaxis.label, axes.title)}
        boxes |= {(i, name): box for name, box in parts.items() if box is not None and box.width and box.height}
    for name, box in boxes.items():
        assert figure.bbox.padded(1).contains(*box.p0), name
        assert figure.bbox.padded(1).contains(*box.p1), name
    for (name, one), (other, two) in itertools.combinations(boxes.items(), 2):
        assert not one.padded(-1).overlaps(two.padded(-1)), (name, other)


# -- images -----------------------------------------------------------------------------------------------------------


def test_every_image_has_its_frame_and_levels(figures: list[Any]) -> None:
    real, samples = torch.full((70, 1, 2, 2), 16.0), torch.arange(280).reshape(70, 1, 2, 2) % 17
    pictures.image_grids({"real images": real, "samples": samples}, levels=17)
    left, right = (axis.images[0] for axis in figures[0].axes)
    assert left.get_clim() == right.get_clim() == (0, 16)
    cell = 2 * 32 + 4
    for of_axis in (left, right):
        shown = torch.as_tensor(of_axis.get_array())
        assert shown.shape == (8 * cell + 4, 8 * cell + 4)
        for edge in (shown[:4], shown[-4:], shown[:, :4], shown[:, -4:], shown[cell : cell + 4]):
            assert (edge == 8).all()
    # The first pixel of each image of the first and of the second row.
    assert shown[4, 4::cell].tolist() == [4 * i % 17 for i in range(8)]
    assert shown[cell + 4, 4::cell].tolist() == [4 * i % 17 for i in range(8, 16)]


@pytest.mark.parametrize(
    ("channels", "height", "width", "real", "samples"),
    [(3, 64, 64, 64, 64), (3, 5, 3, 7, 2), (1, 28, 28, 64, 10), (1, 8, 8, 1, 1), (1, 1, 40, 3, 3), (1, 64, 1, 4, 0)],
)
def test_a_file_has_the_pixels_of_the_images(channels: int, height: int, width: int, real: int, samples: int) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(256, (n, channels, height, width), generator=generator) for n in (real, samples)]
    file = image(pictures.image_grids(dict(zip(("real", "samples"), drawn, strict=True)), levels=256))
    expected = drawn[0][0].expand(3, -1, -1).permute(1, 2, 0) / 255
    expected = 1 - expected if channels == 1 else expected  # ink
    columns = min(math.ceil(math.sqrt(real)), 8)
    zoom = max(1, 512 // (columns * max(height, width)))
    line = min(max(2, zoom // 2), 4)
    left = 20 + max(0, 130 - columns * (width * zoom + line) - line) // 2  # in the middle of the room for a title
    first = file[45 + line :, left + line :][: height * zoom : zoom, : width * zoom : zoom]
    torch.testing.assert_close(first, expected.float(), atol=1.5 / 255, rtol=0)


def test_where_there_are_fewer_images_is_grey(figures: list[Any]) -> None:
    pictures.image_grids({"real images": torch.ones(5, 1, 4, 4), "samples": torch.ones(2, 1, 4, 4)}, levels=2)
    real, samples = (torch.as_tensor(axis.images[0].get_array()) for axis in figures[0].axes)
    assert real.shape == samples.shape
    cell = (real.shape[1] - 4) // 3
    assert [int((picture == 1).sum()) // (cell - 4) ** 2 for picture in (real, samples)] == [5, 2]
    assert ((samples == 1) | (samples == 0.5)).all()


def test_images_have_one_channel_or_three() -> None:
    with pytest.raises(ValueError, match="images: expected 1 or 3 channels, got 2"):
        pictures.image_grids({"real images": torch.ones(1, 2, 4, 4), "samples": torch.ones(1, 2, 4, 4)}, levels=2)


# -- the learning curve -----------------------------------------------------------------------------------------------


def test_a_curve_of_one_epoch(figures: list[Any]) -> None:
    pictures.learning_curve([3.0], [4.0], 0, "nats per row")
    axis = figures[0].axes[0]
    assert axis.lines[0].get_marker() == "o"
    assert axis.get_ylabel() == "loss (nats per row)"
    low, high = axis.get_xlim()
    assert [tick for tick in axis.get_xticks() if low <= tick <= high] == [1]


def test_first_epochs_that_are_far_off_leave_the_others_to_be_seen(figures: list[Any]) -> None:
    train, validation = [1e6, 1e3, 5.0, 4.0, 3.2, 3.0], [9e5, 900.0, 5.5, 4.4, 3.6, 3.5]
    pictures.learning_curve(train, validation, 5, "nats")
    axis = figures[0].axes[0]
    low, high = axis.get_ylim()
    assert low < 3
    assert 5.5 < high < 30
    assert axis.get_title() == "beyond the axis: 4 of 12 losses, as far as 1e+06"
    assert axis.lines[0].get_ydata().tolist() == train


@pytest.mark.parametrize("last", [2.0, 50.0])
def test_a_curve_is_whole_where_all_can_be_seen(figures: list[Any], last: float) -> None:
    losses = [10 / epoch for epoch in range(1, 31)] + [last]
    pictures.learning_curve(losses, losses, 29, "nats")
    axis = figures[0].axes[0]
    assert axis.get_ylim()[1] > max(losses) if last == 2 else axis.get_ylim()[1] < last
    assert bool(axis.get_title()) == (last == 50)


def test_losses_that_are_all_the_same_are_drawn(figures: list[Any]) -> None:
    pictures.learning_curve([3.0] * 300, [3.0] * 300, 0, "nats")
    low, high = figures[0].axes[0].get_ylim()
    assert low < 3 < high
    assert not figures[0].axes[0].get_title()


# -- tables -----------------------------------------------------------------------------------------------------------

LONG = "the energy of the first particle as it was measured, in $electron_volts$"


def tables(columns: int, rows: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(columns)
    data, samples = (torch.randn(n, columns, generator=generator, dtype=torch.float64) for n in (rows, 300))
    return data, samples


@pytest.mark.parametrize("columns", [1, 2, 3, 8, 12])
def test_a_corner_has_all_pairs_and_names(figures: list[Any], columns: int) -> None:
    names = [f"{i} {LONG}" for i in range(columns)]
    data, samples = tables(columns)
    assert pictures.corner(data * 1e9, samples * 1e9, names).startswith(b"\x89PNG")
    figure, shown = figures[0], min(columns, 8)
    drawn = [axis for axis in figure.axes if axis.axison]
    assert len(drawn) == shown * (shown + 1) // 2
    bottom = figure.axes[-shown:]
    for i, axis in enumerate(bottom):
        label = axis.get_xlabel().split("\n")
        assert label[0].startswith(f"{i} the energy")
        assert label[-1] == "(times 1e9)"
        assert "…" in label[-2] or columns == 1
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["data (400 rows)", "samples (300 rows)"]
    assert (legend.get_title().get_text() == "") == (columns == 1)
    assert ("the first 8 of 12 columns" in legend.get_title().get_text()) == (columns == 12)
    assert_nothing_overlaps(figure)


def test_a_corner_shows_shares_and_contours(figures: list[Any]) -> None:
    data, samples = tables(2, rows=5000)
    samples = samples * torch.tensor([1.0, 0.5])
    pictures.corner(data, samples, ["a", "b"])
    first, _, pair, second = figures[0].axes
    for axis in (first, second):
        assert axis.get_ylim()[0] == 0
        for patch in axis.patches:
            values, edges, _ = patch.get_data()
            assert values.sum() == pytest.approx(1, abs=0.01)
            assert values.max() < axis.get_ylim()[1]
            assert (edges[0], edges[-1]) == axis.get_xlim()
    # The outer lines hold 90 % of the rows: sqrt(2 log 10) = 2.15 standard deviations.
    for contours, deviation in zip(pair.collections, (1.0, 0.5), strict=True):
        outer = max(contours.get_paths(), key=lambda path: path.get_extents().width).get_extents()
        assert outer.width / 2 == pytest.approx(2.15, rel=0.15)
        assert outer.height / 2 == pytest.approx(2.15 * deviation, rel=0.15)


def test_an_axis_holds_the_bulk_and_the_legend_counts_the_rest(figures: list[Any]) -> None:
    data, samples = tables(2)
    data[7] = torch.tensor([1e6, 0.0])
    samples[:3, 1], samples[3, 0] = -1e9, float("nan")
    pictures.corner(data, samples, ["a", "b"])
    for axis, column in ((figures[0].axes[0], 0), (figures[0].axes[3], 1)):
        low, high = axis.get_xlim()
        inside = data[data[:, column] < 1e6, column]
        assert -10 < low < inside.min()
        assert inside.max() < high < 10
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == ["data (400 rows, 1 beyond the axes)", "samples (300 rows, 4 beyond the axes)"]


def test_samples_far_from_the_data_widen_the_axes_a_little(figures: list[Any]) -> None:
    data, samples = tables(2)
    pictures.corner(data, samples + 100, ["a", "b"])
    assert figures[0].axes[0].get_xlim()[1] < 20
    assert "300 beyond" in figures[0].legends[0].get_texts()[1].get_text()


def test_few_rows_are_points(figures: list[Any]) -> None:
    data, samples = tables(2, rows=20)
    pictures.corner(data, samples, ["a", "b"])
    pair = figures[0].axes[2]
    (line,) = pair.lines
    assert torch.as_tensor(line.get_xydata()).equal(data)
    assert len(pair.collections) == 1


def test_whole_numbers_are_in_the_middle_of_their_bars(figures: list[Any]) -> None:
    data = torch.arange(400).reshape(-1, 1) % torch.tensor([2, 5, 1, 400])
    pictures.corner(data, data[:300].float(), ["flag", "count", "constant", "many"])
    flag, count, constant, many = (figures[0].axes[5 * i] for i in range(4))
    assert [axis.get_xlim() for axis in (flag, count, constant)] == [(-0.5, 1.5), (-0.5, 4.5), (-0.5, 0.5)]
    assert flag.patches[0].get_data().values.tolist() == [0.5, 0.5]
    assert len(set(many.patches[0].get_data().values.tolist()[:-1])) == 1  # each bar holds as many whole numbers
    figures[0].canvas.draw()
    assert [tick for tick in flag.get_xticks() if -0.5 <= tick <= 1.5] == [0, 1]


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_constant_column_and_hardly_any_rows(figures: list[Any], rows: int) -> None:
    data = torch.full((rows, 2), 0.3)
    pictures.corner(data, data[:0], ["a", "常数"])
    low, high = figures[0].axes[0].get_xlim()
    assert low < 0.3 < high


@pytest.mark.parametrize("scale", [1.0, 1e9])
def test_a_density_map_shows_the_density_where_it_is(figures: list[Any], scale: float) -> None:
    data, samples = tables(2, rows=6000)
    spread = torch.tensor([1.0, 3.0]) * scale

    def log_prob(rows: torch.Tensor) -> torch.Tensor:
        assert len(rows) <= 8192
        return (torch.distributions.Normal(0.0, 1.0).log_prob(rows / spread) - spread.log()).sum(1)

    pictures.density_map(log_prob, data * spread, samples * spread, ["first", LONG])
    model, of_data, of_samples, bar = figures[0].axes
    mesh = model.collections[0]
    density = torch.as_tensor(mesh.get_array())
    corners = torch.as_tensor(mesh.get_coordinates())
    area = (corners[0, 1, 0] - corners[0, 0, 0]) * (corners[1, 0, 1] - corners[0, 0, 1])
    assert float(density.sum() * area) == pytest.approx(1, abs=0.01)
    assert mesh.get_clim() == (0, pytest.approx(1 / (2 * math.pi * 3 * scale**2), rel=0.01))
    middle = (corners[1:, 1:] + corners[:-1, :-1]) / 2
    expected = log_prob(middle.reshape(-1, 2)[:8000]).exp()
    torch.testing.assert_close(density.flatten()[:8000], expected, rtol=1e-5, atol=0)
    assert model.get_xlim() == of_data.get_xlim() == of_samples.get_xlim()
    assert [len(axis.collections[0].get_offsets()) for axis in (of_data, of_samples)] == [5000, 300]
    assert of_data.get_title().startswith("data\n(5,000 rows")
    assert bar.get_ylabel().startswith("density (per unit of each column)")
    assert ("(times 1e−20)" in bar.get_ylabel()) == (scale > 1)
    assert_nothing_overlaps(figures[0])


def test_a_narrow_peak_does_not_leave_the_rest_dark(figures: list[Any]) -> None:
    data, samples = tables(2, rows=2000)
    data[:1000] = 2 + 0.01 * data[:1000]
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(2)),
        torch.distributions.Independent(
            torch.distributions.Normal(torch.tensor([[0.0], [2.0]]).expand(2, 2), torch.tensor([[1.0], [0.01]]).expand(2, 2)), 1
        ),
    )
    pictures.density_map(mixture.log_prob, data, samples, ["a", "b"])
    mesh = figures[0].axes[0].collections[0]
    assert 0.08 < mesh.get_clim()[1] < 0.8  # the wide part's peak is 1 / (4 pi) = 0.08, the narrow one's 800


@pytest.mark.parametrize("nats", [float("nan"), float("-inf"), 1e4])
def test_a_density_that_is_no_number_is_drawn(figures: list[Any], nats: float) -> None:
    data, samples = tables(2, rows=1)
    pictures.density_map(lambda rows: torch.full((len(rows),), nats), data, samples[:0], ["a", "b"])
    assert torch.as_tensor(figures[0].axes[0].collections[0].get_array()).isfinite().all()
