"""The operators: one row each. Whatever must know all of them iterates over these."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["OPERATORS", "Operator"]


class Operator(NamedTuple):
    """An operator: its name everywhere, its family, where it has kernels, what their GPU must be able to do at least.

    A family shares a folder in csrc/cpu, a file of flowkern/bindings, a benchmark. ``cpu`` and ``cuda`` are native kernels.
    ``runs``: the operators whose kernels it runs, where it has none of its own. ``gradients``: whether it has them, and is
    held to the contract of those that do.
    """

    name: str
    family: str
    kernels: tuple[str, ...]
    runs: Mapping[str, str] = MappingProxyType({})
    capability: tuple[int, int] = (8, 0)
    gradients: bool = True

    def registered(self, kernels: str) -> str:
        """The name under which kernels of one kind are registered."""
        return self.runs.get(kernels, self.name)


_COUPLING = {"cpu": "coupling", "triton": "coupling"}
_MIXTURE = {"cpu": "logistic_mixture", "triton": "logistic_mixture"}
_CHAIN = {"cpu": "autoregressive_chain"}
OPERATORS = {
    row.name: row
    for row in (
        Operator("affine", "rows", ("cpu", "triton"), runs=_COUPLING),
        Operator("coupling", "rows", ("cpu", "triton")),
        Operator("iaf_step", "rows", ("cpu", "triton"), runs=_COUPLING),
        Operator("spline", "rows", ("cpu", "triton")),
        Operator("log_det", "rows", ("cpu", "triton")),
        Operator("normal_log_prob", "rows", ("cpu", "triton")),
        Operator("actnorm", "channels", ("cpu", "triton")),
        Operator("invertible_conv1x1", "channels", ("cpu", "triton")),
        Operator("logistic_mixture", "mixtures", ("cpu", "triton")),
        Operator("gaussian_mixture", "mixtures", ("cpu", "triton"), runs=_MIXTURE),
        Operator("logistic_mixture_sample", "mixtures", ("cpu", "triton")),
        Operator("masked_mlp", "masked_networks", ("cpu", "triton")),
        Operator("autoregressive", "masked_networks", ("cpu", "triton"), runs=_CHAIN),
        Operator("autoregressive_inverse", "masked_networks", ("cpu", "cuda"), runs=_CHAIN),
        Operator("autoregressive_chain", "masked_networks", ("cpu", "triton")),
        Operator("pack", "masked_networks", ("cpu",), gradients=False),
        Operator("causal_conv1d", "convolutions", ("cpu", "triton")),
        Operator("causal_conv1d_update", "convolutions", ("cpu",), gradients=False),
        Operator("wavenet_layer", "convolutions", ("cpu", "triton")),
        Operator("row_lstm", "scans", ("cpu",)),
        Operator("diagonal_lstm", "scans", ("cpu",)),
        Operator("wavenet_generate", "convolutions", ("cpu", "cuda"), gradients=False),
    )
}
