"""Tables in NumPy's files."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowkern._optional import optional
from flowkern.data.dataset import PARTS, DataError
from flowkern.data.tables import Table

MAPPED = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")  # what torch computes with


def read_npy(path: Path) -> dict[str, Table]:
    """The array (rows, columns) of a .npy file as the table ``train``, mapped into memory: it may be larger.

    One of numbers that torch does not have, such as those of other machines, is converted to float64 in memory.

    Raises:
        DataError: if the file is damaged, or holds anything but real numbers.
    """
    numpy = optional("numpy", "train")
    try:
        values = numpy.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header raises nearly anything
        raise DataError(f"cannot read {path}: {error}") from None
    return {"train": Table(str(path), _tensor(str(path), values))}


def read_npz(path: Path) -> dict[str, Table]:
    """The tables ``train`` and perhaps ``validation`` and ``test`` of a .npz file; a single array is ``train``.

    Raises:
        DataError: if the file is damaged, or holds anything but these or anything but real numbers.
    """
    try:
        with zipfile.ZipFile(path) as file:
            arrays = {name.removesuffix(".npy"): name for name in file.namelist()}
            if len(arrays) == 1:
                arrays = {"train": next(iter(arrays.values()))}
            if "train" not in arrays or not arrays.keys() <= set(PARTS):
                got = ", ".join(arrays) or "nothing"
                raise DataError(f"{path}: expected one array, or arrays named {', '.join(PARTS)}, got {got}")
            return {part: _member(f"{path}: {part}", file, arrays[part]) for part in PARTS if part in arrays}
    except DataError:
        raise
    except Exception as error:  # each of zip's compressions has its own
        raise DataError(f"cannot read {path}: {error}") from None


def _member(name: str, file: zipfile.ZipFile, member: str) -> Table:
    """One array of a .npz file; what its header claims is allocated only where there is as much."""
    numpy = optional("numpy", "train")
    content = file.read(member)
    stream = io.BytesIO(content)
    try:
        version = numpy.lib.format.read_magic(stream)
        header = numpy.lib.format.read_array_header_1_0 if version == (1, 0) else numpy.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        flat = numpy.frombuffer(content, dtype, count=math.prod(shape), offset=stream.tell())
    except Exception as error:  # a damaged header raises nearly anything
        raise DataError(f"cannot read {name}: {error}") from None
    return Table(name, _tensor(name, flat.reshape(shape, order="F" if fortran else "C")))


def _tensor(name: str, values: Any) -> Tensor:
    if values.dtype.kind not in "fiub" or values.ndim != 2:
        raise DataError(f"{name}: expected real numbers (rows, columns), got {values.dtype} of shape {values.shape}")
    numpy = optional("numpy", "train")
    if values.dtype.name not in MAPPED or not values.dtype.isnative:
        with numpy.errstate(over="ignore"):  # of wider floats; found with what else is not finite
            values = values.astype(numpy.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # Rows gives copies only
        return torch.from_numpy(values)
