"""Training: the step, its settings, and `fit` for data in a tensor."""

from scoresde.training.fit import fit
from scoresde.training.trainer import DivergedError, Trainer, TrainingSettings
from scoresde.training.world import World, join_world, leave_world

__all__ = ["DivergedError", "Trainer", "TrainingSettings", "World", "fit", "join_world", "leave_world"]
