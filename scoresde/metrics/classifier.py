"""A small convolutional classifier of the 8x8 digits: the judge of the quality benchmark."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.data import ArrayData


class DigitsClassifier(nn.Module):
    """Two convolutions and two linear layers on images `(B, 1, 8, 8)` in [-1, 1]; `features` are the last hidden 64."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.hidden = nn.Linear(64 * 16, 64)
        self.logits = nn.Linear(64, 10)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.hidden(self.convolutions(x).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(F.dropout(self.features(x), 0.5, self.training))


def train_classifier(data: ArrayData, num_epochs: int = 60, seed: int = 0) -> DigitsClassifier:
    """Trains on images shifted by up to one pixel; about 15 s on one core."""
    torch.manual_seed(seed)
    x, labels = data.all()
    assert labels is not None
    classifier = DigitsClassifier().train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.05)
    batches = len(x) // 64
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_epochs * batches)
    for _ in range(num_epochs):
        for index in torch.randperm(len(x))[: batches * 64].split(64):
            shift = torch.randint(-1, 2, (2,)).tolist()
            padded = F.pad(x[index], (1, 1, 1, 1), value=-1.0)
            image = padded[:, :, 1 + shift[0] : 9 + shift[0], 1 + shift[1] : 9 + shift[1]]
            loss = F.cross_entropy(classifier(image), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


@torch.no_grad()
def judge(classifier: DigitsClassifier, x: Tensor, labels: Tensor) -> tuple[float, float, Tensor]:
    """Share of samples with a class probability above 0.9, share of the asked class, and the features."""
    probability = classifier(x).softmax(1)
    confident = (probability.max(1).values > 0.9).double().mean().item()
    agreement = (probability.argmax(1) == labels).double().mean().item()
    return confident, agreement, classifier.features(x)
