"""``flowkern demo``: train a flow on real data, sample from it, compare its speed."""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from typing import TYPE_CHECKING, Any

from flowkern.cli.errors import CommandError, require
from flowkern.cli.output import OutputFolder, output_folder

if TYPE_CHECKING:  # torch takes more than a second, which --help need not wait for
    import torch

    from flowkern.cli.training import Encoded, History
    from flowkern.flows import MAF

TRANSFORMS, HIDDEN = 5, (256, 256)
BATCH, LEARNING_RATE = 128, 1e-3
SAMPLES = 1000
FILES = ("flow.pt", "learning_curve.png", "results.json", "samples.png", "samples.pt", "throughput.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="rows of numbers: .npy, or text (.csv, .tsv, .txt, .dat) with tabs, semicolons, commas or spaces between columns, "
        "with or without a header (default: scikit-learn's digits)",
    )
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
    """Trains, evaluates, samples, times; writes a checkpoint, pictures and results.json."""
    require(("numpy", "matplotlib", "rich", *(["sklearn"] if options.data is None else [])), "demo")
    with output_folder(options.output) as folder:
        data = _load(options.data, options.seed)
        folder.clear(FILES)
        return _run(options, data, folder)


def _load(path: str | None, seed: int) -> Encoded:
    from flowkern import data
    from flowkern.cli.training import Encoded

    try:
        return Encoded(data.load("digits" if path is None else path, seed))
    except data.DataError as error:
        raise CommandError(f"--data: {error}") from None


def _run(options: argparse.Namespace, data: Encoded, folder: OutputFolder) -> int:
    import torch
    from rich.console import Console

    from flowkern.cli import pictures, timing
    from flowkern.data import Dequantised
    from flowkern.flows import MAF

    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    # zuko's univariate map, so that the comparison below runs the same function.
    arguments: dict[str, Any] = {
        "features": data.features,
        "transforms": TRANSFORMS,
        "hidden": HIDDEN,
        "placement": "scale_shift",
    }
    flow = MAF(**arguments)
    console = Console(markup=False, emoji=False, soft_wrap=True)  # names of files are printed as they are
    console.print(
        f"{data.name}: {len(data.train)} training, {len(data.validation)} validation, {len(data.test)} test rows "
        f"of {flow.features} features; MAF of {TRANSFORMS} transforms, {sum(p.numel() for p in flow.parameters()):,} parameters"
    )

    def keep() -> None:
        """All that is needed to draw samples in the units of the data and to evaluate their density."""
        made = {"model": "MAF", "arguments": arguments, "state": flow.state_dict(), "encoding": data.encoding.config}
        folder.write("flow.pt", _saved(made))

    begin = time.perf_counter()
    history = _train(flow, data, options.epochs, generator, keep, console)
    if history.best < 0:
        raise CommandError("interrupted before the first epoch ended; nothing was trained", status=130)
    results: dict[str, Any] = {"data": data.name, "seed": options.seed, "epochs": len(history.validation)}
    results["training_seconds"] = round(time.perf_counter() - begin, 2)
    unit = f"nats per row, {data.encoding.space} units"
    folder.write("learning_curve.png", pictures.learning_curve(history.train, history.validation, history.best, unit))
    results.update(evaluate(flow, data, generator))
    _write(results, folder)
    console.print(f"best epoch {history.best + 1} of {len(history.validation)}, {results['training_seconds']} s")
    console.print(_score(results, data), style="bold")
    samples = _samples(flow, data, generator)
    folder.write("samples.pt", _saved(samples))
    if isinstance(data.encoding, Dequantised):
        side = data.encoding.side
        real, drawn = (images.reshape(-1, 1, side, side) for images in (data.test, samples))
        folder.write("samples.png", pictures.image_grids(real, drawn, data.encoding.levels))
    if history.interrupted:
        console.print(f"interrupted: what was made so far is in {folder.path}/")
        return 130
    rates = timing.throughputs(flow, data.encode(data.train[:1024], generator), SAMPLES)
    results["rows_per_second"] = rates
    _write(results, folder)
    folder.write("throughput.png", pictures.throughputs(rates))
    console.print(_table(rates, timing.zuko_obstacle(flow)))
    console.print(f"pictures, samples, the checkpoint and results.json are in {folder.path}/")
    return 0


def _train(flow: MAF, data: Encoded, epochs: int, generator: torch.Generator, keep: Any, console: Any) -> History:
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

        def report(epoch: int, history: History) -> None:
            score = f"train {history.train[-1]:.3f}  validation {history.validation[-1]:.3f} nats ({data.encoding.space})"
            bar.update(task, completed=epoch + 1, score=score)

        return training.train(
            flow, data, epochs=epochs, batch_size=BATCH, learning_rate=LEARNING_RATE,
            generator=generator, keep=keep, report=report,
        )  # fmt: skip


def evaluate(flow: MAF, data: Encoded, generator: torch.Generator) -> dict[str, float]:
    """Mean log-likelihood of the test rows in nats, in the data's units and in the flow's; for images bits per dimension."""
    import torch

    from flowkern.data import Dequantised, bits_per_dimension

    encoding = data.encoding
    z = data.encode(data.test, generator)
    with torch.no_grad():
        log_prob = flow.log_prob(z).double()
    nats = float((log_prob + data.log_det(z)).mean())
    if not math.isfinite(nats):
        raise CommandError(f"the held-out log-likelihood is {nats}; the checkpoint is written", status=1)
    found = {"test_nats": nats, f"test_nats_{encoding.space}": float(log_prob.mean())}
    if isinstance(encoding, Dequantised):
        found["test_bits_per_dimension"] = bits_per_dimension(nats, data.features)
    return found


def _score(results: dict[str, Any], data: Encoded) -> str:
    """The held-out result as a sentence that says in which units it is."""
    space = data.encoding.space
    text = f"held-out log-likelihood: {results['test_nats']:.3f} nats per row in the units of the data"
    if "test_bits_per_dimension" in results:
        text += f", {results['test_bits_per_dimension']:.3f} bits per dimension"
    return f"{text} ({results[f'test_nats_{space}']:.3f} nats in {space} units)"


def _samples(flow: MAF, data: Encoded, generator: torch.Generator) -> torch.Tensor:
    """Samples in the units of the data."""
    samples = data.decode(flow.sample((SAMPLES,), generator=generator))
    bad = int((~samples.flatten(1).isfinite()).any(1).sum())
    if bad:
        raise CommandError(f"{bad} of {SAMPLES} samples are not finite; the checkpoint and results.json are written", status=1)
    return samples


def _saved(content: Any) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _write(results: dict[str, Any], folder: OutputFolder) -> None:
    folder.write("results.json", (json.dumps(results, indent=2, allow_nan=False) + "\n").encode())


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
