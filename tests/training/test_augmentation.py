"""What is done to a batch before the loss: images mirrored, whole numbers spread, conditions hidden."""

import pytest
import torch

from scoresde import (
    MLP,
    VPSDE,
    EDMParametrization,
    NetworkScoreModel,
    NoiseParametrization,
    Scaling,
    TrainingOptions,
    UNet,
    UsageError,
)
from scoresde.data import ArrayData
from scoresde.objective import DenoisingObjective
from scoresde.training import Trainer
from tests.training.jobs import recorded
from tests.training.trainers import Recorder, advance, gaussian_data, make_model


def test_flips_mirror_about_half_of_the_images(device):
    images = torch.arange(4.0).repeat(64, 1)[:, None, None]  # 0 1 2 3: mirrored 3 2 1 0
    model = NetworkScoreModel(UNet(1, channels=2), VPSDE(), NoiseParametrization(), (1, 1, 4)).to(device)
    recorder = Recorder()
    advance(Trainer(model, ArrayData(images), recorder, TrainingOptions(batch_size=64, flip=True)), 4)
    rows = torch.cat([batch.raw[:, 0, 0].cpu() for batch in recorder.batches])
    flipped = (rows == torch.arange(3.0, -1, -1)).all(1)
    assert (flipped | (rows == torch.arange(4.0)).all(1)).all()
    assert 128 - 5 * 8 < flipped.sum() < 128 + 5 * 8  # 256 coins, five deviations


def test_whole_numbers_are_spread_over_their_unit_intervals(device):
    """The objective is given x + u with |u| < 1/2 in raw units, as many as there are samples in a batch."""
    raw = torch.randint(0, 4, (64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    codec = Scaling(center=2.0, scale=4.0)
    data = ArrayData(raw, None, codec)
    network = MLP(3, width=8, depth=1)
    model = NetworkScoreModel(network, VPSDE(), EDMParametrization(1.0), (3,), codec).to(device)
    recorder = Recorder()
    options = TrainingOptions(num_steps=4, batch_size=64, dequantize=True)
    advance(Trainer(model, data, recorder, options), 2)
    first, second = (batch.raw.cpu() - batch.raw.cpu().round() for batch in recorder.batches)
    for u in (first, second):
        assert u.abs().max() <= 0.5
        assert abs(u.var().item() - 1 / 12) < 0.015  # 192 numbers: a standard error of 0.0054
    assert not torch.equal(first, second)
    trainer = Trainer(model, data, DenoisingObjective(), options)
    assert trainer.held_out_loss(data) == trainer.held_out_loss(data)
    plain = Trainer(model, data, DenoisingObjective(), TrainingOptions(num_steps=4, batch_size=64))
    assert plain.held_out_loss(data) != trainer.held_out_loss(data)
    with pytest.raises(UsageError, match="data are floats, not whole numbers"):
        Trainer(model, ArrayData(torch.randn(64, 3)), recorder, options)


def labelled_run(device, label_dropout, **options):
    """Samples, times, noises and labels of eight steps."""
    data = ArrayData(gaussian_data(256).values, torch.arange(256) % 3)
    recorder = Recorder()
    model = make_model(device, num_classes=3, label_dropout=label_dropout)
    state = torch.get_rng_state()
    advance(Trainer(model, data, recorder, TrainingOptions(num_steps=8, batch_size=256, **options)), 8)
    assert torch.equal(torch.get_rng_state(), state)
    parts = [
        (batch.raw, draws["t"], draws["eps"], batch.cond)
        for batch, draws in zip(recorder.batches, recorder.draws, strict=True)
    ]
    return [torch.cat(kind) for kind in zip(*parts, strict=True)]


def test_label_dropout_hides_its_share_of_the_labels_and_nothing_else_changes(device):
    plain, hiding, again = labelled_run(device, 0.0), labelled_run(device, 0.25), labelled_run(device, 0.25)
    for one, other in zip(plain[:3], hiding[:3], strict=True):
        assert torch.equal(one, other)  # samples, times and noises keep their bits
    assert torch.equal(hiding[3], again[3])
    hidden = hiding[3] == 3
    assert torch.equal(hiding[3][~hidden], plain[3][~hidden])
    assert abs(hidden.sum().item() - 512) < 5 * (2048 * 0.25 * 0.75) ** 0.5  # binomial, five deviations
    assert torch.equal(labelled_run(device, 0.25, accumulate=4)[3], hiding[3])


def test_a_model_with_label_dropout_trains_its_row_for_no_label(device):
    data = ArrayData(gaussian_data().values, torch.arange(64) % 3)
    model = make_model(device, num_classes=3, label_dropout=0.5)
    before = model.network.conditioning.label.weight.detach().clone()
    trainer = advance(Trainer(model, data, DenoisingObjective(), TrainingOptions(num_steps=5)), 5)
    assert (model.network.conditioning.label.weight - before).abs().max(1).values.min() > 0
    x = torch.randn(4, 2, device=device)
    with trainer.average.applied(model):
        assert model.denoise(x, 0.5).isfinite().all()


def test_nothing_that_is_drawn_depends_on_the_parts_that_a_batch_is_computed_in(device):
    whole = recorded(device)
    assert whole["raw"].is_floating_point()
    assert (whole["cond"] == 3).any()
    for accumulate in (2, 4):
        parts = recorded(device, accumulate=accumulate)
        for name, value in whole.items():
            assert torch.equal(parts[name], value), (accumulate, name)
