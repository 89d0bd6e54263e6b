"""The parameters of a masked network, without a map."""

from masked_networks import case_of

CASE = case_of("masked_mlp")
