"""The host's side of the masked-network kernels: what the launches of one plan have in common."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from flowkern.kernels import _launch
from flowkern.kernels._tables import Config, DeviceTables, config_of, device_tables, host_tables
from flowkern.kernels._weight_gradients import weight_gradients
from flowkern.kernels.maps import Kinds, Words, functions, kinds_of
from flowkern.plan import AutoregressivePlan, MadeOnce

_NEEDS_PRE = {"gelu", "silu"}


class Launches:
    """Constants of the launches for one plan, dtype and device."""

    def __init__(
        self, plan: AutoregressivePlan, dtype: torch.dtype, device: torch.device, precision: str, kinds: Kinds
    ) -> None:
        self._of_network(plan, dtype, device, precision, kinds, config_of([plan], kinds, dtype, precision))

    def _of_network(
        self, plan: AutoregressivePlan, dtype: torch.dtype, device: torch.device, precision: str, kinds: Kinds, config: Config
    ) -> None:
        self.plan, self.dtype, self.device, self.precision, self.config = plan, dtype, device, precision, config
        self.kinds = kinds
        self.acc, self.acc_dtype = (tl.float64, torch.float64) if dtype == torch.float64 else (tl.float32, torch.float32)
        self.upcast = _launch.INTERPRETED and dtype in (torch.bfloat16, torch.float16)
        self.gates = bool(plan.gates)
        residual = any(r is not None for r in plan.residuals)
        negative = plan.activation in ("leaky_relu", "elu") and plan.constant < 0
        self.pre = residual or self.gates or negative or plan.activation in _NEEDS_PRE
        self.kind = plan.activation_index

    @property
    def owner(self) -> MadeOnce:
        """What the tables are kept with."""
        return self.plan

    @cached_property
    def host(self) -> Any:
        """The index tables."""
        return host_tables(self.plan, self.kinds, self.config.block)

    @cached_property
    def tables(self) -> DeviceTables:
        """The index tables on the device."""
        return device_tables(self.owner, self.host, self.kinds, self.config, self.device)

    def state_like(self, x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], keep: bool) -> list[Tensor]:
        """The shapes of what a forward pass keeps. Traced calls begin here: now is the time to bring tables to a device."""
        if self.device.type != "meta":
            _ = self.tables
        if not keep:
            return []
        packed = weights[0].new_empty(len(self.host.gathered))
        packed_biases = (biases[0] if biases else weights[0]).new_empty(self.host.bias_size)
        return [packed, packed_biases, *self.kept(x.shape[0], keep)]

    def rows(self, batch: int) -> int:
        """Rows of whole tiles."""
        return -(-batch // self.config.block_m) * self.config.block_m

    def programs(self, batch: int, keep: bool) -> int:
        """One per tile; where nothing is kept, no more than stay resident, each with a scratch tile of its own."""
        tiles = self.rows(batch) // self.config.block_m
        return tiles if keep else min(tiles, _launch.resident_programs(self.device))

    def kept(self, batch: int, keep: bool) -> list[Tensor]:
        """Where the forward pass writes activations, pre-activations, and the latter before the gates."""
        return self._buffers(batch, self.host.width, keep, (True, self.pre, self.gates))

    def deltas(self, batch: int, keep: bool) -> list[Tensor]:
        """Where the backward pass writes the cotangents of all layers, and those before the gates."""
        return self._buffers(batch, self.host.all_width, keep, (True, self.pre))

    def _buffers(self, batch: int, width: int, keep: bool, used: Sequence[bool]) -> list[Tensor]:
        """Matrices over the rows of the tiles at work, of no size where not used."""
        rows = (self.rows(batch) if keep else self.programs(batch, False) * self.config.block_m) if batch else 0
        return [torch.empty(rows if use else 0, width, dtype=self.dtype, device=self.device) for use in used]

    @cached_property
    def blocks(self) -> tuple[int, int]:
        """Numbers of feature and of output blocks."""
        return len(self.host.orders[0]) // self.config.block, len(self.host.outputs) // self.config.block

    def reads(self, packed: Tensor, addends: Sequence[Tensor]) -> dict[str, Any]:
        """Arguments of the kernels of a tile that say what they read, by name."""
        pointers, rows, columns = self.terms(addends)
        return {
            "packed": packed,
            "addends": pointers,
            "addend_rows": rows,
            "addend_columns": columns,
            "table": self.tables.table,
            "width": self.host.width,
            "depth": self.host.depth,
            "feature_blocks": self.blocks[0],
            "order_at": self.host.order_at[0],
        }

    def terms(self, tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], tuple[int, ...], tuple[int, ...]]:
        """Addends and gates as the kernels take them: tensors, row and column strides."""
        tensors = [_launch.near(t) for t in tensors]
        return tuple(tensors), tuple(t.stride(0) for t in tensors), tuple(t.stride(1) for t in tensors)

    def parameter_gradients(
        self, delta: Tensor, act: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], wanted: bool
    ) -> tuple[Tensor, Tensor]:
        """Gradients of all weights and of all biases, each as one vector; of no size unless wanted."""
        dtype = biases[0].dtype if biases else act.dtype
        if wanted:
            return weight_gradients(self, delta, act, dtype)
        return act.new_empty(0), act.new_empty(0, dtype=dtype)

    def of_map(self, map: Words, function: str) -> dict[str, Any]:
        """Arguments of the kernels with a map, by name."""
        columns = self.kinds.columns
        found = functions(map, columns > 1, MAP=function)
        return {**found, "groups": self.host.groups, "KINDS": len(self.kinds.counts), "COLUMNS": columns}

    @cached_property
    def constants(self) -> dict[str, Any]:
        """Arguments that every kernel of a tile takes by name."""
        return {
            "KIND": self.kind,
            "C": self.plan.constant,
            "PRE": self.pre,
            "GATES": self.gates,
            "SKIP": self.plan.skip,
            "ADDENDS": len(self.plan.addend_widths),
            "ACC": self.acc,
            "BLOCK_M": self.config.block_m,
            "BLOCK": self.config.block,
            "PRECISION": self.precision,
            "UPCAST": self.upcast,
            "num_warps": self.config.warps,
            "num_stages": self.config.stages,
            **_launch.registers(255),
        }


def network_of(
    plan: AutoregressivePlan, dtype: torch.dtype, device: torch.device, precision: str, map: Words | None = None
) -> Launches:
    """The launches' constants; the first call makes them."""
    key = dtype, device, precision, kinds_of(map, plan.parameters)
    return plan.at_first_call(key, torch.device("cpu"), lambda: Launches(plan, *key))
