r"""The training step, and everything that a run must remember between two of them.

Every random choice is a function of (seed, step): batch k of epoch e is a slice of the permutation keyed by e, and the
times and noises of a step come from a generator keyed by the step. So a run that continues from step n needs no random
state to take the same course as one that was never stopped.
"""

from __future__ import annotations

import copy
import hashlib
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde.data.arrays import ArrayData
from scoresde.errors import UsageError, require
from scoresde.objective import DenoisingObjective
from scoresde.score_model import NetworkScoreModel


@final
@dataclass(frozen=True)
class TrainingSettings:
    """How to optimise: AdamW, linear warm-up, cosine decay, clipped gradients, an average of the weights."""

    num_steps: int = 3000
    batch_size: int = 64
    lr: float = 2e-3
    lr_final: float = 0.02  # the last learning rate, as a share of lr
    warmup_steps: int = 100
    weight_decay: float = 0.0
    grad_clip: float = 1.0  # largest norm of a gradient
    ema_decay: float = 0.995

    def __post_init__(self) -> None:
        for name, least in {"num_steps": 1, "batch_size": 1, "warmup_steps": 0, "weight_decay": 0}.items():
            require(getattr(self, name) >= least, f"training.{name}={getattr(self, name)}: need at least {least}")
        for name in ("lr", "grad_clip"):
            require(getattr(self, name) > 0, f"training.{name}={getattr(self, name)}: must be positive")
        require(self.lr < math.inf, f"training.lr={self.lr}: must be finite")
        require(0 <= self.lr_final <= 1, f"training.lr_final={self.lr_final}: need 0 <= lr_final <= 1")
        require(0 <= self.ema_decay < 1, f"training.ema_decay={self.ema_decay}: need 0 <= ema_decay < 1")

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, ...: up linearly over the warm-up, then down a half cosine to lr_final lr."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.lr * (self.lr_final + (1 - self.lr_final) * cosine)


def _seed(*key: int | str) -> int:
    """63 well-mixed bits of a key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@final
class Trainer:
    """A model in training.

    Attributes:
        model: the model whose weights are optimised.
        ema_model: the same with exponentially averaged weights; this is the one to sample from.
        step_number: steps taken.
    """

    def __init__(
        self,
        model: NetworkScoreModel,
        data: ArrayData,
        objective: DenoisingObjective,
        settings: TrainingSettings,
        seed: int = 0,
    ) -> None:
        require(data.shape == model.shape, f"data of shape {data.shape}: the model takes {model.shape}")
        self.model, self.objective, self.settings, self.seed = model.train(), objective, settings, seed
        self.device = next(model.parameters()).device
        self.data = data.to(self.device)
        self.ema_model = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        self.step_number = 0
        self._generator = torch.Generator(self.device)
        self._epoch, self._order = -1, torch.empty(0)
        self._record: list[Tensor] = []

    def step(self) -> None:
        """One step of the optimiser and of the average. Does not wait for the device."""
        n = self.step_number
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr_at(n)
        x_0, cond = self.data.batch(self._batch_index(n))
        loss = self.objective(self.model, x_0, cond, self._generator.manual_seed(_seed(self.seed, "step", n))).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        decay = min(self.settings.ema_decay, (1 + n) / (10 + n))  # Song et al.'s ramp
        with torch.no_grad():  # or the averages would remember every step
            torch._foreach_lerp_(list(self.ema_model.parameters()), list(self.model.parameters()), 1 - decay)
        self._record.append(torch.stack([loss.detach(), norm]))
        self.step_number = n + 1

    def pop_metrics(self) -> dict[str, float]:
        """Step, mean loss and gradient norm since the last call, and the learning rate; waits for the device."""
        loss, norm = torch.stack(self._record).mean(0).tolist()
        self._record.clear()
        if not math.isfinite(loss):
            raise UsageError(
                f"the loss is {loss} at step {self.step_number}: lower training.lr={self.settings.lr:g} "
                f"or training.grad_clip={self.settings.grad_clip:g}"
            )
        lr = self.settings.lr_at(self.step_number - 1)
        return {"step": self.step_number, "loss": loss, "lr": lr, "grad_norm": norm}

    @torch.no_grad()
    def held_out_loss(self, data: ArrayData, batch_size: int = 1000) -> float:
        """Loss of the averaged model on data that it was not trained on, at the same times and noises every time."""
        data, total = data.to(self.device), 0.0
        for first in range(0, len(data), batch_size):
            x_0, cond = data.batch(torch.arange(first, min(first + batch_size, len(data)), device=self.device))
            generator = torch.Generator(self.device).manual_seed(_seed("held out", first))
            total += self.objective(self.ema_model, x_0, cond, generator).sum().item()
        return total / len(data)

    def _batch_index(self, step: int) -> Tensor:
        """Which samples make the batch of a step: slices of a fresh permutation each epoch."""
        size = self.settings.batch_size
        per_epoch = max(1, len(self.data) // size)
        epoch, position = divmod(step, per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(_seed(self.seed, "epoch", epoch))
            repeats = -(-size // len(self.data))  # a batch larger than the data goes through it several times
            order = torch.cat([torch.randperm(len(self.data), generator=generator) for _ in range(repeats)])
            self._epoch, self._order = epoch, order.to(self.device)
        return self._order[position * size : (position + 1) * size]

    def state(self) -> dict[str, Tensor]:
        """All tensors of the run: weights, averaged weights, optimiser, metrics not yet popped, by name."""
        tensors = {f"weights.{name}": p for name, p in self.model.state_dict().items()}
        tensors |= {f"ema.{name}": p for name, p in self.ema_model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        if self._record:
            tensors["record"] = torch.stack(self._record)
        return tensors

    def load_state(self, step_number: int, tensors: dict[str, Tensor]) -> None:
        """Continues from what `state` gave after `step_number` steps.

        Raises:
            UsageError: for tensors of another model.
        """
        try:
            self.model.load_state_dict(_part(tensors, "weights."))
            self.ema_model.load_state_dict(_part(tensors, "ema."))
            moments = [_part(tensors, f"optimizer.{key}.") for key in ("step", "exp_avg", "exp_avg_sq")]
            for name, parameter in self.model.named_parameters():
                self.optimizer.state[parameter] = {
                    key: moment[name].to(torch.float32 if key == "step" else parameter.dtype).to(self.device)
                    for key, moment in zip(("step", "exp_avg", "exp_avg_sq"), moments, strict=True)
                }
        except (RuntimeError, KeyError) as error:
            first = str(error).splitlines()[-1].strip()
            raise UsageError(f"checkpoint: its tensors do not fit the model in training ({first})") from error
        self._record = list(tensors["record"].to(self.device)) if "record" in tensors else []
        self.step_number = step_number


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
