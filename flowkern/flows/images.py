"""What the flows of images share: the number of levels that an image's shape allows."""

from __future__ import annotations

import torch

from flowkern._checks import whole_number

MOST_LEVELS = 3  # by default


def squeezes_of(event: torch.Size, squeezes: int | None, smallest: int, more: int = 0) -> int:
    """How often an image is squeezed: as asked, or as often as it can be, up to ``MOST_LEVELS``.

    Args:
        event: (channels, height, width).
        squeezes: the number that was asked for.
        smallest: height and width that remain at least, where none was.
        more: by how much the argument ``levels``, which errors name, is larger than the number of squeezes.

    Raises:
        ValueError: if height or width are no multiples of the power of two that the number asks for.
    """
    _, *pixels = event
    if squeezes is None:
        found = 0
        while found + more < MOST_LEVELS and all(n % 2 ** (found + 1) == 0 and n >> (found + 1) >= smallest for n in pixels):
            found += 1
        return found
    multiple = 2**squeezes
    if any(n % multiple for n in pixels):
        raise ValueError(f"levels: {squeezes + more} take height and width to be multiples of {multiple}, got {tuple(event)}")
    return squeezes


def levels_of_vectors(levels: int | None) -> None:
    """Raises if a flow of vectors was asked for levels."""
    if levels is not None and whole_number("levels", levels, 1) > 1:
        raise ValueError(f"levels: vectors have one, got {levels}")
