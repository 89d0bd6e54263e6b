"""Data sets that have a name and need no network."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flowkern._optional import optional
from flowkern.data.dataset import Dataset
from flowkern.data.images import image_dataset
from flowkern.data.labels import LABEL, wanted
from flowkern.data.tables import Table, table_dataset

MOONS = 10_000
CLASSES = ("moons", "iris", "wine", "breast_cancer")  # tables whose rows have a label
DESCRIPTIONS = {
    "digits": "1,797 handwritten digits of 8 x 8 pixels with 17 levels",
    "moons": "10,000 points on two crescents in the plane, made with noise",
    "iris": "150 flowers: 4 lengths and widths",
    "wine": "178 wines: 13 measurements of chemistry and colour",
    "breast_cancer": "569 tumours: 30 measurements of pictures of their cells",
    "diabetes": "442 patients: age, sex and 8 measurements, centred and scaled",
}


def load(name: str, seed: int | None, given: Sequence[str]) -> Dataset:
    """The data set of a name; all are scikit-learn's."""
    sklearn = optional("sklearn.datasets", "train")
    if name == "digits":
        found = sklearn.load_digits()
        images = torch.from_numpy(found.images).to(torch.uint8).unsqueeze(1)
        labels = {"train": torch.from_numpy(found.target)} if wanted(name, given) else None
        return image_dataset(name, {"train": images}, seed, levels=17, labels=labels)
    if name == "moons":
        values, target = sklearn.make_moons(MOONS, noise=0.07, random_state=0)
        columns = ["x", "y"]
    else:
        found = getattr(sklearn, f"load_{name}")()
        values, target, columns = found.data, found.target, [str(column) for column in found.feature_names]
    table = Table(name, torch.from_numpy(values), columns)
    if tuple(given) == (LABEL,) and name in CLASSES:
        return table_dataset(name, {"train": table}, seed, labels=torch.from_numpy(target))
    return table_dataset(name, {"train": table}, seed, given)
