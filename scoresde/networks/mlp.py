"""A residual multi-layer perceptron for vectors."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.networks.conditions import Takes
from scoresde.networks.embedding import Conditioning, LabelledNetwork


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulation = nn.Linear(width, 2 * width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, 1)
        inner = nn.functional.silu(self.inner(self.norm(h) * (1 + scale) + shift))
        return h + self.outer(inner)


class Trunk(nn.Module):
    """Residual blocks of `width` on vectors `(B, dim)`, modulated by the embedding: arguments of `MLP`."""

    def __init__(
        self,
        dim: int,
        width: int,
        depth: int,
        num_classes: int = 0,
        label_dropout: float = 0.0,
        vector_channels: int = 0,
    ) -> None:
        super().__init__()
        for name, value in {"dim": dim, "width": width, "depth": depth}.items():
            require(value >= 1, f"{name}={value} of {type(self).__name__}: need at least 1")
        self.dim = dim
        self.width = width
        self.depth = depth
        self.conditioning = Conditioning(width, Takes(num_classes, label_dropout, vector_channels=vector_channels))
        self.first = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def features(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The features of vectors, `(B, width)`."""
        h = self.first(x)
        for block in self.blocks:
            h = block(h, embedding)
        return nn.functional.silu(self.norm(h))


@final
class MLP(Trunk, LabelledNetwork):
    """Residual blocks of `width`, modulated by the noise and the condition; x has shape `(B, dim)`.

    Args:
        dim: size of a sample.
        width: number of features.
        depth: number of blocks.
        num_classes: classes to condition on; 0 for none.
        label_dropout: share of the conditions that training hides. Above 0 the network also works without: cond may be
            None, or hold the label num_classes, which stands for "none".
        learned_variance: give a second output, from which the variance of a reverse step follows.
        vector_channels: size of a vector to condition on; 0 for none.
    """

    def __init__(
        self,
        dim: int,
        width: int = 128,
        depth: int = 3,
        num_classes: int = 0,
        label_dropout: float = 0.0,
        learned_variance: bool = False,
        vector_channels: int = 0,
    ) -> None:
        super().__init__(dim, width, depth, num_classes, label_dropout, vector_channels)
        self.num_classes = num_classes
        self.label_dropout = label_dropout
        self.learned_variance = learned_variance
        self.vector_channels = vector_channels
        self.cond_dropout = label_dropout
        self.last = nn.Linear(width, 2 * dim if learned_variance else dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Condition = None) -> Tensor:
        return self.last(self.features(x, self.conditioning(c_noise, cond)))
