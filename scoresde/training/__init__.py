"""Training: the step, its options, batches, averages, and `fit` for data in a tensor."""

from scoresde.training.average import Average
from scoresde.training.batches import ArrayBatches, Batches, Prefetched
from scoresde.training.fit import fit
from scoresde.training.options import TrainingOptions
from scoresde.training.parallel import World, join_world, leave_world
from scoresde.training.snapshots import reconstruct, save_snapshot
from scoresde.training.trainer import DivergedError, Trainer

__all__ = [
    "ArrayBatches",
    "Average",
    "Batches",
    "DivergedError",
    "Prefetched",
    "Trainer",
    "TrainingOptions",
    "World",
    "fit",
    "join_world",
    "leave_world",
    "reconstruct",
    "save_snapshot",
]
