"""accelerate(): makes the models of other libraries fast, in place. One file per library."""

from flowkern.adapters.engine import Explanation, accelerate, explain, restore
from flowkern.adapters.freia import FREIA
from flowkern.adapters.library import Layer, Library, register
from flowkern.adapters.network import Linear, PeerNetwork, UnsupportedError
from flowkern.adapters.nflows import GLASFLOW, NFLOWS
from flowkern.adapters.normflows import NORMFLOWS
from flowkern.adapters.pyro import PYRO
from flowkern.adapters.sbi import SBI
from flowkern.adapters.wavenet_vocoder import WAVENET_VOCODER
from flowkern.adapters.zuko import ZUKO

for _library in (ZUKO, NFLOWS, GLASFLOW, NORMFLOWS, PYRO, FREIA, SBI, WAVENET_VOCODER):
    register(_library)

__all__ = [
    "Explanation",
    "Layer",
    "Library",
    "Linear",
    "PeerNetwork",
    "UnsupportedError",
    "accelerate",
    "explain",
    "register",
    "restore",
]
