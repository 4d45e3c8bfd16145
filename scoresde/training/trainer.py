r"""The training step, and everything that a run must remember between steps.

Every random choice is a function of (seed, step, place in the batch): `Batches` gives the samples of a step, and
`BatchNoise` their times, noises and augmentations. So a run resumed at step n continues as if it had never stopped,
without a saved random state, and each process computes only its own share of the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Generic, final

import torch
from torch import Tensor

from scoresde import condition
from scoresde._batches import batches, choose_batch_size
from scoresde._shape import match_rank
from scoresde.codec import WIDE
from scoresde.data.arrays import ArrayData
from scoresde.errors import UsageError, require
from scoresde.models.base import NetworkModel, TrainedModel, plain_network
from scoresde.models.latent_codec import Encoded
from scoresde.models.network import NetworkScoreModel
from scoresde.noise import BatchNoise, key_of
from scoresde.objective import Batch, Model, Objective
from scoresde.score_model import warn_of_scale
from scoresde.training.average import Average
from scoresde.training.batches import Batches, batches_of
from scoresde.training.options import TrainingOptions
from scoresde.training.parallel import ALONE, Alone, Parallel, Replicated, Sharded, World, share
from scoresde.training.power import gamma_of, power_decay
from scoresde.training.refusals import refusal
from scoresde.training.speed import fast_products, prepared

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of a parameter


class DivergedError(UsageError):
    """Training has gone too many steps without a finite gradient."""


@final
class Trainer(Generic[Model]):
    """A model in training.

    Attributes:
        model: the model whose weights are optimised.
        average: the exponential average of its weights, from which to sample.
        powers: by length, the averages with the power profiles of `options.ema_lengths`.
        step_number: number of steps taken.

    Args:
        model: the model; it is trained in place, on its device and in its type.
        data: the source of batches; a data set in memory may be given as it is.
        objective: the loss.
        options: options of the optimisation.
        seed: seed of batches, times and noises.
        world: the processes that train together.
    """

    def __init__(
        self,
        model: Model,
        data: Batches | ArrayData,
        objective: Objective[Model],
        options: TrainingOptions,
        seed: int = 0,
        world: World = ALONE,
    ) -> None:
        require(
            isinstance(model, objective.trains),
            f"objective={type(objective).__name__}: trains a {objective.trains.__name__}, and the model is a "
            f"{type(model).__name__}",
        )
        source = batches_of(data, options.batch_size, seed) if isinstance(data, ArrayData) else data
        source.check(model)
        require(
            options.batch_size % (world.size * options.accumulate) == 0,
            f"training.batch_size={options.batch_size}: must be a multiple of training.accumulate="
            f"{options.accumulate} times the number of processes, {world.size}",
        )
        require(
            source.quantized or not options.dequantize,
            "training.dequantize=True: the data are floats, not whole numbers; set it to False",
        )
        require(
            not options.flip or len(source.raw_shape) == 3,
            f"training.flip=True: mirrors images, and the data have shape {source.raw_shape}; set it to False",
        )
        require(
            objective.learns_variance or not (isinstance(model, NetworkScoreModel) and model.learned_variance),
            f"objective {type(objective).__name__}: does not train the network's second output; take HybridObjective, "
            "or a network with learned_variance=False",
        )
        if isinstance(model, NetworkModel):
            warn_of_scale(model.sde, model.sigma_data)
        if not any(p.requires_grad for p in model.parameters()):  # such as a model that `fit` returned
            model.requires_grad_(True)
        model.train()
        self.model = model
        self.batches = source
        self.objective = objective
        self.options = options
        self.seed = seed
        self.world = world
        self.device = model.device
        ready = prepared(model, options, world)
        self.parallel = _parallel(model, options, world)
        self.average = Average(model)
        self.powers = {length: Average(model) for length in options.ema_lengths}
        self._groups = self.parallel.groups(model)
        self.optimizer = torch.optim.AdamW(
            [{"params": group} for group in self._groups], lr=options.lr, weight_decay=options.weight_decay, fused=True
        )
        self.step_number = 0
        self.lr_scale = 1.0
        self._wrapped = self.parallel.wrap(ready)
        network = {id(p) for p in model.network.parameters()}
        self._outside = [p for p in model.parameters() if p.requires_grad and id(p) not in network]
        self._record: list[Tensor] = []
        self._bad_run = torch.zeros((), device=self.device)

    def step(self) -> None:
        """Takes one step of the optimiser and of the average. Does not wait for the device.

        A step whose gradient is not finite leaves weights and moments as they are: the fused optimiser skips it on the
        device, through the flag that gradient scalers use.

        Raises:
            UsageError: if memory does not suffice, or the network cannot be compiled.
        """
        with self._within_limits(), fast_products(self.options, self.device), self._keyed():
            self._step()

    @contextlib.contextmanager
    def _keyed(self) -> Iterator[None]:
        """While entered, torch's own random state, from which dropout draws, is a function of seed, step, process."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(key_of(self.seed, "step", self.step_number, self.world.rank))
            yield

    @contextlib.contextmanager
    def _within_limits(self) -> Iterator[None]:
        """While entered, what the machine refuses is a `UsageError` that says what to do."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            said = refusal(error, self.options, self.world, plain_network(self.model.network), self.device)
            if said is None:
                raise
            raise UsageError(said) from error

    def _step(self) -> None:
        n = self.step_number
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(n)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(n)
        norm = self._clip()
        bad = (~norm.isfinite()).float()
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()
        self.average.update(min(self.options.ema_decay, (1 + n) / (10 + n)))  # Song et al.'s ramp
        for length, power in self.powers.items():
            power.update(power_decay(gamma_of(length), n + 1))
        self._bad_run = (self._bad_run + 1) * bad
        self._record.append(torch.stack([loss, norm.float(), bad]))
        self.step_number = n + 1

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: that of the options, times `lr_scale`."""
        return self.lr_scale * self.options.lr_at(step)

    def _backward(self, step: int) -> Tensor:
        """Accumulates the gradients of this process's share of the batch; returns its mean loss."""
        options = self.options
        mine = self.world.share(options.batch_size)
        places = torch.arange(mine.start, mine.stop, device=self.device)
        noise = BatchNoise(self.seed, step, options.batch_size, places)
        batch = self.batches.batch(step, mine, self.device)
        require(
            len(batch.raw) == len(places),
            f"{type(self.batches).__name__}.batch: returned {len(batch.raw)} samples, and was asked for {len(places)}",
        )
        condition.check_count(batch.cond, len(places))
        batch = self._augmented(batch, noise)
        draws = self.objective.draw(self.model, batch, noise)
        total = torch.zeros((), device=self.device)
        count = len(batch.raw)
        for k in range(options.accumulate):
            micro = share(count, k, options.accumulate)
            part = Batch(batch.raw[micro], condition.take(batch.cond, micro))
            with self.parallel.exchange(self._wrapped, last=k + 1 == options.accumulate):
                losses = self._losses(part, {name: values[micro] for name, values in draws.items()})
                loss = losses.sum() / count
                loss.backward()
            total += loss.detach()
        for p in self._outside:  # the network's gradients are averaged by `parallel`
            p.grad = self.world.mean(torch.zeros_like(p) if p.grad is None else p.grad)
        return total

    def _clip(self) -> Tensor:
        """Scales the gradients so that their norm is at most `grad_clip`; returns the norm that they had."""
        grads = [[p.grad for p in group if p.grad is not None] for group in self._groups]
        norms = [self.parallel.whole(torch.nn.utils.get_total_norm(some)) for some in grads]
        norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
        for group in self._groups:
            torch.nn.utils.clip_grads_with_norm_(group, self.options.grad_clip, norm)
        return norm

    def _losses(self, batch: Batch, draws: Mapping[str, Tensor]) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bfloat16"):
            return self.objective.at(self._wrapped, batch, draws, lambda: self.average.applied(self.model))

    def _augmented(self, batch: Batch, noise: BatchNoise) -> Batch:
        """The batch after flips and dequantisation as the options say, and with some conditions hidden."""
        raw, cond = batch
        if self.options.flip:
            flipped = noise.uniform("flips") < 0.5
            raw = _mirrored(raw, flipped)
            image = cond.get("image") if isinstance(cond, Mapping) else None
            if isinstance(cond, Mapping) and isinstance(image, Tensor):
                cond = {**cond, "image": _mirrored(image, flipped)}
        if self.options.dequantize:
            raw = _dequantized(raw, noise)
        raw = self._spread(raw, noise)
        network = self.model.contract()
        if cond is not None and network is not None and network.cond_dropout > 0:
            cond = network.null_cond(cond, noise.uniform("hidden conditions") < network.cond_dropout)
        return Batch(raw, cond)

    def _spread(self, raw: Tensor, noise: BatchNoise) -> Tensor:
        """Samples that are known by mean and deviation, drawn; others as they are."""
        codec = self.model.codec
        return codec.draw(raw, noise.normal("latents", self.model.shape)) if isinstance(codec, Encoded) else raw

    def pop_metrics(self) -> dict[str, float | None]:
        """Step, learning rate, and means of loss and gradient norm over the finite steps since the last call.

        Waits for the device.

        Raises:
            DivergedError: after `max_bad_steps` steps in a row without a finite gradient.
        """
        record = self.world.mean(torch.stack(self._record))
        self._record.clear()
        good = record[record[:, 2] == 0]
        skipped = len(record) - len(good)
        bad_run = int(self._bad_run)
        if bad_run >= self.options.max_bad_steps:
            raise DivergedError(
                f"the last {bad_run} steps before step {self.step_number} had no finite gradient: lower "
                f"training.lr={self.options.lr:g} or training.grad_clip={self.options.grad_clip:g}"
            )
        loss, norm = good[:, :2].mean(0).tolist() if len(good) else (None, None)
        lr = self.lr_at(self.step_number - 1)
        metrics = {"step": self.step_number, "loss": loss, "lr": lr, "grad_norm": norm}
        return metrics | ({"skipped": skipped} if skipped else {})

    @torch.no_grad()
    def held_out_loss(self, data: ArrayData) -> float:
        """Loss of the averaged weights on held-out data, with the same times and noises at every call.

        Its batches need no more memory than a step of training.
        """
        trained = self.options.batch_size // (self.world.size * self.options.accumulate)
        size = choose_batch_size(None, self.model.shape, self.device, trained=trained)
        total = 0.0
        with self._within_limits(), self.average.applied(self.model):
            for part in batches(len(data), size):
                noise = BatchNoise(0, 0, len(data), torch.arange(part.start, part.stop, device=self.device))
                raw = data.values[part].to(self.device)
                if self.options.dequantize:
                    raw = _dequantized(raw, noise)
                raw = self._spread(raw, noise)
                cond = condition.to(data.conditions(part), self.device)
                total += self.objective(self.model, raw, cond, noise).sum().item()
        return total / len(data)

    def state(self) -> dict[str, Tensor]:
        """All tensors of the run by name: weights, averages, optimiser, metrics not yet popped.

        They are the run's own where a process holds them whole, and change with the next step.

        To be called in every process, because weights may be sharded.
        """
        role = self.model.role
        average = self.average.tensors
        moments = self.optimizer.state
        tensors = {}
        for name, value in self.model.state_dict().items():
            tensors[f"weights.{role}.{name}"] = value
            tensors[f"ema.{role}.{name}"] = average[name]
        for name, parameter in self.model.named_parameters():
            for key, value in moments[parameter].items():
                tensors[f"optimizer.{key}.{role}.{name}"] = value
        tensors = {name: self.parallel.whole(value) for name, value in tensors.items()} | self.power_state()
        if self._record:
            tensors["record"] = self.world.mean(torch.stack(self._record))
        tensors["bad_run"] = self._bad_run
        tensors["lr_scale"] = torch.tensor(self.lr_scale, dtype=torch.float64)
        return tensors

    def power_state(self) -> dict[str, Tensor]:
        """The tensors of the averages with power profiles, by name; to be called in every process."""
        role = self.model.role
        return {
            f"power{i}.{role}.{name}": self.parallel.whole(average.tensors[name])
            for i, average in enumerate(self.powers.values())
            for name in self.model.state_dict()
        }

    @torch.no_grad()
    def load_state(self, step_number: int, tensors: Mapping[str, Tensor]) -> None:
        """Restores the tensors that `state` gave after `step_number` steps; before the first there are no moments.

        Raises:
            UsageError: for tensors of another model.
        """
        role = self.model.role
        here = self.model.state_dict()
        weights = _part(tensors, f"weights.{role}.", here)
        averages = {"ema": self.average} | {f"power{i}": power for i, power in enumerate(self.powers.values())}
        averaged = {prefix: _part(tensors, f"{prefix}.{role}.", here) for prefix in averages}
        parameters = dict(self.model.named_parameters())
        moments = {key: _part(tensors, f"optimizer.{key}.{role}.", None) for key in MOMENTS}
        trained = moments[MOMENTS[0]].keys()  # a frozen parameter has no moments
        for key, moment in moments.items():
            known = moment.keys() == trained and moment.keys() <= parameters.keys()
            require(
                known and (len(moment) > 0) == (step_number > 0),
                f"checkpoint: its {key} of the optimiser does not fit the model in training",
            )
        for name, value in here.items():
            value.copy_(self.parallel.distribute(weights[name].to(value.device), value))
        for prefix, average in averages.items():
            own = average.tensors
            for name, value in averaged[prefix].items():
                own[name].copy_(self.parallel.distribute(value.to(self.device), own[name]))
        self.optimizer.state.clear()
        for name in trained:
            parameter = parameters[name]
            state = {"step": moments["step"][name].to(self.device, torch.float32, copy=True)}
            for key in ("exp_avg", "exp_avg_sq"):
                whole = moments[key][name].to(self.device, parameter.dtype)
                state[key] = torch.empty_like(parameter).copy_(self.parallel.distribute(whole, parameter))
            self.optimizer.state[parameter] = state
        self._record = list(tensors["record"].to(self.device)) if "record" in tensors else []
        self._bad_run = tensors["bad_run"].to(self.device)
        self.lr_scale = tensors["lr_scale"].item()
        self.step_number = step_number


def _parallel(model: TrainedModel, options: TrainingOptions, world: World) -> Parallel:
    """The way in which the processes share the model."""
    if options.shard and world.size > 1:
        return Sharded(model, world)
    return Replicated() if world.size > 1 else Alone()


def _mirrored(images: Tensor, flipped: Tensor) -> Tensor:
    """Images with the `flipped` ones `(B,)` mirrored."""
    return torch.where(match_rank(flipped, images), images.flip(-1), images)


def _dequantized(raw: Tensor, noise: BatchNoise) -> Tensor:
    """Whole numbers, each moved to a uniform place in the unit interval around it."""
    raw = raw.to(torch.float64 if raw.dtype in WIDE else torch.float32)
    return raw + noise.uniform("dequantisation", tuple(raw.shape[1:])) - 0.5


def _part(tensors: Mapping[str, Tensor], prefix: str, like: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, named without it.

    Raises:
        UsageError: unless their names and shapes are those of `like`, if it is given.
    """
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    for name in () if like is None else sorted(found.keys() | like.keys()):
        fits = name in found and name in like and found[name].shape == like[name].shape  # type: ignore[operator,index]
        require(fits, f"checkpoint: its tensors do not fit the model in training ({prefix}{name})")
    return found
