"""Compiled CUDA kernels, and their launches by NVIDIA's driver.

The code comes from one of two places: the build, which leaves a file per architecture beside this one where it finds a
CUDA toolkit; or NVRTC, which compiles the same sources at the first use of a kernel, through NVIDIA's package cuda-core, and
keeps the result in a cache on disk. Both are loaded and launched by cuda-bindings, which PyTorch's CUDA builds bring.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

_HERE = Path(__file__).parent
_INSTALL = "pip install cuda-core cuda-bindings"
_STANDARD = "c++17"


class Code(NamedTuple):
    """A source in csrc/cuda, compiled for a family of univariate maps where it has to do with one."""

    source: str
    map: str = ""

    @property
    def name(self) -> str:
        """As files of it begin."""
        return f"{self.source}.{self.map}" if self.map else self.source


class Machine(Protocol):
    """What launches kernels: a GPU, or in tests the host."""

    multiprocessors: int
    shared_bytes: int  # that a block of threads may have
    clusters: bool

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
        """Runs a kernel on the current stream; neighbouring blocks of a group run at the same time, or all ``together``."""


@lru_cache(None)
def machine(device: torch.device) -> Machine:
    """The GPU that a device is."""
    return Gpu(torch.cuda.current_device() if device.index is None else device.index)


def sources() -> Path:
    """The folder csrc: in the package, or beside it in a checkout."""
    packaged = _HERE.parent / "csrc"
    return packaged if packaged.exists() else _HERE.parents[1] / "csrc"


def every_code() -> list[Code]:
    """All that there is to compile: every source, those that take a univariate map once per family."""
    families = sorted(p.stem for p in sources().glob("include/flowkern/maps/*.h"))
    found = []
    for source in sorted(sources().glob("cuda/*.cu")):
        takes_map = '"cuda/sweep.h"' in source.read_text()
        found += [Code(source.stem, family) for family in families] if takes_map else [Code(source.stem)]
    return found


def built_file(code: Code, capability: tuple[int, int]) -> Path | None:
    """What the build left for a compute capability: code runs on later minor versions too, unless it ends in `a`.

    In a checkout code that is older than its sources does not count: its arguments may have been others.
    """
    major, minor = capability
    exact = _HERE / f"{code.name}.sm_{major}{minor}a.cubin"
    files = [exact, *(_HERE / f"{code.name}.sm_{major}{m}.cubin" for m in range(minor, -1, -1))]
    newest = (
        0.0 if sources().parent == _HERE.parent else max((p.stat().st_mtime for p in sources().glob("cuda/*")), default=0.0)
    )
    return next((f for f in files if f.exists() and f.stat().st_mtime >= newest), None)


def nvrtc_obstacle() -> str | None:
    """Why kernels cannot be compiled here, or ``None`` if they can."""
    try:
        importlib.import_module("cuda.core")
    except ImportError as error:
        return f"cuda-core is not installed ({error}); `{_INSTALL}` mends it"
    try:
        importlib.import_module("cuda.bindings.nvrtc").nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        return f"NVRTC is not there ({error}); `pip install nvidia-cuda-nvrtc` mends it"
    return None


@lru_cache(None)
def obstacle(capability: tuple[int, int]) -> str | None:
    """Why the CUDA kernels cannot run on a GPU of this compute capability, or ``None`` if they can."""
    major, minor = capability
    if capability < (8, 0):
        return f"the CUDA kernels need compute capability 8.0, this GPU has {major}.{minor}"
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        return f"cuda-bindings is not installed; `{_INSTALL}` mends it"
    codes = every_code()
    if codes and all(built_file(code, capability) for code in codes):
        return None
    reason = nvrtc_obstacle()
    return reason and f"the CUDA kernels were not built for compute capability {major}.{minor}, and {reason}"


def compile_kernels(code: Code, architecture: str, kernel: str | None = None) -> bytes:
    """The code of one kernel, or of all of a source's, by NVRTC, from the cache where it was compiled before."""
    core, nvrtc = importlib.import_module("cuda.core"), importlib.import_module("cuda.bindings.nvrtc")
    if not hasattr(core, "Program"):
        core = importlib.import_module("cuda.core.experimental")
    folder = sources()
    text = (folder / "cuda" / f"{code.source}.cu").read_text()
    macros = [*([("FK_MAP", code.map)] if code.map else []), *(_only(text, kernel) if kernel else [])]
    headers = "".join(p.read_text() for p in sorted(folder.glob("**/*.h")))
    version = nvrtc.nvrtcVersion()[1:]
    key = hashlib.sha256(repr((text, headers, architecture, macros, version)).encode()).hexdigest()
    cached = _cache() / f"{code.name}.{architecture}.{key[:32]}.cubin"
    if cached.exists():
        return cached.read_bytes()
    include = [str(folder), str(folder / "include")]
    options = core.ProgramOptions(
        arch=architecture,
        std=_STANDARD,
        include_path=include,
        define_macro=macros or None,
        device_as_default_execution_space=True,  # lambdas of shared headers are not marked; NVRTC 13.0 and older mind
    )
    compiled = core.Program(text, "c++", options).compile("cubin").code
    _store(cached, compiled)
    return compiled


def _only(text: str, kernel: str) -> list[tuple[str, str]]:
    """Macros that leave one sweep of those that a source lists; see its end."""
    found = re.search(r"^FK_BOTH\(" + kernel.split("_")[-2] + "_" + kernel.split("_")[-1] + r", (.+)\)$", text, re.MULTILINE)
    if found is None:
        return []
    task = "InverseGradient" if "_backward_" in kernel else "Inverse"
    sweep = found[1].replace("Bf16", "flowkern::cuda::Bf16").replace("Half", "flowkern::cuda::Half")
    return [("FK_ONLY_NAME", kernel), ("FK_ONLY_TASK", task), ("FK_ONLY_SWEEP", sweep.replace(" ", ""))]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flowkern"


def _store(path: Path, code: bytes) -> None:
    """Writes a file in one go, so that processes that do the same meet no half of it; without a disk there is no cache."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(code)
        os.replace(file.name, path)
    except OSError:
        return


class Gpu:
    """One GPU, its context being PyTorch's."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.capability = torch.cuda.get_device_capability(index)
        self.multiprocessors = torch.cuda.get_device_properties(index).multi_processor_count
        self.clusters = self.capability >= (9, 0)
        attribute = self.driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        self.shared_bytes = self._checked(self.driver.cuDeviceGetAttribute(attribute, self._device()))
        self.context = self._checked(self.driver.cuDevicePrimaryCtxRetain(self._device()))
        self.kernels: dict[tuple[Code, str], Any] = {}

    @cached_property
    def driver(self) -> Any:
        """NVIDIA's driver as cuda-bindings gives it."""
        return importlib.import_module("cuda.bindings.driver")

    def _device(self) -> Any:
        self._checked(self.driver.cuInit(0))
        return self._checked(self.driver.cuDeviceGet(self.index))

    def _checked(self, result: tuple[Any, ...]) -> Any:
        error, *values = result
        if int(error) != 0:
            name = self.driver.cuGetErrorString(error)[1]
            raise RuntimeError(f"flowkern: a call of the CUDA driver failed: {error.name} ({(name or b'?').decode()})")
        return values[0] if values else None

    def _kernel(self, code: Code, name: str) -> Any:
        if (code, name) not in self.kernels:
            file = built_file(code, self.capability)
            architecture = "sm_{}{}".format(*self.capability)
            compiled = file.read_bytes() if file else compile_kernels(code, architecture, name)
            with self._loading():
                module = self._checked(self.driver.cuModuleLoadData(compiled))
                kernel = self._checked(self.driver.cuModuleGetFunction(module, name.encode()))
                attribute = self.driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self._checked(self.driver.cuFuncSetAttribute(kernel, attribute, self.shared_bytes))
            self.kernels[code, name] = kernel
        return self.kernels[code, name]

    @contextlib.contextmanager
    def _loading(self) -> Iterator[None]:
        """Lets code be loaded while a CUDA graph is captured: another batch may be the first to need a kernel."""
        exchange = self.driver.cuThreadExchangeStreamCaptureMode
        before = self._checked(exchange(self.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED))
        try:
            yield
        finally:
            self._checked(exchange(before))

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
        """Runs a kernel on PyTorch's current stream of this GPU; the driver refuses what cannot run at the same time."""
        with torch.cuda.device(self.index):
            # A thread that never called the runtime has no context: autograd's may come here first.
            if int(self._checked(self.driver.cuCtxGetCurrent())) != int(self.context):
                self._checked(self.driver.cuCtxSetCurrent(self.context))
            kernel = self._kernel(code, name)
            config = self.driver.CUlaunchConfig()
            config.gridDimX, config.gridDimY, config.gridDimZ = grid, 1, 1
            config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
            config.sharedMemBytes = shared
            config.hStream = torch.cuda.current_stream(self.index).cuda_stream
            config.attrs = [self._together(group, together)] if group > 1 or together else []
            config.numAttrs = len(config.attrs)
            pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
            self._checked(self.driver.cuLaunchKernelEx(config, kernel, ctypes.addressof(pointers), 0))

    def _together(self, group: int, whole: bool) -> Any:
        """The launch attribute by which the blocks of a group, or of the whole grid, run at the same time."""
        ids, attribute = self.driver.CUlaunchAttributeID, self.driver.CUlaunchAttribute()
        if self.clusters and not whole:
            attribute.id = ids.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            attribute.value.clusterDim.x, attribute.value.clusterDim.y, attribute.value.clusterDim.z = group, 1, 1
        else:
            attribute.id = ids.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
            attribute.value.cooperative = 1
        return attribute
