"""Data sets that have a name and need no network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowkern._optional import optional
from flowkern.data.dataset import Dataset
from flowkern.data.images import image_dataset
from flowkern.data.tables import Table, table_dataset

MOONS = 10_000
DESCRIPTIONS = {
    "digits": "1,797 handwritten digits of 8 x 8 pixels with 17 levels",
    "moons": "10,000 points on two crescents in the plane, made with noise",
    "iris": "150 flowers: 4 lengths and widths",
    "wine": "178 wines: 13 measurements of chemistry and colour",
    "breast_cancer": "569 tumours: 30 measurements of pictures of their cells",
    "diabetes": "442 patients: age, sex and 8 measurements, centred and scaled",
}


def load(name: str, seed: int | None) -> Dataset:
    """The data set of a name; all are scikit-learn's."""
    sklearn = optional("sklearn.datasets", "train")
    if name == "digits":
        images = torch.from_numpy(sklearn.load_digits().images).to(torch.uint8)
        return image_dataset(name, {"train": images.unsqueeze(1)}, seed, levels=17)
    if name == "moons":
        values, _ = sklearn.make_moons(MOONS, noise=0.07, random_state=0)
        return _table(name, torch.from_numpy(values), ("x", "y"), seed)
    found = getattr(sklearn, f"load_{name}")()
    return _table(name, torch.from_numpy(found.data), [str(column) for column in found.feature_names], seed)


def _table(name: str, values: Tensor, columns: Sequence[str], seed: int | None) -> Dataset:
    return table_dataset(name, {"train": Table(name, values, columns)}, seed)
