"""The command line: ``flowkern train``, ``distill``, ``sample``, ``evaluate``, ``list``, ``demo``, ``doctor``, ``bench``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Any

from flowkern._version import __version__
from flowkern.cli.errors import CommandError

COMMANDS = {
    "train": "fit a model to data; in several processes: torchrun --nproc-per-node 2 -m flowkern.cli train ...",
    "distill": "train a student that draws fast, a ParallelWaveNet, from a trained WaveNet",
    "sample": "draw samples from a trained model",
    "evaluate": "print how probable data are under a trained model",
    "list": "print the models and data sets that there are",
    "demo": "train a model on real data, sample from it, and compare its speed",
    "doctor": "print what can run here, and why the rest cannot",
    "bench": "run the benchmarks; write JSON, a table and a chart",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 1 for a failed run, 2 for bad input, 130 for Ctrl-C."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files can be any bytes
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except CommandError as error:
        rank = os.environ.get("RANK", "0")
        if rank == "0" or error.status != 2:  # a mistake of the user's is found by all processes, and told by one
            print(f"flowkern: error: {'' if rank == '0' else f'rank {rank}: '}{error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("flowkern: interrupted", file=sys.stderr)
        return 130
    except OSError as error:  # of the standard output, on a full disk or into a closed pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python writes the rest when it ends
        if not isinstance(error, BrokenPipeError):  # as after `| head`
            print(f"flowkern: error: {error}", file=sys.stderr)
        return 1


def _run(arguments: Sequence[str] | None) -> int:
    """Loads only what the command asks for: help, a version and Ctrl-C do not wait for torch."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="flowkern", description="Fast autoregressive flows in PyTorch.")
    parser.add_argument("--version", action="version", version=f"flowkern {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    asked = next((a for a in arguments if not a.startswith("-")), None)
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose, add_help=False)
        command.add_argument("-h", "--help", action=_Help, nargs=0, help="show this and exit")
        if name == asked:
            module = import_module(f"flowkern.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(details=getattr(module, "details", None))
    options = parser.parse_args(arguments)
    return options.run(options)


class _Help(argparse.Action):
    """Shows the options of a command, and what its module's ``details`` says of the arguments before --help."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *others: Any) -> None:
        parser.print_help()
        details = parser.get_default("details")
        if details is not None:
            print("\n" + details(namespace))
        parser.exit()
