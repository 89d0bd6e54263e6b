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

_VERSION = 2  # of the flat form
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
        header = torch.zeros(18, dtype=torch.int64, device="cpu")
        self.put(header)
        depth = len(plan.units)
        self.blocks = block_levels(plan)
        self.features_at = self.put(plan.feature_order)
        self.orders_at = [self.put(o) for o in plan.unit_orders]
        linears = [self._linear(i) for i in range(len(plan.masks))]
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
            struct.unpack("<q", struct.pack("<d", plan.constant))[0],
            sum(plan.units),
            self.put(plan.feature_starts),
            self.put(self.blocks),
            self.features_at,
            self.put([w for record in hidden for w in record]),
            self.put([w for record in linears for w in record]),
            self._addend(depth),
            len(plan.addends) + len(plan.gates),
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
            len(plan.addends) + plan.gates.index(layer) if layer in plan.gates else -1,
            sum(plan.units[g] for g in plan.gates[: plan.gates.index(layer)]) if layer in plan.gates else 0,
        ]

    def _linear(self, index: int) -> list[int]:
        plan = self.plan
        depth = len(plan.units)
        target = min(index, depth)
        source = -1 if index == depth + 1 else index - 1
        rows = plan.unit_orders[target] if target < depth else plan.output_order
        row_starts = plan.unit_starts[target] if target < depth else plan.output_starts
        columns = plan.unit_orders[source] if source >= 0 else plan.feature_order
        column_starts = plan.unit_starts[source] if source >= 0 else plan.feature_starts
        mask = plan.masks[index][rows][:, columns]
        rows_at = self.put(rows) if target == depth else self.orders_at[target]
        columns_at = self.orders_at[source] if source >= 0 else self.features_at
        chunks: list[list[int]] = []
        block_chunks = [0]
        for t0, t1 in zip(self.blocks, self.blocks[1:], strict=False):
            edges = _edges(row_starts[t0 : t1 + 1].tolist())
            chunks += [self._chunk(mask, r0, r1, int(column_starts[t1])) for r0, r1 in itertools.pairwise(edges)]
            block_chunks.append(len(chunks))
        bias_at = -1
        if plan.biases[index]:
            bias_at, self.packed = self.packed, self.packed + -(-len(rows) // 16) * 16
        return [
            source,
            target,
            len(rows),
            plan.masks[index].shape[0],
            plan.masks[index].shape[1],
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
