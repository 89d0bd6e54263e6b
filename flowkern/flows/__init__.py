"""Models that are stacks of transforms."""

from flowkern.flows.base import StandardNormal
from flowkern.flows.distribution import FlowDistribution
from flowkern.flows.flow import Flow
from flowkern.flows.iaf import IAF
from flowkern.flows.maf import MAF

__all__ = ["IAF", "MAF", "Flow", "FlowDistribution", "StandardNormal"]
