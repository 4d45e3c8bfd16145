"""What a user may get wrong about an operator is named, with its value and what to do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scoresde import UsageError
from scoresde.operators import (
    JPEG,
    BlockAverage,
    Blur,
    FourierMagnitude,
    FourierSubsampling,
    FunctionOperator,
    Grey,
    LinearFunctionOperator,
    Mask,
    MatrixOperator,
    gaussian_kernel,
    motion_kernel,
    random_projection,
)
from tests.operators.cases import differences

IMAGE = (3, 8, 8)
BOTH = torch.tensor([True, False])
ONES = torch.ones(3, 3)

MISTAKES = {
    # masks
    "mask of numbers": (lambda: Mask(torch.ones(4)), r"seen of torch\.float32: need booleans"),
    "mask of nothing": (lambda: Mask(torch.zeros(4, dtype=torch.bool)), "seen: hides everything"),
    "mask of all": (lambda: Mask(torch.ones(4, dtype=torch.bool)), "seen: hides nothing"),
    "mask of another shape": (
        lambda: Mask(BOTH, IMAGE),
        r"seen of shape \(2,\): need the shape of a sample, \(3, 8, 8",
    ),
    "mask of more dimensions": (lambda: Mask(BOTH[None], (2,)), r"seen of shape \(1, 2\)"),
    "box of nothing": (lambda: Mask.box(IMAGE, (2, 2), (2, 4)), r"low=\(2, 2\), high=\(2, 4\)"),
    "box beyond": (lambda: Mask.box(IMAGE, (0, 2), (4, 9)), r"high=\(4, 9\).*<= \(8, 8\)"),
    "box below": (lambda: Mask.box(IMAGE, (-1,), (4,)), r"low=\(-1,\)"),
    "box of two ranks": (lambda: Mask.box(IMAGE, (1, 1), (4,)), r"low=\(1, 1\), high=\(4,\)"),
    "box of many dimensions": (lambda: Mask.box((8,), (1, 1), (4, 4)), r"low=\(1, 1\)"),
    "box of all": (lambda: Mask.box((8,), (0,), (8,)), "hides everything"),
    "no share": (lambda: Mask.random(IMAGE, 0.0), r"share=0\.0: need a number between 0 and 1"),
    "whole share": (lambda: Mask.random(IMAGE, 1.0), r"share=1\.0"),
    # averages
    "grey vector": (lambda: Grey((5,)), r"shape=\(5,\): has no channels"),
    "grey grey": (lambda: Grey((1, 8, 8)), r"shape=\(1, 8, 8\): has no channels"),
    "few weights": (lambda: Grey(IMAGE, [0.5, 0.5]), r"weights=\[0\.5, 0\.5\]: need 3"),
    "weights 0": (lambda: Grey(IMAGE, [0.0] * 3), "weights=.*not all 0"),
    "factor 1": (lambda: BlockAverage(IMAGE, 1), "factor=1: need at least 2"),
    "factor 3": (lambda: BlockAverage(IMAGE, 3), r"factor=3: must divide every dimension after the channels, \(8, 8\)"),
    "blocks of a vector": (lambda: BlockAverage((8,), 2), r"factor=2: must divide every.*\(\)"),
    # blur
    "kernel of a line": (lambda: Blur(IMAGE, torch.ones(3)), r"kernel of shape \(3,\): need 2 dimensions"),
    "large kernel": (lambda: Blur(IMAGE, torch.ones(3, 9)), r"kernel of shape \(3, 9\).*none larger than \(8, 8\)"),
    "blur of a vector": (lambda: Blur((8,), torch.ones(3)), r"kernel of shape \(3,\): need 0 dimensions"),
    "padding": (lambda: Blur(IMAGE, ONES, "mirror"), "padding='mirror': need one of circular, reflect, replicate, zer"),
    "stride": (lambda: Blur(IMAGE, ONES, stride=0), "stride=0: need at least 1"),
    "narrow kernel": (lambda: gaussian_kernel(0.0), r"std=0\.0: must be positive"),
    "no motion": (lambda: motion_kernel(0.0), r"length=0\.0: must be positive"),
    "no direction": (lambda: motion_kernel(3.0, direction=(0.0, 0.0)), r"direction=\(0\.0, 0\.0\): must not be 0"),
    # Fourier
    "frequencies of another shape": (lambda: FourierSubsampling(IMAGE, BOTH), r"frequencies of shape \(2,\).*\(8, 8\)"),
    "frequencies as numbers": (lambda: FourierSubsampling(IMAGE, torch.ones(8, 8)), "frequencies.*float32: need bool"),
    "no frequencies": (lambda: FourierSubsampling((1, 2), ~BOTH & BOTH), "frequencies: none is measured"),
    "acceleration": (lambda: FourierSubsampling.lines(IMAGE, 1.0), r"acceleration=1\.0: need more than 1"),
    "magnitudes of a vector": (lambda: FourierMagnitude((8,)), r"shape=\(8,\): need channels"),
    "oversampling": (lambda: FourierMagnitude(IMAGE, 0.5), r"oversampling=0\.5: need at least 1"),
    # JPEG
    "JPEG of a series": (lambda: JPEG((3, 8)), r"shape=\(3, 8\): need images"),
    "quality 0": (lambda: JPEG(IMAGE, 0), "quality=0: need 1 to 100"),
    "quality 101": (lambda: JPEG(IMAGE, 101), "quality=101: need 1 to 100"),
    "range": (lambda: JPEG(IMAGE, low=1.0, high=1.0), r"low=1\.0, high=1\.0: need low < high"),
    # matrices
    "matrix of a row": (lambda: MatrixOperator(torch.ones(4)), r"matrix of shape \(4,\): need \(m, D\)"),
    "matrix of other samples": (
        lambda: MatrixOperator(torch.ones(2, 4), (3,)),
        r"matrix of shape \(2, 4\): need 3 columns, for samples of \(3,\)",
    ),
    "many projections": (lambda: random_projection((2, 2), 5), "num_measured=5: need 1 to 4"),
    "no projection": (lambda: random_projection((2, 2), 0), "num_measured=0"),
    # functions
    "function that mixes": (lambda: FunctionOperator(lambda x: x - x.mean(0), (4,)), "function: gives another result"),
    "function of the whole batch": (
        lambda: FunctionOperator(lambda x: x.sum(), (4,)),
        r"function: must give floats \(B",
    ),
    "function to numbers": (lambda: FunctionOperator(lambda x: x.sum(1), (4,)), r"function: must give floats \(B"),
    "complex function": (lambda: FunctionOperator(torch.fft.fft, (4,)), "complex numbers as their two parts"),
    "whole numbers": (lambda: FunctionOperator(lambda x: x.long(), (4,)), "function: must give floats"),
    "no tensor": (lambda: FunctionOperator(lambda x: [x], (4,)), "function: must give floats"),
    "square": (
        lambda: LinearFunctionOperator(lambda x: x**2, (4,)),
        r"LinearFunctionOperator\(4 to 4\): is not linear; FunctionOperator takes",
    ),
    "affine": (lambda: LinearFunctionOperator(lambda x: x + 1, (4,)), "is not linear"),
    "twice the adjoint": (
        lambda: LinearFunctionOperator(lambda x: 3 * x, (4,), lambda y: 6 * y),
        r"adjoint: <A x, y> = \S+ but <x, A'y> = \S+ for random x and y; leave it out",
    ),
    "inverse for the adjoint": (
        lambda: LinearFunctionOperator(differences, (4,), lambda y: F.pad(y, (1, 0)).cumsum(1)),
        "adjoint: <A x, y>",
    ),
    "adjoint of another shape": (
        lambda: LinearFunctionOperator(differences, (4,), lambda y: y),
        r"adjoint: gives shape \(1, 3\); need \(1, 4\), that of samples",
    ),
    # measurements
    "measurements of another shape": (
        lambda: BlockAverage(IMAGE, 4).check_measured(torch.ones(5, 3, 4)),
        r"y of shape \(5, 3, 4\).*BlockAverage\(3x8x8 to 3x2x2\) measures.*need \(batch, 3, 2, 2\)",
    ),
    "whole measurements": (
        lambda: BlockAverage(IMAGE, 4).check_measured(torch.ones(1, 3, 2, 2, dtype=torch.long)),
        "y of shape .*int64",
    ),
    "missing measurements": (
        lambda: BlockAverage(IMAGE, 4).check_measured(torch.full((1, 3, 2, 2), torch.nan), "cond"),
        "cond: holds NaN or infinity; leave such entries out with a mask",
    ),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named(make, message):
    with pytest.raises(UsageError, match=message):
        make()
