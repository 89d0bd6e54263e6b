"""The command line: ``flowkern doctor``, ``flowkern demo``, ``flowkern bench``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from flowkern._version import __version__
from flowkern.cli.errors import CommandError

COMMANDS = {
    "doctor": "print what can run here, and why the rest cannot",
    "demo": "train a masked autoregressive flow on real data, sample from it, and compare its speed",
    "bench": "run the benchmarks; write JSON, a table and a chart",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 1 for a failed run, 2 for bad input, 130 for Ctrl-C."""
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except CommandError as error:
        print(f"flowkern: error: {error}", file=sys.stderr)
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
        command = commands.add_parser(name, help=purpose, description=purpose)
        if name == asked:
            import_module(f"flowkern.cli.{name}").add_arguments(command)
    options = parser.parse_args(arguments)
    return options.run(options)
