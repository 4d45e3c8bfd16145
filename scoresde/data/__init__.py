"""Data: sources, readers, and arrays in memory."""

from scoresde.data.arrays import ArrayData
from scoresde.data.options import ReadOptions
from scoresde.data.sources import load
from scoresde.data.toys import labelled_mixture, nine_modes

__all__ = ["ArrayData", "ReadOptions", "labelled_mixture", "load", "nine_modes"]
