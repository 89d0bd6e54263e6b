"""A sweep over a masked network as a list of steps, which one block of threads walks through (csrc/cuda/sweep.h).

A step is one level of one layer. Its rows receive what earlier blocks of levels send as dense panels, whose columns are
split into *segments* where a block has too few panels for the warps; the sums of the segments are added in order. What
comes from inside the block is a short product per row, with weights that wait in shared memory (the block's *triangle*);
where a level is so wide that it would not be short, panels too.

The gradient of the inverse is the same over the transposed matrices, from the last level to the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from flowkern._plan_encoding import block_levels
from flowkern.plan import AutoregressivePlan

PANEL = 8  # rows of a panel
_WAYS = 16  # warps that share the panels of a block
_SEGMENT = 64  # columns below which a panel is not split
_SPLIT = 32  # columns of which a segment is a multiple
# Inside a block of levels a row is one product over the block's columns, unless these are more than _NARROW, or a level
# has more than _STEP weights: then it goes by panels, although their first weights are not fetched in advance.
_NARROW, _STEP = 64, 640
_TRIANGLE = 4096  # weights that may wait in shared memory


class Record:
    """Integers in the order of a record in csrc/cuda/program.h."""

    def words(self) -> list[int]:
        """The record, padded to whole units of 16 bytes."""
        values: list[int] = []
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            values += value if isinstance(value, list) else [value]
        return [*values, *[0] * (-len(values) % 4)]


@dataclass
class Header(Record):
    """Where everything else is."""

    steps: int = 0
    steps_at: int = 0
    nodes_at: int = 0
    items_at: int = 0
    value_rows: int = 0
    partial_rows: int = 0
    triangle: int = 0
    features: int = 0
    parameters: int = 0
    order_at: int = 0
    zeros_at: int = 0
    zeros: int = 0
    parameters_at: int = 0
    chunks: int = 0
    chunks_at: int = 0
    biases_at: int = 0


@dataclass
class Node(Record):
    """A layer of the sweep; -1 where it has no such thing."""

    head: int
    values: int
    saved: int
    bias: int = 0
    order_at: int = 0
    addend: int = -1
    gate: int = -1
    activated: int = 0
    residual_at: int = -1
    kept: int = -1
    gate_saved: int = 0


@dataclass
class SweepStep(Record):
    """Units of a node that have one level."""

    node: int
    first: int
    count: int
    items: int
    items_end: int
    triangle: int
    triangle_size: int
    partial: int
    stride: int
    segments: int
    row: int
    inner: list[int]


@dataclass
class Item(Record):
    """Up to eight rows against a range of columns."""

    weights: int
    columns: int
    values: int
    partial: int
    rows: int


@dataclass
class Chunk(Record):
    """A panel as it is packed."""

    linear: int
    transposed: int
    rows_at: int
    rows: int
    columns_at: int
    columns: int
    packed: int
    mask: int
    mask_columns: int


@dataclass
class Source:
    """A linear map into a node: which, and the rows that it reads."""

    linear: int
    starts: list[int]  # first row of every level, and the total
    values: int  # where the first row's value is
    order_at: int
    delayed: bool  # whether a row sees the levels before its own only, or its own too
    waiting: int = 0  # where the weights inside the present block begin in its triangle


@dataclass
class Layer:
    """A node with what the program needs to know of it."""

    node: Node
    starts: list[int]
    order_at: int  # of its rows
    sources: list[Source]
    rows_per_unit: int = 1  # the parameters of a feature

    def rows(self, t0: int, t1: int) -> int:
        """Rows of the levels [t0, t1)."""
        return self.starts[t1] - self.starts[t0]


class Program:
    """The steps of one plan's sweep, or of its gradient's, as one vector of 32-bit integers.

    Args:
        plan: the network.
        reverse: the gradient.
        group: blocks of threads that share the panels of a tile.
    """

    def __init__(self, plan: AutoregressivePlan, reverse: bool, group: int = 1) -> None:
        self.plan, self.reverse, self.group = plan, reverse, group
        self.depth = len(plan.units)
        self.header = Header(features=plan.features, parameters=plan.parameters)
        self.words: list[int] = self.header.words()
        self.chunks: list[Chunk] = []
        self.items: list[Item] = []
        self.steps: list[SweepStep] = []
        self.blocks = [(0, 0)]  # where the items and steps of each block of levels end
        self.packed = 0
        self.masks_at = list(itertools.accumulate((m.numel() for m in plan.masks), initial=0))
        self.header.order_at = self._put(plan.feature_order.tolist())
        self.orders_at = [self._put(o.tolist()) for o in plan.unit_orders]
        self.header.parameters_at = self._put(plan.output_order.tolist())
        self.layers = self._reverse_layers() if reverse else self._layers()
        blocks = list(itertools.pairwise(block_levels(plan)))
        for t0, t1 in reversed(blocks) if reverse else blocks:
            self._block(t0, t1)
        self._finish()

    # -- layers -----------------------------------------------------------------------------------------------------

    def _layers(self) -> list[Layer]:
        """Hidden layers, then the parameters of the features. Value rows: x, every hidden layer, kept pre-activations."""
        plan, depth = self.plan, self.depth
        values = [0, *itertools.accumulate(plan.units, initial=plan.features)]  # of x, and of every layer
        kept = self._kept(values[-1])
        x = (plan.feature_starts.tolist(), 0, self.header.order_at, True)
        layers, bias = [], 0
        for layer in range(depth + 1):
            head = layer == depth
            read = (plan.unit_starts[layer - 1].tolist(), values[layer], self.orders_at[layer - 1], False) if layer else x
            sources = [Source(layer, *read), *([Source(depth + 1, *x)] if head and plan.skip else [])]
            node = self._node(layer, 0 if head else values[layer + 1], kept)
            node.bias = bias
            starts = plan.output_starts if head else plan.unit_starts[layer]
            rows_at = self.header.parameters_at if head else self.orders_at[layer]
            layers.append(Layer(node, starts.tolist(), rows_at, sources, plan.parameters if head else 1))
            bias += layers[-1].starts[-1]
        return layers

    def _reverse_layers(self) -> list[Layer]:
        """Features, then hidden layers from the last. Value rows: cotangents of parameters and hidden units; those that
        residuals hand on, zero at first.
        """
        plan, depth = self.plan, self.depth
        outputs = (plan.output_starts.tolist(), 0, self.header.parameters_at)
        values = [*itertools.accumulate(plan.units, initial=plan.features * plan.parameters)]
        kept = self._kept(values[-1])
        self.header.zeros_at, self.header.zeros = values[-1], self.header.value_rows - values[-1]

        def reads(layer: int) -> tuple[list[int], int, int]:
            return outputs if layer == depth else (plan.unit_starts[layer].tolist(), values[layer], self.orders_at[layer])

        sources = [Source(0, *reads(0), True), *([Source(depth + 1, *outputs, True)] if plan.skip else [])]
        layers = [Layer(self._node(depth, 0, kept), plan.feature_starts.tolist(), self.header.order_at, sources)]
        for layer in range(depth - 1, -1, -1):
            node, source = self._node(layer, values[layer], kept), Source(layer + 1, *reads(layer + 1), False)
            layers.append(Layer(node, plan.unit_starts[layer].tolist(), self.orders_at[layer], [source]))
        return layers

    def _kept(self, rows: int) -> dict[int, int]:
        """Further rows for the layers that a residual adds: where each begins."""
        kept = {}
        for source in sorted({r for r in self.plan.residuals if r is not None}):
            kept[source] = rows
            rows += self.plan.units[source]
        self.header.value_rows = rows
        return kept

    def _node(self, layer: int, values: int, kept: dict[int, int]) -> Node:
        plan = self.plan
        addend = plan.addends.index(layer) if layer in plan.addends else -1
        node = Node(int(layer == self.depth), values, plan.saved_starts[layer], addend=addend)
        if layer == self.depth:
            node.order_at = self.header.order_at
            return node
        node.order_at, node.activated = self.orders_at[layer], int(plan.activated[layer])
        node.kept = kept.get(layer, -1)
        if layer in plan.gates:
            gate = plan.gates.index(layer)
            node.gate, node.gate_saved = len(plan.addends) + gate, plan.saved_starts[self.depth + 1 + gate]
        source = plan.residuals[layer]
        if source is not None:
            place = {unit: kept[source] + i for i, unit in enumerate(plan.unit_orders[source].tolist())}
            node.residual_at = self._put([place[unit] for unit in plan.unit_orders[layer].tolist()])
        return node

    # -- blocks of levels -------------------------------------------------------------------------------------------

    def _block(self, t0: int, t1: int) -> None:
        """The steps of the levels [t0, t1)."""
        wide = self._wide(t0, t1)
        pending = len(self.items)  # items that the next step begins with
        partial, partials = 0, []  # where the sums of each layer's segments begin, and how many segments there are
        ways = self._ways(t0, t1)
        for layer in self.layers:
            rows, segments = layer.rows(t0, t1), 0
            for source in layer.sources:
                parts = self._split(self._past(source, t0, t1), ways)
                self._panels(layer, source, layer.starts[t0], rows, parts, partial + segments * rows, rows)
                segments += len(parts)
            partials.append((partial, segments))
            partial += (segments + sum(source.linear in wide for source in layer.sources)) * rows
        triangle_at = self.packed
        for layer in self.layers:
            for source in layer.sources:
                if source.linear not in wide:
                    source.waiting = self.packed - triangle_at
                    self._triangle(layer, source, t0, t1)
        triangle = self.packed - triangle_at
        self.header.triangle = max(self.header.triangle, triangle)
        self.header.partial_rows = max(self.header.partial_rows, partial)
        for t in range(t1 - 1, t0 - 1, -1) if self.reverse else range(t0, t1):
            for n, layer in enumerate(self.layers):
                first, count, rows = layer.starts[t], layer.rows(t, t + 1), layer.rows(t0, t1)
                if count == 0:
                    continue
                at, segments = partials[n]
                at += first - layer.starts[t0]
                inner = []
                for source in layer.sources:
                    seen = self._seen(source, t, t0, t1)
                    if source.linear in wide:
                        self._panels(layer, source, first, count, [seen], at + segments * rows, rows)
                        segments += 1
                        seen = range(0)
                    columns = range(source.starts[t0], source.starts[t1])
                    weights = source.waiting + (seen.start - columns.start) * PANEL
                    inner += [source.values + seen.start, len(seen), weights, len(columns) * PANEL]
                inner += [0] * (8 - len(inner))
                end, each = len(self.items), layer.rows_per_unit
                units = first // each, count // each
                row = first - layer.starts[t0]
                self.steps.append(SweepStep(n, *units, pending, end, triangle_at, triangle, at, rows, segments, row, inner))
                pending, triangle = end, 0
        self.blocks.append((len(self.items), len(self.steps)))

    def _past(self, source: Source, t0: int, t1: int) -> range:
        """Rows of a source that blocks before this one computed."""
        return range(source.starts[t1], source.starts[-1]) if self.reverse else range(source.starts[t0])

    def _seen(self, source: Source, t: int, t0: int, t1: int) -> range:
        """Rows of a source in this block that level t may read."""
        if self.reverse:
            return range(source.starts[t + source.delayed], source.starts[t1])
        return range(source.starts[t0], source.starts[t + 1 - source.delayed])

    def _wide(self, t0: int, t1: int) -> set[int]:
        """Linear maps whose part inside the block is computed as panels: long ones, and the largest if not all can wait."""
        sizes, wide = {}, set()
        for layer in self.layers:
            most = max(layer.rows(t, t + 1) for t in range(t0, t1))
            for source in layer.sources:
                columns = source.starts[t1] - source.starts[t0]
                sizes[source.linear] = -(-layer.rows(t0, t1) // PANEL) * PANEL * columns
                if columns > _NARROW or columns * most > _STEP:
                    wide.add(source.linear)
        for linear in sorted(sizes, key=sizes.__getitem__, reverse=True):
            if sum(size for other, size in sizes.items() if other not in wide) > _TRIANGLE:
                wide.add(linear)
        return wide

    def _ways(self, t0: int, t1: int) -> int:
        """Parts into which the panels of a block are split, so that every warp of the group has one."""
        panels = sum(-(-layer.rows(t0, t1) // PANEL) for layer in self.layers for s in layer.sources if self._past(s, t0, t1))
        return -(-_WAYS * self.group // max(panels, 1))

    @staticmethod
    def _split(columns: range, ways: int) -> list[range]:
        if not columns:
            return []
        parts = max(min(ways, len(columns) // _SEGMENT), 1)
        size = -(-len(columns) // parts // _SPLIT) * _SPLIT
        return [columns[i : i + size] for i in range(0, len(columns), size)]

    def _panels(
        self, layer: Layer, source: Source, first: int, count: int, parts: list[range], partial: int, stride: int
    ) -> None:
        """Items of the rows [first, first + count) against neighbouring ranges of columns, each a segment."""
        for r in range(0, count if parts else 0, PANEL):
            rows = min(count - r, PANEL)
            columns = range(parts[0].start, parts[-1].stop)
            packed = self._chunk(layer, source, first + r, rows, columns)
            for i, part in enumerate(parts):
                weights = packed + (part.start - columns.start) * PANEL
                self.items.append(Item(weights, len(part), source.values + part.start, partial + i * stride + r, rows))

    def _triangle(self, layer: Layer, source: Source, t0: int, t1: int) -> None:
        """What is inside the block, as panels that lie one after another."""
        columns = range(source.starts[t0], source.starts[t1])
        for r in range(layer.starts[t0], layer.starts[t1], PANEL):
            rows = min(layer.starts[t1] - r, PANEL)
            self._chunk(layer, source, r, rows, columns)

    def _chunk(self, layer: Layer, source: Source, first: int, rows: int, columns: range) -> int:
        """Has a panel packed, and returns where."""
        mask, at = self.plan.masks[source.linear], self.packed
        rows_at, columns_at = layer.order_at + first, source.order_at + columns.start
        where = source.linear, int(self.reverse), rows_at, rows, columns_at, len(columns)
        self.chunks.append(Chunk(*where, at, self.masks_at[source.linear], mask.shape[1]))
        self.packed += len(columns) * PANEL
        return at

    # -- the vector -------------------------------------------------------------------------------------------------

    def _put(self, values: Sequence[int]) -> int:
        """Appends values, from a multiple of 16 bytes on, and returns where they begin."""
        self.words += [0] * (-len(self.words) % 4)
        at = len(self.words)
        self.words += values
        return at

    def _finish(self) -> None:
        header, words = self.header, self._words
        if self.group > 1:
            # A fast block of threads may write the next block of levels while a slow one still reads this one.
            self._alternate()
        header.steps, header.steps_at = len(self.steps), self._put(words(self.steps))
        header.nodes_at = self._put(words([layer.node for layer in self.layers]))
        header.items_at = self._put(words(self.items))
        header.chunks, header.chunks_at = len(self.chunks), self._put(words(self.chunks))
        header.biases_at = self._put(self._biases())
        self.words[:16] = header.words()
        self.table = torch.tensor(self.words, dtype=torch.int32, device="cpu")

    def _alternate(self) -> None:
        rows = self.header.partial_rows
        for (items, steps), (items_end, steps_end) in list(itertools.pairwise(self.blocks))[1::2]:
            records: list[Item | SweepStep] = [*self.items[items:items_end], *self.steps[steps:steps_end]]
            for record in records:
                record.partial += rows
        self.header.partial_rows = 2 * rows

    @staticmethod
    def _words(records: Sequence[Record]) -> list[int]:
        return [word for record in records for word in record.words()]

    def _biases(self) -> list[int]:
        """Linear map and row of every bias, in the order of the sweep; the gradient has none."""
        if self.reverse:
            return []
        orders = [*self.plan.unit_orders, self.plan.output_order]
        return [word for linear, order in enumerate(orders) for row in order.tolist() for word in (linear, row)]

    @property
    def biases(self) -> int:
        """How many biases are packed."""
        return 0 if self.reverse else sum(self.plan.units) + len(self.plan.output_order)
