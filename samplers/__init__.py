"""Samplers: discretisations of the reverse process. `sample(model, sampler, num_samples)` draws."""

from samplers.ancestral import DDIM, Ancestral
from samplers.base import Sampler, StepSampler, TableSampler
from samplers.dpm_solver import DPMSolver, DPMSolverSingle, SDEDPMSolverSingle
from samplers.euler_maruyama import EulerMaruyama
from samplers.fitted.pilot import pilot
from samplers.fitted.tables import FittedSampler
from samplers.grids import (
    chain,
    karras,
    phi_to_clean,
    power_phi,
    quadratic_time,
    uniform_log_snr,
    uniform_time,
    vp_quadratic,
)
from samplers.langevin import AnnealedLangevin
from samplers.likelihood.divergence import Exact, Probes
from samplers.likelihood.inversion import decode, encode, slerp
from samplers.likelihood.log_prob import Likelihood, adaptive_log_prob, log_prob
from samplers.multistep import DEIS, Adams, SDEDPMSolver, UniPC
from samplers.norm_langevin import NormPredictorCorrector
from samplers.predictor_corrector import PredictorCorrector
from samplers.probability_flow import ProbabilityFlow
from samplers.reverse_diffusion import ReverseDiffusion
from samplers.runge_kutta import EDM, Heun, Midpoint, RungeKutta4, StochasticHeun
from samplers.sampling import Samples, Trajectory, prior, sample
from samplers.snr import choose_snr
from samplers.table import Table, run
from samplers.trigonometric import Trigonometric

__all__ = [
    "DDIM",
    "DEIS",
    "EDM",
    "Adams",
    "Ancestral",
    "AnnealedLangevin",
    "DPMSolver",
    "DPMSolverSingle",
    "EulerMaruyama",
    "Exact",
    "FittedSampler",
    "Heun",
    "Likelihood",
    "Midpoint",
    "NormPredictorCorrector",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Probes",
    "ReverseDiffusion",
    "RungeKutta4",
    "SDEDPMSolver",
    "SDEDPMSolverSingle",
    "Sampler",
    "Samples",
    "StepSampler",
    "StochasticHeun",
    "Table",
    "TableSampler",
    "Trajectory",
    "Trigonometric",
    "UniPC",
    "adaptive_log_prob",
    "chain",
    "choose_snr",
    "decode",
    "encode",
    "karras",
    "log_prob",
    "phi_to_clean",
    "pilot",
    "power_phi",
    "prior",
    "quadratic_time",
    "run",
    "sample",
    "slerp",
    "uniform_log_snr",
    "uniform_time",
    "vp_quadratic",
]
