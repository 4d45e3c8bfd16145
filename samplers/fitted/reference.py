r"""The reference: a few samples followed along the probability flow with many evaluations.

The nodes of the reference are evenly spaced in asinh(r / softening): in the logarithm of the noise level r above the
softening, a small fraction of the data's scale, and in r itself below it. On all networks that were tried, 136
evaluations on these nodes converge to one part in ten thousand of the data's scale, even if errors of the network make
the integrand rough at large noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from samplers.base import PreparedTable
from samplers.integrands import VelocityIntegrand
from samplers.multistep import Scheme, multistep_table
from samplers.quadrature import Phi
from samplers.table import Loop, Table, clean_table, concatenate
from samplers.trigonometric import Trigonometric
from scoresde import condition
from scoresde._batches import batches, choose_batch_size
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.noise import Noise
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE, Level

NUM_SAMPLES = 32
ENTRIES = 4096  # at least this many entries, of all samples together, are kept if there are as many
COARSE = 12
DENSE = 136
SOFTENING = 0.02  # as a fraction of the samples' standard deviation


@final
@dataclass(frozen=True)
class Coupling:
    """Pairs of noise and data that the probability flow joins.

    Attributes:
        x_T: noise at t_max, `(B, *shape)`.
        x_0: where the converged flow leads from it.
        cond: the conditions, or None.
    """

    x_T: Tensor
    x_0: Tensor
    cond: Condition

    def take(self, index: slice | Tensor) -> Coupling:
        """Some of the pairs."""
        return Coupling(self.x_T[index], self.x_0[index], condition.take(self.cond, index))

    def start_of(self, table: Table, sde: SDE) -> Tensor:
        """x_T rescaled to the prior's standard deviation at the first level of a table, which may be below t_max."""
        return self.x_T * (table.level.sigma[0].item() / sde.prior_std())

    def run(self, table: Table, model: ScoreModel) -> Tensor:
        """The final states of a deterministic table from x_T."""
        x_T = self.start_of(table, model.sde)
        return Loop(table, model, x_T)(x_T, no_noise(), self.cond)


@final
@dataclass(frozen=True)
class Reference:
    """The record of a run along the probability flow with many evaluations.

    Attributes:
        coupling: the noises, and where they led.
        noise_level: `(M,)`, falling.
        u, denoised: `(M, N)` x / alpha and the denoiser's output at each level, for some entries of all samples.
        noise: `(N,)` the same entries of the initial noise, divided by its standard deviation.
        sigma_data: standard deviation of the samples. It is measured: what the model declares may be a guess.
    """

    coupling: Coupling
    noise_level: Tensor
    u: Tensor
    denoised: Tensor
    noise: Tensor
    sigma_data: float

    @property
    def softening(self) -> float:
        """The noise level below which nodes are evenly spaced in the noise level, and above which in its logarithm."""
        return SOFTENING * self.sigma_data

    @cached_property
    def spread(self) -> float:
        """sqrt(a b): a the mean standard deviation of an entry, b the one along the first principal component.

        If samples differ mainly in a few common directions, b is large: their outcome is decided at noise levels above
        `sigma_data`.
        """
        centred = self.coupling.x_0.double().flatten(1)
        centred = centred - centred.mean(0)
        along_first = torch.linalg.matrix_norm(centred, 2) / max(1, len(centred) - 1) ** 0.5
        return (centred.std(0).mean() * along_first).sqrt().item()

    @cached_property
    def _spline(self) -> Callable[[Any], Any]:
        from scipy.interpolate import CubicSpline

        known = torch.asinh(self.noise_level / self.softening).flip(0).numpy()
        return CubicSpline(known, torch.cat([self.u, self.denoised], 1).flip(0).numpy())

    def at(self, noise_level: Tensor) -> tuple[Tensor, Tensor]:
        """u and D at noise levels `(n,)` by cubic splines, each `(n, N)`."""
        wanted = torch.asinh(noise_level / self.softening).numpy()
        u, denoised = torch.from_numpy(self._spline(wanted)).chunk(2, 1)
        return u, denoised


@torch.no_grad()
def reference_run(
    model: ScoreModel,
    cond: Any = None,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
    on_evaluation: Callable[[], None] = lambda: None,
) -> Reference:
    """Follows samples along the probability flow: a coarse run finds their scale, a dense one is the reference.

    Args:
        model: what is run.
        cond: conditions of the samples, as `fit_sampler` takes them.
        num_samples: the number of samples.
        seed: of their noise.
        on_evaluation: called after each evaluation of the model.
    """
    cond = _conditions(model, cond, num_samples)
    rows: list[tuple[Tensor, Tensor]] = []

    def watch(row: int, level: Level, x_t: Tensor, x0_hat: Tensor) -> None:
        on_evaluation()
        rows.append((subsample(x_t / level.alpha), subsample(x0_hat)))

    coarse = Trigonometric()
    prepared = coarse.prepare(model, coarse.grid(model, COARSE))
    x_T = prior_noise(model, num_samples, seed)
    with model.eval_mode():
        sigma_data = prepared(x_T, no_noise(), cond, watch).x.std().item()
        require(
            0 < sigma_data < math.inf,
            f"model: its samples have a standard deviation of {sigma_data}; has it been trained?",
        )
        rows.clear()
        table = dense_table(model.sde, sigma_data)
        x_0 = Loop(table, model, x_T)(x_T, no_noise(), cond, watch)
    u, denoised = (torch.stack([row[i] for row in rows]) for i in (0, 1))
    level = table.level
    return Reference(
        Coupling(x_T, x_0, cond), level.noise_level, u, denoised, subsample(x_T) / level.sigma[0], sigma_data
    )


@torch.no_grad()
def reference_coupling(
    model: ScoreModel,
    sigma_data: float,
    cond: Any = None,
    num_samples: int = 100,
    seed: int = 1,
    num_evaluations: int = DENSE,
    batch_size: int | None = None,
    on_evaluation: Callable[[], None] = lambda: None,
) -> Coupling:
    """Noises, and where the probability flow leads from them, solved with `num_evaluations` evaluations.

    Args:
        model: what is run.
        sigma_data: standard deviation of its samples, as the tables of `fit_sampler` have it.
        cond: conditions of the samples, as `fit_sampler` takes them.
        num_samples: the number of samples.
        seed: of their noise.
        num_evaluations: of each sample.
        batch_size: samples at a time; by default as many as need little memory.
        on_evaluation: called after each evaluation of a batch.
    """
    size = choose_batch_size(batch_size, model.shape, model.device)
    cond = _conditions(model, cond, num_samples)
    x_T = prior_noise(model, num_samples, seed)
    table = dense_table(model.sde, sigma_data, num_evaluations)
    prepared = PreparedTable(table, model, grid=torch.cat([table.level.t, torch.zeros(1, dtype=torch.float64)]))
    with model.eval_mode():
        ends = [
            prepared(x_T[part], no_noise(), condition.take(cond, part), lambda *_: on_evaluation()).x
            for part in batches(num_samples, size)
        ]
    return Coupling(x_T, torch.cat(ends), cond)


def subsample(x: Tensor) -> Tensor:
    """The entries of samples `(B, *shape)` that a reference keeps, `(N,)` in float64 on the host."""
    return x.flatten()[:: max(1, x.numel() // ENTRIES)].to("cpu", torch.float64)


def prior_noise(model: ScoreModel, num_samples: int, seed: int) -> Tensor:
    """Samples of the prior at t_max."""
    noise = Noise(seed, torch.arange(num_samples, device=model.device))
    return model.sde.prior_std() * noise.normal(0, model.shape, model.dtype)


def no_noise() -> Noise:
    """For tables that draw nothing."""
    return Noise(0, torch.arange(0))


def dense_table(sde: SDE, sigma_data: float, num_evaluations: int = DENSE) -> Table:
    """The table of a reference, for samples with standard deviation `sigma_data`; its last row is the denoiser."""
    width = SOFTENING * sigma_data
    first, last = torch.asinh(sde.span().noise_level / width)
    u = torch.linspace(0, 1, num_evaluations, dtype=torch.float64)
    level = sde.at_noise_level(width * torch.sinh(first + u * (last - first)))
    scheme = Scheme(VelocityIntegrand(sigma_data), Phi(sigma_data), 3, corrector=True)
    return concatenate([multistep_table(scheme, level[:-1], level[1:]), clean_table(level[-1:])])


def sample_errors(x: Tensor, truth: Tensor) -> Tensor:
    """RMS error over the entries of each sample, `(B,)`, float64."""
    return (x - truth).double().flatten(1).square().mean(1).sqrt()


def trimmed_error(x: Tensor, truth: Tensor, share: float = 0.97) -> float:
    """RMS error over a share of the samples. The worst are left out: one in the wrong basin would dominate."""
    squares = sample_errors(x, truth).square().sort().values
    return squares[: max(1, round(share * len(squares)))].mean().sqrt().item()


def _conditions(model: ScoreModel, cond: Any, num_samples: int) -> Condition:
    """The user's conditions, spread over a number of samples, checked, and on the model's device."""
    cond = condition.spread(cond, num_samples)
    model.check_cond(cond)
    return condition.to(cond, model.device)
