r"""A dequantisation that is learned: q(u | x) from the number itself (Ho et al. 2019, section 3.1).

    u = sigmoid(mean(x) + scale(x) logit(v)) - 1/2,        v uniform,

a squeezed logistic distribution for each entry, mean and scale by a small network. At mean 0 and scale 1 it is the
uniform one, from where training starts; it minimises E[-log p(x + u) + log q(u | x)], with the variational bound in
place of log p, whose gradient costs one evaluation of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.data.arrays import ArrayData
from scoresde.errors import require
from scoresde.metrics.bits import Dequantization, dequantize
from scoresde.objective import VariationalObjective
from scoresde.score_model import NetworkScoreModel

WIDTH = 32
EDGE = 1e-6  # v stays this far from 0 and 1


@final
class VariationalDequantization(nn.Module, Dequantization):
    """Mean and scale from x, in the model's units, by two layers: convolutions for images `(C, H, W)`."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        image = len(shape) == 3
        require(image or len(shape) == 1, f"shape={shape}: need images (C, H, W) or vectors (D,)")
        first: nn.Module = nn.Conv2d(shape[0], WIDTH, 3, padding=1) if image else nn.Linear(shape[0], WIDTH)
        self.last = nn.Conv2d(WIDTH, 2 * shape[0], 3, padding=1) if image else nn.Linear(WIDTH, 2 * shape[0])
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]
        self.layers = nn.Sequential(first, nn.SiLU(), self.last)

    def draw(self, like: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        mean, log_scale = self.layers(like.to(self.last.weight.dtype)).chunk(2, 1)
        v = torch.rand(like.shape, device=like.device, generator=generator).clamp(EDGE, 1 - EDGE)
        z = mean + log_scale.exp() * torch.logit(v)
        log_q = v.log() + torch.log1p(-v) - log_scale - F.logsigmoid(z) - F.logsigmoid(-z)
        return (torch.sigmoid(z) - 0.5).to(like.dtype), log_q.flatten(1).double().sum(1)


def train_dequantization(
    model: NetworkScoreModel,
    data: ArrayData,
    num_steps: int = 1000,
    seed: int = 0,
    tell: Callable[[], None] = lambda: None,
) -> VariationalDequantization:
    """Learns q for a model that stays as it is.

    Args:
        model, data: for which model, from which whole numbers; labels are given to the model if it takes them.
        num_steps, seed: steps of the optimiser in batches of 64, and of all draws.
        tell: called after each step.
    """
    require(not data.values.is_floating_point(), "data: are floats, no whole numbers, and have nothing to dequantise")
    device, objective = model.like().device, VariationalObjective()
    conditional = getattr(model.network, "num_classes", 0) > 0
    generator = torch.Generator(device).manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        how = VariationalDequantization(data.shape).to(device)
    optimizer = torch.optim.Adam(how.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    order = torch.Generator().manual_seed(seed)
    with torch.enable_grad(), model.eval_mode():
        for _ in range(num_steps):
            x, labels = data.batch(torch.randint(len(data), (64,), generator=order))
            cond = labels.to(device) if conditional and labels is not None else None
            spread, log_q = dequantize(x.to(device), data.scaling, how, generator)
            loss = (objective(model, spread, cond, generator).double() + log_q / x[0].numel()).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(how.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            tell()
    return how.eval().requires_grad_(False)
