"""``flowkern sample``: samples of a trained model, in the units of its data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flowkern.cli.errors import CommandError, require
from flowkern.cli.output import write_whole

if TYPE_CHECKING:
    from torch import Tensor

    from flowkern.models import Encoded

PICTURED = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument("folder", metavar="FOLDER", help="of a run of `flowkern train`, or of a model that was saved")
    parser.add_argument("-n", type=int, default=1000, metavar="N", help="how many (1000)")
    parser.add_argument("--seed", type=int, default=0, help="another gives other samples (0)")
    parser.add_argument(
        "--output", metavar="FILE", help=".csv, .npy or .parquet (FOLDER/samples.csv; of images samples.npy and a picture)"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (a GPU where torch sees one)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Draws samples and writes them."""
    require(("numpy",), "train")
    from flowkern.cli import tables
    from flowkern.cli.processes import first_does, joined, say
    from flowkern.cli.report import check_finite
    from flowkern.cli.trained import model_from, run_of
    from flowkern.training import sample

    if options.n < 1:
        raise CommandError(f"-n: expected a whole number of at least 1, got {options.n}")
    with joined(options.device) as here:
        model = model_from(options.folder)
        images = len(model.event_shape) == 3
        output = options.output or str(Path(options.folder) / ("samples.npy" if images else "samples.csv"))
        tables.check(output)
        samples = sample(model, options.n, here, options.seed)
        check_finite(samples, "nothing was written")
        made = run_of(options.folder)
        first_does(here, lambda: tables.write(output, samples, made.columns if made else None))
        say(here, f"{options.n:,} samples are in {output}")
        if images:
            picture = str(Path(output).with_suffix(".png"))
            first_does(here, lambda: _picture(model, samples, picture))
            say(here, f"the first {min(PICTURED, options.n)} of them are in {picture}")
    return 0


def _picture(model: Encoded, samples: Tensor, path: str) -> None:
    require(("matplotlib",), "train")
    from flowkern.cli import pictures

    write_whole(Path(path), pictures.image_grids({"samples": samples}, model.encoding.data_levels or 256))
