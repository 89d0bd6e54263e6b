"""Commands with models of rows that are given something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refused

import flowkern as fk
from flowkern.cli import main

QUICK = ["hidden=16", "transforms=1", "batch_size=50"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of t, given the columns b and a: t is 100 a."""
    folder, draw = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    a, b = draw.normal(size=(2, 600))
    rows = np.stack([a, 100 * a + draw.normal(size=600), 1e4 + b], 1)
    np.savetxt(folder / "rows.csv", rows, delimiter=",", header="a,t,b", comments="")
    options = ["--set", "given=b,a", "epochs=20", "learning_rate=0.02", *QUICK]
    assert main(["train", "maf", "--data", str(folder / "rows.csv"), "--output", str(folder / "run"), *options]) == 0
    return folder / "run"


def sampled(run: Path, *arguments: str) -> np.ndarray:
    output = run.parent / "samples.npy"
    assert main(["sample", str(run), "--output", str(output), *arguments]) == 0
    return np.load(output)


def test_samples_follow_what_they_are_given(run: Path) -> None:
    few, many = (sampled(run, "--given", f"10000,{a}", "-n", "400") for a in (-1, 1))
    assert few.shape == (400, 1)
    assert few.mean() < -50
    assert many.mean() > 50
    whole = sampled(run, "--given", str(run.parent / "rows.csv"), "-n", "2")  # by the names of its columns
    a = np.loadtxt(run.parent / "rows.csv", delimiter=",", skiprows=1)[:, 0]
    assert whole.shape == (1200, 1)
    assert np.corrcoef(whole[::2, 0], a)[0, 1] > 0.9
    assert np.corrcoef(whole[1::2, 0], a)[0, 1] > 0.9


def test_densities_are_of_rows_and_what_they_are_given(run: Path) -> None:
    scores = run.parent / "scores.npy"
    assert main(["evaluate", str(run), "--data", str(run.parent / "rows.csv"), "--output", str(scores)]) == 0
    rows = torch.from_numpy(np.loadtxt(run.parent / "rows.csv", delimiter=",", skiprows=1))
    model = fk.Model.from_pretrained(run)
    with torch.no_grad():
        expected = model.log_prob(rows[:, 1:2], rows[:, [2, 0]])
    np.testing.assert_allclose(np.load(scores)[:, 0], expected.numpy(), rtol=1e-5, atol=1e-5)
    # A loss in the data's units is that of the rows with their context.
    assert torch.allclose(model.loss((rows[:, 1:2], rows[:, [2, 0]]))["loss"], -expected.mean(), rtol=1e-5)
    assert model.log_prob(rows[:0, 1:2], rows[:0, [2, 0]]).shape == model.sample((), rows[:0, [2, 0]])[:, 0].shape == (0,)


def test_a_run_goes_on_with_what_it_was_given(run: Path, tmp_path: Path) -> None:
    assert main(["train", "--config", str(run / "run.json"), "--output", str(tmp_path / "again"), "--set", "epochs=1"]) == 0
    config = fk.Model.from_pretrained(tmp_path / "again").config
    assert config["model"].config["context"] == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "--given: expected 2 numbers (b, a), or a table of them, which the model in {0} is given"),
        (["--given", "1"], "--given: expected 2 numbers (b, a), or a table of them, got 1 numbers"),
        (["--given", "1,x"], "--given: expected 2 numbers (b, a), or a table of them, got '1,x'"),
        (["--given", "1,nan"], "--given: expected 2 numbers (b, a), or a table of them, got '1,nan'"),
    ],
)
def test_what_cannot_be_given(given: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "sample", str(run), *given) == message.format(run)


def test_classes_are_given_by_number_or_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    for i in range(60):
        folder = tmp_path / "data" / ("light" if i % 2 else "dark")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 100, (2, 2)) + (150 if i % 2 else 0)
        image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    run = tmp_path / "run"
    arguments = ["--data", str(tmp_path / "data"), "--output", str(run), "--set", "given=label"]
    assert main(["train", "maf", *arguments, "epochs=60", "learning_rate=0.02", *QUICK]) == 0
    dark, light = (sampled(run, "--given", given, "-n", "100") for given in ("dark", "1"))
    assert light.mean() - dark.mean() > 75
    assert "expected a class from 0 to 1, or its name (dark, light), got '2'" in refused(
        capsys, "sample", str(run), "--given", "2"
    )
    (tmp_path / "data" / "light").rename(tmp_path / "data" / "bright")  # which would take the number of dark
    message = refused(capsys, "evaluate", str(run), "--data", str(tmp_path / "data"))
    assert "the model is given the classes dark, light, got bright" in message
    for other in (tmp_path / "data" / "bright").iterdir():
        other.unlink()
    assert main(["evaluate", str(run), "--data", str(tmp_path / "data")]) == 0  # of some of the classes


def test_models_that_take_nothing_are_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = str(run.parent / "rows.csv")
    message = refused(capsys, "train", "maf", "--data", table, "--output", str(tmp_path / "a"), "--set", "given=a", "context=3")
    assert message == "--set given: 1 numbers are given; leave context out"
    plain = tmp_path / "plain"
    assert main(["train", "maf", "--data", table, "--output", str(plain), "--set", "epochs=1", *QUICK]) == 0
    assert f"--given: the model in {plain} is given nothing, got '1'" in refused(capsys, "sample", str(plain), "--given", "1")


def test_columns_keep_their_names_where_numbers_were_given(run: Path, tmp_path: Path) -> None:
    rows, other = np.loadtxt(run.parent / "rows.csv", delimiter=",", skiprows=1), tmp_path / "other.csv"
    numbered, scores = (
        ["--data", str(run.parent / "rows.csv"), "--set", "given=3,1", "epochs=1", *QUICK],
        tmp_path / "scores.npy",
    )
    assert main(["train", "maf", "--output", str(tmp_path / "run"), *numbered]) == 0
    np.savetxt(other, rows[:9, ::-1], delimiter=",", header="b,t,a", comments="")
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(other), "--output", str(scores)]) == 0
    with torch.no_grad():
        a, t, b = torch.from_numpy(rows[:9]).split(1, 1)
        expected = fk.Model.from_pretrained(tmp_path / "run").log_prob(t, torch.cat([b, a], 1))
    np.testing.assert_allclose(np.load(scores)[:, 0], expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("p,q\n1,2\n", "no column is called 'b'"),  # not the two as they come
        ("b,a\n", "expected at least one row of one or more columns, got 0 of 2"),
        ("a,b,t\n1,2,nan\n3,nan,4\n", "line 3, column 2 is missing or not finite (1 such values)"),  # what is not given may be
        ("1,2,3\n4,5,6\n", "no column is called 'b'; there are the columns 1, 2, 3"),
    ],
)
def test_tables_that_cannot_be_given(
    table: str, message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "given.csv"
    given.write_text(table)
    assert message in refused(capsys, "sample", str(run), "--given", str(given))
