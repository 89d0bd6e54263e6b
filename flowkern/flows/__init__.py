"""Whole models."""

from flowkern.flows.base import StandardNormal
from flowkern.flows.flow import Flow, FlowDistribution
from flowkern.flows.iaf import IAF
from flowkern.flows.made import MADE
from flowkern.flows.maf import MAF

__all__ = ["IAF", "MADE", "MAF", "Flow", "FlowDistribution", "StandardNormal"]
