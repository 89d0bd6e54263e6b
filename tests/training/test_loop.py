"""The loop on one process: what it does to a model, and that a broken run goes on as if it had not been broken."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict

import flowkern as fk
from flowkern.data import Dequantised, Encoding, Rows, Standardised
from flowkern.model import Model
from flowkern.training import Checkpoints, History, Processes, Settings, Training, TrainingError
from flowkern.training.batches import seeded

HERE = Processes()
IMAGES = (1, 2, 3)


def maf() -> Model:
    return fk.flows.MAF(6, 2, (8,), batch_norm=True)


def masks() -> Model:
    return fk.models.MADE(6, "mixture", (8,), masks=3, components=2)


class Noisy(fk.flows.MAF):
    """Draws noise of its own in every step, as a VAE does."""

    def loss(self, batch: Any) -> dict[str, Tensor]:
        return {"loss": -self(batch[0] + 0.1 * torch.randn_like(batch[0])).mean()}


def noisy() -> Model:
    return Noisy(6, 2, (8,))


def distillation() -> Model:
    sizes = {"residual": 4, "skip": 4}
    teacher = fk.models.WaveNet(6, "logistics", layers=2, components=2, **sizes)
    return fk.models.Distillation(fk.models.ParallelWaveNet(6, (1, 2), **sizes), teacher, draws=3)


MODELS = {"maf": maf, "masks": masks, "noisy": noisy, "distillation": distillation}


def training(kind: str, folder: Path | None = None, watch: Any = None, **settings: Any) -> Training:
    """A run on images of 17 levels, whose encoding draws noise in each epoch."""
    torch.manual_seed(0)
    model = MODELS[kind]()
    images = torch.randint(17, (150, *IMAGES), generator=torch.Generator().manual_seed(1))
    parts = Rows(images, torch.arange(50, 150)), Rows(images, torch.arange(50))
    chosen = Settings(**{"epochs": 4, "batch_size": 16, "patience": 0, **settings})
    kept = None if folder is None else Checkpoints(folder, HERE)
    return Training(model, *parts, Dequantised(17, IMAGES), chosen, HERE, kept, watch)


class StopAt:
    """Sends a signal to this process at a look after a number of epochs and part of another."""

    def __init__(self, epochs: int, part: float) -> None:
        self.at, self.done = epochs + part, False

    def __call__(self, history: History, part: float) -> None:
        if not self.done and len(history.train) + part >= self.at:
            self.done = True
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("settings", [{}, {"average": 0.9, "accumulate": 3}], ids=["plain", "average, parts"])
@pytest.mark.parametrize("at", [(0, 0.3), (2, 0.5), (3, 0.0)], ids=["first epoch", "inside", "between"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_broken_run_goes_on_with_the_very_losses(
    kind: str, at: tuple[int, float], settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = training(kind, **settings)
    expected = whole.run()
    monkeypatch.setattr("flowkern.training.loop.LOOK", 0)  # after every step, however long that takes here
    broken = training(kind, tmp_path, StopAt(*at), **settings)
    assert broken.run().ended == "SIGTERM"
    torch.rand(3)  # whatever happens between
    rest = training(kind, tmp_path, **settings)
    newest = Checkpoints(tmp_path, HERE).newest()
    assert newest is not None
    rest.resume(newest)
    assert 0 < rest.step < whole.step
    history = rest.run()
    for name in ("train", "validation", "steps", "best", "learning_rate", "ended"):
        assert getattr(history, name) == getattr(expected, name), name
    for (name, t), other in zip(whole.model.state_dict().items(), rest.model.state_dict().values(), strict=True):
        assert torch.equal(t, other), name


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_runs_repeat_and_do_not_depend_on_checkpoints(optimizer: str, tmp_path: Path) -> None:
    settings = {"optimizer": optimizer, "weight_decay": 0.1, "checkpoint_minutes": 0}
    run = training("maf", tmp_path, **settings)
    run.save()
    begun = training("maf", tmp_path, **settings)  # from the checkpoint of the first step, which has none of the optimiser's
    newest = Checkpoints(tmp_path, HERE).newest()
    assert newest is not None
    begun.resume(newest)
    first, *others = (each.run() for each in (training("maf", **settings), run, begun))
    for other in others:
        assert other.train == first.train
        assert other.validation == first.validation


def test_one_checkpoint_is_kept_and_what_is_not_the_runs_own(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-0000000003-copy").mkdir()
    run = training("maf", tmp_path)
    run.save()
    run.save()  # of the same step
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-0000000000", "checkpoint-0000000003-copy"}
    run.step = 2
    run.save()
    newest = Checkpoints(tmp_path, HERE).newest()
    assert newest == tmp_path / "checkpoint-0000000002"
    assert {path.name for path in tmp_path.iterdir()} == {newest.name, "checkpoint-0000000003-copy"}
    Checkpoints(tmp_path, HERE).remove()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-0000000003-copy"]


@pytest.mark.parametrize("kind", MODELS)
def test_torch_finds_what_a_state_dict_names(kind: str) -> None:
    """Which it looks up to put a sharded model together."""
    model = MODELS[kind]()
    assert get_model_state_dict(model).keys() == model.state_dict().keys()


def test_losses_are_those_of_a_loop_by_hand() -> None:
    """Adam, clipping, the schedule and the warm-up, written down step by step on rows without noise."""
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    settings = Settings(epochs=3, batch_size=16, warmup=2, gradient_clip=0.5, weight_decay=0.01, patience=0)
    torch.manual_seed(0)
    ours = Training(fk.flows.MAF(6, 2, (8,)), Rows(x), Rows(x[:9]), None, settings, HERE)
    torch.manual_seed(0)
    model = fk.flows.MAF(6, 2, (8,))
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=0.01)
    train, validation, step = [], [], 0
    for epoch in range(3):
        total = 0.0
        for batch in ours.train.epoch(epoch):
            rate = 1e-3 * min(1, (step + 1) / 3) * 0.5 * (1 + math.cos(math.pi * step / 9))
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss = -model.log_prob(batch.parts[0]).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            total += loss.item() * len(batch.parts[0])
            step += 1
        train.append(total / 40)
        validation.append(-model.log_prob(x[:9]).mean().item())
    history = ours.run()
    assert history.train == pytest.approx(train, rel=1e-5)
    assert history.validation == pytest.approx(validation, rel=1e-5)
    assert history.steps == [3, 6, 9]


def test_parts_of_a_batch_have_the_gradient_of_the_whole() -> None:
    whole, parts = (training("noisy", accumulate=n, epochs=1, optimizer="adamw") for n in (1, 5))
    for run in (whole, parts):
        run.model.loss = lambda batch, model=run.model: {"loss": -model(batch[0]).mean()}  # type: ignore[misc]
    assert parts.run().train == pytest.approx(whole.run().train, rel=1e-5)


def test_an_epoch_holds_every_row_once_in_a_new_order() -> None:
    run = training("maf")
    rows = Rows(torch.arange(100.0).reshape(100, 1))
    run.train.rows, run.train.encoding, run.train.event_shape = rows, None, torch.Size((1,))
    epochs = [torch.cat([b.parts[0] for b in run.train.epoch(i)])[:, 0].tolist() for i in range(2)]
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        assert sorted(epoch) == list(range(100))
    later = torch.cat([b.parts[0] for b in run.train.epoch(1, first=3)])[:, 0].tolist()
    assert later == epochs[1][48:]


def test_the_best_epoch_is_kept_and_patience_ends_a_run() -> None:
    """Weights that get worse on purpose: a learning rate far too large, without clipping."""
    run = training("maf", learning_rate=0.3, gradient_clip=0, schedule="constant", epochs=40, patience=3)
    history = run.run()
    assert history.ended == "patience"
    assert len(history.train) == history.best + 4
    assert min(history.validation) == history.validation[history.best]
    assert run._validate() == pytest.approx(history.validation[history.best], rel=1e-6)


def test_batch_norm_is_calibrated_before_validation() -> None:
    run = training("maf", epochs=1)
    run.run()
    norm = next(m for m in run.model.modules() if isinstance(m, fk.nn.BatchNorm))
    index = torch.randperm(len(run.train.rows), generator=seeded(run.settings.seed, -2))
    z, _ = run.model.transform.transforms[0](run.train.chosen(index)[0])  # type: ignore[attr-defined]
    torch.testing.assert_close(norm.running_mean, z.mean(0))
    torch.testing.assert_close(norm.running_var, z.var(0, unbiased=False))


class Explodes(fk.flows.MAF):
    """The loss of the seventh step is not a number."""

    steps = 0

    def loss(self, batch: Any) -> dict[str, Tensor]:
        self.steps += self.training
        return {"loss": super().loss(batch)["loss"] * (math.nan if self.steps == 7 else 1)}


@pytest.mark.parametrize("settings", [{}, {"epochs": 40, "patience": 3, "learning_rate": 0.3, "gradient_clip": 0}])
def test_a_run_that_has_ended_is_not_trained_again(settings: Any, tmp_path: Path) -> None:
    """Where it was ended while it was judged."""
    run = training("maf", tmp_path, **settings)
    history = run.run()
    again = training("maf", tmp_path, **settings)
    newest = Checkpoints(tmp_path, HERE).newest()
    assert newest is not None
    again.resume(newest)
    assert again.run() == history
    for (name, t), other in zip(run.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(t, other), name


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_what_there_is(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(MODELS, "explodes", lambda: Explodes(6, 2, (8,)))
    run = training("explodes", tmp_path, batch_size=32)
    before = {name: t.clone() for name, t in run.model.state_dict().items()}
    with pytest.raises(TrainingError, match=r"the loss is nan at step 7 \(epoch 2, batch 3 of 4\); .*checkpoint-0+ is kept"):
        run.run()
    state = run.model.state_dict()
    assert all(t.isfinite().all() for t in state.values() if t.is_floating_point())
    assert any(not torch.equal(t, before[name]) for name, t in state.items())  # of the first epoch


def test_a_checkpoint_of_another_model_and_a_damaged_one(tmp_path: Path) -> None:
    training("maf", tmp_path, StopAt(1, 0.2)).run()
    newest = Checkpoints(tmp_path, HERE).newest()
    assert newest is not None
    with pytest.raises(TrainingError, match=r"damaged, or of another model"):
        training("masks", tmp_path).resume(newest)
    for file in newest.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"cannot continue from .*damaged"):
        training("maf", tmp_path).resume(newest)
    for content in ("{", "[]", '{"step": 3}'):
        (newest / "progress.json").write_text(content)
        with pytest.raises(TrainingError, match=r"cannot read .*progress.json"):
            training("maf", tmp_path).resume(newest)


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path: Path, monkeypatch: Any) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    run = training("maf", tmp_path, StopAt(1, 0.0))
    run.save()
    monkeypatch.setattr("flowkern.training.checkpoints.dcp.save", full)
    with pytest.raises(TrainingError, match=r"cannot write .*No space left on device; .*checkpoint-0+ is kept"):
        run.save()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-0000000000"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs: expected a whole number of at least 1, got 0"),
        ({"batch_size": 1.5}, "batch_size: expected a whole number of at least 1, got 1.5"),
        ({"learning_rate": -1}, "learning_rate: expected a number of at least 0, got -1"),
        ({"learning_rate": math.nan}, "learning_rate: expected a number of at least 0, got nan"),
        ({"average": 1}, "average: expected a number of at least 0 and below 1, got 1"),
        ({"schedule": "linear"}, "schedule: expected one of cosine, constant, got 'linear'"),
        ({"average": 0.9, "strategy": "fsdp"}, "average: an average of the weights needs strategy ddp, got fsdp"),
        ({"seed": 2**64}, "seed: expected a whole number below 2^64"),
        ({"batch_size": 10**30}, "batch_size: expected a whole number below 2^31"),
    ],
)
def test_settings(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("^", r"\^")):
        Settings(**settings)


def test_encodings_without_noise_are_the_same_in_every_epoch() -> None:
    x = torch.randn(40, 6, dtype=torch.float64)
    encoding: Encoding = Standardised.fit(Rows(x))
    run = Training(fk.flows.MAF(6, 1, (8,)), Rows(x), Rows(x), encoding, Settings(batch_size=7), HERE)
    both = [torch.cat([b.parts[0] for b in run.train.epoch(i)]).sort(0).values for i in range(2)]
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=0)


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path: Path) -> None:
    """A gradient can be so where the loss before it is not."""
    run = training("maf", tmp_path)
    run.save()
    run.step = 5
    with torch.no_grad():
        next(run.model.parameters())[0] = math.nan
    with pytest.raises(TrainingError, match=r"the weights are not finite after step 5; .*checkpoint-0+ is kept"):
        run.save()


def test_a_model_around_one_with_batch_norm_is_calibrated() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    model = fk.models.Encoded(fk.flows.MAF(6, 1, (8,), batch_norm=True), Standardised.fit(Rows(x)))
    history = Training(model, Rows(x), Rows(x), None, Settings(epochs=2, batch_size=20), HERE).run()
    assert all(map(math.isfinite, history.validation))
    first, norm = model.model.transform.transforms
    torch.testing.assert_close(norm.running_mean, first(model.encode(x)[0])[0].mean(0))
