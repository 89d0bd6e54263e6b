"""Several masked networks and their maps, one after another, in one launch each way; see _layers.py.

A program takes its tile of rows through all steps, a run-time loop over the records of _chain_tables.py: one compilation serves
every number of steps. Between them the features are in ``states`` [row][step][feature], what a step is given in the order
of the one before; it is kept for the backward pass, which needs what each map was given. Cotangents go back through
``cotangents`` [row][3][feature]: those of the states in turns in the first two, and in the third those that a map passes on.

All addends of all networks are columns of one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
import triton
import triton.language as tl
from torch import Tensor

from flowkern.chain import NORMALS, ChainPlan, Network
from flowkern.kernels import _chain_tables, _launch
from flowkern.kernels._chain_tables import Chained
from flowkern.kernels._layers import feature_gradients, gather_features, hidden_backward, hidden_layers, place_of
from flowkern.kernels._network import Launches
from flowkern.kernels._pack import pack
from flowkern.kernels._tables import config_of
from flowkern.kernels.autoregressive import map_features, map_gradients
from flowkern.kernels.maps import kinds_of

# The integers that _chain_tables.py writes for each step. SORT: 0 is a network, 1 v = u scale + shift, 2 its inverse.
SORT, STEP_TABLE, STEP_PACKED, STEP_BIASES, STEP_KEPT, STEP_DELTAS, STEP_DEPTH, STEP_READ, STEP_WRITE, STEP_TERMS = (
    tl.constexpr(i) for i in range(_chain_tables.STEP_FIELDS)
)
STEP_FIELDS = tl.constexpr(_chain_tables.STEP_FIELDS)


@triton.jit
def of_step(table, s, FIELD: tl.constexpr):
    return tl.load(table + s * STEP_FIELDS + FIELD)


@triton.jit
def start(table, s, FIELD: tl.constexpr):
    """Where something of a step begins, at a multiple of 32."""
    return tl.multiple_of(tl.load(table + s * STEP_FIELDS + FIELD), 32)


@triton.jit
def terms_of(added, row, table, s, ADDENDS: tl.constexpr):
    """The addends of a step: pointers to their first columns, and strides."""
    pointers, rows, columns = (), (), ()
    for k in tl.static_range(ADDENDS):
        pointers = pointers + (added + tl.load(table + of_step(table, s, STEP_TERMS) + k),)
        rows = rows + (row,)
        columns = columns + (1,)
    return pointers, rows, columns


@triton.jit
def shift_and_scale(biases, c, d, feature_blocks, like, BLOCK: tl.constexpr):
    shift, scale = tl.load(biases + c), tl.load(biases + feature_blocks * BLOCK + c)
    return shift.to(like.dtype), tl.where(d >= 0, scale.to(like.dtype), 1)


@triton.jit
def scale_features(
    source, target, row, inside, i, biases, table, read_at, feature_blocks, like, INVERSE, BLOCK: tl.constexpr
):  # fmt: skip
    """An elementwise step on a tile, and its log-determinant."""
    total = tl.sum(tl.zeros_like(like), 1, keep_dims=True)
    for j in range(feature_blocks):
        c = j * BLOCK + tl.arange(0, BLOCK)[None, :]
        d = tl.load(table + read_at + c)
        there = inside & (d >= 0)
        shift, scale = shift_and_scale(biases, c, d, feature_blocks, like, BLOCK)
        u = tl.load(source + i * row + d, there, 0)
        v = tl.where(INVERSE, (u - shift) / scale, u * scale + shift)
        tl.store(target + i * row + c, v, there)
        log_slope = tl.log(tl.abs(scale))
        total += tl.sum(tl.where(there, tl.where(INVERSE, -log_slope, log_slope), 0), 1, keep_dims=True)
    return total


@triton.jit
def scale_gradients(
    source, row, g_target, g_log_det, g_source, g_row, delta, delta_width, inside, i, biases, table, read_at,
    feature_blocks, like, INVERSE, BLOCK: tl.constexpr,
):  # fmt: skip
    """Cotangents of what an elementwise step was given, and, to ``delta``, those of its shift and of its scale for each row."""
    for j in range(feature_blocks):
        c = j * BLOCK + tl.arange(0, BLOCK)[None, :]
        d = tl.load(table + read_at + c)
        there = inside & (d >= 0)
        shift, scale = shift_and_scale(biases, c, d, feature_blocks, like, BLOCK)
        u = tl.load(source + i * row + d, there, 0)
        g = tl.load(g_target + i * g_row + c, there, 0)
        gu = tl.where(INVERSE, g / scale, g * scale)
        g_shift = tl.where(INVERSE, -gu, g)
        g_scale = tl.where(INVERSE, (-gu * (u - shift) - g_log_det) / scale, g * u + g_log_det / scale)
        tl.store(g_source + i * g_row + d, gu, there)
        p_delta = delta + i * delta_width + c
        tl.store(p_delta, tl.where(there, g_shift, 0).to(delta.dtype.element_ty))
        tl.store(p_delta + feature_blocks * BLOCK, tl.where(there, g_scale, 0).to(delta.dtype.element_ty))


@triton.jit
def autoregressive_chain_forward(
    x, packed, biases, added, z, log_det, act, pre, ungated, states, table, batch, x_row, x_column, added_row,
    width, features, steps, feature_blocks, groups, final_at,
    NORMAL: tl.constexpr, ELEMENTWISE: tl.constexpr,
    MAP: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr, KINDS: tl.constexpr, COLUMNS: tl.constexpr,
    KEEP: tl.constexpr, KIND: tl.constexpr, C: tl.constexpr, PRE: tl.constexpr, GATES: tl.constexpr, SKIP: tl.constexpr,
    ADDENDS: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, BLOCK_M)[:, None]
    like = tl.zeros([BLOCK_M, BLOCK], ACC)
    row = (steps + 1) * features
    for tile in range(tl.program_id(0), tl.cdiv(batch, BLOCK_M), tl.num_programs(0)):
        _, home, rows, inside = place_of(tile, batch, i, KEEP, BLOCK_M)
        home_act, state = home * width, states + home * row
        normal = tl.sum(like, 1, keep_dims=True)
        for j in range(feature_blocks):
            c = j * BLOCK + tl.arange(0, BLOCK)[None, :]
            there = inside & (c < features)
            u = tl.load(x + rows * x_row + c * x_column, there, 0).to(ACC)
            tl.store(state + i * row + c, u, there)
            if NORMAL == 2:
                normal -= tl.sum(0.5 * u * u, 1, keep_dims=True)
        total = tl.sum(like, 1, keep_dims=True)
        for s in range(steps):
            tl.debug_barrier()  # the state, and a scratch tile that is written again
            own = table + start(table, s, STEP_TABLE)
            read_at = start(table, s, STEP_READ)
            own_biases = biases + start(table, s, STEP_BIASES)
            source, target = state + s * features, state + (s + 1) * features
            sort = of_step(table, s, SORT) if ELEMENTWISE else 0
            if sort == 0:
                depth = of_step(table, s, STEP_DEPTH)
                own_packed = packed + of_step(table, s, STEP_PACKED).to(tl.int64) * (BLOCK * BLOCK)
                at = home_act + (start(table, s, STEP_KEPT) if KEEP else 0)
                act_tile, pre_tile, ungated_tile = act + at, pre + at, ungated + at
                addends, addend_rows, addend_columns = terms_of(added, added_row, table, s, ADDENDS)
                gather_features(source, row, 1, act_tile, own, read_at, i, inside, i, width, feature_blocks, BLOCK)
                hidden_layers(
                    act_tile, pre_tile, ungated_tile, width, rows, inside, i, own_packed, own_biases,
                    addends, addend_rows, addend_columns, own, depth, like,
                    KIND, C, PRE, GATES, ADDENDS, BLOCK, PRECISION, UPCAST,
                )  # fmt: skip
                total += map_features(
                    source, row, 1, target, row, i, read_at, of_step(table, s, STEP_WRITE),
                    act_tile, width, rows, inside, i, own_packed, own_biases, addends, addend_rows, addend_columns,
                    own, depth, groups, like,
                    MAP, OPTIONS, CONSTANTS, KINDS, COLUMNS, ADDENDS, SKIP, BLOCK, PRECISION, UPCAST,
                )  # fmt: skip
            else:
                total += scale_features(
                    source, target, row, inside, i, own_biases, own, read_at, feature_blocks, like, sort == 2, BLOCK
                )  # fmt: skip
        tl.debug_barrier()
        for j in range(feature_blocks):
            c = j * BLOCK + tl.arange(0, BLOCK)[None, :]
            there = inside & (c < features)
            v = tl.load(state + steps * features + i * row + tl.load(table + final_at + c), there, 0)
            tl.store(z + rows * features + c, v.to(z.dtype.element_ty), there)
            if NORMAL == 1:
                normal -= tl.sum(0.5 * v * v, 1, keep_dims=True)
        constant = (tl.zeros_like(normal) + features) * 0.9189385332046727  # log(2 pi) / 2
        if NORMAL == 1:
            total += normal - constant
        elif NORMAL == 2:
            total = normal - constant - total
        tl.store(log_det + rows, total.to(log_det.dtype.element_ty), inside)
        tl.debug_barrier()  # the scratch tile is written again


@triton.jit
def autoregressive_chain_backward(
    packed, biases, added, g_z, g_log_det, g_x, g_added, act, pre, ungated, states, delta, outer, cotangents, table, batch,
    g_row, g_column, g_log_det_row, added_row, g_added_row, width, delta_width, features, steps, feature_blocks, groups,
    final_at,
    NORMAL: tl.constexpr, ELEMENTWISE: tl.constexpr, G_Z: tl.constexpr, G_LOG_DET: tl.constexpr,
    MAP: tl.constexpr, OPTIONS: tl.constexpr, CONSTANTS: tl.constexpr, KINDS: tl.constexpr, COLUMNS: tl.constexpr,
    KEEP: tl.constexpr, KIND: tl.constexpr, C: tl.constexpr, PRE: tl.constexpr, GATES: tl.constexpr, SKIP: tl.constexpr,
    ADDENDS: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, BLOCK_M)[:, None]
    like = tl.zeros([BLOCK_M, BLOCK], ACC)
    row, g_states_row = (steps + 1) * features, 3 * features
    for tile in range(tl.program_id(0), tl.cdiv(batch, BLOCK_M), tl.num_programs(0)):
        first, home, rows, inside = place_of(tile, batch, i, KEEP, BLOCK_M)
        state, home_act, home_delta = states + first * row, first * width, home * delta_width
        g_state = cotangents + home * g_states_row
        gn = tl.sum(like, 1, keep_dims=True)  # of the normal's log-density
        if G_LOG_DET:
            gn += tl.load(g_log_det + rows * g_log_det_row, inside, 0).to(ACC)
        gl = -gn if NORMAL == 2 else gn
        for j in range(feature_blocks):
            c = j * BLOCK + tl.arange(0, BLOCK)[None, :]
            there = inside & (c < features)
            d = tl.load(table + final_at + c)
            g = tl.zeros_like(like)
            if G_Z:
                g += tl.load(g_z + rows * g_row + c * g_column, there, 0).to(ACC)
            if NORMAL == 1:
                g -= gn * tl.load(state + steps * features + i * row + d, there, 0)
            tl.store(g_state + steps % 2 * features + i * g_states_row + d, g, there)
        for back in range(steps):
            tl.debug_barrier()  # cotangents of the state, and scratch tiles that are written again
            s = steps - 1 - back
            own = table + start(table, s, STEP_TABLE)
            read_at = start(table, s, STEP_READ)
            own_biases = biases + start(table, s, STEP_BIASES)
            source = state + s * features
            g_source, g_target = g_state + s % 2 * features, g_state + (s + 1) % 2 * features
            at = home_delta + (start(table, s, STEP_DELTAS) if KEEP else 0)
            delta_tile, outer_tile = delta + at, outer + at
            sort = of_step(table, s, SORT) if ELEMENTWISE else 0
            if sort == 0:
                depth = of_step(table, s, STEP_DEPTH)
                own_packed = packed + of_step(table, s, STEP_PACKED).to(tl.int64) * (BLOCK * BLOCK)
                at = home_act + start(table, s, STEP_KEPT)
                act_tile, pre_tile, ungated_tile = act + at, pre + at, ungated + at
                addends, addend_rows, addend_columns = terms_of(added, added_row, table, s, ADDENDS)
                g_addends, g_addend_rows, _ = terms_of(g_added, g_added_row, table, s, ADDENDS)
                direct = g_state + 2 * features
                map_gradients(
                    source, row, 1, g_target, g_states_row, 1, gl, direct, g_states_row, i, read_at,
                    of_step(table, s, STEP_WRITE), act_tile, width, delta_tile, delta_width, rows, inside, i,
                    own_packed, own_biases, addends, addend_rows, addend_columns, g_addends, g_addend_rows,
                    own, depth, groups, like,
                    MAP, OPTIONS, CONSTANTS, KINDS, COLUMNS, ADDENDS, SKIP, BLOCK, PRECISION, UPCAST,
                )  # fmt: skip
                hidden_backward(
                    act_tile, pre_tile, ungated_tile, width, delta_tile, outer_tile, delta_width, rows, inside, i, own_packed,
                    addends, addend_rows, addend_columns, g_addends, g_addend_rows, own, depth, like,
                    KIND, C, PRE, GATES, ADDENDS, BLOCK, PRECISION, UPCAST,
                )  # fmt: skip
                feature_gradients(
                    direct, delta_tile, delta_width, i, inside, i, own_packed, g_source, g_states_row, own, read_at, depth,
                    feature_blocks, like, True, SKIP, BLOCK, PRECISION, UPCAST,
                )  # fmt: skip
            else:
                scale_gradients(
                    source, row, g_target, gl, g_source, g_states_row, delta_tile, delta_width, inside, i, own_biases,
                    own, read_at, feature_blocks, like, sort == 2, BLOCK,
                )  # fmt: skip
        tl.debug_barrier()
        for j in range(feature_blocks):
            c = j * BLOCK + tl.arange(0, BLOCK)[None, :]
            there = inside & (c < features)
            g = tl.load(g_state + i * g_states_row + c, there, 0)
            if NORMAL == 2:
                g -= gn * tl.load(state + i * row + c, there, 0)
            tl.store(g_x + rows * features + c, g.to(g_x.dtype.element_ty), there)
        tl.debug_barrier()


class ChainLaunches(Launches):
    """Constants of the launches for one chain, dtype and device."""

    def __init__(self, chain: ChainPlan, dtype: torch.dtype, device: torch.device, precision: str) -> None:
        plans = [s.plan for s in chain.joined if isinstance(s, Network)]
        self.map = next(s.map for s in chain.joined if isinstance(s, Network)).words
        kinds = kinds_of(self.map, plans[0].parameters)
        config = config_of(plans, kinds, dtype, precision)
        # What the loop over the steps keeps takes registers: a thread's part of a tile is smaller than in a single transform.
        if dtype == torch.float32 and precision == "ieee":
            config = replace(config, block_m=16)
        elif _launch.GPU == "cuda":
            config = replace(config, warps=8)
        self._of_network(plans[0], dtype, device, precision, kinds, config)
        self.chain = chain

    @property
    def owner(self) -> ChainPlan:
        return self.chain

    @cached_property
    def host(self) -> Chained:
        """The index tables."""
        block, kinds = self.config.block, self.kinds
        return self.chain.at_first_call(block, torch.device("cpu"), lambda: Chained(self.chain, kinds, block))

    def kept(self, batch: int, keep: bool) -> list[Tensor]:
        """Where the forward pass writes activations, those before the activation and the gate, and the states."""
        width = self.host.width if keep else self.host.widest
        states = self._per_feature(batch if keep else self._scratch_rows(batch, False), self.chain.count + 1)
        return [*self._buffers(batch, width, keep, (True, self.pre, self.gates)), states]

    def deltas(self, batch: int, keep: bool) -> list[Tensor]:
        """Where the backward pass writes cotangents of all layers, those before the gates, and those of the states."""
        width = self.host.all_width if keep else self.host.all_widest
        cotangents = self._per_feature(self._scratch_rows(batch, keep), 3)
        return [*self._buffers(batch, width, keep, (True, self.pre)), cotangents]

    def _scratch_rows(self, batch: int, keep: bool) -> int:
        return self.programs(batch, keep) * self.config.block_m

    def _per_feature(self, rows: int, count: int) -> Tensor:
        """So many numbers for each feature and row, unrounded."""
        return torch.empty(rows, count * self.chain.features, dtype=self.acc_dtype, device=self.device)

    @property
    def reads_addends(self) -> bool:
        """Whether the backward pass reads addends: gates, and what belongs to the parameters, which it computes again."""
        plans = [s.plan for s in self.chain.joined if isinstance(s, Network)]
        return self.gates or any(len(p.units) in p.addends for p in plans)

    def arguments(self, map_function: str) -> dict[str, object]:
        """What both kernels take by name."""
        return {
            "table": self.tables.table,
            "features": self.chain.features,
            "steps": self.chain.count,
            "feature_blocks": self.host.feature_blocks,
            "final_at": self.host.final_at,
            "NORMAL": NORMALS.index(self.chain.normal),
            "ELEMENTWISE": self.chain.count > sum(isinstance(s, Network) for s in self.chain.joined),
            **self.of_map(self.map, map_function),
            **self.constants,
            "ADDENDS": self.host.terms,
        }


def launches_of(chain: ChainPlan, dtype: torch.dtype, device: torch.device, precision: str) -> ChainLaunches:
    """The launches' constants; the first call makes them."""
    key = dtype, device, precision
    return chain.at_first_call(key, torch.device("cpu"), lambda: ChainLaunches(chain, *key))


def joined(addends: Sequence[Tensor], like: Tensor) -> Tensor:
    """The addends of all networks as columns of one matrix, whose columns are contiguous."""
    if not addends:
        return like.new_empty(0, 0)
    return addends[0].contiguous() if len(addends) == 1 else torch.cat(list(addends), 1)


def autoregressive_chain(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    addends: Sequence[Tensor],
    network: ChainLaunches,
    keep: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """z, log_det and what the backward pass needs (empty unless ``keep``).

    Weights and biases are those of all networks in order, shifts and scales among the biases at their steps' places.
    """
    x, batch = _launch.near(x), x.shape[0]
    packed, packed_biases = pack(network.tables, weights, biases)
    z, log_det = torch.empty(x.shape, dtype=x.dtype, device=x.device), torch.empty(batch, dtype=x.dtype, device=x.device)
    kept = network.kept(batch, keep)
    if batch:
        act, pre, ungated, states = kept
        added = joined(addends, x)
        with _launch.on(x):
            autoregressive_chain_forward[(network.programs(batch, keep),)](
                x=x, packed=packed, biases=packed_biases, added=added, added_row=added.stride(0), z=z, log_det=log_det,
                act=act, pre=pre, ungated=ungated, states=states, batch=batch, x_row=x.stride(0), x_column=x.stride(1),
                width=act.shape[1], KEEP=keep, **network.arguments("forward"),
            )  # fmt: skip
    return z, log_det, [packed, packed_biases, *kept] if keep else []


def autoregressive_chain_gradients(
    g_z: Tensor | None,
    g_log_det: Tensor | None,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    addends: Sequence[Tensor],
    state: Sequence[Tensor],
    network: ChainLaunches,
    parameters: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cotangents of x, of all weights and all biases as vectors (of no size unless ``parameters``), of the joined addends."""
    batch = x.shape[0]
    packed, packed_biases, act, pre, ungated, states = state
    g_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    columns = sum(a.shape[1] for a in addends)
    g_added = torch.zeros(batch, columns, dtype=x.dtype, device=x.device)
    delta, outer, cotangents = network.deltas(batch, parameters)
    if batch:
        given_z, given_log_det = (states if g is None else g for g in (g_z, g_log_det))  # of another tensor nothing is read
        given_z = _launch.near(given_z)
        added = joined(addends if network.reads_addends else (), x)
        with _launch.on(x):
            autoregressive_chain_backward[(network.programs(batch, parameters),)](
                packed=packed, biases=packed_biases, added=added, added_row=added.stride(0), g_z=given_z,
                g_log_det=given_log_det, g_x=g_x, g_added=g_added, g_added_row=columns, act=act, pre=pre, ungated=ungated,
                states=states, delta=delta, outer=outer, cotangents=cotangents, batch=batch, g_row=given_z.stride(0),
                g_column=given_z.stride(1), g_log_det_row=given_log_det.stride(0), width=act.shape[1],
                delta_width=delta.shape[1], G_Z=g_z is not None, G_LOG_DET=g_log_det is not None, KEEP=parameters,
                **network.arguments("backward"),
            )  # fmt: skip
    return g_x, *network.parameter_gradients(delta, act, weights, biases, parameters), g_added
