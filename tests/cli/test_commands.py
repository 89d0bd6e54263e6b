"""The command line: what a user sees, also when the input is bad."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from flowkern.cli import main


@pytest.fixture(autouse=True)
def _plain_memory() -> None:
    torch.use_deterministic_algorithms(False)  # scikit-learn and matplotlib are not under test


def table(path: Path, rows: int = 300, columns: int = 3) -> Path:
    values = np.random.default_rng(0).normal(size=(rows, columns))
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        np.savetxt(path, values, delimiter=",", header="a,b,c", comments="")
    return path


def test_doctor_says_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for line in ("CPU kernels", "torch", "GPU", "zuko"):
        assert line in text


@pytest.mark.parametrize("suffix", [".csv", ".npy"])
def test_demo_on_a_table(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = table(tmp_path / f"rows{suffix}"), tmp_path / "out"
    assert main(["demo", "--data", str(data), "--epochs", "2", "--seed", "3", "--output", str(output)]) == 0
    results = json.loads((output / "results.json").read_text())
    assert results["epochs"] == 2
    assert -10 < results["test_nats"] < 0
    assert {"plain PyTorch", "flowkern"} <= results["rows_per_second"].keys()
    for name in ("flow.pt", "samples.pt", "learning_curve.png", "throughput.png"):
        assert (output / name).stat().st_size > 0
    assert torch.load(output / "samples.pt").shape == (1000, 3)
    assert "held-out log-likelihood" in capsys.readouterr().out


def test_demo_on_the_digits_learns_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--epochs", "3", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert 1 < results["test_bits_per_dimension"] < 5
    assert (tmp_path / "samples.png").stat().st_size > 0
    assert "bits per dimension" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    data = table(tmp_path / "rows.csv")
    found = []
    for name in ("first", "second"):
        main(["demo", "--data", str(data), "--epochs", "1", "--output", str(tmp_path / name)])
        found.append(torch.load(tmp_path / name / "samples.pt"))
    assert torch.equal(*found)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    def text(name: str, content: str) -> Path:
        path = folder / name
        path.write_text(content)
        return path

    body = "1,2\n" * 30
    holes = np.ones((30, 2))
    holes[4, 1] = np.nan
    np.save(folder / "holes.npy", holes)
    np.save(folder / "words.npy", np.array([["a", "b"]] * 30))
    np.save(folder / "cube.npy", np.zeros((30, 2, 2)))
    return {
        "no such file": (folder / "none.csv", "cannot read"),
        "another format": (text("rows.txt", body), "expected a .npy or .csv file"),
        "a word": (text("word.csv", body + "3,four\n"), r"row 31, column 2 is no number: 'four'"),
        "a gap": (text("gap.csv", "a,b\n" + body + "3,\n"), r"row 32, column 2 is missing"),
        "a short row": (text("short.csv", body + "3\n"), r"row 31 has 1 columns, the first has 2"),
        "too few rows": (text("few.csv", "1,2\n3,4\n"), "at least 20 rows"),
        "a constant column": (text("constant.csv", "".join(f"1,{i}\n" for i in range(30))), "column 1 is constant"),
        "not finite": (folder / "holes.npy", r"row 5, column 2 is missing or not finite"),
        "an array of words": (folder / "words.npy", "expected numbers"),
        "three dimensions": (folder / "cube.npy", "has shape"),
        "no array": (text("text.npy", "hello"), "cannot read"),
    }


BAD_FILES = [
    "no such file",
    "another format",
    "a word",
    "a gap",
    "a short row",
    "too few rows",
    "a constant column",
    "not finite",
    "an array of words",
    "three dimensions",
    "no array",
]


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_data_is_named_before_any_work(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, message = bad_files(tmp_path)[case]
    assert main(["demo", "--data", str(path), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("flowkern: error: --data")
    assert re.search(message, error), error
    assert not (tmp_path / "out" / "flow.pt").exists()


def test_an_output_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--output", str(tmp_path / "file" / "folder")]) == 2
    assert "--output: cannot write to" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["demo", "--epochs", "0"], ["demo", "--epochs", "many"], ["fly"], []])
def test_bad_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "error" in capsys.readouterr().err


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(["demo"]) == 2
    assert "pip install 'flowkern[demo]'" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flowkern.flows import MAF

    original, calls = MAF.log_prob, []

    def poisoned(self: MAF, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        calls.append(1)
        return original(self, x, context) * (float("nan") if len(calls) == 5 else 1.0)

    monkeypatch.setattr(MAF, "log_prob", poisoned)
    data = table(tmp_path / "rows.csv")  # two batches and one validation per epoch
    assert main(["demo", "--data", str(data), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "the loss is nan at step 4 (epoch 2, batch 2 of 2)" in error
    assert "best epoch before" in error
    state = torch.load(tmp_path / "out" / "flow.pt")
    assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())


def test_ctrl_c_leaves_what_was_made(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flowkern.cli", "demo", "--epochs", "100000", "--output", str(tmp_path)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # pytest-xdist's workers ignore it
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "flow.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert "Traceback" not in output
    for name in ("flow.pt", "learning_curve.png", "samples.png", "results.json"):
        assert (tmp_path / name).exists(), name
