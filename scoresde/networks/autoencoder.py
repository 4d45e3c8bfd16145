"""Networks that encode samples to latents and decode them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class Latents(NamedTuple):
    """What an encoder gives: the mean `(B, C_z, *sizes)`, the log variance of the same shape or None, and codes."""

    mean: Tensor
    log_variance: Tensor | None = None
    codes: Tensor | None = None


class AutoencoderNetwork(nn.Module, ABC):
    """A network that encodes samples to latents and decodes them."""

    channels_in: int
    latent_channels: int
    factor: int
    dims: int

    @abstractmethod
    def encode(self, x: Tensor) -> Latents:
        """The latents of samples `(B, channels_in, *sizes)`."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """The samples of latents."""

    @abstractmethod
    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a sample's latents."""
