r"""Multistep methods: a step is integrated from the estimates of the last few rows.

In an integrand dy = h dm (`samplers.integrands`) the integral of the polynomial through the last k values of h is Adams
and Bashforth's method, of strong order k. The polynomial may be meant in t, in log r, in r or in phi; the weights are
exact in each (`samplers.quadrature`):

    DEIS (Zhang and Chen 2023, section 3.2, t AB-DEIS)              noise, polynomials in t
    DPM-Solver, multistep (Lu et al. 2022a, appendix)               noise, in log r
    DPM-Solver++, multistep (Lu et al. 2022b, algorithm 2)          denoised, in log r
    UniPC (Zhao et al. 2023), predictor and corrector               denoised, in log r
    SDE-DPM-Solver++, multistep (Lu et al. 2022b, appendix)         reverse, in log r, and noise

The corrector (Adams and Moulton) repeats the last step with the value that was found at its end, and so has order
k + 1. It costs no evaluation, and its correction is a part of the next row.

DPM-Solver++(2M), SDE-DPM-Solver++(2M) and UniPC of order 2 do not take the exact weight of the linear term, but half
of the step (the difference is of higher order). UniPC names what the half is of: B2 = e^h - 1, the integral of the
constant term, or B1 = h. From order 3 on the exact weights are the only ones that satisfy their conditions, so B1 and
B2 coincide. The third order that is published for DPM-Solver++(3M) weighs the quadratic term with half of its integral,
which makes its order 2; here it is exact.

At the start there are fewer values: the first rows take what there is (order 1, then 2, ...).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from samplers import grids
from samplers.base import StepSampler
from samplers.integrands import Integrand, IntegrandName, NoiseIntegrand, ReverseIntegrand, integrand_of, sum_table
from samplers.quadrature import LogSNR, Time, Variable, VariableName, variable_of, weights
from samplers.table import Table
from scoresde.errors import require
from scoresde.score_model import ScoreModel
from scoresde.sde import Level


class Scheme(NamedTuple):
    """A multistep method.

    Attributes:
        integrand, variable: what is integrated, and what it is a polynomial in.
        num_values: how many values of h a step knows.
        corrector: whether steps are corrected at the next row.
        half: if the linear term of two values has half a step's weight instead of the exact one, what the half is of.
    """

    integrand: Integrand
    variable: Variable
    num_values: int
    corrector: bool = False
    half: Literal["B1", "B2"] | None = None


def multistep_table(scheme: Scheme, start: Level, end: Level) -> Table:
    """The rows of a multistep method on consecutive steps; each ends where the next begins."""
    predict, correct = multistep_weights(scheme, start, end)
    weights = predict if correct is None else with_corrector(predict, correct)
    return sum_table(scheme.integrand, start, end, weights, scheme.integrand.noise(start, end))


def multistep_weights(scheme: Scheme, start: Level, end: Level) -> tuple[Tensor, Tensor | None]:
    """The weights of a multistep method's steps and of their corrections.

    Returns:
        `(num_steps, k)` weights of the values that each step knows, newest first; and `(num_steps, k + 1)` weights of
        the same step once the value at its end is known, that value in front, or None without a corrector.
    """
    integrand, variable, num_values, corrector, half = scheme
    r = torch.cat([start.noise_level, end.noise_level[-1:]])
    v = variable.at(torch.cat([start.t, end.t[-1:]]), r)
    num_steps = len(start)
    predict = torch.zeros(num_steps, num_values, dtype=v.dtype)
    correct = torch.zeros(num_steps, num_values + 1, dtype=v.dtype) if corrector else None
    for k in range(1, min(num_values, num_steps) + 1):
        step = torch.arange(num_steps)[k - 1 : k if k < num_values else None]  # those that know k values
        first = v[step]
        last = v[step + 1]
        past = torch.stack([v[step - j] for j in range(k)], 1)
        if half and k == 2:
            back = -((past[:, 1] - first) / (last - first))
            predict[step, :k] = _half_weights(integrand, r[step], r[step + 1], back, half)
        else:
            predict[step, :k] = weights(integrand, variable, past, first, last)
        if correct is None:
            continue
        if half and k == 1:  # through the values at both ends: the linear term reaches one step ahead
            both = _half_weights(integrand, r[step], r[step + 1], -torch.ones_like(first), half).flip(1)
        else:
            both = weights(integrand, variable, torch.cat([last[:, None], past], 1), first, last)
        correct[step, : k + 1] = both
    return predict, correct


def with_corrector(predict: Tensor, correct: Tensor) -> Tensor:
    """The weights `(num_steps, k + 1)` of steps that also correct the step before them."""
    total = torch.nn.functional.pad(predict, (0, 1))
    total[1:] += correct[:-1]
    total[1:, 1:] -= predict[:-1]
    return total


def _half_weights(integrand: Integrand, start: Tensor, end: Tensor, back: Tensor, half: Literal["B1", "B2"]) -> Tensor:
    """Weights of the value at the start, and of that `back` steps before it, with half a step for the linear term."""
    constant = integrand.measure(end) - integrand.measure(start)
    linear = 0.5 * (constant if half == "B2" else integrand.slope(end) * torch.log(end / start)) / back
    return torch.stack([constant + linear, -linear], 1)


class Multistep(StepSampler):
    """A sampler that is a multistep method."""

    @abstractmethod
    def scheme(self, model: ScoreModel) -> Scheme:
        """The method, for a model's SDE and scale of the data."""

    @final
    def steps(self, model: ScoreModel, start: Level, end: Level) -> Table:
        return multistep_table(self.scheme(model), start, end)


def check_values(name: str, value: int, most: int) -> None:
    """Raises `UsageError` unless 1 <= value <= most."""
    require(1 <= value <= most, f"{name}={value}: need 1 to {most}")


@final
@dataclass(frozen=True)
class Adams(Multistep):
    """Adams and Bashforth's method on the probability flow, with Adams and Moulton's corrector if asked for.

    Strong order `num_values`, one more with the corrector; one evaluation a step; no noise.

    Attributes:
        num_values: how many values of the estimate a step knows, 1 to 4.
        corrector: whether each step is corrected at the next one.
        integrand: the estimate that is integrated: noise, denoised or velocity.
        variable: in which it is taken for a polynomial: t, log_snr, noise_level or phi.
    """

    num_values: int = 3
    corrector: bool = True
    integrand: IntegrandName = "velocity"
    variable: VariableName = "phi"

    noise = "none"
    default_num_steps = 20

    def __post_init__(self) -> None:
        check_values("num_values", self.num_values, 4)
        integrand_of(self.integrand)

    @property
    def order(self) -> int:
        return self.num_values + self.corrector

    @property
    def min_steps(self) -> int:
        return self.num_values

    @property
    def one_step(self) -> bool:
        return self.num_values == 1 and not self.corrector

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.power_phi(model.sde, num_steps, sigma_data=model.sigma_data)

    def scheme(self, model: ScoreModel) -> Scheme:
        integrand = integrand_of(self.integrand, model.sigma_data)
        variable = variable_of(self.variable, model.sde, model.sigma_data)
        return Scheme(integrand, variable, self.num_values, self.corrector)


@final
@dataclass(frozen=True)
class DEIS(Multistep):
    """DEIS: Adams and Bashforth's method for the noise, a polynomial in t. Strong order `order`; no noise.

    Attributes:
        order: how many values a step knows, 1 to 4.
    """

    order: int = 3

    noise = "none"
    default_num_steps = 20

    def __post_init__(self) -> None:
        check_values("order", self.order, 4)

    @property
    def min_steps(self) -> int:
        return self.order

    @property
    def one_step(self) -> bool:
        return self.order == 1

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.vp_quadratic(model.sde, num_steps)

    def scheme(self, model: ScoreModel) -> Scheme:
        return Scheme(NoiseIntegrand(), Time(model.sde), self.order)


@final
@dataclass(frozen=True)
class UniPC(Multistep):
    """UniPC with `num_values` values in its predictor, and its corrector.

    Strong order `num_values` + 1 (UniP-p has p, UniC-p has p + 1); one evaluation a step; no noise.

    Attributes:
        num_values: how many values a step knows, 1 to 3.
        variant: what half a step is of: B1 or B2.
        integrand: the estimate that is integrated: denoised or noise.
    """

    num_values: int = 3
    variant: Literal["B1", "B2"] = "B2"
    integrand: Literal["noise", "denoised"] = "denoised"

    noise = "none"
    one_step = False
    default_num_steps = 20

    def __post_init__(self) -> None:
        check_values("num_values", self.num_values, 3)
        require(self.variant in ("B1", "B2"), f"variant={self.variant!r}: need 'B1' or 'B2'")
        integrand_of(self.integrand)

    @property
    def order(self) -> int:
        return self.num_values + 1

    @property
    def min_steps(self) -> int:
        return self.num_values

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.vp_quadratic(model.sde, num_steps)

    def scheme(self, model: ScoreModel) -> Scheme:
        return Scheme(integrand_of(self.integrand), LogSNR(), self.num_values, True, self.variant)


@final
@dataclass(frozen=True)
class SDEDPMSolver(Multistep):
    """SDE-DPM-Solver++: the reverse SDE, its estimate of x_0 a polynomial in log r through `num_values` values.

    Weak order 1. (On a Gaussian two or three values reach 2: along the reverse process the estimate is a martingale.)
    One evaluation a step; independent noise. With one value and eta = 1 it is ancestral sampling.

    Attributes:
        num_values: how many values a step knows: 1, 2 (2M) or 3 (3M).
        eta: 1 for the reverse SDE, 0 for the probability flow (DPM-Solver++). It is the square of the eta of
            `samplers.euler_maruyama`.
    """

    num_values: int = 2
    eta: float = 1.0

    order = 1
    noise = "independent"
    default_num_steps = 50

    def __post_init__(self) -> None:
        check_values("num_values", self.num_values, 3)
        require(0 < self.eta <= 1, f"eta={self.eta}: need 0 < eta <= 1; at 0 it is DPMSolver()")

    @property
    def min_steps(self) -> int:
        return self.num_values

    @property
    def one_step(self) -> bool:
        return self.num_values == 1

    def default_grid(self, model: ScoreModel, num_steps: int) -> Tensor:
        return grids.phi_to_clean(model.sde, num_steps, sigma_data=model.sigma_data)

    def scheme(self, model: ScoreModel) -> Scheme:
        half: Literal["B2"] | None = "B2" if self.num_values == 2 else None
        return Scheme(ReverseIntegrand(self.eta), LogSNR(), self.num_values, half=half)
