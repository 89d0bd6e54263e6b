"""Every model of `flowkern list`: trained, saved, loaded, sampled, scored and continued by the commands, and by `fit`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flowkern as fk
from flowkern.cli import main
from flowkern.cli.options import assignments, options_of, parse
from flowkern.cli.registry import models
from flowkern.training import Checkpoints, Processes, Training

SMALL = {  # options that keep a model small, where `hidden` is none of its own
    "wavenet": ["layers=2", "residual=8", "skip=8"],
    "parallelwavenet": ["layers=2,1", "residual=8", "skip=8"],
    "glow": ["hidden=8", "steps=4"],
    "vae": ["hidden=8", "latent=2", "flow_hidden=8", "flow_context=2", "importance=20"],
    "pixelrnn": ["hidden=4", "layers=1", "levels=3"],
    "pixelcnn": ["hidden=8", "layers=1", "levels=3"],
}
REAL = {"vae": ["likelihood=gaussian"]}  # what a model needs for real numbers
DATA = {"pixelrnn": "levels", "pixelcnn": "levels"}  # of models of nothing but whole numbers; others are trained on real ones
# Options with which a model is trained on whole numbers besides.
WHOLE = {
    "made": {
        "binary": [["head=bernoulli"]],
        "levels": [["head=categorical", "categories=3"], ["head=logistics", "levels=3", "components=2"]],
    },
    "vae": {
        "levels": [["likelihood=logistic", "levels=3", "prior=maf", "samples=2", "gradient=dreg", "kl_warmup=4"]],
    },
    "pixelrnn": {"levels": [["scan=row"]]},
    "pixelcnn": {"levels": [["gated=true"]]},
}


def small(model: str) -> list[str]:
    return [*SMALL.get(model, ["hidden=8"]), "batch_size=40"]


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """A table in odd units, and tables of whole numbers."""
    draw = np.random.default_rng(0)
    real = draw.normal(size=(200, 3)) * [1, 60, 1e-3] + [0, 1.7e9, 5]
    tables = {"real": real, "binary": draw.integers(0, 2, (200, 4)), "levels": draw.integers(0, 3, (200, 4))}
    for name, values in tables.items():
        np.savetxt(tmp_path / f"{name}.csv", values, delimiter=",", header="a,b,c,d"[: 2 * values.shape[1] - 1], comments="")
    return {name: tmp_path / f"{name}.csv" for name in tables}


CASES = [(model, DATA.get(model, "real"), REAL.get(model, [])) for model in models()]
CASES += [(model, data, options) for model, kinds in WHOLE.items() for data, ways in kinds.items() for options in ways]


@pytest.mark.parametrize(("model", "data", "options"), CASES, ids=lambda value: value if isinstance(value, str) else None)
def test_the_commands(model: str, data: str, options: list[str], sources: dict[str, Path], tmp_path: Path) -> None:
    run, source = tmp_path / "run", str(sources[data])
    assert main(["train", model, "--data", source, "--output", str(run), "--set", *small(model), "epochs=2", *options]) == 0
    assert not list(run.glob("checkpoint-*"))
    results = json.loads((run / "results.json").read_text())
    assert np.isfinite(results["test"]["nats"])

    loaded = fk.Model.from_pretrained(run)
    assert type(loaded.model) is models()[model]
    rows = np.loadtxt(source, delimiter=",", skiprows=1)
    log_prob = tmp_path / "log_prob.npy"
    assert main(["evaluate", str(run), "--data", source, "--output", str(log_prob)]) == 0
    expected = loaded.log_prob(torch.from_numpy(rows)).detach().numpy()
    np.testing.assert_allclose(np.load(log_prob)[:, 0], expected, rtol=1e-5, atol=1e-5)

    assert main(["sample", str(run), "-n", "1100"]) == 0
    with (run / "samples.csv").open() as file:
        header, *samples = csv.reader(file)
    assert header == ["a", "b", "c", "d"][: rows.shape[1]]
    drawn = np.array(samples, float)
    assert drawn.shape == (1100, rows.shape[1])
    if data == "real":
        assert (np.abs(drawn.mean(0) - rows.mean(0)) < rows.std(0)).all()
    else:
        assert set(np.unique(drawn)) == set(np.unique(rows))


@pytest.mark.parametrize("model", models())
def test_a_run_repeats_and_goes_on(model: str, sources: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    """From its run.json alone; and from a checkpoint, as if it had not been broken."""
    data = sources[DATA.get(model, "real")]
    arguments = ["--data", str(data), "--set", *small(model), *REAL.get(model, []), "epochs=3", "schedule=constant"]
    assert main(["train", model, *arguments, "--output", str(tmp_path / "whole")]) == 0
    again = ["train", "--config", str(tmp_path / "whole" / "run.json"), "--output"]
    assert main([*again, str(tmp_path / "again")]) == 0

    look = Training._look

    def broken(self: Any) -> None:
        self.signal = 15 if self.step == 5 else 0  # of 12, 4 in an epoch
        look(self)
        self.look_every = 1

    monkeypatch.setattr(Training, "_look", broken)
    assert main([*again, str(tmp_path / "broken")]) == 143
    assert Checkpoints(tmp_path / "broken", Processes()).newest() is not None
    assert main(["train", "--resume", "--output", str(tmp_path / "broken")]) == 0
    tables = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "again", "broken")]
    first, *others = ([row.rsplit(",", 1)[0] for row in text.splitlines()] for text in tables)  # all but the seconds
    assert others == [first, first]
    samples = [(tmp_path / name / "samples.csv").read_text() for name in ("whole", "again", "broken")]
    assert samples[0] == samples[1] == samples[2]


@pytest.mark.parametrize("model", models())
def test_fit(model: str) -> None:
    torch.manual_seed(0)
    x = torch.randint(3, (300, 2)).float() if model in DATA else 50 + 10 * torch.randn(300, 2)
    known = options_of(models()[model])
    texts = [*SMALL.get(model, ["hidden=16"]), *REAL.get(model, [])]
    given = {name: parse(known[name], text) for name, text in assignments(texts).items()}
    made = models()[model](2, **given)
    history = made.fit(x, epochs=20, batch_size=50, learning_rate=0.01, progress=False)
    assert len(history.train) == 20
    assert not made.training
    assert made.log_prob(x).isfinite().all()
    if isinstance(made, fk.flows.Flow):
        assert (made.sample((500,)).median(0).values - 50).abs().max() < 5
        assert made.log_prob(x).mean() > -8  # of two deviations of 10: -7.4
