"""Every linear operator, on vectors, series, images and volumes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from scoresde.operators import (
    BlockAverage,
    Blur,
    FourierSubsampling,
    Grey,
    LinearFunctionOperator,
    LinearOperator,
    Mask,
    MatrixOperator,
    random_projection,
)

Make = Callable[[tuple[int, ...]], LinearOperator]
SHAPES = {"series": (2, 12), "image": (3, 6, 8), "volume": (2, 4, 4, 6)}
PADDINGS = ("circular", "reflect", "replicate", "zeros", "none")


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel(shape: tuple[int, ...], size: int) -> Tensor:
    """A kernel without any symmetry for samples of a shape."""
    return randn(*[size] * (len(shape) - 1), seed=size)


def some_frequencies(shape: tuple[int, ...]) -> Tensor:
    """Half of them, with no symmetry."""
    return randn(*shape[1:], seed=5) > 0


def differences(x: Tensor) -> Tensor:
    """Of neighbours along the last dimension."""
    return x[..., 1:] - x[..., :-1]


def differences_adjoint(y: Tensor) -> Tensor:
    """The adjoint of `differences`."""
    return F.pad(y, (1, 0)) - F.pad(y, (0, 1))


OF_ANY_SHAPE: dict[str, Make] = {
    "mask": lambda shape: Mask.random(shape, 0.6),
    "matrix": lambda shape: MatrixOperator(randn(7, torch.Size(shape).numel()), shape),
    "projection": lambda shape: random_projection(shape, 5),
    "function": lambda shape: LinearFunctionOperator(differences, shape),
    "function with adjoint": lambda shape: LinearFunctionOperator(differences, shape, differences_adjoint),
}
WITH_CHANNELS: dict[str, Make] = {
    "mask of places": lambda shape: Mask.random(shape, 0.4, dims=len(shape) - 1),
    "box": lambda shape: Mask.box(shape, (1,), (3,)),
    "grey": Grey,
    "weighted grey": lambda shape: Grey(shape, [0.5, -1.5, 0.25][: shape[0]]),
    "blocks": lambda shape: BlockAverage(shape, 2),
    "frequencies": lambda shape: FourierSubsampling(shape, some_frequencies(shape)),
    "lines": lambda shape: FourierSubsampling.lines(shape, 2.0),
    **{
        f"blur {padding} {size} stride {stride}": lambda shape, padding=padding, size=size, stride=stride: Blur(
            shape, kernel(shape, size), padding, stride
        )
        for padding in PADDINGS
        for size, stride in ((3, 1), (4, 1), (3, 2))
    },
}
LINEAR: dict[str, tuple[Make, tuple[int, ...]]] = {
    **{f"{name}, vector": (make, (9,)) for name, make in OF_ANY_SHAPE.items()},
    **{
        f"{name}, {kind}": (make, shape)
        for kind, shape in SHAPES.items()
        for name, make in (OF_ANY_SHAPE | WITH_CHANNELS).items()
    },
}
