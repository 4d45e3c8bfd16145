"""Small models, data and trainers, and objectives that keep what they are given."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from scoresde import MLP, VPSDE, NetworkScoreModel, NoiseParametrization, TrainingOptions
from scoresde.data import ArrayData
from scoresde.objective import Batch, DenoisingObjective, Objective
from scoresde.training import Batches, Trainer
from scoresde.training.batches import check_shape

STD = 0.5  # of the Gaussian that is learned


def make_model(device, width=16, num_classes=0, label_dropout=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MLP(2, width=width, depth=2, num_classes=num_classes, label_dropout=label_dropout)
    return NetworkScoreModel(network, VPSDE(), NoiseParametrization(sigma_data=STD), (2,)).to(device)


def gaussian_data(num_samples=64, seed=0):
    return ArrayData(STD * torch.randn(num_samples, 2, generator=torch.Generator().manual_seed(seed)))


def make_trainer(device, seed=0, objective=None, data=None, **options):
    options = TrainingOptions(**{"num_steps": 12, "batch_size": 16, "warmup_steps": 3, **options})
    return Trainer(make_model(device), data or gaussian_data(), objective or DenoisingObjective(), options, seed)


def advance(trainer, num_steps):
    for _ in range(num_steps):
        trainer.step()
    return trainer


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value.cpu(), other[name].cpu()), name


def assert_close_state(one, other, rtol, atol):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            value, other[name], rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


class Recorder(Objective):
    """Keeps the batches and draws that it is given; its loss is 0."""

    def __init__(self):
        self.batches = []
        self.draws = []

    def draw(self, model, batch, noise):
        return DenoisingObjective().draw(model, batch, noise)

    def at(self, model, batch, draws, averaged=contextlib.nullcontext):
        self.batches.append(batch)
        self.draws.append(draws)
        nothing = sum(0 * p.sum() for p in model.parameters())
        return nothing + torch.zeros(len(batch.raw), device=batch.raw.device)

    @property
    def rows(self):
        """The first entry of each sample, batch by batch."""
        return [batch.raw[:, 0].cpu() for batch in self.batches]


class Normed(nn.Module):
    """A network with buffers."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.last = nn.Linear(2, 2)

    def forward(self, x, c_noise, cond=None):
        return self.last(self.norm(x))


def normed_model(device):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Normed()
    return NetworkScoreModel(network, VPSDE(), NoiseParametrization(), (2,)).to(device)


class Stream(Batches):
    """Samples that are made as they are asked for: 0, 1, 2, .. on a circle, with their quadrant as the label."""

    raw_shape = (2,)
    quantized = False

    def __init__(self, batch_size):
        self.batch_size = batch_size
        self.asked = []

    def check(self, model):
        check_shape(self.raw_shape, model)
        model.check_cond(torch.arange(4))

    def batch(self, step, share, device):
        self.asked.append((step, share))
        angle = (torch.arange(self.batch_size, device=device)[share] + step * self.batch_size).double()
        raw = torch.stack([angle.cos(), angle.sin()], 1).float()
        return Batch(raw, 2 * (raw[:, 0] > 0) + (raw[:, 1] > 0))
