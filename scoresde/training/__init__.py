"""Training: the step, its settings, and `fit` for data in a tensor."""

from scoresde.training.fit import fit
from scoresde.training.trainer import Trainer, TrainingSettings

__all__ = ["Trainer", "TrainingSettings", "fit"]
