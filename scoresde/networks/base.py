"""The contract between a network and a model."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from scoresde.condition import Condition


class Network(nn.Module, ABC):
    """A network that knows which conditions it takes.

    Any `torch.nn.Module` with this `forward` can be used. The conditions of a `Network` are checked, can be hidden in
    training, and can be guided. If its class is registered (`scoresde.register`), a file can describe it; the class
    must then keep its constructor's arguments as attributes of the same names.

    Attributes:
        cond_dropout: share of the conditions that training hides; 0 if there is no null condition.
        learned_variance: whether `forward` returns `(B, 2C, *)` for x `(B, C, *)`: F, and behind it what the variance
            of a reverse step follows from (`scoresde.reverse`), v = (second half + 1) / 2.
    """

    cond_dropout: float
    learned_variance: bool = False

    @abstractmethod
    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        """F(x, c_noise, cond), and the second output behind it, if there is one.

        Args:
            x: the scaled state `(B, *shape)`, in the network's type.
            c_noise: the noise label `(B,)`; float32, or float64 for a float64 network.
            cond: the condition, or None.
        """

    @abstractmethod
    def check_cond(self, cond: Condition) -> None:
        """Raises `UsageError` for conditions that the network does not take; on a GPU they could crash the process."""

    @abstractmethod
    def null_cond(self, cond: Condition, hidden: Tensor) -> Condition:
        """The condition with "none" in place of that of some samples.

        Args:
            cond: the conditions of a batch.
            hidden: `(B,)` booleans, True for the samples whose condition is hidden.

        Raises:
            UsageError: if the network was made without a null condition.
        """
