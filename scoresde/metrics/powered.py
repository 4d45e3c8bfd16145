"""How far samples are from the distribution that guidance is said to draw from, p(x)^(1-w) p(x|y)^w."""

from __future__ import annotations

import itertools
from typing import final

import torch
from torch import Tensor

from scoresde.errors import require
from scoresde.metrics.sliced import sliced_wasserstein
from scoresde.models.exact import ExactLabelledModel

SETS = 4  # of its own samples, with which others are compared


@final
class PoweredTarget:
    """p(x)^(1-w) p(x|y)^w of a known mixture in the plane, by its values on a square grid about the origin.

    Args:
        model: the mixture and its classes.
        label: the class y.
        weight: w.
        num_samples: how many samples are drawn of it; as many are to be compared with them.
        half_width: the grid reaches from -half_width to half_width, in data units; it must hold the distribution.
        points: of the grid along an axis.

    Attributes:
        axis: `(points,)`, the coordinates of the grid.
        log_prob: `(points, points)`, the normalised log density in nats at (axis_i, axis_j).
        samples: `(num_samples, 2)`, draws of it.
        floor: the mean distance of two sets of its own samples: no sampler comes closer on average.

    Raises:
        UsageError: for a mixture that is not of points in the plane.
    """

    def __init__(
        self,
        model: ExactLabelledModel,
        label: int,
        weight: float,
        num_samples: int,
        *,
        half_width: float = 4.5,
        points: int = 1201,
    ) -> None:
        require(model.shape == (2,), f"model of samples of shape {model.shape}: need points in the plane, (2,)")
        exact = model.to("cpu", torch.float64)
        self.axis = torch.linspace(-half_width, half_width, points, dtype=torch.float64)
        self._places = torch.cartesian_prod(self.axis, self.axis)
        one = torch.ones((), dtype=torch.float64)
        own, whole = (t.log_prob(self._places, one, 0 * one) for t in (exact.targets[label], exact.mixture))
        self._shares = ((1 - weight) * whole + weight * own).log_softmax(0)
        cell = self.axis[1] - self.axis[0]
        self.log_prob = (self._shares - 2 * cell.log()).reshape(points, points)
        self._sets = [self.draw(num_samples, seed) for seed in range(1, SETS + 1)]
        self.samples = self._sets[0]
        pairs = [sliced_wasserstein(*pair) for pair in itertools.combinations(self._sets, 2)]
        self.floor = sum(pairs) / len(pairs)

    def draw(self, num_samples: int, seed: int) -> Tensor:
        """Samples, `(num_samples, 2)`: cells of the grid by their shares, and a place in the cell."""
        generator = torch.Generator().manual_seed(seed)
        cell = torch.multinomial(self._shares.exp(), num_samples, True, generator=generator)
        place = torch.rand(num_samples, 2, generator=generator, dtype=torch.float64) - 0.5
        return self._places[cell] + place * (self.axis[1] - self.axis[0])

    def distance(self, x: Tensor) -> float:
        """The sliced Wasserstein-2 distance of samples to the target, a mean over sets, as a multiple of the floor."""
        return sum(sliced_wasserstein(x, other) for other in self._sets) / (SETS * self.floor)
