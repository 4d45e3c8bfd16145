"""The objective of upsamplers: which condition it makes, and that it is the inner objective given that."""

import math

import pytest
import torch

from scoresde import (
    VPSDE,
    BatchNoise,
    DenoisingObjective,
    EDMParametrization,
    HybridObjective,
    NetworkScoreModel,
    Scaling,
    TrainingOptions,
    UNet,
    UpsamplingObjective,
    UsageError,
    VariationalObjective,
    registry,
)
from scoresde.classification import ClassificationObjective
from scoresde.data import ArrayData
from scoresde.objective import Batch, Objective
from scoresde.resize import resize
from scoresde.training import Trainer
from tests.training.trainers import Recorder, advance


def model_of(shape=(2, 8, 4), **more):
    torch.manual_seed(0)
    network = UNet(shape[0], 8, dims=len(shape) - 1, image_channels=shape[0], keeps_image=True, **more)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return NetworkScoreModel(network, VPSDE(), EDMParametrization(1.0), shape, Scaling(1.0, 2.0)).double()


def raw_of(shape=(2, 8, 4), num=6):
    return torch.randn(num, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(2, 8), (2, 8, 4), (1, 4, 4, 8)])
@pytest.mark.parametrize("kernel", ["bicubic", "area"])
def test_the_condition_is_the_noisy_low_resolution_of_the_sample(shape, kernel):
    objective = UpsamplingObjective(kernel=kernel, largest_noise=0.4)
    model = model_of(shape)
    raw = raw_of(shape)
    noise = BatchNoise.fresh(len(raw))
    draws = objective.draw(model, Batch(raw), noise)
    s, eps = draws["image noise"], draws["image eps"]
    assert s.shape == (6,)
    assert eps.shape == (6, *objective.low_shape(shape))
    assert bool(((s > 0) & (s < 0.4)).all())
    given = objective.condition(objective.reduce(model.codec.encode(raw, torch.float64)), s, eps)
    small = resize((raw - 1) / 2, [n // 2 for n in shape[1:]], kernel)
    noisy = small + s.view(-1, *[1] * len(shape)) * eps
    torch.testing.assert_close(given["image"], resize(noisy, shape[1:], kernel))
    assert torch.equal(given["image_noise"], s)
    loss = objective.at(model, Batch(raw), draws)
    assert torch.equal(loss, objective.objective.at(model, Batch(raw, given), draws))


def test_labels_and_other_parts_stay_beside_the_image():
    objective = UpsamplingObjective()
    low, s = torch.randn(3, 1, 2, 2), torch.zeros(3)
    labels = torch.arange(3)
    assert torch.equal(objective.condition(low, s, low, labels)["label"], labels)
    assert torch.equal(objective.condition(low, s, low, low[:, 0, 0])["vector"], low[:, 0, 0])
    assert objective.condition(low, s, low, {"label": labels}).keys() == {"label", "image", "image_noise"}


@pytest.mark.parametrize("inner", [DenoisingObjective(), VariationalObjective(), HybridObjective(num_steps=10)])
def test_every_objective_of_score_models_goes_inside(inner):
    objective = UpsamplingObjective(inner)
    assert objective.learns_variance == inner.learns_variance
    model = model_of(learned_variance=inner.learns_variance)
    data = ArrayData(raw_of(), None, model.codec)
    trainer = Trainer(model, data, objective, TrainingOptions(batch_size=4, accumulate=2))
    before = model.network.conditioning.image.weight.detach().clone()
    advance(trainer, 2)
    assert math.isfinite(trainer.pop_metrics()["loss"])
    assert not torch.equal(model.network.conditioning.image.weight, before)
    assert trainer.held_out_loss(data) == trainer.held_out_loss(data)


def test_labels_are_hidden_in_training_and_images_never(device, monkeypatch):
    seen = Recorder()
    data = ArrayData(raw_of(num=16), torch.arange(16) % 3, Scaling(1.0, 2.0))
    model = model_of(num_classes=3, label_dropout=0.5).to(device)
    trainer = Trainer(model, data, UpsamplingObjective(seen), TrainingOptions(batch_size=16))
    advance(trainer, 2)
    for batch in seen.batches:
        assert 0 < (batch.cond["label"] == 3).sum() < 16
        assert (batch.cond["image"].flatten(1).norm(dim=1) > 0.1).all()
        model.check_cond(batch.cond)


def test_it_is_described_with_the_objective_inside():
    objective = UpsamplingObjective(VariationalObjective(), 4, "area", False, 0.2)
    described = registry.describe(objective)
    assert described["objective"] == {"name": "VariationalObjective"}
    assert registry.construct(described, Objective, "objective") == objective


def test_mistakes_are_named():
    for make, message in {
        (lambda: UpsamplingObjective(factor=1)): "factor=1: need at least 2",
        (lambda: UpsamplingObjective(kernel="box")): "kernel 'box'",
        (lambda: UpsamplingObjective(largest_noise=-0.1)): "largest_noise=-0.1",
        (lambda: UpsamplingObjective(UpsamplingObjective())): "objective=UpsamplingObjective: need one of score models",
        (lambda: UpsamplingObjective(ClassificationObjective())): "objective=ClassificationObjective: need one",
        (lambda: UpsamplingObjective(factor=3).low_shape((1, 8, 9))): r"objective.factor=3: must divide .*\(1, 8, 9\)",
        (lambda: UpsamplingObjective().low_shape((8,))): r"objective.factor=2: must divide",
    }.items():
        with pytest.raises(UsageError, match=message):
            make()
