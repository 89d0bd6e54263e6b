"""The command line: ``flowkern doctor``, ``flowkern demo``, ``flowkern bench``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from flowkern._version import __version__
from flowkern.cli import bench, demo, doctor
from flowkern.cli.errors import CommandError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 1 for a failed run, 2 for bad input, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="flowkern", description="Fast autoregressive flows in PyTorch.")
    parser.add_argument("--version", action="version", version=f"flowkern {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (doctor, demo, bench):
        module.add_command(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except CommandError as error:
        print(f"flowkern: error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("flowkern: interrupted", file=sys.stderr)
        return 130
