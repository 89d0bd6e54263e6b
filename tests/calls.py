"""One call of an operator as data, so that every backend, dtype, layout of memory and batch can be asked the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accuracy import device_of, using
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flowkern.univariate import UnivariateMap

Operator = Callable[..., Any]


def drawn_map(
    scale: str = "exp",
    placement: str = "standardize",
    constants: tuple[float, ...] | None = None,
    map: UnivariateMap | None = None,
) -> dict[str, Any]:
    """A univariate map as arguments of an operator: by names, or as a value."""
    return {"map": map} if map is not None else {"scale": scale, "placement": placement, "constants": constants}


@dataclass(frozen=True)
class Example:
    """Arguments of one call, drawn in float64 on the CPU.

    Args:
        rows: tensors with one entry per row of the batch, by name.
        parameters: all other tensors. The gradients of "layer 0.weight" and "layer 0.bias" are judged as one, "layer 0".
        arguments: from tensors of these names, in any dtype and on any device, to the operator's keyword arguments.
    """

    rows: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    arguments: Callable[[Mapping[str, Tensor]], dict[str, Any]]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {**self.rows, **self.parameters}

    @property
    def batch(self) -> int:
        return len(next(iter(self.rows.values())))

    def with_rows(self, change: Callable[[Tensor], Tensor]) -> Example:
        """The example with every tensor of rows changed."""
        return Example({k: change(t) for k, t in self.rows.items()}, self.parameters, self.arguments)

    def leaves(
        self, dtype: torch.dtype, kernels: str = "native", *, grads: bool = True, how: str = "contiguous"
    ) -> dict[str, Tensor]:
        """Its tensors in a dtype, where the kernels run."""
        device = device_of(kernels)
        return {k: strided(t.to(device, dtype, copy=True), how).requires_grad_(grads) for k, t in self.tensors.items()}


def outputs_of(found: Any) -> tuple[Tensor, ...]:
    """The outputs of a call, which may be one tensor."""
    return found if isinstance(found, tuple) else (found,)


def strided(t: Tensor, how: str) -> Tensor:
    """A tensor with other strides: the same values, except for "expanded", where all rows become the first."""
    if how == "transposed":
        backwards = tuple(reversed(range(t.dim())))
        return t.permute(backwards).contiguous().permute(backwards)
    if how == "sliced":  # between the values lie some that must not be read
        shape = [2 * t.shape[0], *(n + 3 for n in t.shape[1:])]
        wide = torch.full(shape, float("nan"), dtype=t.dtype, device=t.device)
        view = wide[(slice(None, None, 2), *[slice(1, -2)] * (t.dim() - 1))]
        view.copy_(t)
        return view
    if how == "expanded" and len(t):
        return t[:1].clone().expand(t.shape)
    return t


def evaluate(
    operator: Operator,
    names: tuple[str, ...],
    example: Example,
    dtype: torch.dtype,
    backend: str,
    *,
    grads: bool = True,
    how: str = "contiguous",
    batch: int | None = None,
    host: Any = None,
) -> dict[str, Tensor]:
    """Outputs of an operator and, by cotangents drawn for them, the gradients of everything, on the CPU.

    With ``batch`` the rows go through in as many calls as it takes: outputs and gradients of rows are joined, those of
    parameters are added in float64.
    """
    leaves = example.leaves(dtype, backend, grads=False, how=how)
    begin, found = 0, []
    for part in torch.arange(example.batch).split(batch or max(example.batch, 1)):
        rows = {k: leaves[k][begin : begin + len(part)] for k in example.rows}
        tensors = {k: t.detach().requires_grad_(grads) for k, t in {**leaves, **rows}.items()}
        with using(backend, host):
            found.append(_once(operator, names, example, tensors, begin))
        begin += len(part)
    joined = {name: _join(name, [one[name] for one in found], example) for name in found[0]}
    groups: dict[str, list[Tensor]] = {}
    for name, value in joined.items():
        groups.setdefault(name.partition(".")[0], []).append(value)
    return {name: part[0] if len(part) == 1 else torch.cat([t.flatten() for t in part]) for name, part in groups.items()}


def _once(
    operator: Operator, names: tuple[str, ...], example: Example, tensors: dict[str, Tensor], begin: int
) -> dict[str, Tensor]:
    grads = any(t.requires_grad for t in tensors.values())
    with torch.set_grad_enabled(grads):
        outputs = outputs_of(operator(**example.arguments(tensors)))
    found = dict(zip(names, (o.detach().cpu() for o in outputs), strict=True))
    if not grads or not example.batch:
        return found
    generator = torch.Generator().manual_seed(7)
    # Cotangents that every dtype represents exactly, the same ones however the batch is cut.
    drawn = [torch.randn((example.batch, *o.shape[1:]), generator=generator).bfloat16() for o in outputs]
    total = sum((o * c[begin : begin + len(o)].to(o)).sum() for o, c in zip(outputs, drawn, strict=True))
    assert isinstance(total, Tensor)
    got = torch.autograd.grad(total, list(tensors.values()), allow_unused=True, materialize_grads=True)
    return {**found, **{f"gradient of {k}": g.cpu() for k, g in zip(tensors, got, strict=True)}}


def _join(name: str, parts: list[Tensor], example: Example) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    of_parameters = name.removeprefix("gradient of ") in example.parameters
    return torch.stack([p.double() for p in parts]).sum(0) if of_parameters else torch.cat(parts)


class Calls(TorchDispatchMode):
    """The names of flowkern's operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace.startswith("flowkern"):
            self.names.append(func.name().split("::")[1])
        return func(*args, **(kwargs or {}))
