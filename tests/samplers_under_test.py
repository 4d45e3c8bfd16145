"""The samplers that are tested: every class, with settings of every kind."""

from __future__ import annotations

from samplers import (
    DDIM,
    DEIS,
    EDM,
    Adams,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    DPMSolverSingle,
    EulerMaruyama,
    Heun,
    Midpoint,
    NormPredictorCorrector,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    RungeKutta4,
    Sampler,
    SDEDPMSolver,
    SDEDPMSolverSingle,
    StepSampler,
    StochasticHeun,
    TableSampler,
    Trigonometric,
    UniPC,
)
from scoresde import MeasuredVariance

SAMPLERS: list[Sampler] = [
    PredictorCorrector(),
    PredictorCorrector(predictor=Heun(), corrector_steps=2),
    PredictorCorrector(corrector_first=True),
    NormPredictorCorrector(),
    NormPredictorCorrector(predictor=None, corrector_steps=2),
    NormPredictorCorrector(corrector_steps=2, scheme="leimkuhler_matthews"),
    AnnealedLangevin(),
    AnnealedLangevin(corrector_steps=2),
    Ancestral(),
    Ancestral(variance="beta"),
    Ancestral(variance=MeasuredVariance((-10.0, 0.0, 10.0), (0.0, 0.2, 0.9))),
    EulerMaruyama(),
    EulerMaruyama(eta=0.0),
    EulerMaruyama(eta=0.5),
    ReverseDiffusion(),
    ProbabilityFlow(),
    DDIM(),
    DDIM(eta=0.5),
    Heun(),
    Heun("denoised"),
    Heun("velocity"),
    Midpoint(),
    Midpoint("noise"),
    RungeKutta4(),
    StochasticHeun(),
    EDM(),
    EDM(churn=0.0),
    EDM(churn_scale=1.0),
    Adams(1, False),
    Adams(2, False, "noise", "noise_level"),
    Adams(3, True, "denoised", "log_snr"),
    Adams(4, False),
    Adams(3),
    Adams(2, True),
    Trigonometric(1),
    Trigonometric(2),
    DEIS(1),
    DEIS(2),
    DEIS(3),
    DEIS(4),
    *(UniPC(values, variant) for values in (1, 2, 3) for variant in ("B1", "B2")),
    UniPC(3, integrand="noise"),
    *(DPMSolver(order, integrand) for order in (1, 2, 3) for integrand in ("denoised", "noise")),
    *(DPMSolverSingle(order, integrand) for order in (1, 2, 3) for integrand in ("denoised", "noise")),
    SDEDPMSolver(1),
    SDEDPMSolver(2),
    SDEDPMSolver(2, eta=0.5),
    SDEDPMSolver(3),
    SDEDPMSolverSingle(),
]
TABLES = [s for s in SAMPLERS if isinstance(s, TableSampler)]
STEPS = [s for s in SAMPLERS if isinstance(s, StepSampler)]
MOVING = [s for s in SAMPLERS if not isinstance(s, AnnealedLangevin) and getattr(s, "predictor", s) is not None]
BATCH_FREE = [s for s in SAMPLERS if not isinstance(s, NormPredictorCorrector)]


def name(sampler: Sampler) -> str:
    """What a sampler is called in the list of tests."""
    return str(sampler).replace("()", "")


def steps_of(sampler: Sampler, num_steps: int) -> int | None:
    """A number of steps, for a sampler that takes one."""
    return None if isinstance(sampler, ProbabilityFlow) else num_steps
