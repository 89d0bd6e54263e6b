"""Data to fit models to, by name or from files, and the encodings between their units and those of a model.

>>> import torch
>>> data = load("digits")
>>> len(data.train), len(data.validation), len(data.test), data.event_shape
(1439, 179, 179, torch.Size([1, 8, 8]))
>>> images = encoding(data)
>>> rows = data.test[torch.arange(100)]
>>> z = images.encode(rows, images.noise(100, torch.Generator().manual_seed(0)))
>>> bool((images.decode(z) == rows).all())
True
"""

from flowkern.data.dataset import DataError, Dataset, Rows, split
from flowkern.data.encodings import (
    Binarised,
    Dequantised,
    EncodedRows,
    Encoding,
    Identity,
    OneHot,
    Standardised,
    Waveform,
    bits_per_dimension,
    conditioned,
    context_encoding,
    encoding,
)
from flowkern.data.registry import load, names

__all__ = [
    "Binarised",
    "DataError",
    "Dataset",
    "Dequantised",
    "EncodedRows",
    "Encoding",
    "Identity",
    "OneHot",
    "Rows",
    "Standardised",
    "Waveform",
    "bits_per_dimension",
    "conditioned",
    "context_encoding",
    "encoding",
    "load",
    "names",
    "split",
]
