"""Several processes: the losses of one, whatever happens to them."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import wait

pytestmark = pytest.mark.slow

MODEL = ["maf", "--data", "digits"]
OPTIONS = ["hidden=16", "transforms=2", "batch_norm=true", "epochs=3", "patience=0"]


def start(count: int, *arguments: str) -> subprocess.Popen:
    """A command in so many processes of torchrun's, or in one of its own."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"] if count > 1 else []
    command = [sys.executable, "-m", *launcher, "flowkern.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    text, _ = process.communicate(timeout=300)
    return process.returncode, text


def run(count: int, *arguments: str) -> str:
    status, text = finish(start(count, *arguments))
    assert status == 0, text
    assert "Traceback" not in text
    assert "Warning" not in text
    return text


def train(count: int, output: Path, *options: str) -> str:
    return run(count, "train", *MODEL, "--output", str(output), "--set", *OPTIONS, *options)


def losses(output: Path) -> list[tuple[float, float]]:
    with (output / "metrics.csv").open() as file:
        return [(float(row["train_loss"]), float(row["validation_loss"])) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process with batches of 48 rows."""
    output = tmp_path_factory.mktemp("one") / "run"
    train(1, output, "batch_size=48")
    return output


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_parts_of_batches_add_up(strategy: str, tmp_path: Path) -> None:
    """Also without activations. Without batch norm, whose statistics are those of a part. The last batch has 5 rows, of which
    2 make no 3 parts.
    """
    options = ["batch_norm=false", "epochs=2"]
    chosen = [option for option in OPTIONS if option.split("=")[0] not in ("batch_norm", "epochs")] + options
    run(1, "train", *MODEL, "--output", str(tmp_path / "one"), "--set", *chosen, "batch_size=478")
    more = ["batch_size=239", "accumulate=3", f"strategy={strategy}", "memory=reversible"]
    run(2, "train", *MODEL, "--output", str(tmp_path / "two"), "--set", *chosen, *more)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)


@pytest.mark.parametrize(("count", "strategy"), [(2, "ddp"), (2, "fsdp"), (3, "ddp")])
def test_several_processes_have_the_losses_of_one(count: int, strategy: str, one: Path, tmp_path: Path) -> None:
    """With batches of the same rows in all, and batch norm."""
    text = train(count, tmp_path / "run", f"batch_size={48 // count}", f"strategy={strategy}")
    assert f"{count} processes" in text
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(one), rtol=1e-5)


def test_several_processes_have_the_samples_and_the_scores_of_one(one: Path, tmp_path: Path) -> None:
    count = 3  # which divides neither the rows nor the samples
    for command in (["evaluate", "--output"], ["sample", "-n", "2500", "--output"]):
        name, *rest = command
        files = [tmp_path / f"{name}{n}.npy" for n in (1, count)]
        for n, file in zip((1, count), files, strict=True):
            run(n, name, str(one), *rest, str(file))
        first, second = (np.load(file) for file in files)
        assert len(first) == (179 if name == "evaluate" else 2500)
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5 if name == "evaluate" else 0)


@pytest.mark.parametrize(("strategy", "counts"), [("ddp", (1, 3)), ("fsdp", (2, 1))])
def test_a_rank_that_is_killed_leaves_a_checkpoint_for_any_number(
    strategy: str, counts: tuple[int, ...], tmp_path: Path
) -> None:
    options = [*OPTIONS[:-2], "epochs=15", "patience=0", f"strategy={strategy}", "checkpoint_minutes=0"]
    whole = tmp_path / "whole"
    run(1, "train", *MODEL, "--output", str(whole), "--set", *options, "batch_size=48")

    broken = tmp_path / "broken"
    process = start(2, "train", *MODEL, "--output", str(broken), "--set", *options, "batch_size=24")
    wait(lambda: any(int(path.name[11:]) > 0 for path in broken.glob("checkpoint-*")), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    status, text = finish(process)
    assert status != 0, text
    assert not (broken / "results.json").exists()

    for count in counts:
        copy = tmp_path / f"by {count}"
        shutil.copytree(broken, copy)
        text = run(count, "train", "--resume", "--output", str(copy))
        np.testing.assert_allclose(losses(copy), losses(whole), rtol=1e-4)  # 450 steps of rounding
        assert "nothing is left to do" in run(1, "train", "--resume", "--output", str(copy))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_parts_are_as_many_in_every_process(strategy: str, tmp_path: Path) -> None:
    """The last batch of 241 rows has 4 of them in one process and 3 in the other."""
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(301, 2)))
    given = ["maf", "--data", str(tmp_path / "rows.npy"), "--output", str(tmp_path / "run"), "--set", *OPTIONS]
    run(2, "train", *given, "batch_size=13", "accumulate=4", f"strategy={strategy}")


def of_ranks(*commands: list[str]) -> list[tuple[int, str]]:
    """Status and text of a command for each rank, without torchrun, which would end those that wait."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    found = []
    for rank, command in enumerate(commands):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(len(commands)), "LOCAL_RANK": str(rank)}
        environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        found.append(subprocess.Popen([sys.executable, *command], env=environment, **pipes))
    return [finish(process) for process in found]


def test_a_rank_with_another_configuration_is_told(tmp_path: Path) -> None:
    command = ["-m", "flowkern.cli", "train", *MODEL, "--output", str(tmp_path / "run"), "--set"]
    (first, text), (second, other) = of_ranks([*command, "hidden=8,1"], [*command, "hidden=8,2"])
    assert (first, second) == (2, 2)
    assert text == "flowkern: error: rank 1 was started with hidden = (8, 2), rank 0 with (8, 1)\n"
    assert other == ""
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "rank 1: --data: cannot read {0}: No such file or directory"),
        (60, "--data: rank 1 has other data than rank 0"),
    ],
)
def test_a_rank_without_the_data_is_told(rows: int | None, message: str, tmp_path: Path) -> None:
    """On another machine the same name may hold nothing, or another table, whose batches the others would wait for."""
    source, other = tmp_path / "rows.npy", tmp_path / "other.npy"
    np.save(source, np.random.default_rng(0).normal(size=(50, 2)))
    if rows:
        np.save(other, np.random.default_rng(0).normal(size=(rows, 2)))
    command = ["train", "maf", "--data", str(source), "--output", str(tmp_path / "run"), "--set", "epochs=1"]
    elsewhere = "import sys; from flowkern import cli, data; load = data.load"
    elsewhere += "; data.load = lambda source, *more, **options: load(sys.argv.pop(1), *more, **options)"
    elsewhere += "; sys.exit(cli.main(sys.argv[2:]))"
    found = of_ranks(["-m", "flowkern.cli", *command], ["-c", elsewhere, str(other), *command])
    (first, text), (second, silent) = found
    assert (first, second) == (2, 2), found
    assert message.format(other) in text
    assert text.count("\n") == 1
    assert silent == ""
