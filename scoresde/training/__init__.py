"""Training: the step, its settings, and `fit` for data in a tensor."""

from scoresde.training.fit import fit
from scoresde.training.parallel import World, join_world, leave_world
from scoresde.training.trainer import DivergedError, Trainer, TrainingOptions

__all__ = ["DivergedError", "Trainer", "TrainingOptions", "World", "fit", "join_world", "leave_world"]
