"""Room for another family of univariate maps: one that nobody asked for goes in by three files of its own.

two_sided/ holds them as a contributor would write them: the value with its oracle, the C++ header of the CPU and CUDA kernels,
the Triton functions. They are put into a copy of the package, which is built, and check.py holds every kernel to the oracle.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flowkern

ROOT = Path(flowkern.__file__).parents[1]
HERE = Path(__file__).parent
FILES = {
    "value.py": "flowkern/univariate/two_sided.py",
    "two_sided.h": "csrc/include/flowkern/maps/two_sided.h",
    "in_triton.py": "flowkern/kernels/maps/two_sided.py",
}


@pytest.mark.slow
def test_a_family_is_added_by_its_own_files(tmp_path: Path) -> None:
    if shutil.which("cmake", path=_path()) is None or not (ROOT / "csrc").exists():
        pytest.skip("needs the sources and CMake")
    ignore = shutil.ignore_patterns("*.so", "*.cubin", "__pycache__")
    for source, target in (("flowkern", "flowkern"), ("kernels", "flowkern/kernels"), ("csrc", "csrc")):
        shutil.copytree(ROOT / source, tmp_path / target, ignore=ignore)
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    for file, place in FILES.items():
        shutil.copy(HERE / "two_sided" / file, tmp_path / place)
    _build(tmp_path)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    check = [sys.executable, "-P", "-m", "pytest", *options, "--confcutdir", str(HERE.parent)]
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{HERE.parent}", "FLOWKERN_SECOND_FAMILY": "1"}
    _run([*check, str(HERE / "two_sided" / "check.py")], tmp_path, **environment)


def _path() -> str:
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def _build(folder: Path) -> None:
    """The extension for the instruction set that runs here, the baseline, which each build has, and no other."""
    import pybind11
    import torch

    from flowkern import _library

    used = _library._C.instruction_set() if _library._C is not None else "baseline"
    lib = Path(torch.__file__).parent
    configure = [
        "cmake", "-G", "Ninja", "-S", str(folder), "-B", str(folder / "build"), f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DTORCH_INCLUDE={lib / 'include'}", f"-DTORCH_LIB={lib / 'lib'}",
        f"-DTORCH_VERSION={torch.__version__}", "-DFLOWKERN_VERSION=0",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder / 'flowkern'}", f"-DFLOWKERN_ISAS={'' if used == 'baseline' else used}",
    ]  # fmt: skip
    _run(configure, folder, PATH=_path())
    _run(["cmake", "--build", str(folder / "build")], folder, PATH=_path())


def _run(command: list[str], folder: Path, **environment: str) -> None:
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
