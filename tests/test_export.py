"""Programs that leave this process, by torch.export, torch.jit.trace and torch.onnx: plain PyTorch, without being asked."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx.reference
import pytest
import torch
from torch import Tensor, nn

import flowkern as fk

pytestmark = [
    # PyTorch has deprecated torch.jit.trace and what is built on it; people still use them.
    pytest.mark.filterwarnings("ignore:.*(is deprecated|legacy TorchScript|feature will be removed):DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),  # checks of shapes are not part of a trace
    pytest.mark.filterwarnings("ignore:.*certain side effects:UserWarning"),  # a plan keeps the constants of its calls
    pytest.mark.filterwarnings("ignore::FutureWarning:copyreg"),  # PyTorch's exporter of itself
]


class Inverse(nn.Module):
    """The sampling direction of a flow."""

    def __init__(self, flow: fk.flows.Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.flow.transform.inverse(x, context)


class Sample(nn.Module):
    """Two samples for every row of the context."""

    def __init__(self, flow: fk.flows.Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, context: Tensor) -> Tensor:
        return self.flow.sample((2,), context)


def density(transforms: int = 2) -> fk.flows.Flow:
    return fk.flows.MAF(3, transforms, (6, 6), context=2, residual=True, order="random").eval()


def inverse() -> nn.Module:
    return Inverse(density(transforms=1)).eval()


def inputs(rows: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 3), torch.randn(rows, 2)


ROWS = ({0: torch.export.Dim.DYNAMIC},) * 2
MODELS = pytest.mark.parametrize("make", [density, inverse])


def first(outputs: Any) -> Tensor:
    return outputs[0] if isinstance(outputs, tuple) else outputs


def operators(program: Any) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if str(node.target).startswith("flowkern")}


@MODELS
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_exported_programs(make: Callable[[], nn.Module], strict: bool) -> None:
    """Of any number of rows, with gradients, also after they were saved; the first use of a model may be its export."""
    model = make()
    program = torch.export.export(model, inputs(), dynamic_shapes=ROWS, strict=strict)
    assert operators(program) == set()
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    for loaded in (program.module(), torch.export.load(file).module()):
        x = inputs(rows=7)
        torch.testing.assert_close(loaded(*x), model(*x))
        first(loaded(*x)).sum().backward()
        found = dict(loaded.named_parameters())
        first(model(*x)).sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name].grad, parameter.grad, rtol=1e-4, atol=1e-4)
        model.zero_grad()


@MODELS
def test_traced_programs(make: Callable[[], nn.Module]) -> None:
    """torch.jit.trace compares a second trace, made without gradients, with the first: both must be the same."""
    model, file = make(), io.BytesIO()
    torch.jit.save(torch.jit.trace(model, inputs()), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    x = inputs(rows=7)
    torch.testing.assert_close(loaded(*x), model(*x))
    if make is density:  # TorchScript cannot differentiate the product over no features with which the inverse begins
        loaded(*x).sum().backward()
        assert all(p.grad is not None for p in loaded.parameters())


@pytest.mark.parametrize("dynamo", [True, False], ids=["export", "trace"])
@MODELS
def test_onnx(make: Callable[[], nn.Module], dynamo: bool, tmp_path: Path) -> None:
    model, file = make(), tmp_path / "model.onnx"
    names: dict[str, Any] = {"input_names": ["x", "context"]}
    names |= {"dynamic_shapes": ROWS} if dynamo else {"dynamic_axes": {"x": {0: "rows"}, "context": {0: "rows"}}}
    torch.onnx.export(model, inputs(), file, dynamo=dynamo, verbose=False, **names)
    x = inputs(rows=7)
    found = onnx.reference.ReferenceEvaluator(str(file)).run(None, {"x": x[0].numpy(), "context": x[1].numpy()})
    torch.testing.assert_close(torch.from_numpy(found[0]), first(model(*x)).detach(), rtol=1e-4, atol=1e-5)


def test_samplers() -> None:
    model = Sample(density())
    program = torch.export.export(model, inputs()[1:], dynamic_shapes=ROWS[1:]).module()
    assert program(*inputs(rows=7)[1:]).shape == (2, 7, 3)
    assert torch.jit.trace(model, inputs()[1:], check_trace=False)(*inputs()[1:]).shape == (2, 5, 3)


def test_programs_run_without_flowkern(tmp_path: Path) -> None:
    model, x = density(), inputs()
    torch.export.save(torch.export.export(model, x), tmp_path / "exported.pt2")
    torch.jit.save(torch.jit.trace(model, x), tmp_path / "traced.pt")
    torch.save((x, model(*x).detach()), tmp_path / "expected.pt")
    use = """
import sys, torch; sys.modules["flowkern"] = None
x, expected = torch.load("expected.pt")
for program in (torch.export.load("exported.pt2").module(), torch.jit.load("traced.pt")):
    torch.testing.assert_close(program(*x), expected)
"""
    done = subprocess.run([sys.executable, "-c", use], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@MODELS
def test_kernels_where_they_are_forced(make: Callable[[], nn.Module]) -> None:
    """Then a program holds flowkern's operators, which have no gradients of their own."""
    model, x = make(), inputs()
    expected = model(*x)
    with fk.backend("native"):
        with pytest.raises(RuntimeError, match=r"has no gradients of kernels; export it under torch\.no_grad\(\)"):
            torch.export.export(model, x)
        with torch.no_grad():
            exported, traced = torch.export.export(model, x), torch.jit.trace(model, x)
            with pytest.raises(RuntimeError, match="'native' was forced, but ONNX has no such operators"):
                torch.onnx.export(model, x, io.BytesIO(), dynamo=False)
    assert operators(exported)
    assert "flowkern::" in str(traced.inlined_graph)
    torch.testing.assert_close(exported.module()(*x), expected)
    torch.testing.assert_close(traced(*x), expected)
