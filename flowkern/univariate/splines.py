"""What families of splines have in common: the numbers of an interval in bins, and errors that name them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flowkern._checks import floats, whole_number

MOST_BINS, MOST_BINS_ON_A_GPU = 128, 32  # csrc/include/flowkern/splines.h has room for so many


def bins_of(given: int) -> int:
    """A number of bins that the kernels take."""
    bins = whole_number("bins", given, 2)
    if bins > MOST_BINS:
        raise ValueError(f"bins: expected at most {MOST_BINS}, got {bins}")
    return bins


def gpu_obstacle_of(bins: int) -> str | None:
    """Why a GPU's kernels cannot serve so many, or ``None`` if they can."""
    if bins <= MOST_BINS_ON_A_GPU:
        return None
    return f"a GPU's kernels take splines of at most {MOST_BINS_ON_A_GPU} bins, this one has {bins}"


def settings_of(given: object) -> tuple[float, ...]:
    """Numbers."""
    try:
        return floats(given)
    except (TypeError, ValueError):
        raise ValueError(f"settings: expected numbers, got {given!r}") from None


def check_least(settings: Sequence[float], bins: int) -> None:
    """The least width, height and derivative, and the derivative at the ends, which come first."""
    if not all(m > 0 for m in settings[:4]) or max(settings[:2]) * bins > 1:
        raise ValueError(
            f"settings: expected a least width and height above 0 that {bins} bins can have, a least derivative and one of the "
            f"ends above 0, got {tuple(settings[:4])}"
        )


def names_of(**counts: int) -> tuple[str, ...]:
    """Of so many parameters of each kind."""
    return tuple(f"{part} {i}" for part, count in counts.items() for i in range(count))


def raw_derivative_of_one(least: float) -> float:
    """The number that becomes one by softplus, above the least derivative."""
    return math.log(math.expm1(1 - least))
