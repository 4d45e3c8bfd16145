r"""Noise as an argument: a function of (seed, stream, sample index, draw).

A sampler asks for a draw by its number. The values do not depend on the batch that a sample is in, the process that
draws it, or the order of the requests. So sample i of a seed is one fixed picture. No random state is kept, and
torch's is left alone.

The numbers come from a hash, computed in integer tensor operations, so that every device gives the same words:

    word = mix(mix(mix(seed) + gamma index) ^ mix(mix(seed ^ gamma) + gamma draw) ^ mix(gamma (position + 1))).

mix is the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", with
Stafford's constants, variant 13), and gamma its odd constant. On consecutive numbers it passes the usual test
batteries. A named stream uses another seed, a hash of the seed and the name. Each half v of a word, a signed 32-bit
number, becomes a uniform number 1/2 + 2^-32 v, or a normal number sqrt(2) erfinv(2^-31 v) by the inverse of the normal
distribution. v is shrunk by one part in 2^24, so |z| <= 5.42, which one number in 17 million would exceed.

`Path` is noise along one Brownian motion: its increments agree between different grids. `BatchNoise` is the noise of a
training step.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import final

import torch
from torch import Tensor

from scoresde.errors import require

_MASK64 = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15
_STAGES = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
BLOCK = 2**17  # numbers that are drawn at a time if a loop knows its draws beforehand


def _signed(word: int) -> int:
    """A 64-bit word as the signed number that an int64 tensor holds."""
    word &= _MASK64
    return word - 2**64 if word >= 2**63 else word


def mix(z: int) -> int:
    """SplitMix64's finaliser of a 64-bit number."""
    for shift, factor in _STAGES:
        z = ((z ^ (z >> shift)) * factor) & _MASK64
    return z


def mix_(z: Tensor) -> Tensor:
    """`mix` of an int64 tensor, in place: products wrap around, and masks drop the copies of the sign bit."""
    shifted = torch.empty_like(z)
    for shift, factor in _STAGES:
        z ^= torch.bitwise_right_shift(z, shift, out=shifted).bitwise_and_(2 ** (64 - shift) - 1)
        if factor != 1:
            z *= _signed(factor)
    return z


@lru_cache(maxsize=16)
def _places(count: int, device: torch.device) -> Tensor:
    """The hashes of positions 0 .. count - 1."""
    return mix_((torch.arange(count, device=device) + 1) * _signed(_GAMMA))


def _draw_key(seed: int, draw: int) -> int:
    """The hash of a draw."""
    return _signed(mix((mix(seed ^ _GAMMA) + _GAMMA * draw) & _MASK64))


@lru_cache(maxsize=4096)
def _draw_keys(seed: int, draws: tuple[int, ...], device: torch.device) -> Tensor:
    """The hashes of draws, `(len(draws), 1)`, cached so that a loop that is run again does not wait for a copy."""
    return torch.tensor([[_draw_key(seed, draw)] for draw in draws]).to(device)


class NoiseSource(ABC):
    """A source of a sampler's standard normal numbers."""

    @abstractmethod
    def normals(self, draws: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Several draws at once, `(len(draws), B, *shape)`; draw 0 is the prior's, draw k + 1 that of row k."""

    @final
    def normal(self, draw: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """One draw, `(B, *shape)`."""
        return self.normals([draw], shape, dtype)[0]


@final
@dataclass(frozen=True)
class Noise(NoiseSource):
    """Independent standard normal numbers for a batch of samples.

    Attributes:
        seed: the key, 0 <= seed < 2^64.
        indices: numbers of the samples, int64 `(B,)`, on the device of the noise.
    """

    seed: int
    indices: Tensor

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**64, f"seed={self.seed}: need 0 <= seed < 2**64")

    @cached_property
    def _of_samples(self) -> Tensor:
        return mix_(self.indices * _signed(_GAMMA) + _signed(mix(self.seed)))

    def stream(self, name: str) -> Noise:
        """Noise for the same samples, independent of this one and of every stream of another name."""
        return Noise(key_of(self.seed, name), self.indices)

    def normals(self, draws: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return _normals(self._signed_halves(draws, shape), dtype)

    def uniform(self, draw: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """One draw of numbers uniform on (0, 1), `(B, *shape)`."""
        return _uniforms(self._signed_halves([draw], shape)[0], dtype)

    def _signed_halves(self, draws: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """Uniform signed 32-bit numbers, `(len(draws), B, *shape)`."""
        dim = math.prod(shape)
        device = self.indices.device
        if len(draws) == 1:  # a Python number needs no copy to the device
            keys = (self._of_samples ^ _draw_key(self.seed, draws[0]))[None]
        else:
            keys = _draw_keys(self.seed, tuple(draws), device) ^ self._of_samples
        words = mix_(keys[..., None] ^ _places((dim + 1) // 2, device))
        return words.view(torch.int32)[..., :dim].reshape(len(draws), len(self.indices), *shape)


_UNIT = 2.0**-31 * (1 - torch.finfo(torch.float32).eps / 2)  # float32 rounds the largest halves up to 2^31


def _work(halves: Tensor, dtype: torch.dtype) -> Tensor:
    """Signed halves in the floating-point type in which to compute."""
    return halves.to(torch.float64 if dtype == torch.float64 else torch.float32)


def _normals(halves: Tensor, dtype: torch.dtype) -> Tensor:
    """A normal number for each signed half."""
    return _work(halves, dtype).mul_(_UNIT).erfinv_().mul_(math.sqrt(2)).to(dtype)


def _uniforms(halves: Tensor, dtype: torch.dtype) -> Tensor:
    """A number uniform on (0, 1) for each signed half."""
    return _below_one(_work(halves, dtype).mul_(0.5 * _UNIT).add_(0.5).to(dtype))


def _below_one(u: Tensor) -> Tensor:
    """Keeps numbers below 1, to which rounding may have brought them, in place."""
    return u.clamp_(max=1 - torch.finfo(u.dtype).eps / 2)


def key_of(*parts: int | str) -> int:
    """A 63-bit hash of some numbers and names."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@final
@dataclass(frozen=True)
class BatchNoise:
    """The random numbers of one training step, for some samples of its batch.

    They depend on the seed, the step and a sample's place in the batch, not on how the batch is divided among processes
    and micro-batches.

    Attributes:
        seed: the seed of the training.
        step: number of the step.
        batch_size: size of the whole batch.
        places: places of these samples in the batch, int64 `(B,)`, on the device of the numbers.
    """

    seed: int
    step: int
    batch_size: int
    places: Tensor

    @staticmethod
    def fresh(batch_size: int, device: torch.device | str = "cpu") -> BatchNoise:
        """Noise for a whole batch, keyed by a number from torch's global random state."""
        seed = int(torch.randint(2**62, ()))
        return BatchNoise(seed, 0, batch_size, torch.arange(batch_size, device=device))

    def normal(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers, `(B, *shape)`, independent for each name."""
        return self._stream(name).normal(self.step, shape, dtype)

    def uniform(self, name: str, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers uniform on (0, 1), `(B, *shape)`, independent for each name."""
        return self._stream(name).uniform(self.step, (*shape, 1), dtype)[..., 0]

    def stratified(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers uniform on (0, 1), one in each of `batch_size` equal cells, the cells in random order: `(B,)`.

        Each is uniform on its own. Together they cover the interval evenly, so that the loss of a batch varies less
        (the idea of Kingma et al. 2021, appendix I.1, with a fresh offset in every cell).
        """
        everyone = Noise(key_of(self.seed, name, "cells"), torch.arange(self.batch_size, device=self.places.device))
        cells = everyone.uniform(self.step, (1,), torch.float64)[:, 0].argsort()[self.places]
        return _below_one((cells + self.uniform(name, dtype=torch.float64)).div_(self.batch_size).to(dtype))

    def _stream(self, name: str) -> Noise:
        return Noise(key_of(self.seed, name), self.places)


@final
class Path(NoiseSource):
    r"""Increments of one Brownian motion a sample: that over [a, c] is the sum of those over [a, b] and [b, c].

    The motion B has the variance c(u) - c(0) at the coordinate u in [0, 1]. Its values at multiples of 2^-DEPTH come
    from Levy's bisection: conditioned on both endpoints of an interval, the midpoint is Gaussian around their linear
    interpolation in c. Its random number is keyed by the midpoint, so every grid sees the same path. Grids rise in u,
    so the next point shares all but a few bisections with the last one.

    Args:
        noise: source of the numbers.
        clock: c(u), rising.
        points: the ends of intervals in u, rising; draw k + 1 is the increment from point k to point k + 1, divided by
            its standard deviation.
    """

    DEPTH = 20

    def __init__(self, noise: Noise, clock: Callable[[float], float], points: Sequence[float]) -> None:
        self.noise = noise
        self.clock = clock
        size = 2**self.DEPTH
        self.points = [min(max(round(u * size), 0), size) for u in points]
        self._last: tuple[int, Tensor] | None = None
        self._right: list[tuple[int, Tensor]] = []  # ends of intervals on the way to the last point, nearest last

    def _c(self, place: int) -> float:
        return self.clock(place / 2**self.DEPTH)

    def value(self, place: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """B at a multiple of 2^-DEPTH, `(B, *shape)`, with B(0) = 0."""
        size = 2**self.DEPTH
        if self._last is None or self._last[0] > place:
            zero = torch.zeros(len(self.noise.indices), *shape, dtype=dtype, device=self.noise.indices.device)
            end = math.sqrt(self._c(size) - self._c(0)) * self.noise.normal(-1 - size, shape, dtype)
            self._last = (0, zero)
            self._right = [(size, end)]
        left, at_left = self._last
        middles = self._middles(left, place)
        normals = self.noise.normals([-1 - middle for middle in middles], shape, dtype) if middles else iter(())
        for middle, z in zip(middles, normals, strict=True):
            while self._right[-1][0] <= middle:
                left, at_left = self._right.pop()
            right, at_right = self._right[-1]
            c_left = self._c(left)
            c_middle = self._c(middle)
            c_right = self._c(right)
            share = (c_middle - c_left) / (c_right - c_left)
            std = math.sqrt((c_middle - c_left) * (c_right - c_middle) / (c_right - c_left))
            self._right.append((middle, torch.lerp(at_left, at_right, share).add_(z, alpha=std)))
        while self._right and self._right[-1][0] <= place:
            left, at_left = self._right.pop()
        self._last = (left, at_left)
        return at_left

    def _middles(self, left: int, place: int) -> list[int]:
        """The midpoints of the bisections from the last point to a place, in order."""
        right = [end for end, _ in self._right]
        middles = []
        while left < place:
            if right[-1] <= place:
                left = right.pop()
            else:
                middles.append((left + right[-1]) // 2)
                right.append(middles[-1])
        return middles

    def normals(self, draws: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        increments = []
        for draw in draws:
            if draw == 0:
                increments.append(self.noise.normal(0, shape, dtype))
                continue
            first = self.points[draw - 1]
            last = max(self.points[draw], first + 1)  # steps below the resolution share an interval
            before = self.value(first, shape, dtype)
            increment = self.value(last, shape, dtype) - before
            increments.append(increment / math.sqrt(self._c(last) - self._c(first)))
        return torch.stack(increments)
