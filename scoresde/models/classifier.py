r"""Classifiers of noisy samples: log p(y | x_t) at every noise level.

The gradient of log p(y | x_t) is what a score model lacks to be one of the class y (Bayes' rule):
`scoresde.guidance.ClassifierGuidance` adds it. The network sees x_t and the noise as a score network does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar, final

import torch
from torch import Tensor, nn

from scoresde.codec import Codec, Scaling
from scoresde.condition import Condition, describe
from scoresde.errors import UsageError, require
from scoresde.models.base import NetworkModel, plain_network
from scoresde.networks.classifiers import ClassifierNetwork
from scoresde.parametrization import Input, UnitVarianceInput
from scoresde.sde import SDE, Level

T = TypeVar("T")


@final
class NoisyClassifier(NetworkModel):
    """A network that tells the class of x_t at every noise level of an SDE: logits F(c_in x_t, c_noise).

    Args:
        network: called as `network(x, c_noise)` with x `(B, *shape)` and c_noise `(B,)`; returns logits
            `(B, num_classes)`.
        sde: the SDE under which it is trained.
        shape: shape of one sample, in the model's units.
        num_classes: classes that it tells apart, 0 .. num_classes - 1.
        sigma_data: standard deviation of the data over all entries, in the model's units.
        input: the network's view of x_t and of the noise.
        codec: the map from raw data to the model's units and back; the identity by default.

    Example:
        network = MLPClassifier(dim=2, num_classes=3)
        classifier = fit(NoisyClassifier(network, VPSDE(), (2,), 3), x, labels)
    """

    role = "classifier"

    def __init__(
        self,
        network: nn.Module,
        sde: SDE,
        shape: Sequence[int],
        num_classes: int,
        sigma_data: float = 1.0,
        input: Input = UnitVarianceInput(),  # noqa: B008  frozen
        codec: Codec = Scaling(),  # noqa: B008  frozen
    ) -> None:
        super().__init__(network, _frozen(sde), shape, _frozen(codec))
        require(
            type(num_classes) is int and num_classes >= 2,
            f"num_classes={num_classes}: a classifier tells at least two classes apart",
        )
        require(isinstance(input, Input), f"input={input!r}: need an Input, such as UnitVarianceInput()")
        require(sigma_data > 0, f"sigma_data={sigma_data}: must be positive; use the std of the data")
        inner = plain_network(network)
        known = inner.num_classes if isinstance(inner, ClassifierNetwork) else num_classes
        require(num_classes == known, f"num_classes={num_classes}: the network tells {known} classes apart")
        self.num_classes = num_classes
        self._sigma_data = float(sigma_data)
        self._input = input

    @property
    def sigma_data(self) -> float:
        return self._sigma_data

    @property
    def input(self) -> Input:
        return self._input

    def requires_grad_(self, requires_grad: bool = True) -> NoisyClassifier:
        """Trains the network or not. SDE and codec are those of the score model, and are never trained here."""
        self.network.requires_grad_(requires_grad)
        return self

    def with_network(self, network: nn.Module) -> NoisyClassifier:
        return NoisyClassifier(network, self.sde, self.shape, self.num_classes, self.sigma_data, self.input, self.codec)

    def logits(self, x_t: Tensor, level: Level) -> Tensor:
        """The logits `(B, num_classes)` of x_t `(B, *shape)` at a level of the classifier's SDE, in the type of x_t.

        Log p(y | x_t) is their `log_softmax(1)`.
        """
        x, c_noise = self.inputs(x_t, level)
        logits = self.network(x, c_noise)
        expected = (len(x_t), self.num_classes)
        if logits.shape != expected:
            raise UsageError(
                f"a network that returns {tuple(logits.shape)} for {len(x_t)} samples: need {expected}, one logit each "
                "class"
            )
        return logits.to(x_t.dtype)

    def under(self, sde: SDE) -> Callable[[Tensor, Level], Tensor]:
        """The function `logits` for states and levels of another SDE, exactly.

        At equal noise level x_t / alpha has the same law on every Gaussian path. Levels beyond the noise levels of this
        classifier's SDE are taken as its ends.
        """
        if sde == self.sde:
            return self.logits
        own = self.sde

        def logits(x_t: Tensor, level: Level) -> Tensor:
            original = own.level(own.time(level.log_snr).clamp(own.t_min, own.t_max))
            return self.logits(original.match_rank(x_t).alpha / level.match_rank(x_t).alpha * x_t, original)

        return logits

    def noise_range(self) -> tuple[float, float]:
        """The smallest and the largest noise level sigma / alpha at which it is trained."""
        largest, smallest = self.sde.span().noise_level.tolist()
        return smallest, largest

    def check_cond(self, cond: Condition) -> None:
        """Raises `UsageError` unless a condition is the classes of a batch."""
        need = f"a classifier needs labels 0..{self.num_classes - 1}, one a sample"
        if not isinstance(cond, Tensor) or cond.is_floating_point() or cond.dtype == torch.bool or cond.ndim != 1:
            raise UsageError(f"cond: {describe(cond)}; {need}")
        low, high = (end.item() for end in cond.long().aminmax())
        require(low >= 0 and high < self.num_classes, f"cond: labels from {low} to {high}; {need}")


def _frozen(part: T) -> T:
    """A part without weights as it is; of one with weights a copy that is not trained."""
    return copy.deepcopy(part).requires_grad_(False) if isinstance(part, nn.Module) else part
