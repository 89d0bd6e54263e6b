"""Launches of the CUDA kernels: arguments as csrc/cuda takes them, how large a tile is, where its rows are."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowkern.cuda.code import Code, Machine, machine
from flowkern.cuda.program import Program
from flowkern.plan import AutoregressivePlan
from flowkern.univariate.map import CONSTANTS, OPTIONS

_MAX_TERMS = 130
_MAX_LINEARS = 66
_PACK_THREADS = 128
_STAGES = 3
_GROUP = 8  # blocks of threads that share a tile of one row
_GROUPED_BYTES = 4 << 20  # of weights, from which they do: reading them alone takes longer than waiting for each other
_VARIANTS = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}

MapWords = tuple[str, Sequence[int], Sequence[float]]  # a univariate map: family, options, constants
_CPU = torch.device("cpu")
_pointer, _long, _int, _double = ctypes.c_void_p, ctypes.c_longlong, ctypes.c_int, ctypes.c_double


class _Term(ctypes.Structure):
    _fields_ = [("data", _pointer), ("row", _long)]


class _Map(ctypes.Structure):
    """csrc/include/flowkern/univariate.h has the same; the number of the family goes unread, since code is compiled for one."""

    _fields_ = [("kind", _int), ("count", _int), ("options", _int * OPTIONS), ("constants", _double * CONSTANTS)]


class SweepArguments(ctypes.Structure):
    """csrc/cuda/sweep.h has the same."""

    _fields_ = [
        *((name, _pointer) for name in ("program", "weights", "biases", "input", "g_log_det", "x")),
        *((name, _pointer) for name in ("output", "log_det", "saved", "deltas", "scratch", "exchange", "counters")),
        *((name, _long) for name in ("batch", "input_row", "input_column", "g_log_det_row", "x_row", "x_column")),
        *((name, _int) for name in ("tiles", "group", "activation", "cluster")),
        ("constant", _double),
        ("map", _Map),
        ("terms", _Term * _MAX_TERMS),
    ]


class _Linear(ctypes.Structure):
    _fields_ = [("weight", _pointer), ("bias", _pointer), ("row", _long), ("column", _long), ("step", _long)]


class PackArguments(ctypes.Structure):
    """csrc/cuda/pack.cu has the same."""

    _fields_ = [
        *((name, _pointer) for name in ("program", "masks", "packed", "packed_biases")),
        ("biases", _int),
        ("unused", _int),
        ("linears", _Linear * _MAX_LINEARS),
    ]


@dataclass(frozen=True)
class Shape:
    """Rows of a tile, whether they are in memory rather than in shared memory, blocks of threads per tile."""

    rows: int
    spill: bool = False
    group: int = 1

    @property
    def threads(self) -> int:
        """Of a block."""
        return 512 if self.rows == 32 else 256

    @property
    def name(self) -> str:
        """As the kernels' names end."""
        return f"{'s' if self.spill else 'r'}{self.rows}"

    def shared_bytes(self, header: Any, weight: int, number: int) -> int:
        """Weights on their way, those that wait, and the rows. csrc/cuda/sweep.h counts the same."""
        columns = 32 if self.rows == 1 else 16
        staging = self.threads // 32 * _STAGES * columns * 8
        rows = 0 if self.spill else header.value_rows + header.partial_rows
        return max((staging + header.triangle) * weight + rows * self.rows * number, self.threads // 32 * self.rows * number)


def accumulated(dtype: torch.dtype) -> torch.dtype:
    """What sums are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def shape_of(programs: tuple[Program, Program | None], batch: int, dtype: torch.dtype, on: Machine) -> Shape:
    """The launch heuristic. It has not been measured on a GPU.

    A tile of one row where that leaves no multiprocessor idle for longer, then 16, then 32; smaller or in memory where the
    rows of a tile do not fit into shared memory. One row of a large network is shared by a group of blocks.
    """
    program, grouped = programs
    weight, number = dtype.itemsize, accumulated(dtype).itemsize

    def fits(shape: Shape, header: Any = program.header) -> bool:
        return shape.shared_bytes(header, weight, number) <= on.shared_bytes

    if batch <= on.multiprocessors:
        shared = Shape(1, group=_GROUP)
        if grouped is not None and batch * _GROUP <= on.multiprocessors and fits(shared, grouped.header):
            return shared
        if fits(Shape(1)):
            return Shape(1)
    if number == 4 and batch > 16 * on.multiprocessors and fits(Shape(32)):
        return Shape(32)
    if fits(Shape(16)):
        return Shape(16)
    spilled = Shape(32, spill=True)
    if not fits(spilled):
        raise RuntimeError(f"flowkern: a tile of {program.plan} does not fit into {on.shared_bytes} bytes of shared memory")
    return spilled


@dataclass(frozen=True)
class DeviceProgram:
    """A program on a device, with the masks that packing applies."""

    host: Program
    table: Tensor
    masks: Tensor


def programs_of(plan: AutoregressivePlan, reverse: bool, dtype: torch.dtype) -> tuple[Program, Program | None]:
    """The programs of a plan's sweep: for one block of threads per tile, and for a group where weights are many."""

    def program(group: int) -> Program:
        return plan.at_first_call(("program", reverse, group), _CPU, lambda: Program(plan, reverse, group))

    alone = program(1)
    return alone, program(_GROUP) if alone.packed * dtype.itemsize >= _GROUPED_BYTES else None


def on_device(program: Program, device: torch.device) -> DeviceProgram:
    """A program on a device."""

    def make() -> DeviceProgram:
        masks = torch.cat([m.reshape(-1) for m in program.plan.masks]).to(torch.uint8)
        return DeviceProgram(program, program.table.to(device), masks.to(device))

    return program.plan.at_first_call(("on device", program.reverse, program.group, device), device, make)


def pack(program: DeviceProgram, weights: Sequence[Tensor], biases: Sequence[Tensor], on: Machine) -> tuple[Tensor, Tensor]:
    """The panels of masked, sorted weights, and the sorted biases."""
    host = program.host
    dtype = weights[0].dtype
    packed = weights[0].new_empty(host.packed)
    packed_biases = weights[0].new_empty(host.biases, dtype=accumulated(dtype))
    arguments = PackArguments(program.table.data_ptr(), program.masks.data_ptr(), packed.data_ptr(), packed_biases.data_ptr())
    arguments.biases = host.biases
    given = iter(biases)
    for linear, weight, has in zip(arguments.linears, weights, host.plan.biases, strict=False):
        linear.weight, linear.row, linear.column = weight.data_ptr(), *weight.stride()
        if has and host.biases:
            bias = next(given)
            linear.bias, linear.step = bias.data_ptr(), bias.stride(0)
    grid = host.header.chunks + -(-host.biases // _PACK_THREADS)
    on.launch(Code("pack"), f"pack_{_VARIANTS[dtype]}", grid, _PACK_THREADS, arguments)
    return packed, packed_biases


def sweep(
    name: str,
    programs: tuple[Program, Program | None],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    addends: Sequence[Tensor],
    precision: str,
    map: MapWords,
    batch: int,
    tensors: dict[str, Tensor],
    strides: dict[str, int],
) -> None:
    """Packs the weights and sweeps over all rows; ``tensors`` are the pointers of the arguments by their names."""
    first = weights[0]
    dtype, number, plan = first.dtype, accumulated(first.dtype), programs[0].plan
    on = machine(first.device)
    shape = shape_of(programs, batch, dtype, on)
    program = on_device(programs[shape.group > 1], first.device)  # type: ignore[arg-type]
    packed, packed_biases = pack(program, weights, biases, on)
    arguments = SweepArguments(program.table.data_ptr(), packed.data_ptr(), packed_biases.data_ptr(), batch=batch, **strides)
    for argument, tensor in tensors.items():
        setattr(arguments, argument, tensor.data_ptr())
    header = program.host.header
    arguments.tiles, arguments.group = -(-batch // shape.rows), shape.group
    family, options, constants = map
    arguments.map = _Map(0, plan.parameters, tuple(options), tuple(constants))
    arguments.activation, arguments.constant = plan.activation_index, plan.constant
    grid = arguments.tiles * shape.group
    scratch = []  # alive until the launch is on its stream
    if shape.spill:
        grid = min(grid, on.multiprocessors)
        scratch = [first.new_empty(grid * (header.value_rows + header.partial_rows) * shape.rows, dtype=number)]
        arguments.scratch = scratch[0].data_ptr()
    if shape.group > 1:
        arguments.cluster = int(on.clusters)
        if not on.clusters:
            scratch = [
                first.new_empty(arguments.tiles * header.partial_rows, dtype=number),
                torch.zeros(arguments.tiles, dtype=torch.int32, device=first.device),
            ]
            arguments.exchange, arguments.counters = (t.data_ptr() for t in scratch)
    terms = [_columns_together(a.to(number)) for a in addends]
    for term, t in zip(arguments.terms, terms, strict=False):
        term.data, term.row = t.data_ptr(), t.stride(0)
    variant = "tf32" if dtype == torch.float32 and precision == "tf32" and shape.rows > 1 else _VARIANTS[dtype]
    shared = shape.shared_bytes(header, dtype.itemsize, number.itemsize)
    code = Code("autoregressive_inverse", family)
    on.launch(code, f"{name}_{variant}_{shape.name}", grid, shape.threads, arguments, shared, shape.group)


def _columns_together(t: Tensor) -> Tensor:
    return t if t.stride(1) == 1 else t.contiguous()
