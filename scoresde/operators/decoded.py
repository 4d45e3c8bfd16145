r"""Measurements of what latents are decoded to: y = A(decode(z)) + noise.

A model of latents knows p(z), and what is measured is of data. Where the decoder is not linear, neither is this, even
if A is. Methods for such operators take its derivative, J_A J_decode (Rout et al. 2023 and Chung et al. 2023 take that
of DPS alone).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from torch import Tensor

from scoresde.errors import require
from scoresde.operators.base import Operator, measured_by


@final
class Decoded(Operator):
    """What an operator measures of decoded latents.

    Args:
        operator: of data, in the units that `decode` gives.
        decode: latents `(B, *shape)` to data `(B, *operator.shape)`, differentiable, on the device of the latents.
        shape: of the latents of a sample.

    Raises:
        UsageError: for a decoder that gives data of another shape.

    Example:
        codec = load_autoencoder("autoencoder.safetensors")
        Decoded(Mask.random((1, 28, 28), 0.3), codec.decode_scaled, (3, 7, 7))
    """

    def __init__(self, operator: Operator, decode: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        self.operator = operator
        self.decode = decode
        self.shape = tuple(shape)
        given = measured_by(decode, self.shape)
        require(
            given == operator.shape,
            f"operator={operator}: measures samples of shape {operator.shape}; the decoder gives {given}",
        )
        self.measured_shape = operator.measured_shape

    def __call__(self, x: Tensor) -> Tensor:
        return self.operator(self.decode(x))

    def __str__(self) -> str:
        return f"{self.operator} of decoded latents ({'x'.join(map(str, self.shape))})"
