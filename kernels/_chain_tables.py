"""What the kernels of a chain read of it: the tables of its steps one after another, and a record per step.

What counts from the start of a step's tables, packed weights, biases or buffers still does; the record says where these start.
"""

from __future__ import annotations

import numpy as np

from flowkern.chain import ChainPlan, Elementwise, Network
from flowkern.kernels._tables import Tables
from flowkern.kernels.maps import Kinds

STEP_FIELDS = 10  # autoregressive_chain.py names them in order


class ShiftAndScale:
    """The tables of an elementwise step: its shift and its scale are two lists of biases, packed with those of the networks.

    Their gradients are sums over the rows of a section of cotangents, as those of biases are: the step has blocks of weights
    of which none exists, so that the kernel that sums biases beside weights finds them.
    """

    biased, linears, depth, width, groups, dense_starts = (True, True), 0, 0, 0, 0, (0,)

    def __init__(self, features: int, block: int) -> None:
        padded = -(-features // block) * block
        place = np.where(np.arange(padded) < features, np.arange(padded), -1)
        first = np.arange(0, 2 * padded, block)
        self.orders, self.table = [place], place
        self.gathered = np.full(2 * padded * block, -1)
        self.bias_gathered = np.tile(place, 2)
        self.bias_size = self.all_width = 2 * padded
        self.sources, self.targets, self.tile_biases = np.zeros_like(first), first, first
        self.tile_linear = np.full(len(first), -1)
        self.bias_linear = np.repeat([0, 1], padded // block)
        self.order_at = [0]
        self.positions = len(self.gathered) + np.concatenate([np.arange(features), padded + np.arange(features)])


class Chained:
    """Index tables of a chain for one block size, as numpy arrays; see :class:`flowkern.kernels._tables.HostTables`."""

    def __init__(self, chain: ChainPlan, kinds: Kinds, block: int) -> None:
        own = [
            Tables(s.plan, kinds, block) if isinstance(s, Network) else ShiftAndScale(chain.features, block)
            for s in chain.joined
        ]
        self.words: list[np.ndarray] = []
        self.length = 0
        self.biased = [has for t in own for has in t.biased]
        self.gathered = np.concatenate([t.gathered for t in own])
        self.bias_gathered = np.concatenate([t.bias_gathered for t in own])
        self.blocks, self.bias_size = len(self.gathered) // block**2, len(self.bias_gathered)
        self.dense_starts = (sum(t.dense_starts[-1] for t in own),)
        # Columns of activations and of cotangents: of all steps, and of the widest.
        self.width, self.all_width = sum(t.width for t in own), sum(t.all_width for t in own)
        self.widest, self.all_widest = max(t.width for t in own), max(t.all_width for t in own)
        self.feature_blocks = len(own[0].orders[0]) // block
        self.groups = max(t.groups for t in own)
        self.terms = max(len(s.plan.addend_widths) for s in chain.joined if isinstance(s, Network))
        self._put(np.zeros(len(own) * STEP_FIELDS))
        records, lists, dense, biases = [], [], [], []
        packed = bias = linear = list_ = kept = deltas = column = 0  # where a step's begin
        for step, order, t in zip(chain.joined, chain.orders, own, strict=True):
            order = order.numpy()
            at = self._put(t.table)
            read = self._put(np.where(t.orders[0] >= 0, order[t.orders[0]], -1)) - at
            widths = step.plan.addend_widths if isinstance(step, Network) else []
            places = np.cumsum([column, *widths])
            terms = self._put(np.append(places[:-1], np.zeros(self.terms)))
            kind = 1 + step.inverse if isinstance(step, Elementwise) else 0
            records.append([kind, at, packed, bias, kept, deltas, t.depth, read, t.order_at[0], terms])
            lists.append(
                (
                    kept + t.sources,
                    deltas + t.targets,
                    np.where(t.tile_biases >= 0, bias + t.tile_biases, -1),
                    np.where(np.array(t.tile_linear) >= 0, linear + np.array(t.tile_linear), -1),
                    list_ + t.bias_linear,
                )
            )
            found, weights = t.positions, t.dense_starts[-1]
            moved = found + packed * block**2
            biased = found - len(t.gathered) + len(self.gathered) + bias
            dense.append(np.where(found >= 0, moved, -1)[:weights])
            biases.append(np.where(found >= 0, biased, -1)[weights:])
            packed, bias, linear, list_ = (
                packed + len(t.gathered) // block**2, bias + t.bias_size, linear + t.linears, list_ + len(t.biased)
            )  # fmt: skip
            kept, deltas, column = kept + t.width, deltas + t.all_width, int(places[-1])
        self.sources_at, self.targets_at, self.tile_biases_at, self.tile_linear_at, self.bias_linear_at = (
            self._put(np.concatenate(parts)) for parts in zip(*lists, strict=True)
        )
        self.positions = np.concatenate([*dense, *biases])
        last = own[0].orders[0]
        natural = np.where(np.arange(len(last)) < chain.features, np.arange(len(last)), -1)
        self.final_at = self._put(np.where(natural >= 0, chain.final.numpy()[natural], -1))
        self.table = np.concatenate(self.words).astype(np.int32)
        self.table[: len(records) * STEP_FIELDS] = np.array(records).reshape(-1)

    def _put(self, values: np.ndarray) -> int:
        """Lists begin at multiples of 32 words."""
        self.words.append(np.pad(values, (0, -len(values) % 32)))
        at, self.length = self.length, self.length + len(self.words[-1])
        return at
