"""The command line: what a user sees, also when the input is bad."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import file_size_limit, start, wait

import flowkern as fk
from flowkern.cli import bench, main, timing
from flowkern.cli.errors import CommandError
from flowkern.cli.output import output_folder
from flowkern.cli.train import FILES, clear
from flowkern.data import split
from flowkern.flows import MAF


@pytest.fixture(autouse=True)
def _demo(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.use_deterministic_algorithms(False)  # scikit-learn and matplotlib are not under test
    seconds = timing.median_seconds
    monkeypatch.setattr(timing, "median_seconds", lambda function: seconds(function, most=1))


def table(path: Path, rows: int = 300, columns: int = 3) -> Path:
    values = np.random.default_rng(0).normal(size=(rows, columns))
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        np.savetxt(path, values, delimiter=",", header="a,b,c", comments="")
    return path


def demo(data: Path, output: Path, *others: str) -> int:
    return main(["demo", "--data", str(data), "--epochs", "1", "--output", str(output), *others])


def earlier_demo(output: Path) -> None:
    """A folder as a demo leaves it: its files may be replaced."""
    output.mkdir(exist_ok=True)
    (output / "run.json").write_text('{"model": "maf", "data": "digits", "command": "demo"}')


def test_doctor_says_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for line in ("CPU kernels", "torch", "GPU", "zuko"):
        assert line in text


# -- what the demo makes ----------------------------------------------------------------------------------------------


def test_demo_on_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its files are in the units of the table, where a column holds times in seconds, and name it if it is odd."""
    values = np.random.default_rng(0).normal(size=(300, 3)) * [1, 60, 1e-3] + [0, 1.7e9, 5]
    np.savetxt(tmp_path / "[b] [red].TXT", values)
    output, seed = tmp_path / "out", 2**64 - 1
    assert demo(tmp_path / "[b] [red].TXT", output, "--seed", str(seed), "--epochs", "2") == 0
    results = json.loads((output / "results.json").read_text())
    assert results["epochs"] == 2
    assert {"plain PyTorch", "flowkern"} <= results["rows_per_second"].keys()

    model = fk.Model.from_pretrained(output)
    x = torch.from_numpy(values)[split(300, seed)[2]]
    with torch.no_grad():
        log_prob = model.log_prob(x).mean().item()
        std = model.encoding.std.log().sum().item()
    assert results["test"]["nats"] == pytest.approx(log_prob, rel=1e-6)
    assert results["test"]["model_nats"] == pytest.approx(log_prob + std, rel=1e-6)
    out = capsys.readouterr().out
    assert "[b] [red].TXT: 240 train, 30 validation, 30 test rows of 3" in out
    assert f"log-likelihood of 30 rows: {log_prob:.3f} +- " in out
    assert f"({log_prob + std:.3f} nats in standardised units)" in out

    samples = np.loadtxt(output / "samples.csv", delimiter=",", skiprows=1)
    assert samples.shape == (1000, 3)
    np.testing.assert_allclose(samples.mean(0), values.mean(0), rtol=0, atol=30)
    assert len(np.unique(samples[:, 1])) > 990
    for name in ("learning_curve.png", "throughput.png", "samples.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")


def test_demo_on_the_digits_learns_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):  # over itself
        assert main(["demo", "--epochs", "3", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    test = results["test"]
    assert 1 < test["bits_per_dimension"] < 5
    assert test["nats"] == pytest.approx(-64 * math.log(2) * test["bits_per_dimension"])
    assert test["model_nats"] != test["nats"]
    assert 0 < test["round_trip_error"] < 1e-2
    left = {path.name for path in tmp_path.iterdir()}
    assert left - {"tensorboard"} == {*FILES, "notes.txt"} - {"samples.csv", "samples.wav", "density.png", "latents.png"}
    samples = np.load(tmp_path / "samples.npy")
    assert samples.shape == (1000, 1, 8, 8)
    assert np.unique(samples).tolist() == list(range(17))
    assert "bits per dimension" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    data = table(tmp_path / "rows.npy")
    for name in ("first", "second"):
        assert demo(data, tmp_path / name) == 0
    first, second = ((tmp_path / name / "samples.csv").read_text() for name in ("first", "second"))
    assert first == second


@pytest.mark.parametrize("model", ["iaf", "made"])
def test_demo_of_another_model(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["demo", model, "--epochs", "1", "--data", str(table(tmp_path / "rows.npy")), "--output", str(tmp_path / "o")])
        == 0
    )
    assert f"it has no {model.upper()} to compare with" in capsys.readouterr().out


def test_demo_leaves_the_run_of_train_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = table(tmp_path / "rows.npy"), tmp_path / "out"
    assert main(["train", "maf", "--data", str(data), "--output", str(output), "--set", "epochs=1", "hidden=8"]) == 0
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert demo(data, output) == 2
    assert "holds a run of `flowkern train`; name another folder" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before


def test_one_column_has_no_twin_in_zuko(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(table(tmp_path / "rows.npy", columns=1), tmp_path / "out") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["rows_per_second"].keys() == {"plain PyTorch", "flowkern"}
    assert "zuko is left out: its MAF of one feature has no networks" in capsys.readouterr().out


def test_nothing_is_timed_against_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("zuko")
    flow = MAF(2, 1, (4,), placement="scale_shift")
    twin = timing.zuko_twin(MAF(2, 1, (4,), placement="scale_shift"))
    monkeypatch.setattr(timing, "zuko_twin", lambda flow: twin)
    with pytest.raises(CommandError, match="nothing was timed: Greatest") as error:
        timing.throughputs(flow, torch.randn(64, 2), 10)
    assert error.value.status == 1


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.csv", "cannot read .*none.csv: No such file"),
        ("", "expected the name of a data set, a file or a folder, got ''"),
        ("extreme.csv", "line 9, column 1: 1e\\+30 is so far from the rest"),
        ("few.csv", "expected at least 20 rows"),
    ],
)
def test_bad_data_is_named_before_any_work(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an earlier run has made stays."""
    monkeypatch.chdir(tmp_path)
    Path("few.csv").write_text("1,2\n3,4\n")
    Path("extreme.csv").write_text("a,b\n" + "".join(f"{i if i != 7 else 1e30},{i % 5}\n" for i in range(30)))
    earlier_demo(Path("out"))
    Path("out/results.json").write_text("earlier")
    assert main(["demo", "--data", name, "--output", "out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("flowkern: error: --data: ")
    assert re.search(message, error), error
    assert error.count("\n") == 1
    assert {path.name for path in Path("out").iterdir()} == {"results.json", "run.json"}


@pytest.mark.parametrize("name", ["file", "file/folder", ""])
def test_an_output_folder_that_cannot_be_written(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--output", str(tmp_path / name) if name else ""]) == 2
    assert re.match("flowkern: error: --output: (cannot write to|expected the name)", capsys.readouterr().err)


def test_a_folder_in_the_place_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier_demo(tmp_path / "out")
    (tmp_path / "out" / "results.json").mkdir()
    assert demo(table(tmp_path / "rows.npy"), tmp_path / "out") == 2
    assert "results.json: Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--epochs", "0"],
        ["demo", "--epochs", "many"],
        ["demo", "--seed", "-1"],
        ["demo", "--seed", str(2**64)],
        ["demo", "--seed", "²"],
        ["fly"],
        [],
    ],
)
def test_bad_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "error" in capsys.readouterr().err


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["demo"]) == 2
    assert "pip install 'flowkern[train]'" in capsys.readouterr().err


def test_a_benchmark_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "-k", "no_such_work", "--output", str(tmp_path)]) == 2
    assert "-k: no benchmark of the suite 'own' matches 'no_such_work'" in capsys.readouterr().err


def test_a_benchmark_file_belongs_to_the_suite_of_its_name(tmp_path: Path) -> None:
    for name in (
        "bench_splines.py",
        "bench_rows.py",
        "bench_gpu.py",
        "bench_gpu_splines.py",
        "bench_peers.py",
        "bench_small.py",
    ):
        (tmp_path / name).touch()
    found = {suite: [file.name for file in bench._files(tmp_path, suite)] for suite in bench.SUITES}
    assert found == {
        "own": ["bench_rows.py", "bench_splines.py"],
        "peers": ["bench_peers.py"],
        "small": ["bench_small.py"],
        "gpu": ["bench_gpu.py", "bench_gpu_splines.py"],
    }


# -- runs that fail ---------------------------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, method: str, call: int, value: float) -> None:
    """Makes one call of a method of the flow return other numbers."""
    original, calls = getattr(MAF, method), []

    def poisoned(self: MAF, *arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        return original(self, *arguments, **options) * (value if len(calls) == call else 1.0)

    monkeypatch.setattr(MAF, method, poisoned)


# A table of 300 rows: two batches and one validation per epoch, of two epochs; then the test rows.
MODEL = {"config.json", "model.safetensors", "metrics.csv"}


@pytest.mark.parametrize(
    ("method", "call", "message", "left"),
    [
        ("log_prob", 1, r"the loss is nan at step 1 \(epoch 1, batch 1 of 2\); .*checkpoint-0+ is kept", set()),
        ("log_prob", 5, r"the loss is nan at step 4 \(epoch 2, batch 2 of 2\); .*checkpoint-0+ is kept", {"metrics.csv"}),
        ("log_prob", 3, r"the validation loss is nan after step 2 \(epoch 1\); .*checkpoint-0+ is kept", set()),
        ("log_prob", 7, r"the log-likelihood of the test rows is nan; the model is written", {*MODEL, "learning_curve.png"}),
        ("sample", 1, r"1000 of 1000 samples are not finite; the model is written", {*MODEL, "learning_curve.png"}),
    ],
)
def test_numbers_that_are_not_finite_end_the_run(
    method: str, call: int, message: str, left: set[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """In a folder with an earlier demo's files and one of the user's, of which only that one stays."""
    output = tmp_path / "out"
    output.mkdir()
    for name in (*FILES, ".results.json.part", "notes.txt"):
        (output / name).write_text("earlier")
    earlier_demo(output)
    poison(monkeypatch, method, call, math.nan)
    assert demo(table(tmp_path / "rows.csv"), output, "--epochs", "2") == 1
    assert re.search(message, capsys.readouterr().err, re.MULTILINE)
    kept = f"checkpoint-{4 if left >= MODEL else 0:010d}"  # of the end, or of the beginning
    assert {path.name for path in output.iterdir()} - {"tensorboard"} == left | {kept, "run.json", "notes.txt"}
    for name in left:
        assert (output / name).read_bytes() != b"earlier"
    if "config.json" in left:
        state = fk.Model.from_pretrained(output).state_dict()
        assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())


def test_a_disk_without_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Found before the work."""
    data = table(tmp_path / "rows.npy")
    with file_size_limit(3000):
        assert demo(data, tmp_path / "out") == 1
    written = tmp_path / "out" / "checkpoint-0000000000"
    assert capsys.readouterr().err == f"flowkern: error: cannot write {written}: File too large\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]


def test_results_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file of the run before is not there in their place."""
    replace = os.replace

    def refuse(part: Path, path: Path) -> None:
        if Path(path).name == "results.json":
            raise OSError(28, "No space left on device")
        replace(part, path)

    earlier_demo(tmp_path / "out")
    (tmp_path / "out" / "results.json").write_text("earlier")
    monkeypatch.setattr(os, "replace", refuse)
    assert demo(table(tmp_path / "rows.npy"), tmp_path / "out") == 1
    assert capsys.readouterr().err.endswith("results.json: No space left on device\n")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert "results.json" not in left
    assert left >= {*MODEL, "checkpoint-0000000002", "run.json", "samples.csv", "samples.png"}


# -- processes --------------------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_what_was_made(tmp_path: Path) -> None:
    process = start("flowkern", "demo", "--epochs", "100000", "--output", str(tmp_path))
    wait((tmp_path / "metrics.csv").exists, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "SIGINT: the model of epoch" in output
    assert "Traceback" not in output
    assert {path.name for path in tmp_path.iterdir()} >= MODEL
    assert fk.Model.from_pretrained(tmp_path).sample((3,)).shape == (3, 1, 8, 8)


def test_one_run_at_a_time_writes_to_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a run that was killed keeps nobody out."""
    data, output = table(tmp_path / "rows.npy", rows=60_000), tmp_path / "out"
    process = start("flowkern.cli", "demo", "--data", str(data), "--epochs", "100000", "--output", str(output))
    wait((output / "checkpoint-0000000000").exists, process)
    assert demo(data, output) == 2
    expected = f"flowkern: error: --output: process {process.pid} is writing to {str(output)!r}; wait for it or name another\n"
    assert capsys.readouterr().err == expected
    process.kill()
    text, _ = process.communicate(timeout=120)
    assert "Traceback" not in text
    with output_folder(str(output)) as folder:
        assert (output / ".lock").read_text() == str(os.getpid())
        clear(folder)
    assert list(output.iterdir()) == []


def stub(folder: Path, body: str) -> dict[str, str]:
    """An environment in which torch is another module."""
    (folder / "torch.py").write_text(body)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.parametrize("way", [["-m", "flowkern"], ["-m", "flowkern.cli"], ["script"]], ids=" ".join)
def test_before_torch_is_there(way: list[str], tmp_path: Path) -> None:
    """Ctrl-C says so in one line, and help does not wait."""
    if way == ["script"]:
        found = shutil.which("flowkern", path=Path(sys.executable).parent)
        if found is None:
            pytest.skip("flowkern is not installed")
        way = [found]

    def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, *way, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    environment = stub(tmp_path, "raise KeyboardInterrupt")
    for arguments in (["doctor"], ["bench"], ["demo", "--data", "rows.csv", "--output", str(tmp_path)]):
        done = run(environment, *arguments)
        assert (done.returncode, done.stderr) == (130, "flowkern: interrupted\n")
    environment = stub(tmp_path, "raise RuntimeError('torch was imported')")
    for arguments in (["--version"], ["--help"], ["demo", "--help"], ["bench", "--help"]):
        done = run(environment, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert "flowkern" in done.stdout


def test_an_output_that_takes_nothing() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "flowkern", "doctor"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "flowkern: error: [Errno 28] No space left on device\n")


def test_the_command_line_leaves_nothing_of_the_package_out() -> None:
    program = "import sys; sys.argv[0] = 'flowkern'; import flowkern as fk; assert 'torch' not in sys.modules; "
    program += "print(*(type(getattr(fk, name)).__name__ for name in fk.__all__)); fk.missing"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [type(getattr(fk, name)).__name__ for name in fk.__all__]
    assert "AttributeError: module 'flowkern' has no attribute 'missing'" in done.stderr


def test_the_most_probable_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, folder = fk.models.PixelCNN((1, 3, 4), 5, hidden=4, layers=1), str(tmp_path / "model")
    model.save_pretrained(folder)
    assert main(["sample", folder, "-n", "2", "--temperature", "0"]) == 0
    expected = model.eval().sample((2,), temperature=0)
    assert torch.equal(expected[0], expected[1])
    assert np.array_equal(np.load(tmp_path / "model" / "samples.npy"), expected)

    fk.models.VAE(4, 2, hidden=(4,), transforms=1, flow_hidden=(4,)).save_pretrained(folder)
    assert main(["sample", folder, "--temperature", "0"]) == 2
    assert "--temperature: only of flows, pixelcnn, pixelrnn and models that draw sounds" in capsys.readouterr().err
    fk.flows.NSF(2, 1, (4,), circular=True).save_pretrained(folder)
    assert main(["sample", folder, "--temperature", "0.5"]) == 2
    assert "--temperature: the noise of circular features is uniform and has none, got 0.5" in capsys.readouterr().err


def test_weights_that_are_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Classes that a WaveNet draws by them would be silence."""
    model = fk.models.WaveNet(50, layers=2, residual=4, skip=4, categories=8)
    torch.nn.init.constant_(model.network.last.bias, torch.nan)
    model.save_pretrained(tmp_path / "model")
    assert main(["sample", str(tmp_path / "model"), "--seconds", "0.01"]) == 2
    message = rf"FOLDER: the model in {tmp_path}/model has weights that are not finite, such as network\.last\.bias\n"
    assert re.search(message, capsys.readouterr().err)


def test_samples_of_a_flow_at_a_temperature(tmp_path: Path) -> None:
    rows = 5 + 3 * torch.randn(200, 2, dtype=torch.float64)
    model = fk.models.Encoded(fk.flows.RealNVP(2, 2, (8,)), fk.data.Standardised.fit(fk.data.Rows(rows)))
    model.save_pretrained(tmp_path / "model")
    noise = []
    for temperature in ("1", "0.5"):
        output = tmp_path / f"{temperature}.npy"
        assert main(["sample", str(tmp_path / "model"), "-n", "50", "--temperature", temperature, "--output", str(output)]) == 0
        z, _ = model.encode(torch.from_numpy(np.load(output)))
        noise.append(model.model.transform(z)[0])
    torch.testing.assert_close(noise[1], 0.5 * noise[0], rtol=1e-4, atol=1e-4)
