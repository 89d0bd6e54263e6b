"""The weights of a masked network as the CPU kernels read them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from flowkern._checks import HALF
from flowkern.backends import native_obstacle
from flowkern.ops._network_checks import check_parameters
from flowkern.plan import AutoregressivePlan


def can_pack(weight: Tensor) -> bool:
    """Whether there is a kernel that reads packed weights of this one's kind; those of half precision work in float32."""
    return native_obstacle(weight, "pack") is None and weight.dtype in (torch.float32, torch.float64)


def pack(plan: AutoregressivePlan, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """The masked, sorted and packed weights that the kernels read; every call makes them unless it is given them.

    Args:
        plan: the network.
        weights, biases: its float32 or float64 parameters on the CPU.

    Returns:
        One vector of their dtype, in the layout of the plan.

    Raises:
        TypeError, ValueError: for parameters that do not fit the plan.
        RuntimeError: where there is no native kernel that would read the result.
    """
    check_parameters(weights, biases, plan)
    if weights[0].dtype in HALF:
        raise TypeError(f"weights: expected float32 or float64, got {weights[0].dtype}")
    reason = native_obstacle(weights[0], "pack")
    if reason is not None:
        raise RuntimeError(f"pack: {reason}")
    return torch.ops.flowkern.pack(weights, biases, plan.meta, plan.mask_bytes, plan.packed_size)


class PackedFrom:
    """The tensors of modules that packed weights were made from, and whether they still are what they were.

    Args:
        owners: (name, tensors by name) for the parameters or the buffers of each module.
    """

    def __init__(self, owners: Iterable[tuple[str, Mapping[str, Tensor | None]]] = ()) -> None:
        self._seen = [
            (f"{name}.{key}", tensors, key, tensor, tensor._version)
            for name, tensors in owners
            for key, tensor in tensors.items()
            if tensor is not None and not tensor.is_inference()  # which count no changes
        ]

    def changed(self) -> bool:
        """Whether one of them is another tensor now, or was written to; warns of it."""
        for name, tensors, key, tensor, version in self._seen:
            if tensors.get(key) is not tensor or tensor._version != version:
                warn_of_change(name)
                return True
        return False


def warn_of_change(what: str) -> None:
    """Packed weights are no longer used, since this has changed."""
    warnings.warn(
        f"flowkern.frozen: {what} has changed inside the block; its network packs its weights on every call",
        RuntimeWarning,
        stacklevel=4,
    )
