"""A text encoder in training, beside an image encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from scoresde.codec import Codec, Scaling
from scoresde.condition import Condition, describe
from scoresde.errors import UsageError, require
from scoresde.models.base import TrainedModel, plain_network
from scoresde.networks.text import ContrastiveNetwork, Embedded, TextTransformer


@final
class ContrastiveTextModel(TrainedModel):
    """An encoder of captions and one of samples, which are trained to agree (Radford et al. 2021).

    Its condition is the captions of a batch, {"ids": `(B, L)` numbers of words, "mask": `(B, L)` booleans, False at
    places that only pad}, as `scoresde.text.Vocabulary.ids` gives them.

    Args:
        network: both encoders.
        shape: shape of one sample, in the model's units.
        codec: the map from raw data to the model's units and back; the identity by default.
    """

    role = "text_encoder"

    def __init__(
        self,
        network: nn.Module,
        shape: Sequence[int],
        codec: Codec = Scaling(),  # noqa: B008  frozen
    ) -> None:
        super().__init__(network, shape, codec)
        inner = plain_network(network)
        if not isinstance(inner, ContrastiveNetwork):
            raise UsageError(f"network of {type(inner).__name__}: need a ContrastiveNetwork")
        image = inner.image
        fits = len(self.shape) == image.dims + 1 and self.shape[0] == image.channels_in
        require(
            fits,
            f"shape={self.shape}: the image encoder takes {image.channels_in} channels and {image.dims} sizes; make it "
            "with the channels_in and dims of the samples",
        )

    def with_network(self, network: nn.Module) -> ContrastiveTextModel:
        return ContrastiveTextModel(network, self.shape, self.codec)

    @property
    def text(self) -> TextTransformer:
        """The encoder of captions, which stays when training is done."""
        inner = plain_network(self.network)
        assert isinstance(inner, ContrastiveNetwork)
        return inner.text

    def embed(self, raw: Tensor, cond: Condition) -> Embedded:
        """Raw samples `(B, *raw_shape)` and their captions in one space."""
        ids, mask = captions(cond)
        x = self.codec.encode(raw, self.dtype).to(self.compute_dtype(self.dtype))
        embedded: Embedded = self.network(x, ids, mask)
        return embedded

    def check_cond(self, cond: Condition) -> None:
        """Raises `UsageError` unless a condition is the captions of a batch."""
        ids, _ = captions(cond)
        network = self.text
        need = f"need whole numbers from 0 to {len(network.words) - 1}, {network.max_length} at most for each caption"
        fits = not (ids.is_floating_point() or ids.dtype == torch.bool) and ids.shape[1] <= network.max_length
        require(fits, f"cond['ids']: {describe(ids)}; {need}")
        low, high = (int(end) for end in ids.aminmax())
        require(low >= 0 and high < len(network.words), f"cond['ids']: numbers from {low} to {high}; {need}")


def captions(cond: Condition) -> tuple[Tensor, Tensor]:
    """The numbers of the words of captions `(B, L)`, and their mask `(B, L)`.

    Raises:
        UsageError: for conditions that are not captions.
    """
    if isinstance(cond, Mapping) and cond.keys() == {"ids", "mask"}:
        ids, mask = cond["ids"], cond["mask"]
        if isinstance(ids, Tensor) and isinstance(mask, Tensor) and ids.ndim == 2 and mask.shape == ids.shape:
            require(mask.dtype == torch.bool, f"cond['mask']: {describe(mask)}; need booleans")
            return ids, mask
    raise UsageError(
        f"cond: {describe(cond)}; a text encoder is trained with captions, a dict of 'ids' (B, L) and 'mask' (B, L)"
    )
