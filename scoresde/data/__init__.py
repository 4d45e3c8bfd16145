"""Data sources, and the map from raw values to the model's units and back."""

from scoresde.data.arrays import ArrayData, Scaling
from scoresde.data.choices import Choices
from scoresde.data.sources import load
from scoresde.data.toys import nine_modes

__all__ = ["ArrayData", "Choices", "Scaling", "load", "nine_modes"]
