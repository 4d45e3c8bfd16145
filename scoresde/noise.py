r"""Noise as an argument: a function of (seed, sample index, draw).

A sampler asks for a draw by its number, and gets the same values whatever the batch that a sample sits in, the process
that draws it, or the order of the questions. So sample i of a seed is one fixed picture; no random state is kept, and
none is touched.

The numbers come from a hash of their place, in integer tensor operations, so that every device has the same bits:

    word = mix(mix(mix(seed) + gamma index) ^ mix(mix(seed') + gamma draw) ^ mix(gamma (position + 1))),

where seed' is another number made of the seed, mix is the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast
splittable pseudorandom number generators", with Stafford's constants, variant 13), which passes the usual batteries on
consecutive numbers, and gamma its odd constant.
Each half v of a word, a signed number of 32 bits, makes a normal number by the inverse of the normal distribution,
sqrt(2) erfinv(2^-31 v), kept off both ends by one part in 2^24: |z| <= 5.42, which one number in 17 million would pass.

`Path` is noise along one Brownian motion: increments that agree between different grids.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import final

import torch
from torch import Tensor

from scoresde.errors import require

_MASK32, _MASK64 = 2**32 - 1, 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15
_STAGES = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
BLOCK = 2**17  # numbers that are drawn at a time where a loop knows what it will need


def _signed(word: int) -> int:
    """64 bits as the signed number that a tensor holds."""
    word &= _MASK64
    return word - 2**64 if word >= 2**63 else word


def mix(z: int) -> int:
    """SplitMix64's finaliser of a 64-bit number."""
    for shift, factor in _STAGES:
        z = ((z ^ (z >> shift)) * factor) & _MASK64
    return z


def mix_(z: Tensor) -> Tensor:
    """The same on an int64 tensor, in place: products wrap around, and masks drop the copies of the sign."""
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


@lru_cache(maxsize=4096)
def _draw_keys(seed: int, draws: tuple[int, ...], device: torch.device) -> Tensor:
    """The hashes of draws, `(len(draws), 1)`: moved once, so that a loop that is run again waits for no copy."""
    start = mix(seed ^ _GAMMA)
    return torch.tensor([[_signed(mix((start + _GAMMA * draw) & _MASK64))] for draw in draws]).to(device)


class NoiseSource(ABC):
    """What gives a sampler its standard normal numbers."""

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
        indices: which samples these are, int64 `(B,)`, on the device where the noise is wanted.
    """

    seed: int
    indices: Tensor

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**64, f"seed={self.seed}: need 0 <= seed < 2**64")

    @cached_property
    def _of_samples(self) -> Tensor:
        return mix_(self.indices * _signed(_GAMMA) + _signed(mix(self.seed)))

    def normals(self, draws: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        dim, device = math.prod(shape), self.indices.device
        keys = _draw_keys(self.seed, tuple(draws), device) ^ self._of_samples
        words = mix_(keys[..., None] ^ _places((dim + 1) // 2, device))
        return _normals(words, dtype)[..., :dim].reshape(len(draws), len(self.indices), *shape)


def _normals(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Two normal numbers a word, along the last dimension."""
    work = torch.float64 if dtype == torch.float64 else torch.float32
    below_one = 1 - torch.finfo(torch.float32).eps / 2  # float32 rounds the largest halves up to 2^31
    uniform = words.view(torch.int32).to(work).mul_(2.0**-31 * below_one)
    return uniform.erfinv_().mul_(math.sqrt(2)).to(dtype)


@final
class Path(NoiseSource):
    r"""Increments of one Brownian motion a sample: those over [a, c] are those over [a, b] plus those over [b, c].

    The motion B runs in a clock c(u) of a coordinate u in [0, 1]. Its values at multiples of 2^-DEPTH come from Levy's
    bisection: given both ends of an interval of u, the middle is normal around the line between them in c, and takes
    its number from a draw that belongs to that middle alone. So any two grids see the same motion. Grids rise in u, and
    the way to the next point shares all but a few bisections with the way to the last.

    Args:
        noise: where the numbers come from.
        clock: c(u), rising.
        points: u of the ends of intervals, rising; draw k + 1 is the increment between point k and k + 1, divided by
            its standard deviation.
    """

    DEPTH = 20

    def __init__(self, noise: Noise, clock: Callable[[float], float], points: Sequence[float]) -> None:
        self.noise, self.clock = noise, clock
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
            self._last, self._right = (0, zero), [(size, end)]
        left, at_left = self._last
        middles = self._middles(left, place)
        normals = self.noise.normals([-1 - middle for middle in middles], shape, dtype) if middles else iter(())
        for middle, z in zip(middles, normals, strict=True):
            while self._right[-1][0] <= middle:
                left, at_left = self._right.pop()
            right, at_right = self._right[-1]
            c_left, c_middle, c_right = self._c(left), self._c(middle), self._c(right)
            share = (c_middle - c_left) / (c_right - c_left)
            std = math.sqrt((c_middle - c_left) * (c_right - c_middle) / (c_right - c_left))
            self._right.append((middle, torch.lerp(at_left, at_right, share).add_(z, alpha=std)))
        while self._right and self._right[-1][0] <= place:
            left, at_left = self._right.pop()
        self._last = (left, at_left)
        return at_left

    def _middles(self, left: int, place: int) -> list[int]:
        """The bisections on the way from the last point to a place, in order."""
        right, middles = [end for end, _ in self._right], []
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
            first, last = self.points[draw - 1], self.points[draw]
            last = max(last, first + 1)  # steps below the resolution share an interval
            before = self.value(first, shape, dtype)
            increment = self.value(last, shape, dtype) - before
            increments.append(increment / math.sqrt(self._c(last) - self._c(first)))
        return torch.stack(increments)
