"""Which kernels are chosen, and what is said where they cannot run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accuracy import DEVICE
from networks import network

import flowkern as fk
from flowkern import _library, backends
from flowkern._library import BuildError


def affine() -> torch.Tensor:
    x = torch.ones(2, 3, device=DEVICE)
    return fk.ops.affine(x, x, x)[0]


def test_forcing_triton_where_it_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(4, (8,))
    x = torch.randn(5, 4, dtype=torch.float64)
    with fk.backend("triton"):
        with pytest.raises(RuntimeError, match="'triton' was forced, but autoregressive_inverse has no Triton kernel"):
            fk.ops.autoregressive_inverse(x, net.weights, net.biases, net.plan)
        with pytest.raises(RuntimeError, match=r"torch\.func transforms have rules for plain PyTorch only"):
            torch.func.vmap(lambda v: fk.ops.affine(v, v, v)[0])(torch.ones(2, 3, device=DEVICE))
        with pytest.raises(RuntimeError, match="there is no Triton kernel for device 'meta'"):
            fk.ops.log_det(torch.ones(2, 3, device="meta"))
        monkeypatch.setattr(backends, "INTERPRETED", False)
        with pytest.raises(RuntimeError, match="Triton kernels run on GPUs; with TRITON_INTERPRET=1 set"):
            fk.ops.log_det(torch.ones(2, 3))
        monkeypatch.setattr(backends, "_TRITON_MISSING", "Triton is not installed; `pip install triton` mends it")
        with pytest.raises(RuntimeError, match="Triton is not installed; `pip install triton` mends it"):
            affine()


def test_the_default_is_native_on_the_cpu_and_triton_on_a_gpu() -> None:
    assert backends.kernels_for(torch.ones(1), "affine").backend == "native"
    assert backends.kernels_for(torch.ones(1), "autoregressive_inverse").backend == "native"
    if DEVICE.type == "cuda":
        assert backends.kernels_for(torch.ones(1, device=DEVICE), "affine").backend == "triton"
        assert backends.kernels_for(torch.ones(1, device=DEVICE), "autoregressive_inverse").backend == "torch"


def test_what_triton_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(found: str | None) -> Any:
        def answer(name: str) -> str:
            if found is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found

        return answer

    for found, message in ((None, "Triton is not installed"), ("3.5.1", "Triton 3.5.1 is too old"), ("3.6.0", None)):
        monkeypatch.setattr(importlib.metadata, "version", version(found))
        reason = backends._triton_missing()
        assert reason is None if message is None else reason is not None and message in reason


def test_what_the_gpu_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    for capability, message in (((7, 5), "need compute capability 8.0, this GPU has 7.5"), ((8, 0), None), ((12, 0), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index, c=capability: c)
        reason = backends._architecture_obstacle(0, (8, 0))
        assert reason is None if message is None else reason is not None and message in reason
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert backends._architecture_obstacle(0, (8, 0)) is None


def test_triton_needs_numpy_and_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.9.0")
    for missing, message in (("numpy", "NumPy is not installed; `pip install numpy`"), ("flowkern.kernels", "not installed")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, gone=missing: None if name == gone else name)
        assert message in str(backends._triton_missing())


def run_doctor(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str]]:
    """Exit status and findings."""
    from flowkern.cli import main

    status = main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    return status, {line[:22].strip(): line[23:] for line in lines if not line.startswith(" ")}


MISSING = (
    BuildError("FLOWKERN_BUILD_EXT=0 was set when it was installed", "unset it, then run `pip install .`"),
    BuildError("compiling failed with exit status 1", "mend what its last lines complain of", "$ cmake\nerror: no such type"),
    BuildError("it does not load: undefined symbol: aoti_torch_new", "build it again"),
)


@pytest.mark.parametrize("error", MISSING, ids=["choice", "failure", "other torch"])
def test_doctor_says_why_kernels_are_missing(
    error: BuildError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_library, "BUILD_ERROR", error)
    from flowkern.cli import main

    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert f"CPU kernels            no: the extension is missing ({error.reason}); {error.cure}\n" in text
    for line in error.log.splitlines():
        assert f"\n    {line}\n" in text


def test_doctor_is_content_where_all_that_can_run_here_does(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = run_doctor(capsys)
    assert status == 0
    assert found["CPU kernels"].startswith("yes, ")
    assert found["Triton kernels"].startswith(("yes, Triton", "no: "))


def test_doctor_of_a_gpu_without_its_kernels(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"is_available": True, "device_count": 1, "get_device_name": "a GPU"}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch, "empty", lambda *_, device: SimpleNamespace(device=torch.device(device)))
    for cuda, triton, hip, expected in (
        (None, None, None, 0),
        ("cuda-bindings is not installed", None, None, 1),
        (None, "NumPy is not installed; `pip install numpy` mends it", None, 1),
        ("there is no native kernel for AMD's GPUs", None, "7.0", 0),  # nothing is missing: there are none
    ):
        monkeypatch.setattr(backends, "_TRITON_MISSING", triton)
        monkeypatch.setattr(backends, "_cuda_obstacle", lambda index, reason=cuda: reason)
        monkeypatch.setattr(torch.version, "hip", hip)
        status, found = run_doctor(capsys)
        assert status == expected
        assert found["GPU"] == "a GPU"
        assert found["CUDA kernels"].startswith("yes, " if cuda is None else f"no: {cuda}; until then")
        assert found["Triton kernels"].startswith("yes, " if triton is None else f"no: {triton}")


def test_doctor_names_what_installs_a_missing_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    _, found = run_doctor(capsys)
    assert found["numpy"] == found["matplotlib"] == "not installed; `pip install 'flowkern[train]'`"
