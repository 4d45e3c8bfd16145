"""Options of the optimisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, final

from scoresde.errors import require
from scoresde.training.power import LONGEST


@final
@dataclass(frozen=True)
class TrainingOptions:
    """AdamW, linear warm-up, cosine decay, clipped gradients, an average of the weights."""

    num_steps: int = 3000
    batch_size: int = 64
    lr: float = 2e-3
    lr_final: float = 0.02  # the last learning rate, as a share of lr
    warmup_steps: int = 100
    weight_decay: float = 0.0
    grad_clip: float = 1.0  # largest norm of a gradient
    ema_decay: float = 0.995
    ema_lengths: tuple[float, ...] = ()  # of averages with power profiles that are kept as well: `training.power`
    accumulate: int = 1  # micro-batches that a batch is computed in, one after the other
    precision: Literal["float32", "bfloat16"] = "float32"  # of the network's arithmetic; weights stay float32
    compile: bool = False  # the network, by torch.compile
    cuda_graph: bool = False  # with compile, on CUDA: launch the network's kernels all at once
    tf32: bool = False  # on CUDA: products of float32 in TF32
    channels_last: bool = False  # of images: weights of convolutions with the channels last
    flip: bool = False  # mirror half of the images of each batch
    dequantize: bool = False  # spread whole numbers evenly over their unit intervals, as densities require
    shard: bool = False  # with several processes: each holds a part of the weights, not all of them
    max_bad_steps: int = 20  # steps in a row without a finite gradient after which training counts as diverged
    on_divergence: Literal["stop", "rollback"] = "stop"  # rollback, by the app: to a checkpoint, with half the lr

    def __post_init__(self) -> None:
        counts = {"num_steps": 1, "batch_size": 1, "warmup_steps": 0, "accumulate": 1, "max_bad_steps": 1}
        for name, smallest in counts.items():
            value = getattr(self, name)
            whole = isinstance(value, Integral)
            require(whole and value >= smallest, f"training.{name}={value}: need a whole number of at least {smallest}")
        require(
            0 <= self.weight_decay < math.inf,
            f"training.weight_decay={self.weight_decay}: need a finite number of at least 0",
        )
        for name in ("lr", "grad_clip"):
            require(getattr(self, name) > 0, f"training.{name}={getattr(self, name)}: must be positive")
        require(self.lr < math.inf, f"training.lr={self.lr}: must be finite")
        require(0 <= self.lr_final <= 1, f"training.lr_final={self.lr_final}: need 0 <= lr_final <= 1")
        require(
            self.precision in ("float32", "bfloat16"),
            f"training.precision={self.precision!r}: need 'float32' or 'bfloat16'",
        )
        require(
            self.on_divergence in ("stop", "rollback"),
            f"training.on_divergence={self.on_divergence!r}: need 'stop' or 'rollback'",
        )
        self._check_lengths()
        require(0 <= self.ema_decay < 1, f"training.ema_decay={self.ema_decay}: need 0 <= ema_decay < 1")

    def _check_lengths(self) -> None:
        lengths = self.ema_lengths
        fits = all(isinstance(length, Real) and 0 < length <= LONGEST for length in lengths)
        require(
            fits and len(set(lengths)) == len(lengths),
            f"training.ema_lengths={lengths}: need numbers above 0 and up to {LONGEST:.4f}, no two equal, such as "
            "(0.05, 0.1), or () for none",
        )

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, ...: linear over the warm-up, then half a cosine down to lr_final * lr."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.lr * (self.lr_final + (1 - self.lr_final) * cosine)
