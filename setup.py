"""Builds flowkern._C with CMake and Ninja. Everything else is in pyproject.toml.

FLOWKERN_BUILD_EXT=0 installs pure Python, =1 makes a failed build an error; without it a failed build is reported and
the pure-Python package is installed. FLOWKERN_BUILD_CUDA says the same of the CUDA kernels, which are built where nvcc is;
TORCH_CUDA_ARCH_LIST names their architectures. FLOWKERN_CMAKE_ARGS is passed on to CMake.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'"(.+)"', (ROOT / "flowkern" / "_version.py").read_text()).group(1)


def wished(variable: str) -> str:
    """0, 1, or auto where the variable is not set."""
    wish = os.environ.get(variable, "auto")
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"{variable}: expected 0 or 1, got {wish!r}")
    return wish


class CMakeBuild(build_ext):
    def run(self) -> None:
        wish, cuda = wished("FLOWKERN_BUILD_EXT"), wished("FLOWKERN_BUILD_CUDA")
        if wish == "0":
            self.extensions = []
            return
        try:
            self.cmake()
        except (subprocess.CalledProcessError, OSError, ImportError) as error:
            if wish == "1":
                raise SystemExit(f"flowkern: the extension could not be built: {error}") from error
            self.extensions = []  # nothing to copy for an editable install
            print(f"flowkern: installing without its kernels, the build failed: {error}", file=sys.stderr)
            print("flowkern: it needs a C++20 compiler; then run: pip install --no-build-isolation -e .", file=sys.stderr)
            return
        if cuda != "0":
            self.cuda(cuda == "1")

    def cuda(self, required: bool) -> None:
        """The CUDA kernels, where the configuration found nvcc; NVRTC compiles them at first use elsewhere."""
        target = ["cmake", "--build", str(self.build), "--target"]
        targets = subprocess.run([*target, "help"], check=True, capture_output=True, text=True).stdout
        if "flowkern_cuda" not in targets and not required:
            return
        try:
            subprocess.run([*target, "flowkern_cuda"], check=True)
        except subprocess.CalledProcessError as error:
            if required:
                raise SystemExit(f"flowkern: the CUDA kernels could not be built: {error}") from error
            print(f"flowkern: the CUDA kernels were not built: {error}", file=sys.stderr)

    def cmake(self) -> None:
        import pybind11
        import torch

        target = Path(self.get_ext_fullpath("flowkern._C")).resolve()
        self.build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{self.plat_name}"
        (target.parent / "cuda").mkdir(parents=True, exist_ok=True)
        lib = Path(torch.__file__).parent
        configure = [
            "cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(self.build),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DTORCH_INCLUDE={lib / 'include'}",
            f"-DTORCH_LIB={lib / 'lib'}",
            f"-DTORCH_VERSION={torch.__version__}",
            f"-DFLOWKERN_VERSION={VERSION}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            *shlex.split(os.environ.get("FLOWKERN_CMAKE_ARGS", "")),
        ]  # fmt: skip
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(self.build)], check=True)


setup(ext_modules=[Extension("flowkern._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
