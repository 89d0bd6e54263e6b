"""Which kernels are chosen, and what is said where they cannot run."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import pytest
import torch
from accuracy import DEVICE
from networks import network

import flowkern as fk
from flowkern import backends


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
    assert backends.chosen_backend(torch.ones(1), "affine") == "native"
    assert backends.chosen_backend(torch.ones(1), "autoregressive_inverse") == "native"
    if DEVICE.type == "cuda":
        assert backends.chosen_backend(torch.ones(1, device=DEVICE), "affine") == "triton"
        assert backends.chosen_backend(torch.ones(1, device=DEVICE), "autoregressive_inverse") == "torch"


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
        reason = backends._architecture_obstacle(0)
        assert reason is None if message is None else reason is not None and message in reason
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert backends._architecture_obstacle(0) is None


def test_doctor_names_the_triton_kernels() -> None:
    from flowkern.cli import doctor

    found = dict(doctor.report())
    assert found["Triton kernels"].startswith(("yes, Triton", "no: "))
