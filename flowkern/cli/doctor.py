"""``flowkern doctor``: what can run here, and why the rest cannot."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from flowkern import _library, backends
from flowkern._version import __version__
from flowkern.cuda import code
from flowkern.operators import OPERATORS

_MENDS = {
    "numpy": "pip install 'flowkern[train]'",
    "zuko": "pip install 'flowkern[peers]'",
    "matplotlib": "pip install 'flowkern[train]'",
    "rich": "pip install 'flowkern[train]'",
    "scikit-learn": "pip install 'flowkern[train]'",
    "scipy": "pip install 'flowkern[train]'",
    "pillow": "pip install 'flowkern[train]'",
    "pyarrow": "pip install 'flowkern[parquet]'",
    "soundfile": "pip install 'flowkern[audio]'",
    "soxr": "pip install 'flowkern[audio]'",
    "pytest-benchmark": "pip install 'flowkern[bench]'",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser: there are none."""
    parser.set_defaults(run=run)


class Finding(NamedTuple):
    """One subject of the report; ``wrong`` where kernels are missing for a device that is here."""

    subject: str
    text: str
    wrong: bool = False


def run(options: argparse.Namespace) -> int:
    """Prints the report; the exit status is 1 if kernels are missing for a device that is here."""
    wrong = False
    for finding in report():
        print(f"{finding.subject:<22} {finding.text}")
        wrong = wrong or finding.wrong
    return int(wrong)


def cpu_kernels() -> Finding:
    """How the extension was built, or why there is none, with the last lines of its build."""
    error = _library.BUILD_ERROR
    if error is not None:
        return Finding("CPU kernels", "\n    ".join([f"no: {error}", *error.log.splitlines()]), wrong=True)
    info = _library._C.build_info()
    built = f"built by {info['compiler']} against torch {info['torch']}"
    return Finding("CPU kernels", f"yes, {_library._C.instruction_set()}; {built}")


def cuda_kernels() -> Finding:
    """Which code of the CUDA kernels is in use, or what there is for a GPU that may come."""
    subject = "CUDA kernels"
    built = sorted({f.name.split(".")[-2] for f in Path(code.__file__).parent.glob("*.cubin")})
    if not torch.cuda.is_available():
        nvrtc = code.nvrtc_obstacle()
        others = "NVRTC compiles others at first use" if nvrtc is None else f"others: {nvrtc}"
        return Finding(subject, f"built for {', '.join(built)}; {others}" if built else f"none built here; {others}")
    reason = backends.native_obstacle(torch.empty(0, device="cuda"), _first("cuda"))
    if reason is not None:
        text = f"no: {reason}; until then inverses run in plain PyTorch, level by level"
        return Finding(subject, text, wrong=torch.version.hip is None)
    files = [code.built_file(one, torch.cuda.get_device_capability()) for one in code.every_code()]
    built_for = {file.name.split(".")[-2] for file in files if file is not None}
    how = f"built for {', '.join(sorted(built_for))}" if all(files) else "compiled by NVRTC at first use, then from its cache"
    return Finding(subject, f"yes, {how}")


def _first(kernels: str) -> str:
    """An operator that has such kernels: what keeps one from running keeps all."""
    return next(row.name for row in OPERATORS.values() if kernels in row.kernels)


def triton_kernels() -> Finding:
    """Whether Triton's kernels can run; they need a GPU."""
    gpu = torch.cuda.is_available()
    reason = backends.triton_obstacle(torch.empty(0, device="cuda" if gpu else "cpu"), _first("triton"))
    if reason is None:
        return Finding("Triton kernels", f"yes, Triton {backends.triton_version()}")
    return Finding("Triton kernels", f"no: {reason}", wrong=gpu)


def report() -> Iterator[Finding]:
    """The findings, in the order in which they are printed."""
    yield Finding("flowkern", __version__)
    yield Finding("python", f"{platform.python_version()} on {platform.machine()}")
    yield Finding("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    yield cpu_kernels()
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        yield Finding("GPU", ", ".join(sorted(names)))
    else:
        yield Finding("GPU", "none that torch can see")
    yield cuda_kernels()
    yield triton_kernels()
    yield Finding("backend", f"{backends._current} (FLOWKERN_BACKEND or flowkern.backend)")
    for package, mend in _MENDS.items():
        try:
            yield Finding(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, f"not installed; `{mend}`")
