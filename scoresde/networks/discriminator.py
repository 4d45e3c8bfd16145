"""A network that tells samples from reconstructions, patch by patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.errors import require
from scoresde.networks.layers import Style, check_samples

SLOPE = 0.2  # of the leaky rectifier


@final
class PatchDiscriminator(nn.Module):
    """Convolutions that give one number for each patch of a sample, `(B, 1, *sizes)` (Isola et al. 2017, PatchGAN).

    Positive numbers say that a patch is of the data. Normalisation is by groups of channels within a sample, where the
    paper's is over the batch, so that samples are judged one by one.

    Args:
        channels_in: channels of a sample.
        channels: features at the finest level.
        num_levels: times that sizes are halved; each side needs at least 3 2^num_levels.
        dims: 1 for series, 2 for images.
    """

    def __init__(self, channels_in: int, channels: int = 64, num_levels: int = 3, dims: int = 2) -> None:
        super().__init__()
        for name, value in {"channels_in": channels_in, "channels": channels, "num_levels": num_levels}.items():
            require(value >= 1, f"{name}={value} of PatchDiscriminator: need at least 1")
        style = Style(dims=dims)
        self.channels_in = channels_in
        self.channels = channels
        self.num_levels = num_levels
        self.dims = dims
        self.first = style.conv(channels_in, channels, 4, stride=2, padding=1)
        self.layers = nn.ModuleList()
        c = channels
        for level in range(1, num_levels + 1):
            stride = 2 if level < num_levels else 1
            wider = channels * min(2**level, 8)
            self.layers.append(nn.Sequential(style.conv(c, wider, 4, stride, padding=1), style.norm(wider)))
            c = wider
        self.last = style.conv(c, 1, 4, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        check_samples(x, self.channels_in, self.dims)
        least = 3 * 2**self.num_levels
        require(
            min(x.shape[2:]) >= least,
            f"num_levels={self.num_levels} of PatchDiscriminator: needs sides of {least} or more, and samples have "
            f"{tuple(x.shape[2:])}; take fewer",
        )
        h = F.leaky_relu(self.first(x), SLOPE)
        for layer in self.layers:
            h = F.leaky_relu(layer(h), SLOPE)
        return self.last(h)


def discriminator_of(shape: Sequence[int]) -> PatchDiscriminator:
    """One for samples `(channels, *sizes)`, which halves them three times, or as often as they are large enough for.

    Raises:
        UsageError: for samples that are neither series nor images, or smaller than 6.
    """
    channels, *sizes = shape
    require(
        len(sizes) in (1, 2) and min(sizes) >= 6,
        f"data of shape {tuple(shape)}: an adversarial term needs series or images with sides of 6 or more; set "
        "adversarial_weight to 0",
    )
    num_levels = max(levels for levels in (1, 2, 3) if min(sizes) >= 3 * 2**levels)
    return PatchDiscriminator(channels, num_levels=num_levels, dims=len(sizes))
