"""WaveNet's sampling loop on a GPU: how its weights are spread over blocks of threads, and the launch."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from flowkern.cuda import launch
from flowkern.cuda.code import Code
from flowkern.plan import MadeOnce

THREADS = 256
_ROWS = 8  # of a tile, where the batch is large
_TIMES = 1 << 14  # of one launch: a display's watchdog ends kernels of some seconds
_VARIANTS = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16"}
_pointer, _long, _int, _double = ctypes.c_void_p, ctypes.c_longlong, ctypes.c_int, ctypes.c_double


class GenerateArguments(ctypes.Structure):
    """csrc/cuda/wavenet_generate.cu has the same."""

    _fields_ = [
        *((name, _pointer) for name in ("members", "pieces", "layers", "weights", "embedding", "gate_biases", "biases")),
        *((name, _pointer) for name in ("noise", "condition", "previous", "queues", "samples", "messages")),
        *((name, _long) for name in ("batch", "times", "queue", "messages_per_tile", "gate_bias_layer", "gate_bias_row")),
        *((name, _long) for name in ("noise_row", "noise_time", "noise_number")),
        *((name, _long) for name in ("condition_row", "condition_channel", "condition_time")),
        *((name, _int) for name in ("begin", "end", "tiles", "chains", "length", "stages")),
        *((name, _int) for name in ("depth", "taps", "residual", "gate", "skip", "hidden", "outputs")),
        *((name, _int) for name in ("classes", "output", "levels")),
        *((name, _double) for name in ("log_scale_min", "bound")),
    ]


class Network(NamedTuple):
    """The sizes of a WaveNet."""

    residual: int
    gate: int
    skip: int
    hidden: int
    outputs: int
    taps: int
    channels: int
    dilations: tuple[int, ...]

    @property
    def heard(self) -> int:
        """Columns of a layer's matrix that reads its queue and the condition."""
        return (self.taps - 1) * self.residual + self.channels

    @property
    def lengths(self) -> list[int]:
        """Of the queues."""
        return [(self.taps - 1) * dilation for dilation in self.dilations]


class Member(NamedTuple):
    """A block's part of the network: some layers, some rows of the last but one matrix and of the last."""

    layers: range
    hidden: range = range(0)
    outputs: range = range(0)

    def sizes(self, of: Network) -> list[tuple[int, int]]:
        """Rows and columns of its pieces, in the order in which csrc/cuda/wavenet_generate.cu has them."""
        last, skip = len(of.dilations) - 1, (of.skip if self.layers else 0, len(self.layers) * of.gate)
        layers = [
            ((2 * of.gate, of.heard), (2 * of.gate, of.residual), (0 if layer == last else of.residual, of.gate))
            for layer in self.layers
        ]  # fmt: skip
        return [skip, (len(self.hidden), of.skip), (len(self.outputs), of.hidden), *chain.from_iterable(layers)]

    def values(self, of: Network) -> list[int]:
        """How many numbers of a row it keeps in shared memory: what is heard, z, u, h, and what the last two matrices read."""
        n, draws = len(self.layers), self.layers[:1] == range(1)
        return [n * of.heard, n * 2 * of.gate, n * of.gate, of.residual if n else 0,
                of.skip if self.hidden else 0, of.hidden if self.outputs else 0, of.outputs if draws else 0]  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """Members that hand on what they computed for a tile of so many rows, and their shared memory."""

    network: Network
    members: tuple[Member, ...]
    rows: int
    per_vector: int  # weights in 16 bytes
    number: int  # bytes of a number
    shared_bytes: int

    def vectors(self, size: tuple[int, int]) -> int:
        """16 bytes each, of a matrix as panels."""
        return -(-size[0] // self.per_vector) * size[1]

    def first_weight(self, member: Member) -> int:
        """Where the weights of a member begin in its shared memory, after the numbers."""
        return -(-sum(member.values(self.network)) * self.rows * self.number // 16)

    def places(self, member: Member) -> list[int]:
        """Where each piece lies in shared memory, or -1: first those that the next member waits for, while there is room."""
        sizes = [self.vectors(size) for size in member.sizes(self.network)]
        room, end = self.shared_bytes // 16 - self.first_weight(member), 0
        places = [-1] * len(sizes)
        waited_for = [p for p in range(3, len(sizes)) if p % 3]
        for p in [*waited_for, 1, 2, 0, *range(3, len(sizes), 3)]:
            if 0 < sizes[p] <= room - end:
                places[p], end = end, end + sizes[p]
        return places

    def shared(self) -> int:
        """Bytes of shared memory that its members take."""
        ends = []
        for member in self.members:
            sizes = [self.vectors(size) for size in member.sizes(self.network)]
            held = sum(size for size, place in zip(sizes, self.places(member), strict=True) if place >= 0)
            ends.append(self.first_weight(member) + held)
        return 16 * max(ends)

    @property
    def stages(self) -> int:
        """How many of its members have layers."""
        return sum(len(member.layers) > 0 for member in self.members)

    @property
    def messages(self) -> int:
        """How many words are handed on for a tile and a time: states, skips, what the last matrices give."""
        of, stages = self.network, self.stages
        numbers = (stages - 1) * of.residual + stages * of.skip + of.hidden + of.outputs
        return numbers * self.rows * self.number // 4

    @property
    def fits(self) -> bool:
        """Whether there is room for the numbers."""
        return all(16 * self.first_weight(member) <= self.shared_bytes for member in self.members)

    @property
    def on_chip(self) -> bool:
        """Whether no weights are read from memory at every time."""
        sizes = [member.sizes(self.network) for member in self.members]
        places = [self.places(member) for member in self.members]
        return all(p >= 0 or not self.vectors(s) for s, p in zip(chain(*sizes), chain(*places), strict=True))


def split(count: int, parts: int) -> list[range]:
    """A range in parts of nearly one size."""
    edges = [count * p // parts for p in range(parts + 1)]
    return [range(a, b) for a, b in pairwise(edges)]


def members_of(network: Network, layer_blocks: int, heads: tuple[int, int]) -> tuple[Member, ...]:
    """The layers in so many blocks, the last two matrices in so many; with 0 the last block of layers has them."""
    first = [Member(layers) for layers in split(len(network.dilations), layer_blocks)]
    if heads == (0, 0):
        return (*first[:-1], Member(first[-1].layers, range(network.hidden), range(network.outputs)))
    hidden = [Member(range(0), hidden=rows) for rows in split(network.hidden, heads[0])]
    return (*first, *hidden, *(Member(range(0), outputs=rows) for rows in split(network.outputs, heads[1])))


class Card(NamedTuple):
    """What a launch depends on of a GPU."""

    multiprocessors: int
    shared_bytes: int


@lru_cache(None)
def chain_of(network: Network, rows: int, weight: torch.dtype, number: torch.dtype, card: Card) -> Chain:
    """How a network is cut on a card, for tiles of so many rows. Nothing of it has been measured on a GPU.

    The fewest blocks of layers that hold their weights on chip, since each hands on its numbers through memory; the last two
    matrices in parts that take no longer than what a layer must wait for. On a card of too few multiprocessors as many
    blocks as there are, which read from memory what they cannot hold.
    """
    wait = 3 * network.gate * network.residual
    sizes = (network.hidden, network.skip), (network.outputs, network.hidden)
    first, second = (min(count, max(1, count * columns // wait)) for count, columns in sizes)
    heads = first, second
    if sum(heads) > card.multiprocessors // 2:
        heads = (1, 1) if card.multiprocessors > 2 else (0, 0)
    most = max(1, min(len(network.dilations), card.multiprocessors - sum(heads)))
    for blocks in range(1, most + 1):
        members = members_of(network, blocks, heads)
        found = Chain(network, members, rows, 16 // weight.itemsize, number.itemsize, card.shared_bytes)
        if found.fits and found.on_chip:
            break
    return found


def launch_of(network: Network, batch: int, weight: torch.dtype, number: torch.dtype, card: Card) -> tuple[Chain, int]:
    """A chain and how many of them share the batch: tiles of one row until all blocks are at work, then of more."""
    alone, together = (chain_of(network, rows, weight, number, card) for rows in (1, _ROWS))
    if not alone.fits:
        where = f"{card.shared_bytes} bytes of shared memory of {card.multiprocessors} multiprocessors"
        raise RuntimeError(f"flowkern: the numbers of {network} do not fit into the {where}")

    def copies(found: Chain) -> int:
        return min(-(-batch // found.rows), card.multiprocessors // len(found.members))

    busy = batch > copies(alone) * len(alone.members)
    chosen = together if busy and together.fits else alone
    return chosen, copies(chosen)


# -- packed weights ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """A chain on a device: the records that the kernel reads, and for every packed weight its place among all of them."""

    records: Tensor
    pieces: int  # where they begin
    layers: int
    index: Tensor
    starts: Tensor  # of each place in the queues: where its queue begins, how long it is
    lengths: Tensor

    def oldest_first(self, queues: Tensor, times: int) -> Tensor:
        """The queues after so many times, as a state has them."""
        places = torch.arange(queues.shape[1], device=queues.device)
        return queues[:, self.starts + (places - self.starts + times) % self.lengths]


class _Layouts(MadeOnce):
    def __init__(self) -> None:
        self.tables = {}


_layouts = _Layouts()


def layout_of(found: Chain, device: torch.device) -> Layout:
    """The layout of a chain on a device."""
    return _layouts.at_first_call((found, device), device, lambda: _layout(found, device))


def _layout(found: Chain, device: torch.device) -> Layout:
    """The last place among all weights is that of a zero."""
    network = found.network
    records: list[int] = []
    pieces: list[int] = []
    packed: list[Tensor] = []
    at, every = 0, _Places(network)
    for member in found.members:
        values = [0, *accumulate(member.values(network))]
        weights = found.first_weight(member)
        records += [member.layers.start, len(member.layers), len(pieces) // 8, *values[:-1], weights, 0]
        for matrix, first, place in zip(every.pieces(member), every.first_rows(member), found.places(member), strict=True):
            pieces += [at, place, first, *matrix.shape, 0, 0, 0]
            panels = _panels(matrix, found.per_vector, every.count)
            packed.append(panels)
            at += panels.numel() // found.per_vector
    lengths = torch.tensor(network.lengths)
    starts = lengths.cumsum(0) - lengths
    layers = chain.from_iterable(zip(network.dilations, starts.tolist(), strict=True))
    return Layout(
        torch.tensor([*records, *pieces, *layers], dtype=torch.int32).to(device),
        len(records),
        len(records) + len(pieces),
        torch.cat(packed).int().to(device),
        starts.repeat_interleave(lengths).to(device),
        lengths.repeat_interleave(lengths).to(device),
    )


def _panels(matrix: Tensor, rows: int, zero: int) -> Tensor:
    """[rows, columns] as panels [columns][rows of a panel], one after another."""
    count = -(-matrix.shape[0] // rows)
    padded = matrix.new_full((count * rows, matrix.shape[1]), zero)
    padded[: matrix.shape[0]] = matrix
    return padded.unflatten(0, (count, rows)).transpose(1, 2).reshape(-1) if count else padded.reshape(-1)


class _Places:
    """Matrices whose entries are the places of their weights when all are laid out one after another."""

    def __init__(self, network: Network) -> None:
        of, depth = network, len(network.dilations)
        layer = [(2 * of.gate, of.residual, of.taps), (of.residual, of.gate), (of.skip, of.gate)]
        shapes = [*depth * layer, (of.hidden, of.skip), (of.outputs, of.hidden), *depth * [(2 * of.gate, of.channels)]]
        sizes = [torch.Size(shape) for shape in shapes]
        starts = [0, *accumulate(size.numel() for size in sizes)]
        self.network, self.count = network, starts[-1]
        self.places = [torch.arange(a, a + s.numel()).view(s) for a, s in zip(starts, sizes, strict=False)]

    def pieces(self, member: Member) -> Iterator[Tensor]:
        """In the order of ``Member.sizes``."""
        depth, places = len(self.network.dilations), self.places
        skips = [places[3 * layer + 2] for layer in member.layers]
        yield torch.cat(skips, 1) if skips else places[0].new_empty(0, 0)
        yield places[3 * depth][member.hidden.start : member.hidden.stop]
        yield places[3 * depth + 1][member.outputs.start : member.outputs.stop]
        for layer in member.layers:
            gate, residual = places[3 * layer : 3 * layer + 2]
            yield torch.cat([*gate.unbind(2)[:-1], places[3 * depth + 2 + layer]], 1)
            yield gate[..., -1]
            yield residual if layer + 1 < depth else residual[:0]  # nobody reads the last one's

    @staticmethod
    def first_rows(member: Member) -> list[int]:
        """Of each piece, in the whole matrix."""
        return [0, member.hidden.start, member.outputs.start, *[0] * (3 * len(member.layers))]


# -- the call ---------------------------------------------------------------------------------------------------------


def network_of(weights: Sequence[Tensor], dilations: Sequence[int], condition: Tensor | None) -> Network:
    """The sizes of a network by its weights."""
    gate, residual, taps = map(int, weights[1].shape)
    channels = 0 if condition is None else int(condition.shape[1])
    skip, hidden, outputs = (int(weights[i].shape[0]) for i in (3, -2, -1))
    return Network(residual, gate // 2, skip, hidden, outputs, taps, channels, tuple(dilations))


def wavenet_generate(
    noise: Tensor,
    previous: Tensor,
    queues: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    dilations: Sequence[int],
    condition: Tensor | None,
    condition_weights: Sequence[Tensor],
    output: int,
    levels: int,
    log_scale_min: float,
    bound: float,
) -> tuple[Tensor, Tensor]:
    """The samples and the queues after them."""
    batch, times = noise.shape[:2]
    samples, queues = previous.new_empty(batch, times), queues.clone(memory_format=torch.contiguous_format)
    if batch == 0 or times == 0:
        return samples, queues
    on, network = launch.machine(noise.device), network_of(weights, dilations, condition)
    found, chains = launch_of(network, batch, weights[0].dtype, noise.dtype, Card(on.multiprocessors, on.shared_bytes))
    layout = layout_of(found, noise.device)
    all_weights = [*weights[1:], *(condition_weights if network.channels else ()), weights[0].new_zeros(1)]
    gate_biases = _joined_gate_biases(biases[1:-2:3])
    tiles = -(-batch // found.rows)
    tensors = {
        "weights": torch.cat([w.reshape(-1) for w in all_weights]).index_select(0, layout.index),
        "embedding": weights[0].contiguous(),
        "gate_biases": gate_biases,
        "biases": torch.cat([biases[0], *biases[2:-2:3], *biases[3:-2:3], *biases[-2:]]),
        "noise": noise,
        "previous": previous.contiguous(),
        "queues": queues,
        "samples": samples,
        "messages": torch.zeros(tiles * found.messages, dtype=torch.int64, device=noise.device),
    }
    records = layout.records.data_ptr()
    arguments = GenerateArguments(
        members=records, pieces=records + 4 * layout.pieces, layers=records + 4 * layout.layers,
        batch=batch, times=times, queue=queues.shape[1], messages_per_tile=found.messages,
        gate_bias_layer=gate_biases.stride(0), gate_bias_row=gate_biases.stride(1) if gate_biases.shape[1] > 1 else 0,
        tiles=tiles, chains=chains, length=len(found.members), stages=found.stages, depth=len(dilations), taps=network.taps,
        residual=network.residual, gate=network.gate, skip=network.skip, hidden=network.hidden, outputs=network.outputs,
        classes=len(weights[0]), output=output, levels=levels, log_scale_min=log_scale_min, bound=bound,
        **{name: t.data_ptr() for name, t in tensors.items()},
    )  # fmt: skip
    arguments.noise_row, arguments.noise_time, arguments.noise_number = noise.stride()
    if condition is not None:
        arguments.condition = condition.data_ptr()
        arguments.condition_row, arguments.condition_channel, arguments.condition_time = condition.stride()
    name = f"wavenet_generate_{_VARIANTS[weights[0].dtype]}_r{found.rows}"
    grid, shared = chains * len(found.members), found.shared()
    for begin in range(0, times, _TIMES):
        arguments.begin, arguments.end = begin, min(begin + _TIMES, times)
        on.launch(Code("wavenet_generate"), name, grid, THREADS, arguments, shared, together=True)
    return samples, layout.oldest_first(queues, times)


def prepare(weights: Sequence[Tensor], dilations: Sequence[int], condition: Tensor | None, number: torch.dtype) -> None:
    """Brings layouts to a device while a call is traced: the compiled one may run in a CUDA graph, which reuses memory."""
    device, weight = weights[0].device, weights[0].dtype
    if device.type == "meta":
        return
    on, network = launch.machine(device), network_of(weights, dilations, condition)
    for rows in (1, _ROWS):
        layout_of(chain_of(network, rows, weight, number, Card(on.multiprocessors, on.shared_bytes)), device)


def _joined_gate_biases(biases: Sequence[Tensor]) -> Tensor:
    """[layer][row or 1][2 gate] of biases that are one for all rows, or one for each."""
    rows = max(len(b) if b.dim() > 1 else 1 for b in biases)
    return torch.stack([b.expand(rows, -1) for b in biases])
