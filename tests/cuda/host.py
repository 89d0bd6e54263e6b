"""The CUDA kernels compiled for the host, see host_run.h, in place of a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import flowkern.ops._network
from flowkern.cuda import code, launch

HERE = Path(__file__).parent


def build(folder: Path, sanitizers: str = "") -> dict[str, Path]:
    """Compiles every operator's source into a library of the folder."""
    flags = [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer"] if sanitizers else []
    compilers, libraries = [], {}
    for operator in code.OPERATORS:
        libraries[operator] = folder / f"{operator}.so"
        source = code.sources()
        command = [
            os.environ.get("CXX") or shutil.which("g++") or "c++", "-std=c++20", "-O1", "-g", "-fPIC", "-shared", "-Wall", "-Wextra",
            "-Werror", "-Wno-tsan", *flags, "-DFK_HOST_RUN", f"-I{source}", f"-I{source / 'include'}", f"-I{HERE}",
            "-x", "c++", str(source / "cuda" / f"{operator}.cu"), "-o", str(libraries[operator]),
        ]  # fmt: skip
        compilers.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for compiler in compilers:
        output, _ = compiler.communicate()
        assert compiler.returncode == 0, output
    return libraries


class Host:
    """A machine as small as a test wants it: few multiprocessors make large tiles, little shared memory spills rows."""

    def __init__(self, libraries: dict[str, Path]) -> None:
        self.libraries = {name: ctypes.CDLL(str(path)) for name, path in libraries.items()}
        self.multiprocessors, self.shared_bytes, self.clusters = 2, 227 * 1024, True
        self.launched: list[str] = []

    def launch(
        self, name: str, grid: int, threads: int, arguments: ctypes.Structure, shared: int = 0, group: int = 1
    ) -> None:
        """Runs the blocks of a group together, one group after another."""
        library = self.libraries[next(o for o in code.OPERATORS if name.startswith(o))]
        assert shared <= self.shared_bytes
        self.launched.append(name + (f" x{group}" if group > 1 else ""))
        kernel = ctypes.cast(getattr(library, name), ctypes.c_void_p)
        library.host_run_launch(kernel, grid, threads, group, ctypes.c_long(shared), ctypes.byref(arguments))


@contextlib.contextmanager
def in_place_of_a_gpu(host: Host) -> Iterator[Host]:
    """Native calls of the operators that have a CUDA kernel go to it, on CPU tensors."""
    usual = flowkern.ops._network.kernels_of

    def kernels_of(chosen: str, x: torch.Tensor) -> Any:
        return ("flowkern_cuda", flowkern.backends.product_precision()) if chosen == "native" else usual(chosen, x)

    with (
        mock.patch.object(flowkern.ops._network, "kernels_of", kernels_of),
        mock.patch.object(launch, "machine", lambda device: host),
    ):
        yield host
