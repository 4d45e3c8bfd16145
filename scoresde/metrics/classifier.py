"""A small classifier, trained on the model's own data, whose features a Frechet distance compares.

The Inception network of published distances would have to be downloaded, and says little about 8x8 digits. This one is
trained in seconds. Its distances compare models of one data set only.
"""

from __future__ import annotations

from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde._batches import batches, choose_batch_size
from scoresde.data.arrays import ArrayData
from scoresde.errors import UsageError

FEATURES = 64


@final
class Classifier(nn.Module):
    """Two convolutions and two linear layers on images `(B, C, H, W)` in the model's units.

    `features` are the last 64 hidden values, `(B, 64)`.
    """

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
        return self.logits(self.features(x))


def train_classifier(data: ArrayData, num_steps: int = 1260, seed: int = 0) -> Classifier:
    """Trains on images shifted by up to one pixel, in batches of 64; the digits take about 15 s on one core.

    Large images are differentiated a few at a time, which changes nothing. The global random state is left as it was.

    Raises:
        UsageError: for data that are not labelled images.
    """
    labels = data.labels
    if len(data.shape) != 3 or labels is None:
        raise UsageError(f"data of shape {data.shape}: a classifier needs images (channels, height, width) with labels")
    size = choose_batch_size(None, data.shape, torch.device("cpu"))
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
            index = order[:64]
            order = order[64:]
            x = data.batch(index)[0]
            top, left = (1 + torch.randint(-1, 2, (2,))).tolist()
            padded = F.pad(x, (1, 1, 1, 1), value=x.min().item())
            shifted = padded[:, :, top : top + height, left : left + width]
            kept = F.dropout(torch.ones(len(x), FEATURES))
            optimizer.zero_grad()
            for part in batches(len(x), size):
                logits = classifier.logits(classifier.features(shifted[part]) * kept[part])
                loss = F.cross_entropy(logits, labels[index][part], reduction="sum") / len(x)
                loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval().requires_grad_(False)


class Judgement(NamedTuple):
    """A classifier's judgement of images.

    Attributes:
        agreement: share of the images to which it gives the requested class; NaN if none was requested.
        features: `(N, 64)`.
    """

    agreement: float
    features: Tensor


@torch.no_grad()
def judge(classifier: Classifier, x: Tensor, labels: Tensor | None, batch_size: int | None = None) -> Judgement:
    """Judges images `(N, C, H, W)` in the model's units; `labels` `(N,)` are the requested classes, or None.

    `batch_size` of them at a time; by default as many as need little memory.
    """
    size = choose_batch_size(batch_size, x.shape[1:], x.device)
    features = torch.cat([classifier.features(part) for part in x.split(size)])
    logits = classifier.logits(features)
    agreement = float("nan") if labels is None else (logits.argmax(1) == labels).double().mean().item()
    return Judgement(agreement, features)
