"""Samplers: discretisations of the reverse process. `sample(model, sampler, num_samples)` draws."""

from samplers.ancestral import DDIM, Ancestral
from samplers.base import Sampler, StepSampler, TableSampler
from samplers.divergence import Exact, Probes
from samplers.dpm_solver import DPMSolver, DPMSolverSingle, SDEDPMSolverSingle
from samplers.encoding import decode, encode, slerp
from samplers.euler_maruyama import EulerMaruyama
from samplers.fitted import Fitted
from samplers.generate import Samples, Trajectory, prior, sample
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
from samplers.likelihood import Likelihood, adaptive_log_prob, log_prob
from samplers.multistep import DEIS, Adams, SDEDPMSolver, UniPC
from samplers.noise import Noise
from samplers.norm_langevin import NormPredictorCorrector
from samplers.pilot_snr import choose_snr
from samplers.pilot_tables import pilot
from samplers.predictor_corrector import PredictorCorrector
from samplers.probability_flow import ProbabilityFlow
from samplers.reverse_diffusion import ReverseDiffusion
from samplers.runge_kutta import EDM, Heun, Midpoint, RungeKutta4, StochasticHeun
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
    "Fitted",
    "Heun",
    "Likelihood",
    "Midpoint",
    "Noise",
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
