"""Data sources, and the map from raw values to the model's units and back."""

from scoresde.data.arrays import ArrayData, Scaling
from scoresde.data.options import ReadOptions
from scoresde.data.sources import load
from scoresde.data.toys import nine_modes

__all__ = ["ArrayData", "ReadOptions", "Scaling", "load", "nine_modes"]
