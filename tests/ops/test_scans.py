"""The LSTMs over images against torch's own, where that can do the same."""

from __future__ import annotations

import pytest
import torch
from accuracy import using
from torch import Tensor, nn

import flowkern as fk
from flowkern.reference.diagonal_lstm import skew, unskew

BACKENDS = pytest.mark.parametrize("backend", ["native", "reference"])
HIDDEN = 5


def torch_lstm() -> tuple[nn.LSTM, Tensor, Tensor, Tensor]:
    """An LSTM of torch, and its input and state weights and its bias with the gates in our order, not i, f, g, o."""
    lstm = nn.LSTM(3, HIDDEN, batch_first=True).double()
    parts = (lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0 + lstm.bias_hh_l0)
    return (lstm, *(torch.cat([t.chunk(4)[i] for i in (3, 1, 0, 2)]) for t in parts))


@BACKENDS
def test_a_row_lstm_of_one_tap_is_an_lstm_of_every_column(backend: str) -> None:
    lstm, of_input, of_state, bias = torch_lstm()
    x = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    expected, _ = lstm(x.transpose(1, 2).flatten(0, 1))
    with using(backend):
        found = fk.ops.row_lstm(x @ of_input.t() + bias, of_state[..., None])
    torch.testing.assert_close(found, expected.unflatten(0, (2, 4)).transpose(1, 2))


@BACKENDS
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_diagonal_lstm_without_a_tap_above_is_an_lstm_of_every_row(backend: str, mirrored: bool) -> None:
    lstm, of_input, of_state, bias = torch_lstm()
    x = torch.randn(2, 6, 4, 3, dtype=torch.float64)

    def turned(t: Tensor) -> Tensor:
        return t.flip(-2) if mirrored else t

    expected, _ = lstm(turned(x).flatten(0, 1))
    with using(backend):
        weight = torch.stack([torch.zeros_like(of_state), of_state], -1)
        found = fk.ops.diagonal_lstm(x @ of_input.t() + bias, weight, mirrored=mirrored)
    torch.testing.assert_close(found, turned(expected.unflatten(0, (2, 6))))


def test_skewing_moves_rows_to_the_right_and_back() -> None:
    x = torch.arange(1.0, 13).reshape(3, 4, 1)
    skewed = skew(x)
    assert skewed[..., 0].tolist() == [[1, 2, 3, 4, 0, 0], [0, 5, 6, 7, 8, 0], [0, 0, 9, 10, 11, 12]]
    assert torch.equal(unskew(skewed), x)
