"""Pictures show what they say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flowkern.data import Dequantised

pytest.importorskip("matplotlib")

from flowkern.cli import pictures


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


def test_every_image_has_its_frame_and_levels(figures: list[Any]) -> None:
    images = Dequantised(levels=17, event_shape=(1, 2, 2))
    real, samples = torch.full((70, 1, 2, 2), 16.0), torch.arange(280).reshape(70, 1, 2, 2) % 17
    pictures.image_grids(real, samples, images, rows=2, columns=3)
    left, right = (axis.images[0] for axis in figures[0].axes)
    assert left.get_clim() == right.get_clim() == (0, 16)
    for image in (left, right):
        shown = torch.as_tensor(image.get_array())
        for edge in (shown[:4], shown[-4:], shown[:, :4], shown[:, -4:]):
            assert (edge == 8).all()
    assert shown.shape == (2 * (2 * 8 + 4) + 4, 3 * (2 * 8 + 4) + 4)
    assert shown[4, 4::20].tolist()[:3] == [0, 4, 8]  # the first pixel of each image of the first row
    assert shown[20:24].eq(8).all()


def test_a_curve_of_one_epoch(figures: list[Any]) -> None:
    history = SimpleNamespace(train=[3.0], validation=[4.0], best=0)
    pictures.learning_curve(history, "standardised")
    axis = figures[0].axes[0]
    assert axis.lines[0].get_marker() == "o"
    assert "standardised" in axis.get_ylabel()
