"""Images in folders of picture files, read by Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowkern._optional import optional
from flowkern.data import folders
from flowkern.data.dataset import DataError, Dataset
from flowkern.data.images import image_dataset
from flowkern.data.labels import LABEL, of_folders, wanted

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
WANTED_FOLDER = f"pictures ({', '.join(SUFFIXES)}), in folders train, validation and test or any others"
MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}  # what Pillow calls pixels, and what they are read as


def found(path: Path) -> bool:
    """Whether there is a folder with a picture somewhere in it."""
    return path.is_dir() and next(folders.files(path, SUFFIXES), None) is not None


def load(path: Path, seed: int | None, given: Sequence[str]) -> Dataset:
    """The pictures of a folder and of those in it; folders named like the parts of a data set are its parts.

    A label is the folder that a picture lies in, among those for training in the order of their names.
    """
    parts = folders.parts(path)
    files = {part: sorted(folders.files(folder, SUFFIXES)) for part, folder in parts.items()}
    found, names = of_folders(LABEL, parts, files) if wanted(path, given) else ({}, None)
    labels = {part: torch.tensor(of_part) for part, of_part in found.items()} or None
    images = {part: read(of_part) for part, of_part in files.items()}
    return image_dataset(path, images, seed, labels=labels, class_names=names)


def read(files: Sequence[Path]) -> Tensor:
    """The pictures of files: (n, channels, height, width), uint8.

    Raises:
        DataError: if a picture cannot be read, is neither grey nor RGB, or is not of the first one's size and channels.
    """
    images = torch.empty(0)
    for i, file in enumerate(files):
        image = _picture(file)
        if i == 0:
            images = torch.empty((len(files), *image.shape), dtype=torch.uint8)
        if image.shape != images.shape[1:]:
            raise DataError(f"{file}: expected {_size(images[0])} like {files[0]}, got {_size(image)}")
        images[i] = image
    return images


def _size(image: Tensor) -> str:
    channels, height, width = image.shape
    return f"{width} x {height} pixels in {'grey' if channels == 1 else 'RGB'}"


def _picture(file: Path) -> Tensor:
    pillow: Any = optional("PIL.Image", "train")
    try:
        with pillow.open(file) as opened:
            mode = opened.mode
            if mode in MODES:
                picture = opened.convert(MODES[mode])
    except Exception as error:  # each of Pillow's formats has its own
        raise DataError(f"cannot read {file}: {error}") from None
    if mode not in MODES:
        raise DataError(f"{file}: expected a grey or RGB picture of 8 bits, got Pillow's mode {mode}")
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.reshape(picture.height, picture.width, -1).permute(2, 0, 1)
