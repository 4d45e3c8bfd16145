"""Samplers that use a measurement themselves: they change the state, and leave the score as it is."""

from samplers.measured.ddrm import DDRM
from samplers.measured.replacement import RePaint, Replacement
from samplers.measured.split_gibbs import SplitGibbs

__all__ = ["DDRM", "RePaint", "Replacement", "SplitGibbs"]
