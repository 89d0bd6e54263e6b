"""The code of the CUDA kernels: for every architecture, from the build or from NVRTC, and how it is launched."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flowkern.cuda import code, launch
from flowkern.cuda.wavenet_generate import GenerateArguments

resources = pytest.importorskip("resources", reason="needs the tools that Triton brings")
CODE, KERNEL = code.Code("autoregressive_inverse", "affine"), "autoregressive_inverse_tf32_r16"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", resources.ARCHITECTURES)
def test_code_for_every_architecture(architecture: str) -> None:
    """No spills, no more registers than there are, asynchronous copies, matrix instructions. It needs nvcc or NVRTC."""
    assert resources.faults(architecture) == []


def test_what_counts_as_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = resources.Usage(255, 8, 0, frozenset({"FFMA"}))
    monkeypatch.setattr(
        resources, "usage", lambda architecture: dict.fromkeys(resources.SWEEPS + resources.PACKS + resources.LOOPS, bad)
    )
    found = [f for f in resources.faults("sm_80") if "autoregressive_inverse_tf32_r32" in f]
    assert len(found) == 4, found
    monkeypatch.setattr(resources, "usage", lambda architecture: {})
    assert "no code for" in resources.faults("sm_80")[0]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "flowkern"


def test_one_kernel_is_compiled_at_its_first_use_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = code.compile_kernels(CODE, "sm_90", KERNEL)
    assert KERNEL.encode() in made
    assert b"autoregressive_inverse_f64_r16" not in made
    assert [p.read_bytes() for p in cache.iterdir()] == [made]
    monkeypatch.setattr(code.importlib.import_module("cuda.core"), "Program", None)
    assert code.compile_kernels(CODE, "sm_90", KERNEL) == made


def test_without_a_cache_it_still_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert b"pack_bf16" in code.compile_kernels(code.Code("pack"), "sm_80")


def test_the_built_code_that_runs_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "_HERE", tmp_path)
    monkeypatch.setattr(code, "sources", lambda: tmp_path.parent / "csrc")
    for name in ("sm_80", "sm_90a", "sm_100"):
        (tmp_path / f"pack.{name}.cubin").touch()

    def found(*capability: int) -> str | None:
        file = code.built_file(code.Code("pack"), capability)  # type: ignore[arg-type]
        return file and file.name.split(".")[1]

    assert [found(8, 0), found(8, 9), found(9, 0), found(10, 3), found(12, 0)] == ["sm_80", "sm_80", "sm_90a", "sm_100", None]


def test_code_older_than_its_sources_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, built = tmp_path / "csrc" / "cuda" / "pack.cu", tmp_path / "pack.sm_80.cubin"
    source.parent.mkdir(parents=True)
    for file in (source, built):
        file.touch()
    monkeypatch.setattr(code, "_HERE", tmp_path)
    monkeypatch.setattr(code, "sources", lambda: tmp_path / "csrc")
    assert code.built_file(code.Code("pack"), (8, 0)) == built
    os.utime(built, (0, 0))
    assert code.built_file(code.Code("pack"), (8, 0)) is None


def test_what_keeps_the_kernels_from_running_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    obstacle = code.obstacle.__wrapped__
    assert "need compute capability 8.0, this GPU has 7.5" in obstacle((7, 5))
    monkeypatch.setattr(code, "_HERE", tmp_path)
    monkeypatch.setattr(code, "nvrtc_obstacle", lambda: None)
    assert obstacle((9, 0)) is None
    monkeypatch.setattr(code, "nvrtc_obstacle", lambda: "cuda-core is not installed")
    assert obstacle((9, 0)) == "the CUDA kernels were not built for compute capability 9.0, and cuda-core is not installed"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "cuda-bindings is not installed; `pip install" in obstacle((9, 0))


def test_arguments_are_as_large_as_the_kernels_think() -> None:
    assert (ctypes.sizeof(launch.SweepArguments), ctypes.sizeof(launch.PackArguments)) == (2360, 2680)
    assert ctypes.sizeof(GenerateArguments) == 280


@pytest.mark.parametrize(("capability", "attribute"), [((9, 0), "CLUSTER_DIMENSION"), ((8, 0), "COOPERATIVE")])
def test_a_launch_as_the_driver_receives_it(
    capability: tuple[int, int], attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the driver's own records, and functions that remember."""
    driver = pytest.importorskip("cuda.bindings.driver")
    seen: dict[str, Any] = {}

    def remember(name: str, *result: Any) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            seen.setdefault(name, []).append(arguments)
            return driver.CUresult.CUDA_SUCCESS, *result

        return call

    calls = {"cuInit": (), "cuDeviceGet": (0,), "cuDeviceGetAttribute": (232448,), "cuModuleLoadData": ("module",)}
    calls |= {"cuDevicePrimaryCtxRetain": (5,), "cuCtxGetCurrent": (0,), "cuCtxSetCurrent": ()}
    calls |= {
        "cuThreadExchangeStreamCaptureMode": ("before",),
        "cuModuleGetFunction": ("kernel",),
        "cuFuncSetAttribute": (),
        "cuLaunchKernelEx": (),
    }
    for name, result in calls.items():
        monkeypatch.setattr(driver, name, remember(name, *result))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(multi_processor_count=132))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    monkeypatch.setattr(code, "compile_kernels", lambda *_: b"code")
    monkeypatch.setattr(code, "built_file", lambda *_: None)
    gpu, arguments = code.Gpu(0), launch.SweepArguments(tiles=5)
    for options in ({}, {"group": 8}, {"together": True}):
        gpu.launch(CODE, KERNEL, 40, 256, arguments, 1000, **options)
    assert gpu.shared_bytes == 232448
    assert seen["cuCtxSetCurrent"] == [(5,)] * 3  # this thread has no context, or another
    assert seen["cuThreadExchangeStreamCaptureMode"][-1] == ("before",)
    assert len(seen["cuModuleLoadData"]) == 1  # the next launches find the kernel
    (plain, kernel, address, _), (group, *_), (together, *_) = seen["cuLaunchKernelEx"]
    assert (plain.gridDimX, plain.blockDimX, plain.sharedMemBytes, int(plain.hStream)) == (40, 256, 1000, 77)
    assert kernel == "kernel"
    assert isinstance(address, int)
    assert plain.numAttrs == 0
    assert group.attrs[0].id.name == f"CU_LAUNCH_ATTRIBUTE_{attribute}"
    if attribute == "CLUSTER_DIMENSION":
        assert group.attrs[0].value.clusterDim.x == 8
    assert together.attrs[0].id.name == "CU_LAUNCH_ATTRIBUTE_COOPERATIVE"


def test_a_failed_call_of_the_driver_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    monkeypatch.setattr(driver, "cuGetErrorString", lambda error: (driver.CUresult.CUDA_SUCCESS, b"out of memory"))
    gpu = code.Gpu.__new__(code.Gpu)
    with pytest.raises(RuntimeError, match=r"CUDA_ERROR_OUT_OF_MEMORY \(out of memory\)"):
        gpu._checked((driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY,))
