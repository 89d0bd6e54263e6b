"""Pictures in the formats of their data sets."""

from __future__ import annotations

import struct

import numpy as np


def idx(values: np.ndarray) -> bytes:
    """A file of bytes in the format of MNIST."""
    return b"\0\0\x08" + struct.pack(f">B{values.ndim}I", values.ndim, *values.shape) + values.astype(np.uint8).tobytes()
