"""The input of a masked network's call, from its output, and the call again as autograd knows it: the network runs once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowkern._checks import HALF, autocasts
from flowkern.backends import Kernels, kernels_for
from flowkern.ops._coupling import CouplingStep, coupling_call
from flowkern.ops._network import as_rows
from flowkern.ops._network_call import Call
from flowkern.ops._network_function import NetworkFunction
from flowkern.ops.autoregressive import forward_call
from flowkern.ops.autoregressive_chain import ChainCall, NetworkStep
from flowkern.ops.autoregressive_inverse import inverse_call


def rebuilt(
    step: NetworkStep | CouplingStep, output: Tensor, context: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor] | None:
    r"""The input of a step, a leaf, and the step's output and log-determinant as functions of it, in one pass.

    A density pass and the sweep back compute the same numbers in the same layout, whichever of the two is run. So what the
    one keeps for its gradient serves the gradient of the other: the step is not run again.

    Args:
        step: the call; its ``packed`` weights are left aside.
        output: what it gave (..., features).
        context: as the step was given it, its batch shape broadcast with that of the output.

    Returns:
        ``None`` where the CPU's kernels do not serve the call as they are: on another device, under autocast, in half
        precision, or in plain PyTorch.

    Example:
        >>> import torch
        >>> from flowkern import AutoregressivePlan
        >>> plan = AutoregressivePlan([torch.tensor([[0, 0], [0, 0], [1, 0], [1, 0]])])
        >>> step = NetworkStep(False, {"weights": [torch.randn(4, 2)], "biases": [torch.zeros(4)], "plan": plan})
        >>> found = rebuilt(step, torch.ones(3, 2))
        >>> found is None or found[0].is_leaf
        True
    """
    call, back = _calls(step)
    kernels = kernels_for(output, call.name, step.arguments.get("map"))
    if kernels.plain or not kernels.on_cpu or autocasts(output) or output.dtype in HALF or torch.compiler.is_compiling():
        return None
    addends = step.arguments.get("addends", ())
    rows, conditions, added, _ = as_rows(output, context, addends)
    tensors = [*step.arguments["weights"], *step.arguments["biases"]]
    with torch.no_grad():
        (found, log_det), state = back.run(kernels, rows, conditions, [*tensors, *added], (), True)
    run = _Rebuilt(call, rows, -log_det, _exchanged(back, state))
    x = found.reshape(output.shape).requires_grad_()
    rows, conditions, added, batch = as_rows(x, context, addends)
    value, log_det = NetworkFunction.record(run, kernels, (), rows, conditions, *tensors, *added)
    return x, value.reshape(output.shape), log_det.reshape(batch)


def _calls(step: NetworkStep | CouplingStep) -> tuple[Call | ChainCall, Call | ChainCall]:
    """The call of a step and the one back."""
    if isinstance(step, CouplingStep):
        return _coupling_of(step), _coupling_of(step._replace(inverse=not step.inverse))
    get = step.arguments.get
    placed = step.arguments["plan"], get("scale", "exp"), get("placement", "standardize"), get("constants"), get("map")
    calls = forward_call(*placed), inverse_call(*placed)
    return calls[::-1] if step.inverse else calls


def _coupling_of(step: CouplingStep) -> ChainCall:
    known, call = step.arguments["plan"].chains, coupling_call(step)
    if call not in known:
        known[call] = ChainCall([call], None)
    return known[call]


def _exchanged(call: Call | ChainCall, state: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What a call kept, with its input and its output in each other's places, as the opposite call keeps them."""
    packed, saved = state
    assert call.chain is not None
    features, first = call.chain.features, call.chain.context
    if saved.numel():
        tiles = saved.view(-1, call.chain.kept_rows, saved.shape[-1] // call.chain.kept_rows)
        ends = tiles[:, first : first + 2 * features]
        ends.copy_(ends.roll(features, 1))
    return packed, saved


class _Rebuilt:
    """A call whose outputs and state are known; it gives them away, since it would live as long as what it held lives."""

    def __init__(self, call: Call | ChainCall, value: Tensor, log_det: Tensor, state: Sequence[Tensor]) -> None:
        self.known: list[Any] = [((value.detach(), log_det), state)]
        self.name, self.solves, self.parameters = call.name, call.solves, call.parameters
        self.gradients, self.in_plain_pytorch = call.gradients, call.in_plain_pytorch

    def keeps_inputs(self, kernels: Kernels) -> bool:
        return True

    def run(self, *_: Any) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return self.known.pop()
