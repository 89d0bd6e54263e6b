"""Commands in processes of their own, and the extension built for a copy of the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import flowkern

ROOT = Path(flowkern.__file__).parents[1]
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # with CMake, where it is installed as a package


def run(command: list[str], cwd: Path = ROOT, **environment: str) -> str:
    """Runs a command and returns what it printed; fails with its output."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("FLOWKERN_BUILD")}, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}"
    return done.stdout


def instruction_set() -> str:
    """That of the CPU kernels in this process."""
    from flowkern import _library

    return _library._C.instruction_set() if _library._C is not None else "baseline"


def build_extension(sources: Path, folder: Path, *options: str) -> None:
    """Builds the extension of the package folder/flowkern, for the instruction set that runs here and no other."""
    import pybind11
    import torch

    used, lib = instruction_set(), Path(torch.__file__).parent
    configure = [
        "cmake", "-G", "Ninja", "-S", str(sources), "-B", str(folder / "build"), f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DTORCH_INCLUDE={lib / 'include'}", f"-DTORCH_LIB={lib / 'lib'}",
        f"-DTORCH_VERSION={torch.__version__}", "-DFLOWKERN_VERSION=0",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder / 'flowkern'}", f"-DFLOWKERN_ISAS={'' if used == 'baseline' else used}",
        *options,
    ]  # fmt: skip
    run(configure, folder, PATH=PATH)
    run(["cmake", "--build", str(folder / "build")], folder, PATH=PATH)
