"""``flowkern train``, ``sample``, ``evaluate`` and ``list``: what they ask for, what they say, what they leave."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refused, start, wait

import flowkern as fk
from flowkern.cli import main
from flowkern.cli.configuration import DataOptions, options_of, read
from flowkern.cli.options import options_of as options_of_class
from flowkern.cli.registry import models
from flowkern.training import Settings

QUICK = ["hidden=8", "transforms=1", "epochs=1"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).normal(size=(200, 2))
    np.savetxt(tmp_path / "rows.csv", values, delimiter=",", header="a,b", comments="")
    return tmp_path / "rows.csv"


@pytest.fixture
def run(table: Path, tmp_path: Path) -> Path:
    assert main(["train", "maf", "--data", str(table), "--output", str(tmp_path / "run"), "--set", *QUICK]) == 0
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mafs"], "MODEL: 'mafs' is none; did you mean maf?"),
        (["maf", "--data", "digit"], "--data: cannot read digit: No such file or directory; did you mean digits?"),
        (["maf"], "expected --data DATA, or --config"),
        ([], "expected MODEL, or --config"),
        (["maf", "--set", "hiden=8"], "--set: no option is called 'hiden'; did you mean hidden or given?"),
        (["maf", "--set", "hidden=x"], "--set hidden=x: expected whole numbers separated by commas, got 'x'"),
        (["maf", "--set", "hidden=0"], "--set hidden: expected positive widths, got (0,)"),
        (["maf", "--set", "epochs=1.5"], "epochs=1.5: expected a whole number"),
        (["maf", "--set", "epochs=0"], "--set epochs: expected a whole number of at least 1, got 0"),
        (["maf", "--set", "epochs"], "--set epochs: expected name=value, got 'epochs'"),
        (["maf", "--set", "epochs=1", "epochs=2"], "--set epochs=2: expected each option once, got epochs=1 before"),
        (["maf", "--set", "schedule=linear"], "schedule=linear: expected"),
        (["maf", "--set", "scale=abs"], "--set scale: expected one of"),
        (["maf", "--set", "context=3"], "--set context: the rows are given nothing; leave it at 0"),
        (["maf", "--set", "margin=0.1"], "--data: margin: only images"),
        (["made", "--set", "head=categorical", "categories=5"], "--data: rows.csv: has real numbers, the model takes whole"),
        (["maf", "--config", "missing.json"], "--config: cannot read missing.json: No such file"),
        (["maf", "--config", "rows.csv"], "--config: cannot read rows.csv: "),
        (["maf", "--config", "other.json"], "--config: other.json is no configuration of a run"),
        (["maf", "--config", "typed.json"], "--config: typed.json: epochs: expected a whole number, got 'many'"),
        (["maf", "--config", "columns.json"], "--config: columns.json: columns: expected names, got 3"),
        (["maf", "--device", "gpu"], "--device: expected cpu"),
        (["maf", "--resume"], "--resume: 'out' holds no run"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line_before_any_work(
    arguments: list[str], message: str, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(table.parent)
    Path("other.json").write_text("[]")
    Path("typed.json").write_text('{"model": "maf", "data": "digits", "training": {"epochs": "many"}}')
    Path("columns.json").write_text('{"model": "maf", "data": "digits", "columns": 3}')
    given = [] if "--data" in arguments or arguments in (["maf"], []) else ["--data", "rows.csv"]
    assert message in refused(capsys, "train", *arguments, *given, "--output", "out")
    assert not Path("out/run.json").exists()
    assert not list(Path("out").glob("*"))


def test_a_folder_that_holds_a_run(run: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    text = refused(capsys, "train", "maf", "--data", str(table), "--output", str(run))
    assert "holds another run; --resume continues it, or name another folder" in text
    text = refused(capsys, "train", "--resume", "--output", str(run), "--set", "epochs=7")
    assert text == "--resume: the run has epochs = 1, not 7; it goes on with its own"
    text = refused(capsys, "train", "made", "--resume", "--output", str(run))
    assert text == "--resume: the run has model = 'maf', not 'made'; it goes on with its own"
    assert main(["train", "--resume", "--output", str(run)]) == 0
    assert "has ended; nothing is left to do" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before


def test_files_of_the_users_own_are_not_replaced(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The data themselves, another library's model or its checkpoints."""
    folder = tmp_path / "folder"
    (folder / "checkpoint-500").mkdir(parents=True)  # as transformers names them
    (folder / "checkpoint-500" / "weights").write_text("precious")
    for name in ("samples.csv", "config.json"):
        rows = table.rename(folder / name)
        text = refused(capsys, "train", "maf", "--data", "moons", "--output", str(folder), "--set", *QUICK)
        assert text == f"--output: {str(folder)!r} holds {name}, which a run would replace; name another folder"
        assert refused(capsys, "demo", "--data", "moons", "--epochs", "1", "--output", str(folder)) == text
        table = rows
    rows = rows.rename(folder / "rows.csv")
    assert main(["train", "maf", "--data", str(rows), "--output", str(folder), "--set", *QUICK]) == 0
    assert (folder / "checkpoint-500" / "weights").read_text() == "precious"


def test_a_folder_may_have_the_name_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "maf", "--data", "iris", "--output", "iris", "--set", *QUICK]) == 0
    assert json.loads(Path("iris/run.json").read_text())["data"] == "iris"
    assert main(["evaluate", "iris"]) == 0


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names there are Unicode")
def test_a_folder_whose_name_cannot_be_printed(table: Path, tmp_path: Path) -> None:
    output = os.fsencode(tmp_path) + b"/b\xe9d"
    process = start("flowkern.cli", "train", "maf", "--data", str(table), "--output", os.fsdecode(output), "--set", *QUICK)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert "b\\udce9d/" in text
    assert os.path.exists(output + b"/results.json")


def test_a_model_larger_than_memory(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(table), "--output", str(tmp_path / "run"), "--set", "hidden=1000000000000000"]
    assert refused(capsys, "train", "maf", *options, status=1).startswith("cannot build maf: ")


def test_a_mistake_in_loading_is_no_option_s(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its traceback."""

    def load(*_: object, **__: object) -> None:
        raise TypeError("unsupported operand")

    monkeypatch.setattr("flowkern.data.load", load)
    with pytest.raises(TypeError, match="unsupported operand"):
        main(["train", "maf", "--data", str(table), "--output", str(tmp_path / "run")])


def test_a_read_only_folder(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:
        text = refused(capsys, "train", "maf", "--data", str(table), "--output", "/proc/run")  # where root may not write either
    else:
        (tmp_path / "closed").mkdir(mode=0o500)
        text = refused(capsys, "train", "maf", "--data", str(table), "--output", str(tmp_path / "closed" / "run"))
    assert text.startswith("--output: cannot write to ")


def test_the_folder_of_a_run(run: Path, table: Path) -> None:
    made = json.loads((run / "run.json").read_text())
    assert made["model"] == "maf"
    assert made["data"] == str(table)
    assert made["columns"] == ["a", "b"]
    assert made["model_options"]["hidden"] == [8]
    assert made["training"]["epochs"] == 1
    assert made["training"].keys() == set(Settings.__dataclass_fields__)
    names = {path.name for path in run.iterdir()}
    kept = {"config.json", "model.safetensors", "run.json", "metrics.csv", "results.json", "learning_curve.png"}
    assert names - {"tensorboard"} == kept | {"samples.csv", "samples.png", "density.png"}


def test_a_configuration_may_leave_options_out(run: Path, table: Path) -> None:
    (run / "run.json").write_text(json.dumps({"model": "maf", "data": str(table)}))
    assert main(["evaluate", str(run)]) == 0
    assert options_of("maf")["training"]["epochs"].default == read(run / "run.json", "--config").training["epochs"]


@pytest.mark.parametrize("rows", [200, 300])
def test_data_that_were_replaced(rows: int, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither continued nor scored as if they were those of the run; but a new run may take them."""
    output = tmp_path / "run"
    assert main(["train", "maf", "--data", str(table), "--output", str(output), "--set", *QUICK]) == 0
    np.savetxt(table, np.random.default_rng(1).normal(size=(rows, 2)), delimiter=",", header="a,b", comments="")
    text = refused(capsys, "train", "--resume", "--output", str(output))
    assert text == f"--resume: {table} does not hold the data that the run began with"
    text = refused(capsys, "evaluate", str(output))
    assert text == f"FOLDER: {table} does not hold the run's data any more; name some by --data"
    assert main(["evaluate", str(output), "--data", str(table)]) == 0
    assert main(["train", "--config", str(output / "run.json"), "--output", str(tmp_path / "new")]) == 0


def test_sample_and_evaluate_any_saved_model(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that no run made, too."""
    fk.flows.MAF(2, 1, (8,)).save_pretrained(tmp_path / "flow")
    assert main(["sample", str(tmp_path / "flow"), "-n", "5", "--output", str(tmp_path / "drawn.npy")]) == 0
    assert np.load(tmp_path / "drawn.npy").shape == (5, 2)
    assert main(["evaluate", str(tmp_path / "flow"), "--data", str(table)]) == 0
    assert "rows.csv: log-likelihood of 200 rows: " in capsys.readouterr().out
    text = refused(capsys, "evaluate", str(tmp_path / "flow"))
    assert "--data: expected some" in text


def test_a_saved_model_of_doubles_and_one_with_a_context(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doubles, context = tmp_path / "doubles", tmp_path / "context"
    fk.flows.MAF(2, 1, (8,)).double().save_pretrained(doubles)
    assert main(["evaluate", str(doubles), "--data", str(table)]) == 0
    fk.flows.MAF(2, 1, (8,), context=3).save_pretrained(context)
    for arguments in (["evaluate", str(context), "--data", str(table)], ["sample", str(context)]):
        assert "needs a context, and it is not known what it stands for in data" in refused(capsys, *arguments)


@pytest.mark.parametrize("value", ["2", "-1", "0.5"])
def test_numbers_that_a_model_of_levels_does_not_know(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fk.models.MADE(2, "bernoulli", (8,)).save_pretrained(tmp_path / "made")
    rows = tmp_path / "rows.csv"
    rows.write_text("a,b\n0,0\n0,0\n")  # levels that do not all occur
    assert main(["evaluate", str(tmp_path / "made"), "--data", str(rows)]) == 0
    rows.write_text(f"a,b\n0,1\n1,{value}\n")
    text = refused(capsys, "evaluate", str(tmp_path / "made"), "--data", str(rows))
    assert text == f"--data: rows.csv: the model takes whole numbers from 0 to 1, got {value}"


def test_samples_repeat_by_seed(run: Path, tmp_path: Path) -> None:
    drawn = []
    for seed in (0, 1, 0):
        file = tmp_path / "drawn.npy"
        assert main(["sample", str(run), "-n", "1500", "--seed", str(seed), "--output", str(file)]) == 0
        drawn.append(np.load(file))
    assert np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], drawn[1])


def test_few_rows_and_a_constant_column_can_be_evaluated(run: Path, tmp_path: Path) -> None:
    (tmp_path / "few.csv").write_text("a,b\n0,1\n0.5,1\n")
    assert main(["evaluate", str(run), "--data", str(tmp_path / "few.csv"), "--output", str(tmp_path / "p.csv")]) == 0
    header, *values = (tmp_path / "p.csv").read_text().splitlines()
    assert header == "log_prob"
    expected = fk.Model.from_pretrained(run).log_prob(torch.tensor([[0.0, 1.0], [0.5, 1.0]]))
    assert [float(v) for v in values] == pytest.approx(expected.tolist(), rel=1e-6)


def test_images_are_drawn(tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert (
        main(["train", "made", "--data", "digits", "--output", str(output), "--set", "head=bernoulli", "hidden=8", "epochs=1"])
        == 0
    )
    assert main(["sample", str(output), "-n", "70"]) == 0
    assert np.load(output / "samples.npy").shape == (70, 1, 8, 8)
    assert (output / "samples.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "missing"], "FOLDER: missing: no such folder"),
        (["sample", "."], "FOLDER: "),
        (["sample", "run", "-n", "0"], "-n: expected a whole number of at least 1, got 0"),
        (["sample", "run", "--output", "x.xyz"], "--output: expected a name that ends in .csv, .npy or .parquet, got 'x.xyz'"),
        (["sample", "run", "--output", "no/x.npy"], "--output: there is no folder 'no'"),
        (["evaluate", "run", "--data", "digits"], "--data: digits: the model takes rows of 2, got rows of 1 x 8 x 8"),
        (["evaluate", "run", "--data", "rows.csv", "--part", "test"], "--part: only of the run's own data"),
        (["evaluate", "run", "--data", "bad.csv"], "--data: bad.csv: line 2, column 2 is no number: 'x'"),
    ],
)
def test_mistakes_with_a_trained_model(
    arguments: list[str], message: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    Path("bad.csv").write_text("a,b\n1,x\n")
    assert message in refused(capsys, *arguments)


@pytest.mark.parametrize("row", ["0,1,2", "-1,0,1", "0,0.5,1", "1,1,1"])
def test_values_that_the_model_does_not_take(row: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    binary, other, output = tmp_path / "binary.csv", tmp_path / "other.csv", tmp_path / "run"
    np.savetxt(binary, np.random.default_rng(0).integers(0, 2, (60, 3)), delimiter=",")
    options = ["--data", str(binary), "--output", str(output), "--set", "head=bernoulli", "hidden=8", "epochs=1"]
    assert main(["train", "made", *options]) == 0
    other.write_text(f"0,0,0\n{row}\n")
    if row == "1,1,1":
        assert main(["evaluate", str(output), "--data", str(other)]) == 0
        return
    text = refused(capsys, "evaluate", str(output), "--data", str(other))
    assert text.startswith("--data: other.csv: the model takes whole numbers from 0 to 1, got ")


def test_columns_in_another_order(run: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = table.read_text()
    table.write_text(rows.replace("a,b", "b,a", 1))
    text = refused(capsys, "evaluate", str(run), "--data", str(table))
    assert text == "--data: rows.csv: the model takes columns a, b, got b, a"
    table.write_text(rows.partition("\n")[2])  # without names
    assert main(["evaluate", str(run), "--data", str(table)]) == 0


def test_samples_of_large_numbers(tmp_path: Path) -> None:
    """All floats from 2^53 on are whole, and int64 ends at 2^63."""
    table, output = tmp_path / "rows.npy", tmp_path / "run"
    np.save(table, 1e20 * (5 + np.random.default_rng(0).normal(size=(100, 2))))
    assert main(["train", "maf", "--data", str(table), "--output", str(output), "--set", *QUICK]) == 0
    assert np.loadtxt(output / "samples.csv", delimiter=",", skiprows=1).mean() == pytest.approx(5e20, rel=0.2)


def test_a_tensorboard_that_cannot_be_imported_is_left_out(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            monkeypatch.delitem(sys.modules, name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tensorboard.py").write_text("raise TypeError('Descriptors cannot be created directly.')")
    monkeypatch.syspath_prepend(tmp_path / "broken")
    output = tmp_path / "run"
    assert main(["train", "maf", "--data", str(table), "--output", str(output), "--set", *QUICK]) == 0
    assert not (output / "tensorboard").exists()


def test_options_of_models_data_and_training_have_different_names() -> None:
    for name in models():
        parts = list(options_of(name).values())
        assert sum(map(len, parts)) == len(set().union(*parts))
        assert all(option.help for options in parts for option in options.values())
    for kind in (Settings, DataOptions):
        assert options_of_class(kind)


def test_list_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in [*models(), "digits", "moons"])
    assert main(["list", "made"]) == 0
    text = capsys.readouterr().out
    assert "head=gaussian" in text
    assert "learning_rate=0.001" in text
    with pytest.raises(SystemExit) as stop:
        main(["train", "made", "--help"])
    assert stop.value.code == 0
    assert "head=gaussian" in capsys.readouterr().out
    assert "did you mean made" in refused(capsys, "list", "mede")


# A checkpoint after every epoch, of one step each: however fast the machine is, a signal comes before the end.
LONG = ["hidden=8", "transforms=1", "epochs=100", "patience=0", "checkpoint_minutes=0"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken") / "run"
    assert main(["train", "maf", "--data", "iris", "--output", str(output), "--set", *LONG]) == 0
    return output


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_is_killed_goes_on(number: signal.Signals, status: int, unbroken: Path, tmp_path: Path) -> None:
    """And ends with the very files of an unbroken one."""
    broken = tmp_path / "broken"
    process = start("flowkern.cli", "train", "maf", "--data", "iris", "--output", str(broken), "--set", *LONG)
    wait(lambda: any(int(path.name[11:]) > 0 for path in broken.glob("checkpoint-*")), process)
    process.send_signal(number)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == status, text
    assert "Traceback" not in text
    if number != signal.SIGKILL:
        assert f"continue with: flowkern train --resume --output {broken}" in text
    assert not (broken / "results.json").exists()
    assert main(["train", "--resume", "--output", str(broken)]) == 0
    tables = ((output / "metrics.csv").read_text().splitlines() for output in (unbroken, broken))
    first, second = ([row.rsplit(",", 1)[0] for row in rows] for rows in tables)  # all but the seconds
    assert first == second
    for name in ("samples.csv", "model.safetensors"):
        assert (unbroken / name).read_bytes() == (broken / name).read_bytes()
