"""FrEIA: invertible blocks, whose neighbours in a sequence run as one call. A block by itself is as fast as the library has it.

Modules take and give tuples; ``rev=True`` is backwards, and both directions cost one pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flowkern import ops
from flowkern._tensors import outside_modes, version
from flowkern.adapters.calls import steps_in_chain
from flowkern.adapters.coupling import CouplingSteps, MaskedCoupling, Split, linear_maps
from flowkern.adapters.library import Container, Layer, Library
from flowkern.adapters.network import UnsupportedError, affine, by_class, class_path, differs
from flowkern.adapters.nflows import NORM, PERMUTATION
from flowkern.adapters.reversible import Call, ReversibleRun, Stack, View, recording
from flowkern.adapters.run import elementwise, joinable, permutation, touched
from flowkern.adapters.state import is_accelerated, own, peer_class
from flowkern.univariate import Affine, UnivariateMap

MODULES = "FrEIA.modules."


def _coupling(
    layer: Any, name: str, split: Split, map: UnivariateMap, context: int, given: Sequence[int] | None = None, **options: Any
) -> MaskedCoupling:
    """A subnet as a coupling of vectors: it reads what passes, then the conditions, and gives (raw scales, shifts)."""
    subnet = getattr(layer, name)
    linears, activation = linear_maps(subnet)
    order = (1, 0) if map.count == 2 and given is None else None
    network = MaskedCoupling(
        split, map, context, linears, layout="parameter_major", parameter_order=order, given=given, **options
    )
    network.activation = activation
    network.finish(subnet)
    return network


def _expect_vectors(dimensions: int) -> None:
    if dimensions != 1:
        raise UnsupportedError("it is one of images: convolutions have no operator, and after them the operator gained nothing")


# -- blocks of two couplings ------------------------------------------------------------------------------------------


def _halves(layer: Any) -> tuple[Split, Split]:
    """The first half is transformed by the second, then the second by the first."""
    _expect_vectors(layer.ndims)
    first, second = range(layer.split_len1), range(layer.split_len1, layer.channels)
    return Split(second, first), Split(first, second)


_CLAMPS = (("atan", 0.636, 1.0), ("tanh", 1.0, 1.0), ("tanh", 1.0, 0.5))  # "ATAN", the default, "TANH", "SIGMOID"


def _clamped(layer: Any) -> Affine:
    """exp(clamp f(a)), where f is an arctangent or a hyperbolic tangent."""
    u = torch.linspace(-3, 3, 13, dtype=torch.float64, device="cpu")
    for scale, factor, gain in _CLAMPS:
        if torch.allclose(layer.f_clamp(u), factor * getattr(torch, scale)(gain * u), rtol=0, atol=1e-12):
            return affine(scale, "scale_shift", factor * layer.clamp, gain)
    raise UnsupportedError("its clamp_activation is none of the operators' scale maps")


def read_glow(layer: Any) -> CouplingSteps:
    """A subnet for each half."""
    map, context = _clamped(layer), layer.condition_length
    pairs = zip(("subnet2", "subnet1"), _halves(layer), strict=True)
    return CouplingSteps([_coupling(layer, name, split, map, context) for name, split in pairs])


def read_one_sided(layer: Any) -> CouplingSteps:
    """The first half passes."""
    return CouplingSteps([_coupling(layer, "subnet", _halves(layer)[1], _clamped(layer), layer.condition_length)])


def read_conditional(layer: Any) -> CouplingSteps:
    """All features are transformed, by what the conditions say."""
    _expect_vectors(layer.ndims)
    split = Split((), range(layer.channels))
    return CouplingSteps([_coupling(layer, "subnet", split, _clamped(layer), layer.condition_length)])


def read_nice(layer: Any) -> CouplingSteps:
    """The same without scales."""
    map, context = Affine("none", "scale_shift"), layer.condition_length
    pairs = zip(("F", "G"), _halves(layer), strict=True)
    return CouplingSteps([_coupling(layer, name, split, map, context) for name, split in pairs])


def read_realnvp(layer: Any) -> CouplingSteps:
    """A subnet for the scales of each half, and one for its shifts."""
    scales, shifts, context = _clamped(layer), Affine("none", "scale_shift"), layer.condition_length
    networks = []
    for i, split in zip((2, 1), _halves(layer), strict=True):
        networks.append(_coupling(layer, f"subnet_s{i}", split, scales, context, given=(1,)))
        networks.append(_coupling(layer, f"subnet_t{i}", split, shifts, context))
    return CouplingSteps(networks)


# -- AllInOneBlock ----------------------------------------------------------------------------------------------------


class _AllInOne(CouplingSteps):
    """A coupling, then a scale and an offset of every channel, then a permutation of them."""

    def __init__(self, layer: Any, coupling: MaskedCoupling) -> None:
        super().__init__([coupling])
        self._held, self._scale = layer._parameters, layer.global_scale_activation  # which live as long as the layer
        self._look()

    def _look(self) -> None:
        """At the permutation, a matrix."""
        matrix = self._held["w_perm"]
        with outside_modes():
            self._seen, self._permutation = (matrix, version(matrix)), _steps_of(matrix)

    def touched(self) -> bool:
        """Also whether the permutation may be another."""
        return super().touched() or self._held["w_perm"] is not self._seen[0] or version(self._seen[0]) != self._seen[1]

    def follow(self) -> bool:
        """It is looked at again, and no plan depends on it."""
        if self.touched():
            self._look()
        return super().follow()

    def fits(self, x: Any, context: Any) -> bool:
        """The same, and of the dtype of all."""
        return super().fits(x, context) and self._alike(x)

    def fits_like(self, x: Tensor, width: int) -> bool:
        """The same."""
        return super().fits_like(x, width) and self._alike(x)

    def _alike(self, x: Tensor) -> bool:
        return self._held["global_scale"].dtype is self._held["w_perm"].dtype is x.dtype

    def steps(self, inverse: bool, packed: Sequence[Tensor] | None = None) -> list[ops.Step]:
        """The coupling, and what comes after it."""
        coupling, scale = super().steps(inverse, packed), self._scale(self._held["global_scale"]).flatten()
        channels = ops.ElementwiseStep(inverse, self._held["global_offset"].flatten(), scale)
        if inverse:
            return [self._permutation[1], channels, *coupling]
        return [*coupling, channels, self._permutation[0]]


def _steps_of(matrix: Tensor) -> tuple[ops.Step, ops.Step]:
    """y = W x of a permutation matrix, and its inverse."""
    if matrix.is_meta:
        raise UnsupportedError("it is on the meta device: accelerate it once it has values")
    there, back = matrix.argmax(1), matrix.argmax(0)
    units = F.one_hot(there, len(matrix))
    if not torch.equal(matrix, units.to(matrix)) or not bool((units.sum(0) == 1).all()):
        raise UnsupportedError("its channels are mixed by a matrix that is no permutation (permute_soft)")
    return ops.PermutationStep(tuple(there.tolist())), ops.PermutationStep(tuple(back.tolist()))


def read_block(layer: Any) -> CouplingSteps:
    """The first half passes; raw scales and shifts are a tenth of what the subnet gives."""
    _expect_vectors(layer.input_rank + 1)
    if layer.GIN or layer.householder or layer.reverse_pre_permute:
        raise UnsupportedError("as a GIN block, or with a permutation that is learned or reversed, it has no operator")
    first, features = layer.splits[0], layer.in_channels
    split, map = Split(range(first), range(first, features)), affine("tanh", "scale_shift", layer.clamp, 1.0)
    return _AllInOne(layer, _coupling(layer, "subnet", split, map, layer.condition_channels, factors=(0.1, 0.1)))


def evaluate(layer: Any, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """Forward."""
    (y,), log_det = type(layer).forward(layer, (x,), [] if context is None else [context])
    return y, log_det if isinstance(log_det, Tensor) else x.new_full(x.shape[:1], log_det)


# -- with memory="reversible" ---------------------------------------------------------------------------------------


def _call_alone(jac: bool, conditions: Callable[[Any], Sequence[Tensor]]) -> Call:
    """Its modules take tuples. Those of wavelets write into what they are given, so each is given a copy."""

    def call(part: Any, x: Tensor) -> tuple[Any, Any]:
        module, back, *_ = part
        c = conditions(part)
        (y, *more), log_det = module((x.clone(),), **({"c": c} if c else {}), rev=back, jac=jac)
        return ([y, *more] if more else y), log_det

    return call


def _rebuilding(sequence: Any, stack: Stack, x: Any, c: Sequence[Tensor] | None, rev: bool, jac: bool) -> tuple[Any, Any]:
    """A SequenceINN, every module of which has one input and one output, and at most one of the conditions."""

    def conditions(part: Any) -> Sequence[Tensor]:
        condition = sequence.conditions[part[2]]
        return [] if condition is None or c is None else [c[condition]]

    run = ReversibleRun(stack, x if isinstance(x, Tensor) else x[0], conditions, _call_alone(jac, conditions), rev)
    for i, module in list(enumerate(sequence.module_list))[:: -1 if rev else 1]:
        run.add(None, (module, rev, i))
    return run.end()


class _Chain:
    """Nodes of a GraphINN one after another, in the place of the last of them, as its own loop takes nodes.

    Args:
        stack: of the graph.
        nodes: in the order in which they run.
        rev: whether that is backwards.
    """

    def __init__(self, stack: Stack, nodes: list[Any], rev: bool) -> None:
        self.stack, self.nodes, self.last = stack, nodes, nodes[-1]
        first, last = (nodes[-1], nodes[0]) if rev else (nodes[0], nodes[-1])
        self.first, self.inputs, self.outputs = first, first.inputs, last.outputs
        self.conditions = [node for inner in nodes for node in inner.conditions]

    def module(self, x: tuple[Tensor], c: Sequence[Tensor] = (), rev: bool = False, jac: bool = True) -> Any:
        """What the module of a node does."""
        starts = list(itertools.accumulate((len(node.conditions) for node in self.nodes), initial=0))

        def conditions(part: Any) -> Sequence[Tensor]:
            return c[starts[part[2]] : starts[part[2] + 1]]

        run = ReversibleRun(self.stack.at(self.first), x[0], conditions, _call_alone(jac, conditions), rev)
        for i, node in enumerate(self.nodes):
            run.add(None, (node.module, rev, i))
        y, log_det = run.end()
        return (y,), log_det

    def __hash__(self) -> int:
        return hash(self.last)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self.last

    def __repr__(self) -> str:
        return " -> ".join(map(repr, self.nodes))


def _chained(graph: Any, stack: Stack, rev: bool) -> list[Any]:
    """The nodes of a GraphINN, those that follow each other as one."""
    nodes: list[Any] = []
    ends: dict[Any, _Chain] = {}  # by their last node
    for node in graph.node_list[:: -1 if rev else 1]:
        if node.module is None or len(node.inputs) != 1 or len(node.outputs) != 1:
            nodes.append(node)
            continue
        chain = ends.pop((node.outputs if rev else node.inputs)[0][0], None)
        members = [node] if chain is None else [*chain.nodes, node]
        joined = ends[node] = _Chain(stack, members, rev)
        if chain is None:
            nodes.append(joined)
        else:
            nodes[next(i for i, each in enumerate(nodes) if each is chain)] = joined
    return nodes[:: -1 if rev else 1]


# -- sequences --------------------------------------------------------------------------------------------------------

_Way = list[tuple[Any, tuple[Any, ...]]]  # modules and what conditions each, in the order of the call


@by_class
def _kind(cls: type) -> Callable[..., Any] | None:
    """How a module that is no coupling joins."""
    paths = {"fixed_transforms.PermuteRandom": _permute, "invertible_resnet.ActNorm": _act_norm}
    return next((step for path, step in paths.items() if differs(cls, MODULES + path) is None), None)


def _permute(module: Any, x: Tensor, rev: bool) -> ops.Step | None:
    return permutation(module._parameters["perm_inv" if rev else "perm"], False, x.shape[1])


def _act_norm(module: Any, x: Tensor, rev: bool) -> ops.Step | None:
    """Which takes its numbers from the first batch that it sees."""
    if module.init_on_next_batch:
        return None
    return elementwise(x, rev, module._parameters["bias"], module._parameters["scale"].exp())


def _joined(way: _Way, x: Any, rev: Any) -> tuple[Tensor, Tensor] | None:
    """All modules in one call, or ``None`` where one of them cannot join."""
    if isinstance(x, (tuple, list)) and len(x) == 1:
        (x,) = x
    if not joinable(x) or x.dim() != 2 or len(x) == 0:
        return None
    steps: list[ops.Step] = []
    conditions: Any = None
    context: Tensor | None = None
    for module, given in way:
        if touched(module, frozenset(("forward",))):
            return None
        if not is_accelerated(module):
            kind = _kind(type(module))
            step = None if kind is None else kind(module, x, rev)
            if step is None:
                return None
            steps.append(step)
            continue
        if conditions is None:
            conditions = given
            if not all(isinstance(t, Tensor) and t.dim() == 2 and len(t) == len(x) and t.dtype is x.dtype for t in given):
                return None
            context = None if not given else given[0] if len(given) == 1 else torch.cat(given, 1)
        elif len(given) != len(conditions) or any(a is not b for a, b in zip(given, conditions, strict=True)):
            return None
        found = steps_in_chain(module, x, context, bool(rev), False)
        if found is None:
            return None
        steps += found
    return None if conditions is None else ops.autoregressive_chain(x, steps, context)


def sequence_forward(self: Any, x_or_z: Any, c: Any = None, rev: bool = False, jac: bool = True) -> Any:
    """All blocks in one call; or, without activations, one after another."""
    stack = recording(self)
    if stack is not None and len(self.module_list) and isinstance(c, (list, tuple, type(None))):
        y, log_det = _rebuilding(self, stack, x_or_z, c, rev, jac)
        return ((y,) if self.force_tuple_output else y), log_det
    try:
        way = [(m, () if i is None else (c[i],)) for m, i in zip(self.module_list, self.conditions, strict=True)]
    except (TypeError, LookupError, ValueError):  # which the library says better
        way = []
    found = _joined(way[::-1] if rev else way, x_or_z, rev)
    if found is None:
        return own(self, "forward")(self, x_or_z, c, rev, jac)
    log_det = 0.0 if all(_keeps_volume(type(module)) for module, _ in way) else found[1]  # as the library has it
    return ((found[0],) if self.force_tuple_output else found[0]), log_det


@by_class
def _keeps_volume(cls: type) -> bool:
    return class_path(peer_class(cls)) == MODULES + "coupling_layers.NICECouplingBlock" or _kind(cls) is _permute


def graph_forward(
    self: Any,
    x_or_z: Any,
    c: Any = None,
    rev: bool = False,
    jac: bool = True,
    intermediate_outputs: bool = False,
    x: Any = None,
) -> Any:
    """The same, where each node but the conditions reads the one before it.

    Without activations it may have branches: nodes with one input and one output join the node before, all others are the
    library's.
    """
    stack = None if intermediate_outputs else recording(self)
    if stack is not None:
        return own(self, "forward")(View(self, node_list=_chained(self, stack, rev)), x_or_z, c, rev, jac, False, x)
    way = (
        None if intermediate_outputs or x is not None or not jac else _way_of(self, (c,) if isinstance(c, Tensor) else c or ())
    )
    found = None if way is None else _joined(way[::-1] if rev else way, x_or_z, rev)
    if found is None:
        return own(self, "forward")(self, x_or_z, c, rev, jac, intermediate_outputs, x)
    return ((found[0],) if self.force_tuple_output else found[0]), found[1]


def _way_of(graph: Any, c: Sequence[Any]) -> _Way | None:
    if len(graph.in_nodes) != 1 or len(graph.out_nodes) != 1 or len(c) != len(graph.condition_nodes):
        return None
    given = dict(zip(graph.condition_nodes, c, strict=True))
    before, way = graph.in_nodes[0], []
    for node in graph.node_list:
        if node is graph.in_nodes[0] or node in given:
            continue
        if len(node.inputs) != 1 or tuple(node.inputs[0]) != (before, 0):
            return None
        if node is not graph.out_nodes[0]:
            way.append((node.module, tuple(given[k] for k in node.conditions)))
        before = node
    return way if before is graph.out_nodes[0] else None


_BLOCKS = {
    "GLOWCouplingBlock": read_glow,
    "AffineCouplingOneSided": read_one_sided,
    "ConditionalAffineTransform": read_conditional,
    "NICECouplingBlock": read_nice,
    "RNVPCouplingBlock": read_realnvp,
}
FREIA = Library(
    name="FrEIA",
    tested=("0.2", "0.3"),
    layers={
        MODULES + "all_in_one_block.AllInOneBlock": Layer(read_block, evaluate, {}, constants=("w_perm", "w_perm_inv")),
        **{f"{MODULES}coupling_layers.{name}": Layer(read, evaluate, {}) for name, read in _BLOCKS.items()},
    },
    left_alone={
        MODULES + "coupling_layers._BaseCouplingBlock": "how its scales are made has no operator",
        MODULES + "invertible_resnet.ActNorm": NORM,
        MODULES + "fixed_transforms.PermuteRandom": PERMUTATION,
    },
    containers={
        "FrEIA.framework.sequence_inn.SequenceINN": Container({"forward": sequence_forward}, stacks=True),
        "FrEIA.framework.graph_inn.GraphINN": Container({"forward": graph_forward}, stacks=True),
    },
)
