"""Data sources, and the map from raw values to the model's units and back."""

from scoresde.data.arrays import ArrayData, Scaling
from scoresde.data.sources import load, nine_modes

__all__ = ["ArrayData", "Scaling", "load", "nine_modes"]
