"""Models that are stacks of transforms."""

from flowkern.flows.base import PartlyUniform, StandardLogistic, StandardNormal
from flowkern.flows.distribution import FlowDistribution
from flowkern.flows.flow import Flow
from flowkern.flows.glow import Glow
from flowkern.flows.iaf import IAF
from flowkern.flows.maf import MAF
from flowkern.flows.nice import NICE
from flowkern.flows.nsf import NSF
from flowkern.flows.real_nvp import RealNVP

__all__ = [
    "IAF",
    "MAF",
    "NICE",
    "NSF",
    "Flow",
    "FlowDistribution",
    "Glow",
    "PartlyUniform",
    "RealNVP",
    "StandardLogistic",
    "StandardNormal",
]
