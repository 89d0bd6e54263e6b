"""``flowkern doctor``: what can run here, and why the rest cannot."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Any

import torch

from flowkern import _library, backends
from flowkern._version import __version__

_MENDS = {
    "zuko": "pip install 'flowkern[peers]'",
    "matplotlib": "pip install 'flowkern[demo]'",
    "rich": "pip install 'flowkern[demo]'",
    "scikit-learn": "pip install 'flowkern[demo]'",
    "pytest-benchmark": "pip install 'flowkern[bench]'",
}


def add_command(commands: Any) -> None:
    """Adds the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser("doctor", help="print what can run here, and why the rest cannot")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the report; the exit status is 1 if the CPU kernels are missing."""
    for name, value in report():
        print(f"{name:<22} {value}")
    return 0 if _library.BUILD_ERROR is None else 1


def report() -> Iterator[tuple[str, str]]:
    """Lines of the report as (subject, finding)."""
    yield "flowkern", __version__
    yield "python", f"{platform.python_version()} on {platform.machine()}"
    yield "torch", f"{torch.__version__}, {torch.get_num_threads()} threads"
    if _library.BUILD_ERROR is None:
        info = _library._C.build_info()
        yield "CPU kernels", f"yes, {_library._C.instruction_set()}; built by {info['compiler']} against torch {info['torch']}"
    else:
        yield "CPU kernels", f"no: {_library.BUILD_ERROR}; a C++20 compiler and `{backends.REBUILD}` mend it"
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        yield "GPU", f"{', '.join(sorted(names))}; inverses there run in plain PyTorch, level by level"
    else:
        yield "GPU", "none that torch can see"
    reason = backends.triton_obstacle(torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu"), "autoregressive")
    yield "Triton kernels", f"yes, Triton {backends.triton_version()}" if reason is None else f"no: {reason}"
    yield "backend", f"{backends._current} (FLOWKERN_BACKEND or flowkern.backend)"
    for package, mend in _MENDS.items():
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, f"not installed; `{mend}`"
