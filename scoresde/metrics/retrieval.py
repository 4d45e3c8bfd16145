"""Whether a text encoder and its image encoder find each other's samples and captions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.models.text_encoder import ContrastiveTextModel

GROUP = 100  # pairs among which one is sought


class Retrieval(NamedTuple):
    """How often the nearest is the right one.

    Attributes:
        caption: share of the samples whose own caption is the nearest of its group.
        sample: share of the captions whose own sample is the nearest of its group.
        group: pairs in a group; by chance both shares are 1 / group.
        pairs: pairs in all groups together.
    """

    caption: float
    sample: float
    group: int
    pairs: int


@torch.no_grad()
def retrieval_at_1(
    model: ContrastiveTextModel, raw: Tensor, ids: Tensor, mask: Tensor, group: int = GROUP
) -> Retrieval:
    """How often samples and captions find each other, in groups in which no caption is there twice.

    Args:
        model: both encoders.
        raw: samples `(N, *raw_shape)`.
        ids, mask: their captions `(N, L)`, as `ContrastiveTextModel` takes them.
        group: pairs in a group. Pairs that fill no group are left out; if there are fewer different captions than this,
            the groups have one pair of each.
    """
    groups = list(_groups(ids.masked_fill(~mask, -1), group))
    right = torch.zeros(2)
    with model.eval_mode():
        for places in groups:
            found = {"ids": ids[places].to(model.device), "mask": mask[places].to(model.device)}
            embedded = model.embed(raw[places.to(raw.device)].to(model.device), found)
            similarities = (embedded.images @ embedded.texts.mT).cpu()
            own = torch.arange(len(places))
            right += torch.stack([(similarities.argmax(axis) == own).sum() for axis in (1, 0)])
    size = len(groups[0])
    caption, sample = (right / (size * len(groups))).tolist()
    return Retrieval(caption, sample, size, size * len(groups))


def _groups(numbers: Tensor, size: int) -> Iterator[Tensor]:
    """Places of pairs whose captions differ, as many groups of one size as there are."""
    _, which = numbers.cpu().unique(dim=0, return_inverse=True)
    size = min(size, int(which.max()) + 1)
    order = which.argsort(stable=True)
    first = torch.searchsorted(which[order], which[order])
    earlier = torch.empty_like(which)
    earlier[order] = torch.arange(len(which)) - first  # pairs with the same caption that come before
    for number in range(int(earlier.max()) + 1):
        yield from (part for part in (earlier == number).nonzero()[:, 0].split(size) if len(part) == size)
