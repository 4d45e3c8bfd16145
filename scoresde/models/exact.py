"""Models of known distributions: no network, no error."""

from __future__ import annotations

import contextlib
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde import condition
from scoresde.condition import Condition
from scoresde.errors import UsageError, require
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE, Level
from scoresde.targets import GaussianMixture, Target


@final
class ExactScoreModel(ScoreModel):
    """The true score of a known distribution: no network, no error."""

    def __init__(self, target: Target, sde: SDE) -> None:
        self.target = target
        self.sde = sde
        self.shape = target.shape

    @property
    def sigma_data(self) -> float:
        return self.target.sigma_data

    @property
    def device(self) -> torch.device:
        return self.target.device

    @property
    def dtype(self) -> torch.dtype:
        return self.target.dtype

    def denoise_at(self, x_t: Tensor, level: Level, cond: Condition = None) -> Tensor:
        self._check_shape(x_t)
        self.check_cond(cond)
        return self.target.denoise(x_t, level.alpha, level.sigma)

    def check_cond(self, cond: Condition) -> None:
        if cond is not None:
            raise UsageError("cond: an exact model of one distribution takes none; leave it out")

    def null_cond(self, cond: Condition, hidden: Tensor) -> Condition:
        return None

    def eval_mode(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ExactScoreModel:
        return ExactScoreModel(self.target.to(device, dtype), self.sde)


@final
class ExactLabelledModel(ScoreModel):
    """The true score of a Gaussian mixture with labels: given the class of a sample, or not given.

    Labels are 0 .. num_classes - 1; num_classes, or no condition, stands for none.

    Args:
        mixture: the distribution p(x).
        classes: `(K,)` the class of each component.
        sde: the SDE.
    """

    def __init__(self, mixture: GaussianMixture, classes: Tensor, sde: SDE) -> None:
        require(
            classes.shape == mixture.weights.shape and not classes.is_floating_point(),
            f"classes of shape {tuple(classes.shape)}: need one whole number for each of {len(mixture.weights)} "
            "components",
        )
        self.mixture = mixture
        self.classes = classes
        self.sde = sde
        self.shape = mixture.shape
        self.num_classes = int(classes.max()) + 1
        groups = [classes == y for y in range(self.num_classes)]
        require(all(bool(group.any()) for group in groups), "classes: each of 0 .. max must have a component")
        self.targets = [mixture.components(group) for group in groups]
        self.probabilities = torch.stack([mixture.weights[group].sum() for group in groups])

    @property
    def sigma_data(self) -> float:
        return self.mixture.sigma_data

    @property
    def device(self) -> torch.device:
        return self.mixture.device

    @property
    def dtype(self) -> torch.dtype:
        return self.mixture.dtype

    def log_posterior(self, x_t: Tensor, level: Level) -> Tensor:
        """log p(y | x_t) at a level, `(B, K)`: what a perfect noise-conditional classifier gives."""
        likelihood = [target.log_prob(x_t, level.alpha, level.sigma) for target in self.targets]
        return (torch.stack(likelihood, 1) + self.probabilities.log()).log_softmax(1)

    def denoise_at(self, x_t: Tensor, level: Level, cond: Condition = None) -> Tensor:
        self._check_shape(x_t)
        each = torch.stack([target.denoise(x_t, level.alpha, level.sigma) for target in self.targets], 1)  # (B, K, *)
        shares = self.log_posterior(x_t, level).exp()
        if isinstance(cond, Tensor):
            labels = cond.long()
            one_hot = F.one_hot(labels, self.num_classes + 1)[:, :-1].to(shares)
            shares = torch.where((labels < self.num_classes)[:, None], one_hot, shares)
        return (each * shares.reshape(*shares.shape, *[1] * len(self.shape))).sum(1)

    def check_cond(self, cond: Condition) -> None:
        if cond is None:
            return
        need = f"need labels 0..{self.num_classes - 1}, one a sample; {self.num_classes} stands for none"
        if not isinstance(cond, Tensor) or cond.is_floating_point() or cond.ndim != 1:
            raise UsageError(f"cond: {condition.describe(cond)}; {need}")
        require(bool(((cond >= 0) & (cond <= self.num_classes)).all()), f"cond: labels {cond.tolist()}; {need}")

    def null_cond(self, cond: Condition, hidden: Tensor) -> Condition:
        none = torch.full_like(hidden, self.num_classes, dtype=torch.long)
        return torch.where(hidden, none, cond.long()) if isinstance(cond, Tensor) else none

    def eval_mode(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ExactLabelledModel:
        return ExactLabelledModel(self.mixture.to(device, dtype), self.classes.to(device), self.sde)
