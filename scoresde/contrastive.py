r"""Training of text encoders: each sample finds its caption among those of the batch, and each caption its sample.

With u_i the vector of sample i, v_j that of caption j, both of length 1, and s the scale of their similarities,

    l_i = -1/2 log softmax_j(s u_i . v_j) at j = i  -  1/2 log softmax_j(s u_j . v_i) at j = i

(Radford et al. 2021, section 2.3). log s is learned, and s is at most 100. At the optimum, s u . v is
log p(sample, caption) / (p(sample) p(caption)) up to a constant (van den Oord et al. 2018, section 2.3).

**Equal captions.** Data with few attributes have many samples with the same caption. Such a pair does fit together, so
the places j != i whose caption equals that of i are left out of both sums. With captions that all differ this changes
nothing.

The loss depends on which samples are in one batch: smaller batches have lower losses. In training by several processes
each compares the samples of its own share.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from scoresde.models.text_encoder import ContrastiveTextModel, captions
from scoresde.noise import BatchNoise
from scoresde.objective import Averaged, Batch, Objective


@final
@dataclass(frozen=True)
class ContrastiveObjective(Objective[ContrastiveTextModel]):
    """The mean of -log p(caption | sample) and -log p(sample | caption) within the batch, in nats."""

    trains = ContrastiveTextModel

    def draw(self, model: ContrastiveTextModel, batch: Batch, noise: BatchNoise) -> Mapping[str, Tensor]:
        return {}

    def at(
        self,
        model: ContrastiveTextModel,
        batch: Batch,
        draws: Mapping[str, Tensor],
        averaged: Averaged = contextlib.nullcontext,
    ) -> Tensor:
        embedded = model.embed(batch.raw, batch.cond)
        similarities = (embedded.scale * embedded.images @ embedded.texts.mT).float()
        left_out = equal_captions(*captions(batch.cond)).fill_diagonal_(False)
        similarities = similarities.masked_fill(left_out, -torch.inf)
        own = similarities.diagonal()
        return 0.5 * (similarities.logsumexp(1) + similarities.logsumexp(0)) - own


def equal_captions(ids: Tensor, mask: Tensor) -> Tensor:
    """Whether two captions of a batch are equal, `(B, B)`."""
    numbers = ids.masked_fill(~mask, -1)
    return (numbers[:, None] == numbers[None]).all(2)
