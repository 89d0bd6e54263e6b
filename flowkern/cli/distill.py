"""``flowkern distill``: train a student that draws fast from a teacher that was trained; the same run as that of ``train``."""

from __future__ import annotations

import argparse

STUDENT = "parallelwavenet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    parser.add_argument(
        "teacher", nargs="?", metavar="TEACHER", help="folder of a run of `flowkern train wavenet --set output=logistics`"
    )
    parser.add_argument("--data", help="audio of the teacher's kind, best its own")
    parser.add_argument("--output", metavar="FOLDER", required=True, help="where the student and all else of the run go")
    parser.add_argument("--set", metavar="KEY=VALUE", nargs="+", action="extend", help="options, see below")
    parser.add_argument("--config", metavar="FILE", help="start from the options in the run.json of another run")
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder from its last checkpoint")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (a GPU where torch sees one)")
    parser.set_defaults(run=run, model=STUDENT)


def details(options: argparse.Namespace) -> str:
    """What --help says besides: the options that --set takes."""
    from flowkern.cli.configuration import describe

    return describe(STUDENT, "distill")


def run(options: argparse.Namespace) -> int:
    """Trains the student, and writes it, metrics, pictures and results."""
    from flowkern.cli.train import carry_out

    return carry_out(options, "distill")
