"""Samplers: discretisations of the reverse process. `sample(model, sampler, num_samples)` draws."""

from samplers.ancestral import DDIM, Ancestral
from samplers.base import Sampler, TableSampler
from samplers.euler_maruyama import EulerMaruyama
from samplers.generate import Samples, prior, sample
from samplers.grids import karras, quadratic_time, uniform_log_snr, uniform_time
from samplers.langevin import AnnealedLangevin
from samplers.noise import Noise
from samplers.norm_langevin import NormPredictorCorrector
from samplers.predictor_corrector import PredictorCorrector
from samplers.probability_flow import ProbabilityFlow
from samplers.reverse_diffusion import ReverseDiffusion
from samplers.runge_kutta import Heun
from samplers.table import Table, run

__all__ = [
    "DDIM",
    "Ancestral",
    "AnnealedLangevin",
    "EulerMaruyama",
    "Heun",
    "Noise",
    "NormPredictorCorrector",
    "PredictorCorrector",
    "ProbabilityFlow",
    "ReverseDiffusion",
    "Sampler",
    "Samples",
    "Table",
    "TableSampler",
    "karras",
    "prior",
    "quadratic_time",
    "run",
    "sample",
    "uniform_log_snr",
    "uniform_time",
]
