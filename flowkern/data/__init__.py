"""Data to fit flows to: tables of numbers from files, images with dequantisation noise.

>>> import torch
>>> data = digits(seed=0)
>>> data.train.shape, data.validation.shape, data.test.shape
(torch.Size([1439, 64]), torch.Size([179, 64]), torch.Size([179, 64]))
>>> z = data.encoding.encode(data.test, torch.Generator().manual_seed(0))
>>> bool((data.encoding.decode(z) == data.test).all())
True
"""

from flowkern.data.dataset import DataError, Dataset, Encoding, split
from flowkern.data.images import Dequantised, digits
from flowkern.data.tables import Standardised, Table, read_table, table

__all__ = [
    "DataError",
    "Dataset",
    "Dequantised",
    "Encoding",
    "Standardised",
    "Table",
    "digits",
    "read_table",
    "split",
    "table",
]
