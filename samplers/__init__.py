"""Samplers: discretisations of the reverse process. `sample(model, sampler, num_samples)` draws."""

from samplers.ancestral import DDIM, Ancestral
from samplers.base import Prepared, Sampler, Samples, StepSampler, TableSampler
from samplers.cascades import Stage, cascade
from samplers.dpm_solver import DPMSolver, DPMSolverSingle, SDEDPMSolverSingle
from samplers.editing import edit
from samplers.euler_maruyama import EulerMaruyama
from samplers.fitted.calibrate import calibrate
from samplers.fitted.pilot import fit_sampler
from samplers.fitted.reference import reference_coupling
from samplers.fitted.tables import FittedSampler
from samplers.grids import (
    chain,
    karras,
    phi_to_clean,
    power_phi,
    quadratic_time,
    uniform_log_snr,
    uniform_phi,
    uniform_time,
    vp_quadratic,
)
from samplers.langevin import AnnealedLangevin
from samplers.likelihood.divergence import Exact, Probes
from samplers.likelihood.inversion import slerp, to_data, to_noise
from samplers.likelihood.log_prob import Likelihood, adaptive_log_prob, log_prob
from samplers.measured import DDRM, RePaint, Replacement, SplitGibbs
from samplers.multistep import DEIS, Adams, SDEDPMSolver, UniPC
from samplers.particles import ParticleSamples, sample_particles
from samplers.pilot_corrector import pilot_corrector
from samplers.pilot_variance import measure_variance, pilot_variance
from samplers.predictor_corrector import NormPredictorCorrector, PredictorCorrector
from samplers.probability_flow import ProbabilityFlow
from samplers.reverse_diffusion import ReverseDiffusion
from samplers.runge_kutta import EDM, Heun, Midpoint, RungeKutta4, StochasticHeun
from samplers.sampling import Trajectory, prepare, sample
from samplers.snr import choose_snr
from samplers.table import Table, concatenate, denoiser_table, interleave
from samplers.trigonometric import Trigonometric

__all__ = [
    "DDIM",
    "DDRM",
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
    "ParticleSamples",
    "PredictorCorrector",
    "Prepared",
    "ProbabilityFlow",
    "Probes",
    "RePaint",
    "Replacement",
    "ReverseDiffusion",
    "RungeKutta4",
    "SDEDPMSolver",
    "SDEDPMSolverSingle",
    "Sampler",
    "Samples",
    "SplitGibbs",
    "Stage",
    "StepSampler",
    "StochasticHeun",
    "Table",
    "TableSampler",
    "Trajectory",
    "Trigonometric",
    "UniPC",
    "adaptive_log_prob",
    "calibrate",
    "cascade",
    "chain",
    "choose_snr",
    "concatenate",
    "denoiser_table",
    "edit",
    "fit_sampler",
    "interleave",
    "karras",
    "log_prob",
    "measure_variance",
    "phi_to_clean",
    "pilot_corrector",
    "pilot_variance",
    "power_phi",
    "prepare",
    "quadratic_time",
    "reference_coupling",
    "sample",
    "sample_particles",
    "slerp",
    "to_data",
    "to_noise",
    "uniform_log_snr",
    "uniform_phi",
    "uniform_time",
    "vp_quadratic",
]
