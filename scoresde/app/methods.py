"""How `--mode solve` draws from posteriors: methods by their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from ml_collections import ConfigDict
from torch import Tensor

from samplers import (
    DDRM,
    Ancestral,
    RePaint,
    Replacement,
    Sampler,
    Samples,
    SplitGibbs,
    sample,
    sample_particles,
)
from samplers.table import Callback
from scoresde import condition
from scoresde.app.flags import SolveFlags
from scoresde.app.piloted import piloted_variance
from scoresde.app.tasks import Task
from scoresde.condition import Condition
from scoresde.errors import require, unknown_name
from scoresde.inverse import DPS, MMPS, DiffPIR, MeasuredModel, PiGDM, PosteriorModel
from scoresde.noise import key_of
from scoresde.operators import LinearOperator, MeasurementNoise, Operator
from scoresde.reverse import MeasuredVariance
from scoresde.score_model import ScoreModel
from sde_configs import build

DEFAULT_SAMPLER = "sde_dpm_solver"

Posterior = Callable[[ScoreModel, Operator, MeasurementNoise, ConfigDict], PosteriorModel]


class Method(NamedTuple):
    """A method.

    Attributes:
        model: the posterior model of a model.
        num_steps: if the user gives none.
        sampler: its own, if it does not take every one.
        particles: whether samples are weighed against each other.
        gradient: whether it differentiates the model.
        linear: whether what is measured must be linear in the model's samples.
    """

    model: Posterior
    num_steps: int
    sampler: Callable[[ConfigDict], Sampler] | None = None
    particles: bool = False
    gradient: bool = False
    linear: bool = True


def _measured(model: ScoreModel, operator: Operator, noise: MeasurementNoise, numbers: ConfigDict) -> PosteriorModel:
    return MeasuredModel(model, operator, noise)


def _pigdm(model: ScoreModel, operator: Operator, noise: MeasurementNoise, numbers: ConfigDict) -> PosteriorModel:
    return PiGDM(model, operator, noise)


METHODS = {
    "mmps": Method(
        lambda model, operator, noise, numbers: MMPS(model, operator, noise, numbers.iterations),
        30,
        gradient=True,
        linear=False,
    ),
    "pigdm": Method(_pigdm, 50, gradient=True),
    "dps": Method(
        lambda model, operator, noise, numbers: DPS(model, operator, noise, numbers.zeta),
        100,
        gradient=True,
        linear=False,
    ),
    "diffpir": Method(lambda model, operator, noise, numbers: DiffPIR(model, operator, noise, numbers.strength), 50),
    "ddrm": Method(_measured, 50, lambda numbers: DDRM()),
    "gibbs": Method(_measured, 50, lambda numbers: SplitGibbs(), linear=False),
    "replacement": Method(_measured, 100, lambda numbers: Replacement(Ancestral())),
    "repaint": Method(_measured, 25, lambda numbers: Replacement(RePaint(numbers.repeats, numbers.jump))),
    "particles": Method(_pigdm, 50, particles=True, gradient=True),
}


@final
@dataclass(frozen=True)
class Solver:
    """A method made ready for a model and a task.

    Attributes:
        name: of the method.
        model: of the posterior.
        sampler: what draws, with a single sample at a time; None for particles.
        num_steps: of the sampler's grid.
        particles: of each measurement, if there are any.
        batch_size: samples at a time.
        variance: of the particles' steps, by a pilot run.
    """

    name: str
    model: PosteriorModel
    sampler: Sampler | None
    num_steps: int
    particles: int
    batch_size: int
    variance: MeasuredVariance | None

    @classmethod
    def of(cls, task: Task, flags: SolveFlags, name: str) -> Solver:
        """The solver of a method's name for a task.

        Raises:
            UsageError: for an unknown name, or a method that cannot take the operator or the noise.
        """
        if name not in METHODS:
            raise unknown_name("method", name, [*METHODS, build.AUTO])
        method = METHODS[name]
        trained, operator = task.trained, task.of_samples
        require(
            not method.linear or isinstance(operator, LinearOperator),
            f"method={name!r}: needs a linear measurement, and {operator} is not; take --method "
            f"{', --method '.join(known for known, other in METHODS.items() if not other.linear)}",
        )
        numbers = trained.config.sampling.method
        steps = method.num_steps if flags.num_steps is None else flags.num_steps
        require(steps >= 1, f"num_steps={steps}: need at least 1")
        model = method.model(trained.model, operator, task.noise, numbers)
        require(
            flags.sampler is None or (method.sampler is None and not method.particles),
            f"sampler={flags.sampler!r}: --method {name} has its own; leave --sampler out",
        )
        sampler: Sampler | None = None
        if method.sampler is not None:
            sampler = method.sampler(numbers)
        elif not method.particles:
            sampler = build.build_sampler(trained.config, flags.sampler or DEFAULT_SAMPLER, steps)
        if sampler is not None:
            sampler.prepare(model, sampler.grid(model, steps))
        size = trained.batch_size(graphs=1 if method.gradient else 0)
        particles = numbers.particles if method.particles else 0
        variance = piloted_variance(trained, intervals=1) if method.particles else None
        return cls(name, model, sampler, steps, particles, size, variance)

    @property
    def rows(self) -> int:
        """Evaluations of a batch."""
        if self.sampler is None:
            return self.num_steps - 1
        levels = self.sampler.evaluated(self.model, self.sampler.grid(self.model, self.num_steps))
        return self.num_steps if levels is None else len(levels)

    def at_once(self, draws: int, count: int) -> int:
        """Of some measurements, how many are drawn for at a time."""
        return count if self.sampler is None else max(1, self.batch_size // draws)

    def total(self, count: int, draws: int) -> int:
        """Calls of the callback for `draws` samples of each of some measurements."""
        batches = 1 if self.sampler is None else -(-count * draws // self.batch_size)
        return self.rows * batches

    def draw(
        self, y: Tensor, cond: Condition, draws: int, seed: int, first: int = 0, callback: Callback | None = None
    ) -> Samples:
        """Samples `(N, draws, *shape)` of the posteriors of measurements `(N, *measured_shape)`.

        Args:
            y: the measurements.
            cond: of the model, one entry a measurement.
            draws: samples of each.
            seed: which noise.
            first: number of the first measurement, which its noise depends on.
            callback: called after each evaluation of a batch.
        """
        if self.sampler is None:
            return self._draw_particles(y, cond, draws, key_of(seed, first), callback)
        each = torch.arange(len(y)).repeat_interleave(draws)
        found = sample(
            self.model,
            self.sampler,
            len(each),
            num_steps=self.num_steps,
            cond=condition.take(_joint(y, cond), each),
            seed=seed,
            first_index=first * draws,
            batch_size=self.batch_size,
            callback=callback,
        )
        return Samples(found.x.unflatten(0, (len(y), draws)), found.nfe)

    def _draw_particles(self, y: Tensor, cond: Condition, draws: int, seed: int, callback: Callback | None) -> Samples:
        assert isinstance(self.model, PiGDM)
        count = max(self.particles, draws)
        found = sample_particles(
            self.model,
            len(y),
            count,
            num_steps=self.num_steps,
            cond=_joint(y, cond),
            seed=seed,
            batch_size=self.batch_size,
            callback=callback,
            variance=self.variance,
        )
        # copies of one particle lie side by side
        return Samples(found.x[:, torch.arange(draws) * count // draws], found.nfe)


def _joint(y: Tensor, cond: Condition) -> Condition:
    return {"y": y} if cond is None else {"y": y, "cond": cond}
