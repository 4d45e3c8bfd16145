r"""An autoencoder as the codec of a score model: x = (E[z | raw] - mean) / std, channel by channel.

Mean and deviation are those of the latents of the training set (Rombach et al. 2022 divide by one number, the deviation
of a first batch). The autoencoder is trained before and apart. It is not a part of the score model's weights: a
checkpoint names it by the path and the checksum of its file.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from scoresde.codec import Codec
from scoresde.errors import require
from scoresde.models.autoencoder import Autoencoder


@final
class AutoencoderCodec(Codec):
    """The map from raw data to the latents of an autoencoder, and back.

    It follows the data to their device.

    Args:
        autoencoder: trained; its weights are frozen here.
        path: of its file, as a checkpoint will name it; empty for one that lies in no file.
        digest: the checksum of the file.
        error: the law of the decoder with which it was trained, "l1" for Laplace's or "l2" for the Gaussian.
    """

    def __init__(self, autoencoder: Autoencoder, path: str = "", digest: str = "", error: str = "l1") -> None:
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.error = error
        self.path = path
        self.digest = digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AutoencoderCodec) and (
            self.digest == other.digest if self.digest else self.autoencoder is other.autoencoder
        )

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"the latents of {self.path or 'an autoencoder'} ({self.digest or 'in no file'})"

    def posterior(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor | None]:
        """Mean and standard deviation of x given raw data; None for an autoencoder that is a function."""
        model = self.autoencoder.to(raw.device)
        latents = model.plain().encode(model.codec.encode(raw, model.dtype))
        mean, std = (by_channel(part, latents.mean) for part in (model.latent_mean, model.latent_std))
        x = ((latents.mean - mean) / std).to(dtype)
        if latents.log_variance is None:
            return x, None
        return x, ((0.5 * latents.log_variance).exp() / std).to(dtype)

    def encode(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.posterior(raw, dtype)[0]

    def decode(self, x: Tensor) -> Tensor:
        return self.autoencoder.codec.decode(self.decode_scaled(x))

    def decode_scaled(self, x: Tensor) -> Tensor:
        """What `decode` gives, in the units of the autoencoder's own codec and in the type of x."""
        model = self.autoencoder.to(x.device)
        mean, std = (by_channel(part, x) for part in (model.latent_mean, model.latent_std))
        return model.plain().decode(x.to(model.dtype) * std + mean).to(x.dtype)

    def encoded_shape(self, raw_shape: tuple[int, ...]) -> tuple[int, ...]:
        shape = self.autoencoder.codec.encoded_shape(raw_shape)
        taken = self.autoencoder.plain().channels_in
        require(
            shape[0] == taken,
            f"data of shape {raw_shape}: the autoencoder {self.path!r} takes {taken} channels; train one on these data",
        )
        return self.autoencoder.plain().latent_shape(shape)


def without_latents(codec: Codec) -> Codec:
    """The codec of the values themselves, in which data are compared: that of the autoencoder of a latent codec."""
    if isinstance(codec, Encoded):
        return without_latents(codec.codec)
    return codec.autoencoder.codec if isinstance(codec, AutoencoderCodec) else codec


def by_channel(values: Tensor, like: Tensor) -> Tensor:
    """A number for each channel `(C,)`, in a shape that broadcasts over samples `(B, C, ...)`."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 2))


@final
class Encoded(Codec):
    """A codec of data that are encoded already; decode is that of another codec.

    The data are x, or its means and, behind them, as many channels of standard deviations, as
    `AutoencoderCodec.posterior` gives them: training then draws x anew in each step.

    Args:
        codec: with which they were encoded.
        channels: of x, or its columns.
    """

    def __init__(self, codec: Codec, channels: int) -> None:
        self.codec = codec
        self.channels = channels

    def encode(self, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """x, or its mean."""
        return raw[:, : self.channels].to(dtype)

    def draw(self, raw: Tensor, eps: Tensor) -> Tensor:
        """x, drawn by standard normal numbers of its shape if its deviations are known."""
        mean, std = raw[:, : self.channels], raw[:, self.channels :]
        return mean + std * eps if std.shape[1] else mean

    def decode(self, x: Tensor) -> Tensor:
        return self.codec.decode(x)

    def encoded_shape(self, raw_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.channels, *raw_shape[1:])
