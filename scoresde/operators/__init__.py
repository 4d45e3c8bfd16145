"""What can be measured of a sample, and with what noise."""

from scoresde.operators.averages import BlockAverage, Grey
from scoresde.operators.base import (
    Eigenbasis,
    FunctionOperator,
    LinearFunctionOperator,
    LinearOperator,
    MatrixOperator,
    Operator,
    check_adjoint,
    random_projection,
)
from scoresde.operators.blur import Blur, gaussian_kernel, motion_kernel
from scoresde.operators.decoded import Decoded
from scoresde.operators.fourier import FourierMagnitude, FourierSubsampling
from scoresde.operators.jpeg import JPEG
from scoresde.operators.mask import Mask
from scoresde.operators.noise import GaussianNoise, MeasurementNoise, PoissonNoise, as_noise

__all__ = [
    "JPEG",
    "BlockAverage",
    "Blur",
    "Decoded",
    "Eigenbasis",
    "FourierMagnitude",
    "FourierSubsampling",
    "FunctionOperator",
    "GaussianNoise",
    "Grey",
    "LinearFunctionOperator",
    "LinearOperator",
    "Mask",
    "MatrixOperator",
    "MeasurementNoise",
    "Operator",
    "PoissonNoise",
    "as_noise",
    "check_adjoint",
    "gaussian_kernel",
    "motion_kernel",
    "random_projection",
]
