r"""What is measured in Fourier space: some frequencies (MRI), blur by a kernel, magnitudes alone (phase retrieval).

Transforms are over all dimensions after the channels, orthonormal, of real samples. Hartley's transform, cas = cos +
sin, is real, orthonormal and its own inverse. Every operator whose A'A is a convolution with an even kernel is diagonal
in it.
"""

from __future__ import annotations

import math
from typing import Self, final

import torch
from torch import Tensor

from scoresde.errors import require
from scoresde.operators.base import Eigenbasis, LinearOperator, Operator

SMALLEST = 1e-12  # magnitude whose gradient is taken as 0


def transform(x: Tensor) -> Tensor:
    """The Fourier transform of samples `(B, C, *)` over the dimensions after the channels."""
    return torch.fft.fftn(x, dim=tuple(range(2, x.ndim)), norm="ortho")


@final
class HartleyBasis(Eigenbasis):
    """For A'A that is a circular convolution: its values at each frequency, of the dimensions after the channels."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def into(self, x: Tensor) -> Tensor:
        found = transform(x)
        return found.real - found.imag

    def out_of(self, coordinates: Tensor) -> Tensor:
        return self.into(coordinates)


def _at_minus(values: Tensor) -> Tensor:
    """Values at the frequencies of the opposite sign."""
    dims = tuple(range(values.ndim))
    return values.flip(dims).roll([1] * values.ndim, dims)


@final
class FourierSubsampling(LinearOperator):
    """The real and imaginary parts of some frequencies of each channel, as in MRI with one coil.

    Args:
        shape: of a sample, channels first.
        frequencies: booleans of its other dimensions, in the order of `torch.fft.fftn` (0 first).
    """

    def __init__(self, shape: tuple[int, ...], frequencies: Tensor) -> None:
        require(
            frequencies.shape == tuple(shape[1:]) and frequencies.dtype == torch.bool,
            f"frequencies of shape {tuple(frequencies.shape)}, {frequencies.dtype}: need booleans {tuple(shape[1:])}",
        )
        require(bool(frequencies.any()), "frequencies: none is measured")
        self.shape = tuple(shape)
        self.frequencies = frequencies
        self.places = frequencies.flatten().nonzero()[:, 0]
        self.measured_shape = (2, shape[0], len(self.places))

    @classmethod
    def lines(cls, shape: tuple[int, ...], acceleration: float, centre: float = 0.08, seed: int = 0) -> Self:
        """Whole lines of the last dimension: a share `centre` of the lowest frequencies, and others at random.

        Args:
            shape: of a sample.
            acceleration: all lines over those measured.
            centre: share of the lines that are the lowest frequencies (fastMRI measures 8 % at acceleration 4).
            seed: of the choice.
        """
        require(acceleration > 1, f"acceleration={acceleration}: need more than 1; 1 measures everything")
        width = shape[-1]
        wanted = max(1, round(width / acceleration))
        low = min(wanted, max(1, round(centre * width)))
        nearest = torch.fft.fftfreq(width).abs().argsort(stable=True)
        others = nearest[low:]
        drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[: wanted - low]
        chosen = torch.zeros(width, dtype=torch.bool)
        chosen[nearest[:low]] = True
        chosen[others[drawn]] = True
        return cls(shape, chosen.expand(shape[1:]).clone())

    def __call__(self, x: Tensor) -> Tensor:
        found = transform(x).flatten(2)[:, :, self.places]
        return torch.stack([found.real, found.imag], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        whole = torch.complex(*(y.new_zeros(len(y), self.shape[0], math.prod(self.shape[1:])) for _ in range(2)))
        whole[:, :, self.places] = torch.complex(y[:, 0], y[:, 1])
        whole = whole.reshape(-1, *self.shape)
        return torch.fft.ifftn(whole, dim=tuple(range(2, whole.ndim)), norm="ortho").real

    @property
    def eigenbasis(self) -> Eigenbasis:
        measured = self.frequencies.double()
        return HartleyBasis(0.5 * (measured + _at_minus(measured)))


@final
class FourierMagnitude(Operator):
    """The magnitudes of the Fourier transform of each channel, zero-padded: phase retrieval.

    Two samples that differ by a shift, a reflection about a point or the sign are measured as the same, if nothing else
    tells them apart.

    Args:
        shape: of a sample, channels first.
        oversampling: size of the padded sample over that of the sample; 2 is needed for a unique answer.
    """

    def __init__(self, shape: tuple[int, ...], oversampling: float = 2.0) -> None:
        require(len(shape) >= 2, f"shape={shape}: need channels and at least one other dimension")
        require(oversampling >= 1, f"oversampling={oversampling}: need at least 1")
        self.shape = tuple(shape)
        self.padded = tuple(round(oversampling * n) for n in shape[1:])
        self.measured_shape = (shape[0], *self.padded)

    def __call__(self, x: Tensor) -> Tensor:
        found = torch.fft.fftn(x, s=self.padded, dim=tuple(range(2, x.ndim)), norm="ortho")
        return (found.real.square() + found.imag.square() + SMALLEST**2).sqrt()
