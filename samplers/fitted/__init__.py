"""Sampler tables for few evaluations, fitted to one model: by a pilot run, or further by calibration.

Words of this package. The *reference* is the probability flow of a model, solved with so many evaluations that more of
them change nothing (it has *converged*). A *node* is the noise level r = sigma / alpha of an evaluation: one row of a
table is one step, one evaluation, at one node. D is the denoiser's output, u = x / alpha, and h the velocity integrand,
in which a step is a sum (`samplers.integrands`). A *basin* is the set of noises that lead to one mode of the data: an
error at large noise can move a sample to another basin, and then its end is far from the reference's.
"""

from samplers.fitted.calibrate import Calibration, calibrate
from samplers.fitted.pilot import fit_sampler
from samplers.fitted.reference import Coupling, reference_coupling
from samplers.fitted.tables import FittedSampler, FittedTable

__all__ = [
    "Calibration",
    "Coupling",
    "FittedSampler",
    "FittedTable",
    "calibrate",
    "fit_sampler",
    "reference_coupling",
]
