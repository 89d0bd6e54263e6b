"""The CUDA kernels compiled for the host, see host_run.h, in place of a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from flowkern import backends
from flowkern.cuda import code
from flowkern.cuda.code import Code

HERE = Path(__file__).parent


def compiler() -> str:
    """The C++ compiler; the sanitizers' runtimes are found by GNU's."""
    return shutil.which("g++") or "c++"


@functools.lru_cache(None)
def libraries(sanitizers: str = "") -> dict[code.Code, Path]:
    """Every code as a library, compiled where it is not there yet."""
    source = code.sources()
    inputs = [HERE / "host_run.h", *sorted(source.glob("cuda/*")), *sorted(source.glob("include/flowkern/**/*.h"))]
    key = hashlib.sha256(b"".join(p.read_bytes() for p in inputs) + sanitizers.encode()).hexdigest()[:16]
    folder = HERE.parent / "build" / f"host-run-{key}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
            _compile(Path(fresh), source, sanitizers)
            with contextlib.suppress(OSError):  # another process was faster
                Path(fresh).rename(folder)
                Path(fresh).mkdir()
    return {one: folder / f"{one.name}.so" for one in code.every_code()}


def _compile(folder: Path, source: Path, sanitizers: str) -> None:
    flags = [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-Wno-tsan"] if sanitizers else []
    processes = [
        subprocess.Popen(
            [
                compiler(), "-std=c++20", "-O1", "-g", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", *flags,
                "-DFK_HOST_RUN", *([f"-DFK_MAP={one.map}"] if one.map else []),
                f"-I{source}", f"-I{source / 'include'}", f"-I{HERE}", "-x", "c++",
                str(source / "cuda" / f"{one.source}.cu"), "-o", str(folder / f"{one.name}.so"),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for one in code.every_code()
    ]  # fmt: skip
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == 0, output


class Host:
    """A machine as small as a test wants it: few multiprocessors make large tiles, little shared memory spills rows."""

    def __init__(self, multiprocessors: int = 2, shared_bytes: int = 227 * 1024, clusters: bool = True) -> None:
        sanitizers = os.environ.get("FLOWKERN_HOST_RUN_SANITIZERS", "")
        self.libraries = {name: ctypes.CDLL(str(path)) for name, path in libraries(sanitizers).items()}
        self.multiprocessors, self.shared_bytes, self.clusters = multiprocessors, shared_bytes, clusters
        self.launched: list[str] = []

    def launch(
        self,
        code: Code,
        name: str,
        grid: int,
        threads: int,
        arguments: ctypes.Structure,
        shared: int = 0,
        group: int = 1,
        together: bool = False,
    ) -> None:
        """Runs the blocks of a group together, one group after another."""
        library = self.libraries[code]
        assert shared <= self.shared_bytes
        if together:
            assert grid <= self.multiprocessors
            group = grid
        self.launched.append(name + (f" x{group}" if group > 1 else ""))
        kernel = ctypes.cast(getattr(library, name), ctypes.c_void_p)
        library.host_run_launch(kernel, grid, threads, group, ctypes.c_long(shared), ctypes.byref(arguments))


_hosts: list[Host] = []  # the last one takes the launches


def machine(device: torch.device) -> Any:
    """What launches kernels for tensors of a device; conftest.py puts it in the place of the package's own."""
    if device.type != "cpu":
        return code.machine(device)
    if not _hosts:
        _hosts.append(Host())
    return _hosts[-1]


@contextlib.contextmanager
def in_place_of_a_gpu(host: Host | None = None) -> Iterator[None]:
    """Calls on CPU tensors are served as those on a GPU: by CUDA kernels where an operator has them."""
    with mock.patch.multiple(backends, device_of=lambda x: "cuda", _cuda_obstacle=lambda index: None):
        before = list(_hosts)
        _hosts[:] = [host] if host else before
        try:
            yield
        finally:
            _hosts[:] = before
