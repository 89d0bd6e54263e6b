"""``flowkern demo``: train a model on real data, sample from it, compare its speed."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from flowkern.cli.errors import CommandError, require
from flowkern.cli.output import OutputFolder, output_folder

if TYPE_CHECKING:  # torch takes more than a second, which --help need not wait for
    from flowkern.cli.configuration import Configuration
    from flowkern.cli.train import Run

MODELS: dict[str, dict[str, Any]] = {
    # zuko's univariate map, so that the comparison runs the same function.
    "maf": {"transforms": 5, "hidden": [256, 256], "placement": "scale_shift"},
    "iaf": {"transforms": 2, "hidden": [256, 256]},
    "made": {"head": "mixture", "hidden": [256, 256]},
}
TRAINING: dict[str, Any] = {"batch_size": 128, "learning_rate": 1e-3, "weight_decay": 1e-6, "patience": 20}
ROWS = 1024  # timed at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument("model", nargs="?", choices=MODELS, default="maf", metavar="MODEL", help=f"{', '.join(MODELS)} (maf)")
    parser.add_argument("--data", default="digits", help="as for `flowkern train` (scikit-learn's digits)")
    parser.add_argument("--epochs", type=_positive, default=150, help="at most this many; early stopping may end before (150)")
    parser.add_argument("--seed", type=_seed, default=0, help="of the split, the weights, the noise and the samples (0)")
    parser.add_argument("--output", metavar="FOLDER", default="output", help="where the files go (output)")
    parser.set_defaults(run=run)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 2^64 - 1, got {text!r}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Trains as `flowkern train` does, into a folder that it clears first; then times the model."""
    require(("numpy", "matplotlib", "rich"), "train")
    from flowkern.cli.train import Run, clear
    from flowkern.training import Processes

    with output_folder(options.output) as folder:
        _check_replaceable(folder)
        made = Run.build(_configuration(options), folder, Processes())
        clear(folder)
        status = made.train(resume=False)
        return status or _time(made)


def _check_replaceable(folder: OutputFolder) -> None:
    """A demo's folder may be used again, that of a run may not."""
    from flowkern.cli.configuration import read
    from flowkern.cli.train import check_free

    path = folder.path / "run.json"
    if not path.exists():
        check_free(folder.path)
    elif read(path, "--output").command != "demo":
        raise CommandError(f"--output: {str(folder.path)!r} holds a run of `flowkern train`; name another folder")


def _configuration(options: argparse.Namespace) -> Configuration:
    from flowkern.cli.configuration import located, whole

    training = {**TRAINING, "epochs": options.epochs, "seed": options.seed}
    given = {"model_options": MODELS[options.model], "training": training}
    return whole(options.model, located(options.data), given, command="demo")


def _time(made: Run) -> int:
    """Rows per second in training and sampling, here and in other implementations."""
    import torch
    from rich.console import Console

    from flowkern.cli import pictures, timing

    folder, rows = made.folder, made.dataset.train
    assert folder is not None
    x = made.encoding.encode(rows[torch.arange(min(ROWS, len(rows)))]).reshape(-1, *made.model.event_shape)
    rates = timing.throughputs(made.model, x)
    results = json.loads((folder.path / "results.json").read_text())
    folder.write("results.json", (json.dumps({**results, "rows_per_second": rates}, indent=2) + "\n").encode())
    folder.write("throughput.png", pictures.throughputs(rates))
    Console(markup=False, emoji=False, soft_wrap=True).print(_table(rates, timing.zuko_obstacle(made.model)))
    return 0


def _table(rates: dict[str, dict[str, float]], zuko_obstacle: str | None) -> Any:
    from rich.table import Table

    table = Table(title="rows per second, same architecture and parameters")
    table.add_column("")
    for work in ("training", "sampling"):
        table.add_column(work, justify="right")
        table.add_column("flowkern is faster by", justify="right")
    for name in ("plain PyTorch", "zuko", "flowkern"):
        if name not in rates:
            table.add_row(name, *["-"] * 4)
            table.caption = f"{name} is left out: {zuko_obstacle}"
            continue
        cells = []
        for work in ("training", "sampling"):
            rate, best = rates[name][work], rates["flowkern"][work]
            cells += [f"{rate:,.0f}", "" if name == "flowkern" else f"{best / rate:.1f}x"]
        table.add_row(name, *cells)
    return table
