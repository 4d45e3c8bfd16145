r"""The training step, and everything that a run must remember between two of them.

Every random choice is a function of (seed, step): batch k of epoch e is a slice of the permutation keyed by e, and the
times and noises of a step come from a generator keyed by the step. So a run that continues from step n needs no random
state to take the same course as one that was never stopped.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scoresde._shape import match_rank
from scoresde.data.arrays import ArrayData
from scoresde.errors import UsageError, require
from scoresde.objective import Objective
from scoresde.score_model import NetworkScoreModel
from scoresde.training.parallel import ALONE, World, share


class DivergedError(UsageError):
    """Training has met no finite gradient for too long."""


@final
@dataclass(frozen=True)
class TrainingOptions:
    """How to optimise: AdamW, linear warm-up, cosine decay, clipped gradients, an average of the weights."""

    num_steps: int = 3000
    batch_size: int = 64
    lr: float = 2e-3
    lr_final: float = 0.02  # the last learning rate, as a share of lr
    warmup_steps: int = 100
    weight_decay: float = 0.0
    grad_clip: float = 1.0  # largest norm of a gradient
    ema_decay: float = 0.995
    accumulate: int = 1  # parts that a batch is computed in, one after the other
    precision: Literal["float32", "bfloat16"] = "float32"  # of the network's arithmetic; weights stay float32
    flip: bool = False  # mirror half of the images of each batch
    dequantize: bool = False  # spread whole numbers evenly over their unit intervals, as densities need it
    max_bad_steps: int = 20  # steps in a row without a finite gradient before training counts as diverged
    on_divergence: Literal["stop", "rollback"] = "stop"  # to a checkpoint with half the learning rate (by the app)

    def __post_init__(self) -> None:
        counts = {"num_steps": 1, "batch_size": 1, "warmup_steps": 0, "accumulate": 1, "max_bad_steps": 1}
        for name, least in counts.items():
            value = getattr(self, name)
            whole = isinstance(value, Integral)
            require(
                whole and value >= least,
                f"training.{name}={value}: need at least {least}, a whole number",
            )
        require(
            0 <= self.weight_decay < math.inf,
            f"training.weight_decay={self.weight_decay}: need at least 0, and a finite number",
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
        objective: Objective,
        settings: TrainingOptions,
        seed: int = 0,
        world: World = ALONE,
    ) -> None:
        require(data.shape == model.shape, f"data of shape {data.shape}: the model takes {model.shape}")
        require(
            settings.batch_size % (world.size * settings.accumulate) == 0,
            f"training.batch_size={settings.batch_size}: must be a multiple of training.accumulate="
            f"{settings.accumulate} times the number of processes, {world.size}",
        )
        require(
            not (settings.dequantize and data.values.is_floating_point()),
            "training.dequantize=True: the data are floats, no whole numbers; set it to False",
        )
        _check_labels(data, model.network)
        if not any(p.requires_grad for p in model.parameters()):  # as of a model that was trained before
            model.requires_grad_(True)
        self.model, self.objective, self.settings, self.seed = model.train(), objective, settings, seed
        self.world = world
        self.device, self.dtype = next(model.parameters()).device, next(model.parameters()).dtype
        self.data = data.to(self.device)
        self.ema_model = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        self.step_number, self.lr_scale = 0, 1.0
        self._shared = model  # the same weights, with gradients averaged over the processes
        if world.size > 1:
            network = DistributedDataParallel(model.network)
            self._shared = NetworkScoreModel(network, model.sde, model.parametrization, model.shape)
        named = model.named_parameters()
        self._outside = [p for name, p in named if p.requires_grad and not name.startswith("network.")]  # of the path
        self._generator = torch.Generator(self.device)
        self._epoch, self._order = -1, torch.empty(0)
        self._record: list[Tensor] = []
        self._bad_run = torch.zeros((), device=self.device)

    def step(self) -> None:
        """One step of the optimiser and of the average. Does not wait for the device.

        A step whose gradient is not finite leaves weights and moments as they are: the fused optimiser skips it on the
        device, by the flag that gradient scalers use.
        """
        n = self.step_number
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(n)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(n)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        bad = (~norm.isfinite()).float()
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()
        decay = min(self.settings.ema_decay, (1 + n) / (10 + n))  # Song et al.'s ramp
        with torch.no_grad():  # or the averages would remember every step
            torch._foreach_lerp_(list(self.ema_model.parameters()), list(self.model.parameters()), 1 - decay)
            for average, buffer in zip(self.ema_model.buffers(), self.model.buffers(), strict=True):
                average.copy_(buffer)  # such as a batch norm's statistics, which are averages already
        self._bad_run = (self._bad_run + 1) * bad
        self._record.append(torch.stack([loss, norm.float(), bad]))
        self.step_number = n + 1

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: that of the settings, scaled down where training has diverged before."""
        return self.lr_scale * self.settings.lr_at(step)

    def _backward(self, step: int) -> Tensor:
        """Adds up the gradients of this process's share of the batch, part by part; returns its mean loss.

        Times, noises, flips, hidden labels and dequantisation are drawn for the whole batch, in this order: they are
        the same however the batch is divided, and whatever comes after them.
        """
        settings, mine = self.settings, self.world.share(self.settings.batch_size)
        generator = self._generator.manual_seed(_seed(self.seed, "step", step))
        shape = (settings.batch_size, *self.data.shape)
        t, eps = self.objective.draw(self.model.sde, shape, self.device, generator)
        t, eps = t.to(self.dtype), eps.to(self.dtype)
        x_0, cond = self.data.batch(self._batch_index(step)[mine], self.dtype)
        if settings.flip:
            flipped = (torch.rand(settings.batch_size, device=self.device, generator=generator) < 0.5)[mine]
            x_0 = torch.where(match_rank(flipped, x_0), x_0.flip(-1), x_0)
        network: Any = self.model.network
        label_dropout = getattr(network, "label_dropout", 0.0)  # a network of the user's own may have none
        if cond is not None and label_dropout > 0:
            hidden = torch.rand(settings.batch_size, device=self.device, generator=generator) < label_dropout
            cond = cond.masked_fill(hidden[mine], network.num_classes)
        if settings.dequantize:
            x_0 = x_0 + self._dequantization(settings.batch_size, generator)[mine]
        total = torch.zeros((), device=self.device)
        parts = [share(len(x_0), k, settings.accumulate) for k in range(settings.accumulate)]
        for part in parts:
            last = part is parts[-1]
            with self._without_exchange() if not last else contextlib.nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                    labels = None if cond is None else cond[part]
                    losses = self.objective.at(self._shared, x_0[part], t[mine][part], eps[mine][part], labels)
                loss = losses.sum() / len(x_0)
                loss.backward()
            total += loss.detach()
        for p in self._outside:  # the network's are averaged by DistributedDataParallel
            p.grad = self.world.mean(torch.zeros_like(p) if p.grad is None else p.grad)
        return total

    def _dequantization(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform numbers of plus or minus half a level, in the model's units, `(count, *shape)`."""
        u = torch.rand((count, *self.data.shape), device=self.device, generator=generator) - 0.5
        return self.data.scaling.change_to_model(u.to(self.dtype))

    def _without_exchange(self) -> contextlib.AbstractContextManager[None]:
        """While entered, gradients stay in this process."""
        network = self._shared.network
        return network.no_sync() if isinstance(network, DistributedDataParallel) else contextlib.nullcontext()

    def pop_metrics(self) -> dict[str, float | None]:
        """Step, mean loss and gradient norm since the last call (of finite steps), learning rate; waits for the device.

        Raises:
            DivergedError: after `max_bad_steps` steps in a row without a finite gradient.
        """
        record = self.world.mean(torch.stack(self._record))
        self._record.clear()
        good = record[record[:, 2] == 0]
        skipped, bad_run = len(record) - len(good), int(self._bad_run)
        if bad_run >= self.settings.max_bad_steps:
            raise DivergedError(
                f"the last {bad_run} steps before step {self.step_number} had no finite gradient: lower "
                f"training.lr={self.settings.lr:g} or training.grad_clip={self.settings.grad_clip:g}"
            )
        loss, norm = good[:, :2].mean(0).tolist() if len(good) else (None, None)
        lr = self.lr_at(self.step_number - 1)
        metrics = {"step": self.step_number, "loss": loss, "lr": lr, "grad_norm": norm}
        return metrics | ({"skipped": skipped} if skipped else {})

    @torch.no_grad()
    def held_out_loss(self, data: ArrayData, batch_size: int = 1000) -> float:
        """Loss of the averaged model on data that it was not trained on, at the same times and noises every time."""
        data, total = data.to(self.device), 0.0
        for first in range(0, len(data), batch_size):
            x_0, cond = data.batch(
                torch.arange(first, min(first + batch_size, len(data)), device=self.device), self.dtype
            )
            generator = torch.Generator(self.device).manual_seed(_seed("held out", first))
            if self.settings.dequantize:
                x_0 = x_0 + self._dequantization(len(x_0), generator)
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
            if self.device.type == "cuda":
                order = order.pin_memory()  # or the copy would wait for the device
            self._epoch, self._order = epoch, order.to(self.device, non_blocking=True)
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
        tensors["bad_run"], tensors["lr_scale"] = self._bad_run, torch.tensor(self.lr_scale, dtype=torch.float64)
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
        self._bad_run, self.lr_scale = tensors["bad_run"].to(self.device), tensors["lr_scale"].item()
        self.step_number = step_number


def _check_labels(data: ArrayData, network: nn.Module) -> None:
    """Raises `UsageError` for a label that a network does not know; on the device it would be an assertion."""
    num_classes = getattr(network, "num_classes", None)  # a network of the user's own may not tell
    if data.labels is not None and isinstance(num_classes, int):
        require(num_classes > 0, "labels: this network was made without classes (num_classes=0); leave them out")
        largest = int(data.labels.max())
        require(
            largest < num_classes,
            f"labels: the largest is {largest}, and this network knows 0..{num_classes - 1}; make it with more classes",
        )


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
