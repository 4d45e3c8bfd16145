"""Data to noise along the probability flow and back, and the density of data."""

from samplers.likelihood.divergence import Divergence, Exact, Probes
from samplers.likelihood.inversion import slerp, to_data, to_noise
from samplers.likelihood.log_prob import Likelihood, adaptive_log_prob, log_prob

__all__ = [
    "Divergence",
    "Exact",
    "Likelihood",
    "Probes",
    "adaptive_log_prob",
    "log_prob",
    "slerp",
    "to_data",
    "to_noise",
]
