"""``flowkern distill``: train a student that draws fast from a teacher that was trained; the same run as that of ``train``."""

from __future__ import annotations

import argparse

from flowkern.cli.train import add_run_arguments, carry_out

STUDENT = "parallelwavenet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    kind = "folder of a run of `flowkern train wavenet --set output=logistics`, or gaussian"
    parser.add_argument("teacher", nargs="?", metavar="TEACHER", help=kind)
    add_run_arguments(parser, "audio of the teacher's kind, best its own")
    parser.set_defaults(run=run, model=STUDENT)


def details(options: argparse.Namespace) -> str:
    """What --help says besides: the options that --set takes."""
    from flowkern.cli.configuration import describe

    return describe(STUDENT, "distill")


def run(options: argparse.Namespace) -> int:
    """Trains the student, and writes it, metrics, pictures and results."""
    return carry_out(options, "distill")
