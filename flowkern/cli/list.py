"""``flowkern list``: the models and data sets that commands know."""

from __future__ import annotations

import argparse
import inspect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="show the options of this one")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints them."""
    from flowkern import data
    from flowkern.cli.configuration import describe
    from flowkern.cli.registry import models

    if options.model:
        print(describe(options.model))
        return 0
    print("models (`flowkern list MODEL` shows the options of one)")
    for name, kind in models().items():
        print(f"  {name:16}{(inspect.getdoc(kind) or '').splitlines()[0]}")
    print("\ndata sets, for --data")
    for name, what in data.names().items():
        print(f"  {name:16}{what}")
    print(f"  {'FILE':16}a table of rows and columns: .npy, .npz, .csv, .tsv, .txt, .dat, .parquet; or images in an IDX file;")
    print(f"  {'':16}a recording: .wav, .flac")
    print(
        f"  {'FOLDER':16}tables train.*, validation.*, test.*; MNIST's or CIFAR's own files; pictures of one size; recordings"
    )
    return 0
