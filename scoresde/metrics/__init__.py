"""Numbers that say how good samples are."""

from scoresde.metrics.frechet import frechet_distance

__all__ = ["frechet_distance"]
