"""Builds flowkern._C with CMake and Ninja. Everything else is in pyproject.toml.

FLOWKERN_BUILD_EXT=0 installs pure Python, =1 makes a failed build an error; without it a failed build is reported and
the pure-Python package is installed. FLOWKERN_CMAKE_ARGS is passed on to CMake.
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


class CMakeBuild(build_ext):
    def run(self) -> None:
        wish = os.environ.get("FLOWKERN_BUILD_EXT", "auto")
        if wish not in ("0", "1", "auto"):
            raise SystemExit(f"FLOWKERN_BUILD_EXT: expected 0 or 1, got {wish!r}")
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

    def cmake(self) -> None:
        import pybind11
        import torch

        target = Path(self.get_ext_fullpath("flowkern._C")).resolve()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{self.plat_name}"
        lib = Path(torch.__file__).parent
        configure = [
            "cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build),
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
        subprocess.run(["cmake", "--build", str(build)], check=True)


setup(ext_modules=[Extension("flowkern._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
