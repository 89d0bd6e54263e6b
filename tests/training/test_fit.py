"""`model.fit`: one line for rows that are at hand."""

from __future__ import annotations

import math
import re
import signal
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowkern as fk
from flowkern.training import TrainingError, progress

SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 32, "progress": False}


def rows(n: int = 200) -> Tensor:
    return 50 + 10 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0))


def flow(**options: Any) -> fk.flows.MAF:
    torch.manual_seed(0)
    return fk.flows.MAF(2, 2, (8,), **options)


def test_the_flow_is_in_the_units_of_the_rows_and_is_built_again_with_its_layer() -> None:
    made = flow()
    made.fit(rows(), **SETTINGS)
    layer = made.transform.transforms[0]
    assert isinstance(layer, fk.nn.Standardize)
    assert (layer.mean - 50).abs().max() < 3
    twin = fk.flows.MAF(**made.config)
    twin.load_state_dict(made.state_dict())
    torch.testing.assert_close(twin.eval().log_prob(rows()), made.log_prob(rows()), rtol=0, atol=0)
    mean = layer.mean.clone()
    made.fit(rows() + 1, **SETTINGS)  # a second time: the layer stays
    assert torch.equal(made.transform.transforms[0].mean, mean)


def test_without_standardisation_and_for_a_flow_of_transforms() -> None:
    made = flow()
    made.fit(rows(), standardize=False, **SETTINGS)
    assert len(made.transform.transforms) == 2
    other = fk.flows.Flow([fk.nn.Reverse(2), fk.nn.MaskedAutoregressive(2, (8,))])
    other.fit(rows(), **SETTINGS)
    assert [type(t).__name__ for t in other.config["transforms"]] == ["Standardize", "Reverse", "MaskedAutoregressive"]
    fk.flows.Flow(**other.config).load_state_dict(other.state_dict())


def test_a_context_belongs_to_its_row() -> None:
    """x follows its context, which an embedding is learned for: a shuffle of one without the other would show."""
    context = torch.randn(600, 3, generator=torch.Generator().manual_seed(1))
    x = 5 * context[:, :2] + 0.1 * torch.randn(600, 2, generator=torch.Generator().manual_seed(2))
    made = flow(context=4, embedding=nn.Linear(3, 4))
    history = made.fit(x, context, epochs=60, batch_size=50, learning_rate=0.02, progress=False)
    assert history.validation[history.best] < 0.5  # 5.7 of two deviations of 5, without the context
    held = made.fit(x[:500], context[:500], (x[500:], context[500:]), epochs=1, progress=False)
    assert held.validation[0] < 1


def test_the_seed_and_the_random_numbers_of_the_caller() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    made, other = flow(), flow()
    torch.set_rng_state(state)
    first, second = made.fit(rows(), **SETTINGS), other.fit(rows(), **SETTINGS)
    assert first.validation == second.validation
    assert torch.equal(torch.get_rng_state(), state)
    third = flow().fit(rows(), seed=1, **SETTINGS)
    assert third.validation != first.validation


def test_rows_that_have_a_gradient() -> None:
    """They are data: what they come from is not trained, nor kept for a second step."""
    x, context = (rows(200).requires_grad_() * 1, torch.randn(200, 2, requires_grad=True) * 1)
    history = flow(context=2).fit(x, context, **SETTINGS)
    assert history.ended == "epochs"


def test_a_part_that_is_frozen_stays_and_nothing_to_train_is_told() -> None:
    made = flow()
    frozen, *_ = made.parameters()
    before = frozen.detach().clone()
    frozen.requires_grad_(False)
    made.fit(rows(), **SETTINGS)
    assert torch.equal(frozen, before)
    with pytest.raises(ValueError, match="MAF has no parameter that requires a gradient"):
        made.requires_grad_(False).fit(rows())


def test_a_model_of_the_commands_goes_on_with_rows_in_their_own_dtype() -> None:
    x = 1.7e9 + 60 * torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = fk.models.Encoded(flow(), fk.data.Standardised.fit(fk.data.Rows(x)))
    with torch.no_grad():  # which training lifts
        history = made.fit(x, **SETTINGS)
    assert history.validation[-1] == pytest.approx(math.log(60 * 60) + 2.84, abs=0.5)


def test_doubles() -> None:
    made = flow().double()
    made.fit(rows().double(), **SETTINGS)
    assert made.log_prob(rows().double()).dtype is torch.float64


def test_a_model_of_levels_takes_whole_numbers_of_any_dtype() -> None:
    images = torch.randint(17, (100, 1, 2, 1), dtype=torch.uint8)
    made = fk.models.Encoded(flow(), fk.data.Dequantised(17, (1, 2, 1)))
    assert made.fit(images, **SETTINGS).validation[0] < math.inf
    assert made.levels == 17


def test_ctrl_c_ends_the_training_and_not_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = flow(), []
    loss = type(made).loss

    def interrupted(self: Any, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return loss(self, batch)

    monkeypatch.setattr(type(made), "loss", interrupted)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    history = made.fit(rows(), epochs=1000, progress=False)
    assert history.ended == "SIGINT"
    assert len(history.train) < 1000
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_sigterm_is_the_programs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made, came = flow(), []
    monkeypatch.setattr(type(made), "loss", lambda self, batch: signal.raise_signal(signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with pytest.raises(TypeError):  # a loss that is None
            made.fit(rows(), progress=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]


def test_a_loss_that_is_not_finite_leaves_the_weights_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    made = flow()
    before = {name: t.clone() for name, t in made.state_dict().items()}
    loss = type(made).loss
    monkeypatch.setattr(type(made), "loss", lambda self, batch: {"loss": loss(self, batch)["loss"] * math.nan})
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1 \(epoch 1, batch 1 of 2\)$"):
        made.fit(rows(), standardize=False, progress=False)
    assert all(torch.equal(t, before[name]) for name, t in made.state_dict().items())


def test_a_model_has_settings_of_its_own() -> None:
    """Which give way to those that are asked for."""
    model = fk.models.WaveNet(30, "gaussian", layers=1, residual=4, skip=4)
    history = model.fit(0.1 * torch.randn(40, 30), epochs=1, validation=0.5, progress=False)
    assert history.steps == [3]  # of 8 rows each, 20 in all
    history = model.fit(0.1 * torch.randn(40, 30), epochs=1, validation=0.5, progress=False, batch_size=20)
    assert history.steps == [1]


def test_lines_where_no_bar_can_be_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    flow().fit(rows(), epochs=2)
    out, err = capsys.readouterr()
    assert "epoch 2 of 2: loss " in out
    assert err == ""


def test_lines_of_a_long_epoch_say_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    flow().fit(rows(), epochs=2, batch_size=2)
    lines = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"epoch 1 of 2: \d+ %", line) for line in lines)  # nothing is known of losses yet
    assert any(re.fullmatch(r"epoch 2 of 2: \d+ %, after loss .*, validation .*\(best in epoch 1\)", line) for line in lines)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.randn(5, 3)}, ValueError, r"x: expected shape \(n, 2\) with n of at least 1, got \(5, 3\)"),
        ({"x": torch.randn(0, 2)}, ValueError, r"x: expected shape \(n, 2\) with n of at least 1, got \(0, 2\)"),
        ({"x": torch.randn(2)}, ValueError, r"x: expected shape"),
        ({"x": [[1.0, 2.0]]}, TypeError, "x: expected a torch.Tensor, got list"),
        (
            {"x": torch.randn(5, 2).double()},
            TypeError,
            "x: expected dtype torch.float32 like the parameters, got torch.float64",
        ),
        ({"x": torch.ones(5, 2).long()}, TypeError, "x: expected a floating-point tensor"),
        ({"x": torch.tensor([[1.0, 2.0], [math.nan, 1.0]])}, ValueError, r"x: row 1 is not finite \(1 such rows\)"),
        ({"x": torch.ones(30, 2)}, ValueError, "std: expected positive deviations; a constant feature has no density"),
        ({"context": torch.randn(200, 1)}, ValueError, "context: the model takes none"),
        ({"validation": 0.0}, ValueError, "validation: expected a fraction of the 200 rows that leaves some for both, got 0.0"),
        ({"validation": 1.0}, ValueError, "validation: expected a fraction"),
        ({"validation": math.nan}, ValueError, "validation: expected a fraction of the 200 rows .*, got nan"),
        ({"validation": None}, TypeError, "validation: expected a torch.Tensor, got NoneType"),
        ({"validation": torch.randn(5, 3)}, ValueError, r"validation: expected shape \(n, 2\)"),
        ({"validation": (rows(), rows(), rows())}, ValueError, "validation: expected a fraction, x, or .*, got 3 parts"),
        ({"epochs": 0}, ValueError, "epochs: expected a whole number of at least 1, got 0"),
        ({"epoch": 3}, TypeError, "epoch"),
    ],
)
def test_bad_arguments_change_nothing(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    made = flow()
    before = {name: t.clone() for name, t in made.state_dict().items()}
    with pytest.raises(error, match=message):
        made.fit(**{"x": rows(), "progress": False, **arguments})
    assert made.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[name]) for name, t in made.state_dict().items())


def test_a_context_that_is_missing() -> None:
    with pytest.raises(ValueError, match="context: the model needs one"):
        flow(context=2).fit(rows())
    with pytest.raises(ValueError, match=r"context: expected 200 rows like x, got shape \(3, 2\)"):
        flow(context=2).fit(rows(), torch.randn(3, 2))
