r"""Features to the nearest of finitely many values.

The gradient passes a quantiser as if it were not there ("straight through"; Bengio et al. 2013). Two ways to choose the
values:

FiniteQuantizer   tanh bounds each channel, which is rounded to one of few evenly spaced levels. Nothing is learned, so
                  nothing can fall out of use (Mentzer et al. 2023, "Finite scalar quantization").
VectorQuantizer   the nearest vector of a learned codebook (van den Oord et al. 2017).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.errors import require


class Quantized(NamedTuple):
    """Features on their codes.

    Attributes:
        values: `(B, C, *sizes)`.
        codes: int64 `(B, *sizes)`.
        commitment: `(B,)`; None if nothing is learned.
    """

    values: Tensor
    codes: Tensor
    commitment: Tensor | None = None


class Quantizer(nn.Module, ABC):
    """A finite set of vectors of C numbers, and a map of features to them.

    Attributes:
        num_codes: how many there are.
    """

    num_codes: int

    @abstractmethod
    def forward(self, h: Tensor) -> Quantized:
        """What an encoder's features `(B, C, *sizes)` become."""

    @abstractmethod
    def nearest(self, z: Tensor) -> Tensor:
        """The nearest code at each place of z `(B, C, *sizes)`, in the same shape; a code is its own."""


@final
class FiniteQuantizer(Quantizer):
    """Channel c of h to the nearest of L = levels[c] values from -1 to 1 to tanh(h).

    They are 2 k / (L - 1) - 1 for k = 0 .. L - 1. A code is the number whose digits are the k, the first channel's the
    lowest.

    Args:
        levels: for each channel, at least 2.
    """

    top: Tensor
    worth: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        require(
            len(levels) > 0 and all(isinstance(level, int) and level >= 2 for level in levels),
            f"levels={levels}: need the number of values of each latent channel, at least 2, as in (8, 5, 5, 5)",
        )
        self.num_codes = math.prod(levels)
        require(self.num_codes < 2**62, f"levels={levels}: make 2**62 codes or more; take fewer")
        self.register_buffer("top", torch.tensor(levels) - 1, persistent=False)
        worth = torch.tensor([math.prod(levels[:channel]) for channel in range(len(levels))])
        self.register_buffer("worth", worth, persistent=False)

    def forward(self, h: Tensor) -> Quantized:
        bounded = h.tanh()
        steps = self._steps(bounded)
        codes = (steps.long() * _channels(self.worth, h)).sum(1)
        return Quantized(_straight_through(bounded, self._values(steps)), codes)

    def nearest(self, z: Tensor) -> Tensor:
        return _straight_through(z, self._values(self._steps(z)))

    def _steps(self, z: Tensor) -> Tensor:
        """k of the nearest values."""
        top = _channels(self.top, z)
        return ((z.detach() + 1) * (0.5 * top)).round().clamp(torch.zeros_like(top), top)

    def _values(self, steps: Tensor) -> Tensor:
        return 2 * steps / _channels(self.top, steps) - 1


@final
class VectorQuantizer(Quantizer):
    r"""The vectors h to the nearest e of a codebook.

    Its loss, a mean over the entries of a sample, moves codes to features and holds features to codes,

        commitment = mean |sg(h) - e|^2 + BETA mean |h - sg(e)|^2,

    sg the stop of gradients (van den Oord et al. 2017, equation 3, which has BETA before the second).

    A code that is hardly used any more is put close to one of those used most, on the line from there to where it was,
    so that they share its features from then on. How much each code is used, a running mean over the last WINDOW
    features a code, is a part of the state; so a restart depends on nothing else, neither on a batch nor on random
    numbers. Processes that train together use the mean of the first one. The mean is of training steps only.

    Args:
        num_codes: size of the codebook.
        channels: of a code.
    """

    BETA = 0.25
    WINDOW = 50
    UNUSED = 0.05  # of the even share: less is too little
    APART = 0.01  # of the distance to the most used code

    usage: Tensor

    def __init__(self, num_codes: int, channels: int) -> None:
        super().__init__()
        require(num_codes >= 2, f"codebook_size={num_codes}: need at least 2")
        self.num_codes = num_codes
        self.codebook = nn.Parameter(torch.randn(num_codes, channels))
        self.register_buffer("usage", torch.full((num_codes,), 1 / num_codes))

    def forward(self, h: Tensor) -> Quantized:
        learns = self.training and torch.is_grad_enabled()
        if learns:
            self._restart()
        h = h.to(self.codebook.dtype)
        codes = self._codes(h)
        values = F.embedding(codes, self.codebook).movedim(-1, 1)
        if learns:
            self._count(codes)
        codebook = (h.detach() - values).square().flatten(1).mean(1)
        encoder = (h - values.detach()).square().flatten(1).mean(1)
        return Quantized(_straight_through(h, values), codes, codebook + self.BETA * encoder)

    def nearest(self, z: Tensor) -> Tensor:
        return _straight_through(z, F.embedding(self._codes(z), self.codebook).movedim(-1, 1).to(z.dtype))

    @torch.no_grad()
    def _codes(self, h: Tensor) -> Tensor:
        rows = h.movedim(1, -1).to(self.codebook.dtype)
        distances = torch.cdist(rows.reshape(-1, rows.shape[-1]), self.codebook)
        return distances.argmin(1).view(rows.shape[:-1])

    @torch.no_grad()
    def _count(self, codes: Tensor) -> None:
        share = torch.bincount(codes.flatten(), minlength=self.num_codes).to(self.usage) / codes.numel()
        self.usage.lerp_(share, -math.expm1(-codes.numel() / (self.WINDOW * self.num_codes)))

    @torch.no_grad()
    def _restart(self) -> None:
        """Puts the unused codes beside the most used, one beside each."""
        even = 1 / self.num_codes
        unused = self.usage < self.UNUSED * even
        busiest = self.usage.argsort(descending=True, stable=True)
        partner = busiest[(unused.cumsum(0) - 1).clamp(min=0)]
        moves = unused & (self.usage[partner] > even)
        self.codebook.copy_(
            torch.where(moves[:, None], torch.lerp(self.codebook[partner], self.codebook, self.APART), self.codebook)
        )
        shared = torch.where(moves, self.usage[partner] / 2, self.usage)
        halved = torch.zeros_like(self.usage).index_add(0, partner, moves.to(self.usage)) > 0
        self.usage.copy_(torch.where(halved, self.usage / 2, shared))


def perplexity(codes: Tensor) -> float:
    """exp of the entropy of codes: how many would be used as often if all were used equally."""
    share = torch.bincount(codes.flatten()).double() / codes.numel()
    return torch.special.entr(share).sum().exp().item()


def _straight_through(h: Tensor, values: Tensor) -> Tensor:
    """The values, to the bit, with the gradient of h."""
    return values.detach() + (h - h.detach())


def _channels(numbers: Tensor, like: Tensor) -> Tensor:
    """One number a channel, in a shape that broadcasts over `(B, C, *sizes)`."""
    return numbers.view(-1, *[1] * (like.ndim - 2))
