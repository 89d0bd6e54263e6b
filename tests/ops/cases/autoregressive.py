"""Densities: a masked network and the map on top."""

from masked_networks import case_of

CASE = case_of("autoregressive")
