"""Models that are stacks of transforms."""

from flowkern.flows.base import StandardNormal
from flowkern.flows.distribution import FlowDistribution
from flowkern.flows.flow import Flow
from flowkern.flows.iaf import IAF
from flowkern.flows.maf import MAF
from flowkern.flows.nsf import NSF

__all__ = ["IAF", "MAF", "NSF", "Flow", "FlowDistribution", "StandardNormal"]
