"""``flowkern doctor``: what can run here, and why the rest cannot."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from flowkern import _library, backends
from flowkern._version import __version__
from flowkern.cuda import code

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


def cuda_kernels() -> str:
    """Which code of the CUDA kernels is in use, or what there is for a GPU that may come."""
    built = sorted({f.name.split(".")[1] for f in Path(code.__file__).parent.glob("*.cubin")})
    if not torch.cuda.is_available():
        nvrtc = code.nvrtc_obstacle()
        others = "NVRTC compiles others at first use" if nvrtc is None else f"others: {nvrtc}"
        return f"built for {', '.join(built)}; {others}" if built else f"none built here; {others}"
    reason = backends.native_obstacle(torch.empty(0, device="cuda"), "autoregressive_inverse")
    if reason is not None:
        return f"no: {reason}; until then inverses run in plain PyTorch, level by level"
    file = code.built_file("autoregressive_inverse", torch.cuda.get_device_capability())
    return "yes, " + (f"built for {file.name.split('.')[1]}" if file else "compiled by NVRTC at first use, then from its cache")


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
        yield "GPU", ", ".join(sorted(names))
    else:
        yield "GPU", "none that torch can see"
    yield "CUDA kernels", cuda_kernels()
    reason = backends.triton_obstacle(torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu"), "autoregressive")
    yield "Triton kernels", f"yes, Triton {backends.triton_version()}" if reason is None else f"no: {reason}"
    yield "backend", f"{backends._current} (FLOWKERN_BACKEND or flowkern.backend)"
    for package, mend in _MENDS.items():
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, f"not installed; `{mend}`"
