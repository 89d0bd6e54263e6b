"""Samples: the sweep over the levels."""

from masked_networks import case_of

CASE = case_of("autoregressive_inverse")
