"""A plan as the CPU kernels read it: blocks of levels, panels of packed weights, one flat array of integers.

csrc/include/flowkern/plan_view.h reads that array; the two change together.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from flowkern.plan import AutoregressivePlan

_VERSION = 4  # of the flat form
_CHUNK = 8  # rows of a packed panel


def block_levels(plan: AutoregressivePlan) -> list[int]:
    """First level of each block, and the number of levels.

    A block is as many levels as give every layer a few full panels: enough that most of the work is dense products
    with earlier blocks, few enough that the level-by-level rest inside a block stays small. Measured in
    docs/measured.md.
    """
    starts = plan.level_starts
    blocks = [0]
    for level in range(1, plan.levels):
        rows = [s[level] - s[blocks[-1]] for s in starts]
        if max(rows) >= 4 * _CHUNK or min(rows) >= _CHUNK:
            blocks.append(level)
    return [*blocks, plan.levels]


def _edges(starts: list[int]) -> list[int]:
    """Where the panels of one block begin, given where its levels begin, and its end.

    Panels have nearly equal numbers of rows, at most eight. Levels that fill most of a panel get panels of their own,
    so that the level-by-level part of the sweep meets whole panels.
    """
    rows, levels = starts[-1] - starts[0], len(starts) - 1
    groups = starts if rows >= levels * (_CHUNK // 2 + 1) else [starts[0], starts[-1]]
    edges = groups[:1]
    for begin, end in itertools.pairwise(groups):
        parts = -(-(end - begin) // _CHUNK)
        edges += [begin + (end - begin) * i // parts for i in range(1, parts + 1)]
    return edges


def bits(number: float) -> int:
    """A double as the 64-bit integer of the same bits."""
    return struct.unpack("<q", struct.pack("<d", number))[0]


class Encoder:
    """Writes a plan as the flat int64 array that the kernels read."""

    def __init__(self, plan: AutoregressivePlan) -> None:
        self.plan = plan
        self.words: list[Tensor] = []
        self.length = 0
        self.mask_parts: list[Tensor] = []
        self.mask_length = 0
        self.packed = 0

    def put(self, values: Sequence[int] | Tensor) -> int:
        """Appends values and returns where they begin."""
        words = torch.as_tensor(values, dtype=torch.int64, device="cpu").flatten()
        self.words.append(words)
        at, self.length = self.length, self.length + len(words)
        return at

    def encode(self) -> tuple[Tensor, Tensor, int]:
        plan = self.plan
        header = torch.zeros(25, dtype=torch.int64, device="cpu")
        self.put(header)
        depth = len(plan.units)
        self.blocks = block_levels(plan)
        self.features_at = self.put(plan.feature_order)
        self.orders_at = [self.put(o) for o in plan.unit_orders]
        self.outputs_at = self.put(plan.output_order)
        linears = [self._linear(i) for i in range(len(plan.masks))]
        linears += [self._conditioner_linear(i) for i in range(len(plan.conditioners))]
        hidden = [self._hidden(i) for i in range(depth)]
        values = [
            _VERSION,
            plan.features,
            plan.parameters,
            plan.levels,
            len(self.blocks) - 1,
            depth,
            len(linears),
            self.packed,
            plan.activation_index,
            bits(plan.constant),
            sum(plan.units),
            self.put(plan.feature_starts),
            self.put(self.blocks),
            self.features_at,
            self.put([w for record in hidden for w in record]),
            self.put([w for record in linears for w in record]),
            self._addend(depth),
            len(plan.addends) + len(plan.gates),
            plan.context,
            len(plan.conditioners),
            self.put([w for i in range(len(plan.conditioners)) for w in self._conditioner(i)]),
            sum(len(plan.rows_of(c.layer)) for c in plan.conditioners),
            self._conditioner_row(len(plan.conditioners)),
            plan.conditioner_context,
            int(plan.reads_features),
        ]
        header.copy_(torch.tensor(values, device="cpu"))
        masks = torch.cat(self.mask_parts) if self.mask_parts else torch.empty(0, dtype=torch.uint8, device="cpu")
        return torch.cat(self.words), masks, self.packed

    def _addend(self, layer: int) -> int:
        return self.plan.addends.index(layer) if layer in self.plan.addends else -1

    def _hidden(self, layer: int) -> list[int]:
        plan = self.plan
        source = plan.residuals[layer]
        return [
            plan.units[layer],
            plan.masks[layer].shape[0],
            self.put(plan.unit_starts[layer]),
            self.orders_at[layer],
            sum(plan.units[:layer]),
            int(plan.activated[layer]),
            -1 if source is None else source,
            self.put(plan.residual_places[layer]),
            self._addend(layer),
            int(layer in plan.residuals),
            self._gate(layer),
            sum(plan.units[g] for g in plan.gated[: plan.gated.index(layer)]) if layer in plan.gated else 0,
        ]

    def _gate(self, layer: int) -> int:
        """The matrix given per row that a layer is multiplied by; after those the conditioners."""
        plan = self.plan
        if layer in plan.gates:
            return len(plan.addends) + plan.gates.index(layer)
        found = [i for i, c in enumerate(plan.conditioners) if c.gate and c.layer == layer]
        return len(plan.addends) + len(plan.gates) + found[0] if found else -1

    def _conditioner(self, index: int) -> list[int]:
        plan = self.plan
        layer, activation, gate = plan.conditioners[index]
        constant = bits(plan.constant_of(activation))
        units = len(plan.rows_of(layer))
        return [layer, int(gate), plan.activation_number(activation), constant, units, self._conditioner_row(index)]

    def _conditioner_row(self, index: int) -> int:
        """The first of a conditioner's rows among those that are saved; of the one after the last, their number."""
        plan = self.plan
        before = sum(plan.units) + plan.features * plan.parameters + sum(plan.units[g] for g in plan.gated)
        return before + sum(len(plan.rows_of(c.layer)) for c in plan.conditioners[:index])

    def _linear(self, index: int) -> list[int]:
        plan = self.plan
        depth = len(plan.units)
        target = min(index, depth)
        source = -1 if index == depth + 1 else index - 1
        if source >= 0:
            columns, starts, at = plan.unit_orders[source], plan.unit_starts[source], self.orders_at[source]
            return self._record(index, plan.masks[index], source, target, columns, starts, at)
        mask, columns = plan.masks[index], plan.feature_order
        if not plan.reads_features:
            columns = torch.tensor(plan.context_columns, dtype=torch.int64, device="cpu")
            starts = torch.full((plan.levels + 1,), plan.context, device="cpu")
            return self._record(index, mask, source, target, columns, starts, self.put(columns))
        if mask.shape[1] != plan.features:  # the context comes first
            columns = torch.tensor(plan.feature_columns, device="cpu")[columns]
            columns = torch.cat([torch.tensor(plan.context_columns, dtype=torch.int64, device="cpu"), columns])
        elif plan.context:  # which this one does not read: masked columns stand for it, whichever they are
            columns = torch.cat([columns.new_zeros(plan.context), columns])
        starts = plan.feature_starts + plan.context
        at = self.put(columns)
        return self._record(
            index, mask, source, target, columns, starts, at, plan.context if mask.shape[1] == plan.features else 0
        )

    def _conditioner_linear(self, index: int) -> list[int]:
        plan = self.plan
        units = plan.masks[plan.conditioners[index].layer].shape[0]
        mask = torch.ones(units, plan.conditioner_context, dtype=torch.bool, device="cpu")
        columns = torch.arange(plan.conditioner_context, device="cpu")
        starts = torch.full((plan.levels + 1,), plan.conditioner_context, device="cpu")
        layer, linear = plan.conditioners[index].layer, len(plan.masks) + index
        return self._record(linear, mask, -2, len(plan.units) + 1 + index, columns, starts, self.put(columns), layer=layer)

    def _record(
        self,
        index: int,
        mask: Tensor,
        source: int,
        target: int,
        columns: Tensor,
        column_starts: Tensor,
        columns_at: int,
        hidden_columns: int = 0,
        layer: int | None = None,
    ) -> list[int]:
        """One linear map. ``hidden_columns``: leading ones that it lacks; ``layer``: whose rows it has, else the target's."""
        plan = self.plan
        depth = len(plan.units)
        layer = target if layer is None else layer
        rows, rows_at = plan.rows_of(layer), self.outputs_at if layer == depth else self.orders_at[layer]
        row_starts = plan.output_starts if layer == depth else plan.unit_starts[layer]
        sorted_mask = mask[rows][:, columns]
        sorted_mask[:, :hidden_columns] = False
        chunks: list[list[int]] = []
        block_chunks = [0]
        for t0, t1 in zip(self.blocks, self.blocks[1:], strict=False):
            edges = _edges(row_starts[t0 : t1 + 1].tolist())
            chunks += [self._chunk(sorted_mask, r0, r1, int(column_starts[t1])) for r0, r1 in itertools.pairwise(edges)]
            block_chunks.append(len(chunks))
        bias_at = -1
        if plan.biases[index]:
            bias_at, self.packed = self.packed, self.packed + -(-len(rows) // 16) * 16
        return [
            source,
            target,
            len(rows),
            *mask.shape,
            rows_at,
            columns_at,
            len(chunks),
            self.put([w for chunk in chunks for w in chunk]),
            self.put(block_chunks),
            bias_at,
            sum(plan.biases[:index]) if plan.biases[index] else -1,
        ]

    def _chunk(self, mask: Tensor, r0: int, r1: int, columns: int) -> list[int]:
        """Rows [r0, r1) and their first `columns` columns as one panel."""
        visible = mask[r0:r1, :columns]
        hole = (~visible).any(0).nonzero()
        dense = int(hole[0]) if len(hole) else columns
        tail = torch.zeros(columns - dense, _CHUNK, dtype=torch.uint8, device="cpu")
        tail[:, : r1 - r0] = visible[:, dense:].t()
        chunk = [r0, r1 - r0, columns, dense, self.packed, self.mask_length]
        self.packed += columns * _CHUNK
        self.mask_parts.append(tail.flatten())
        self.mask_length += tail.numel()
        return chunk
