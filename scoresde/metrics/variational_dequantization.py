r"""A learned dequantisation: q(u | x) depends on the data (Ho et al. 2019, section 3.1).

    u = sigmoid(mean(x) + scale(x) logit(v)) - 1/2,        v uniform,

a logistic distribution squeezed into the interval, for each entry, with mean and scale from a small network. Mean 0 and
scale 1 give the uniform distribution, from which training starts. Training minimises E[-log p(x + u) + log q(u | x)]
with the variational bound in place of log p, so that a gradient costs one evaluation of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde import condition
from scoresde._batches import batches, choose_batch_size
from scoresde.codec import Scaling
from scoresde.data.arrays import ArrayData
from scoresde.errors import require
from scoresde.metrics.bits import Dequantization
from scoresde.models.network import NetworkScoreModel
from scoresde.noise import BatchNoise
from scoresde.objective import VariationalObjective

WIDTH = 32
BATCH = 64
EDGE = 1e-6  # v stays this far from 0 and 1


@final
class VariationalDequantization(nn.Module, Dequantization):
    """Mean and scale from x, in the model's units, by two layers: convolutions for images, linear ones for vectors."""

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
    on_step: Callable[[], None] = lambda: None,
    batch_size: int | None = None,
) -> VariationalDequantization:
    """Learns q for a model, whose weights are not changed.

    Args:
        model: the model.
        data: integer data and its conditions.
        num_steps: steps of the optimiser, in batches of 64.
        seed: seed of the initial weights and of all draws.
        on_step: called after each step.
        batch_size: samples of a step that are differentiated at a time; by default as many as need little memory.
    """
    require(not data.values.is_floating_point(), "data: are floats, not whole numbers, and have nothing to dequantise")
    require(
        isinstance(model.codec, Scaling),
        f"codec={type(model.codec).__name__}: bits of whole numbers need a Scaling of the data",
    )
    model.check_cond(data.conditions(slice(None)))
    device = model.device
    size = choose_batch_size(batch_size, model.shape, device, graphs=1)
    objective = VariationalObjective()
    generator = torch.Generator(device).manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        how = VariationalDequantization(model.shape).to(device)
    optimizer = torch.optim.Adam(how.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    order = torch.Generator().manual_seed(seed)
    with torch.enable_grad(), model.eval_mode():
        for step in range(num_steps):
            index = torch.randint(len(data), (BATCH,), generator=order)
            optimizer.zero_grad()
            for part in batches(BATCH, size):
                raw = data.values[index[part]].to(device)
                cond = condition.to(data.conditions(index[part]), device)
                u, log_q = how.draw(model.codec.encode(raw), generator)
                places = torch.arange(part.start, part.stop, device=device)
                bound = objective(model, raw + u, cond, BatchNoise(seed, step, BATCH, places))
                loss = (bound.double() + log_q / u[0].numel()).sum() / BATCH
                loss.backward()
            nn.utils.clip_grad_norm_(how.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            on_step()
    return how.eval().requires_grad_(False)
