"""Inverse problems: models of p(x | y), made from a model of p(x)."""

from scoresde.inverse.base import MeasuredModel, PosteriorModel
from scoresde.inverse.diffpir import DiffPIR
from scoresde.inverse.dps import DPS
from scoresde.inverse.mmps import MMPS
from scoresde.inverse.pigdm import PiGDM

__all__ = ["DPS", "MMPS", "DiffPIR", "MeasuredModel", "PiGDM", "PosteriorModel"]
