"""Builds flowkern._C with CMake and Ninja. Everything else is in pyproject.toml.

FLOWKERN_BUILD_EXT=0 installs pure Python, =1 makes a failed build an error; without it a failed build leaves the package
without its kernels. pip hides what a build prints, so why there is no extension is written beside where it would be, for
`flowkern doctor` and the first use to say. FLOWKERN_BUILD_CUDA says the same of the CUDA kernels, which are built where nvcc
is; TORCH_CUDA_ARCH_LIST names their architectures. FLOWKERN_CMAKE_ARGS is passed on to CMake.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections import deque
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'"(.+)"', (ROOT / "flowkern" / "_version.py").read_text()).group(1)
# The build tools of a virtual environment are found also where it was not activated.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
# What CMake prints where something is missing: what that is, and what mends it.
KNOWN = {
    "CMAKE_CXX_COMPILER": (
        "no C++ compiler was found",
        "install one that knows C++20 (Debian: apt-get install g++) or name it in CXX",
    ),
    "Development.Module": ("Python's headers were not found", "install them (Debian: apt-get install python3-dev)"),
}


class BuildError(Exception):
    """Why there is no extension, what mends it, and the last lines that a command printed."""

    def __init__(self, reason: str, cure: str, log: str = "") -> None:
        super().__init__(f"{reason}; {cure}\n{log}")
        self.record = f"{reason}\n{cure}\n{log}"


def wished(variable: str) -> str:
    """0, 1, or auto where the variable is not set."""
    wish = os.environ.get(variable, "auto")
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"{variable}: expected 0 or 1, got {wish!r}")
    return wish


def call(task: str, command: list[str]) -> None:
    """Runs a command and shows what it prints."""
    last: deque[str] = deque(maxlen=20)
    environment = {**os.environ, "PATH": PATH}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8", "errors": "replace"}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            last.append(line)
    if process.returncode:
        printed = "".join(last)
        failed = f"{task} failed with exit status {process.returncode}", "mend what its last lines complain of"
        said = next((said for sign, said in KNOWN.items() if sign in printed), failed)
        raise BuildError(*said, f"$ {shlex.join(command)}\n{printed}")


class CMakeBuild(build_ext):
    def run(self) -> None:
        wish, cuda = wished("FLOWKERN_BUILD_EXT"), wished("FLOWKERN_BUILD_CUDA")
        extension = Path(self.get_ext_fullpath("flowkern._C")).resolve()
        record = extension.with_name("_build_error.txt")
        (extension.parent / "cuda").mkdir(parents=True, exist_ok=True)
        self.forget_old_code(extension.parent / "cuda")
        try:
            if wish == "0":
                raise BuildError("FLOWKERN_BUILD_EXT=0 was set when it was installed", "unset it")
            self.cmake(extension.parent)
        except BuildError as error:
            if wish == "1":
                raise SystemExit(f"flowkern: the extension could not be built: {error}") from error
            print(f"flowkern: installing without its kernels: {error}", file=sys.stderr)
            extension.unlink(missing_ok=True)  # an earlier build's would be installed
            record.write_text(error.record, "utf-8")
            self.forget_extension()
            return
        record.unlink(missing_ok=True)
        if cuda != "0":
            self.cuda(cuda == "1")

    def forget_extension(self) -> None:
        """What is built is pure Python: nothing to copy for an editable install, and a wheel for every platform."""
        self.extensions = self.distribution.ext_modules = []
        wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
        if wheel is not None:
            wheel.root_is_pure = True

    def forget_old_code(self, folder: Path) -> None:
        """CUDA code of an earlier build would be installed, though the arguments of its kernels may have been others."""
        newest = max(f.stat().st_mtime for part in ("cuda", "include") for f in (ROOT / "csrc" / part).rglob("*.*"))
        for code in folder.glob("*.cubin"):
            if code.stat().st_mtime < newest:
                code.unlink()

    def cuda(self, required: bool) -> None:
        """The CUDA kernels, where the configuration found nvcc; NVRTC compiles them at first use elsewhere."""
        target = ["cmake", "--build", str(self.build), "--target"]
        environment = {**os.environ, "PATH": PATH}
        targets = subprocess.run([*target, "help"], env=environment, check=True, capture_output=True, text=True).stdout
        if "flowkern_cuda" not in targets and not required:
            return
        try:
            call("compiling the CUDA kernels", [*target, "flowkern_cuda"])
        except BuildError as error:
            if required:
                raise SystemExit(f"flowkern: the CUDA kernels could not be built: {error}") from error
            print(f"flowkern: the CUDA kernels were not built: {error}", file=sys.stderr)

    def cmake(self, package: Path) -> None:
        missing = [tool for tool in ("cmake", "ninja") if shutil.which(tool, path=PATH) is None]
        missing += [module for module in ("pybind11", "torch") if importlib.util.find_spec(module) is None]
        if missing:
            raise BuildError(f"no {', '.join(missing)} where it was built", f"run `pip install {' '.join(missing)}`")
        import pybind11
        import torch

        self.build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}-{self.plat_name}"
        lib = Path(torch.__file__).parent
        configure = [
            "cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(self.build),
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=PATH)}",  # that of an earlier, isolated build is gone
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DTORCH_INCLUDE={lib / 'include'}",
            f"-DTORCH_LIB={lib / 'lib'}",
            f"-DTORCH_VERSION={torch.__version__}",
            f"-DFLOWKERN_VERSION={VERSION}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={package}",
            *shlex.split(os.environ.get("FLOWKERN_CMAKE_ARGS", "")),
        ]  # fmt: skip
        try:
            call("configuring", configure)
        except BuildError:
            (self.build / "CMakeCache.txt").unlink(missing_ok=True)  # it remembers what is missing
            raise
        call("compiling", ["cmake", "--build", str(self.build)])


setup(ext_modules=[Extension("flowkern._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
