"""A small classifier of the user's own images: the judge of samples, whose features a Frechet distance compares.

An Inception network, as published distances take it, would have to be fetched, and says little of 8x8 digits. This one
is trained on the data that the model was trained on, in seconds; its distances compare models of one data set, and no
others.
"""

from __future__ import annotations

from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.data.arrays import ArrayData
from scoresde.errors import require

FEATURES = 64
CONFIDENT = 0.9


@final
class Classifier(nn.Module):
    """Two convolutions and two linear layers on images `(B, C, H, W)` in [-1, 1]; `features` are the last hidden 64."""

    def __init__(self, channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(4),
        )
        self.hidden = nn.Linear(64 * 16, FEATURES)
        self.logits = nn.Linear(FEATURES, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.hidden(self.convolutions(x).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(F.dropout(self.features(x), 0.5, self.training))


def train_classifier(data: ArrayData, num_steps: int = 1260, seed: int = 0) -> Classifier:
    """Trains on images shifted by up to one pixel, in batches of 64; the digits take about 15 s on one core.

    The global random state is left as it was.

    Raises:
        UsageError: for data that are no labelled images.
    """
    require(
        len(data.shape) == 3 and data.labels is not None,
        f"data of shape {data.shape}: a classifier needs images (channels, height, width) with labels",
    )
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        classifier = Classifier(data.shape[0], data.num_classes).train()
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        order = torch.empty(0, dtype=torch.long)
        height, width = data.shape[1:]
        for _ in range(num_steps):
            if len(order) < min(64, len(data)):
                order = torch.randperm(len(data))
            index, order = order[:64], order[64:]
            x, labels = data.batch(index)
            assert labels is not None
            top, left = (1 + torch.randint(-1, 2, (2,))).tolist()
            padded = F.pad(x, (1, 1, 1, 1), value=x.min().item())
            loss = F.cross_entropy(classifier(padded[:, :, top : top + height, left : left + width]), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval().requires_grad_(False)


class Judgement(NamedTuple):
    """What a classifier says of images.

    Attributes:
        confident: share with a class probability above 0.9.
        agreement: share that it gives the class asked for; not a number where none was.
        features: `(N, 64)`.
    """

    confident: float
    agreement: float
    features: Tensor


@torch.no_grad()
def judge(classifier: Classifier, x: Tensor, labels: Tensor | None, batch_size: int = 1000) -> Judgement:
    """Judges images `(N, C, H, W)` in the model's units, of which classes `labels` `(N,)` were asked for, or None."""
    logits = torch.cat([classifier(part) for part in x.split(batch_size)])
    features = torch.cat([classifier.features(part) for part in x.split(batch_size)])
    probability = logits.softmax(1)
    confident = (probability.max(1).values > CONFIDENT).double().mean().item()
    agreement = float("nan") if labels is None else (probability.argmax(1) == labels).double().mean().item()
    return Judgement(confident, agreement, features)
