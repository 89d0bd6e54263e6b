"""LSTMs over the diagonals of images."""

from __future__ import annotations

from functools import partial

from case import Case
from hypothesis import strategies as st

import flowkern as fk

from . import row_lstm

MIRRORED = {"mirrored": True}

CASE = Case(
    operator=fk.ops.diagonal_lstm,
    outputs=("h",),
    draw=partial(row_lstm.draw, taps=2),
    variations={**row_lstm.VARIATIONS, "mirrored": MIRRORED, "mirrored, wide": {"hidden": 24, "width": 9, **MIRRORED}},
    smooth={"typical": row_lstm.SMALL, "mirrored": {**row_lstm.SMALL, "width": 3, **MIRRORED}},
    any=lambda draw: {**row_lstm.any_variation(draw), "mirrored": draw(st.booleans())},
    large={"hidden": 8, **MIRRORED},
    shows=None,
    oracle=row_lstm.image_by_image(fk.reference.diagonal_lstm),
    bad=row_lstm.bad("2", 3),
)
