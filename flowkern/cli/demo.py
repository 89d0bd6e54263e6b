"""``flowkern demo``: train a flow on real data, sample from it, compare its speed."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from flowkern.cli.errors import CommandError, output_folder, require
from flowkern.flows import MAF

TRANSFORMS, HIDDEN = 5, (256, 256)
BATCH, LEARNING_RATE = 128, 1e-3
SAMPLES = 1000


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo", help="train a masked autoregressive flow on real data, sample from it, and compare its speed"
    )
    parser.add_argument("--data", metavar="FILE", help="rows of numbers, .npy or .csv (default: scikit-learn's digits)")
    parser.add_argument("--epochs", type=_positive, default=150, help="at most this many; early stopping may end before (150)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights, the noise and the samples (0)")
    parser.add_argument("--output", metavar="FOLDER", default="output", help="where the files go (output)")
    parser.set_defaults(run=run)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Trains, evaluates, samples, times; writes a checkpoint, pictures and results.json."""
    require(("numpy", "matplotlib", "rich", "sklearn"), "demo")
    from rich.console import Console

    from flowkern.cli import data as data_module
    from flowkern.cli import pictures, timing, training

    folder = output_folder(options.output)
    data = data_module.table(options.data, options.seed) if options.data else data_module.digits(options.seed)
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    # zuko's univariate map, so that the comparison below runs the same function.
    flow = MAF(data.train.shape[1], TRANSFORMS, HIDDEN, placement="scale_shift")
    console = Console()
    console.print(
        f"[bold]{data.name}[/]: {len(data.train)} training, {len(data.validation)} validation, {len(data.test)} test rows "
        f"of {flow.features} features; MAF of {TRANSFORMS} transforms, {sum(p.numel() for p in flow.parameters()):,} parameters"
    )
    begin = time.perf_counter()
    history = _train(flow, data, options.epochs, folder / "flow.pt", generator, console)
    if history.best < 0:
        raise CommandError("interrupted before the first epoch ended; nothing was trained", status=130)
    pictures.learning_curve(history, folder / "learning_curve.png")
    results: dict[str, Any] = {"data": data.name, "seed": options.seed, "epochs": len(history.validation)}
    results["training_seconds"] = round(time.perf_counter() - begin, 2)
    results.update(evaluate(flow, data, generator))
    _write(results, folder)
    console.print(f"best epoch {history.best + 1} of {len(history.validation)}, {results['training_seconds']} s")
    console.print(f"[bold]held-out log-likelihood: {results['test_nats']:.3f} nats[/]" + _bits(results))
    samples = flow.sample((SAMPLES,), generator=generator)
    if data.images is not None:
        pictures.image_grid(data, samples, folder / "samples.png")
    torch.save(samples, folder / "samples.pt")
    if history.interrupted:
        console.print(f"interrupted: what was made so far is in {folder}/")
        return 130
    results["rows_per_second"] = timing.throughputs(flow, training.encode(data, data.train, generator)[:1024], SAMPLES)
    _write(results, folder)
    pictures.throughput_bars(results["rows_per_second"], folder / "throughput.png")
    console.print(_table(results["rows_per_second"]))
    console.print(f"pictures, samples, the checkpoint and results.json are in {folder}/")
    return 0


def _train(flow: MAF, data: Any, epochs: int, checkpoint: Path, generator: torch.Generator, console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from flowkern.cli import training

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[score]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=epochs, score="")

        def report(epoch: int, history: Any) -> None:
            score = f"train {history.train[-1]:.3f}  validation {history.validation[-1]:.3f} nats"
            bar.update(task, completed=epoch + 1, score=score)

        return training.train(
            flow, data, epochs=epochs, batch_size=BATCH, learning_rate=LEARNING_RATE,
            checkpoint=checkpoint, generator=generator, report=report,
        )  # fmt: skip


def evaluate(flow: MAF, data: Any, generator: torch.Generator) -> dict[str, float]:
    """Held-out log-likelihood in nats, and bits per dimension for images."""
    from flowkern.cli import training

    y = training.encode(data, data.test, generator)
    with torch.no_grad():
        log_prob = flow.log_prob(y)
    found = {"test_nats": float(log_prob.mean())}
    if data.images is not None:
        found["test_bits_per_dimension"] = data.images.bits_per_dimension(y, log_prob)
    return found


def _bits(results: dict[str, Any]) -> str:
    return f", {results['test_bits_per_dimension']:.3f} bits per dimension" if "test_bits_per_dimension" in results else ""


def _write(results: dict[str, Any], folder: Path) -> None:
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")


def _table(rates: dict[str, dict[str, float]]) -> Any:
    from rich.table import Table

    table = Table(title="rows per second, same architecture and parameters")
    table.add_column("")
    for work in ("training", "sampling"):
        table.add_column(work, justify="right")
        table.add_column("flowkern is faster by", justify="right")
    for name in ("plain PyTorch", "zuko", "flowkern"):
        if name not in rates:
            table.add_row(name, *["not installed", ""] * 2)
            continue
        cells = []
        for work in ("training", "sampling"):
            rate, best = rates[name][work], rates["flowkern"][work]
            cells += [f"{rate:,.0f}", "" if name == "flowkern" else f"{best / rate:.1f}x"]
        table.add_row(name, *cells)
    return table
