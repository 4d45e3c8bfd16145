"""Averages with power profiles in training, their snapshots, and what is reconstructed from these."""

import shutil

import pytest
import torch

from scoresde import TrainingOptions, UsageError, checkpoint, fit, save_model
from scoresde.objective import DenoisingObjective
from scoresde.training import Trainer, reconstruct, save_snapshot
from scoresde.training.power import Profile, gamma_of, products
from tests.training.test_average import followed
from tests.training.test_power import shares
from tests.training.trainers import (
    advance,
    assert_same_state,
    gaussian_data,
    make_model,
    make_trainer,
    normed_model,
)

OPTIONS = {"lr": 0.05, "num_steps": 60}
LENGTHS = (0.05, 0.1)


def kept(folder, trainer, num_steps, every):
    """The snapshots of a training."""
    paths = []
    for step in range(1, num_steps + 1):
        trainer.step()
        if step % every == 0:
            paths.append(folder / f"{step}.safetensors")
            save_snapshot(paths[-1], trainer)
    return paths


def test_averages_are_weighted_sums_of_the_weights(device):
    trainer = make_trainer(device, **OPTIONS, ema_lengths=(0.05, 0.25))
    for name, course in followed(trainer, 12).items():
        for length, power in trainer.powers.items():
            expected = torch.einsum("k,k...->...", shares(gamma_of(length), 12).to(device), torch.stack(course[1:]))
            torch.testing.assert_close(power.tensors[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_they_change_nothing_else(device):
    plain, more = make_trainer(device), make_trainer(device, ema_lengths=LENGTHS)
    one, other = (advance(trainer, 5).state() for trainer in (plain, more))
    assert_same_state(one, {name: value for name, value in other.items() if not name.startswith("power")})


def test_a_continued_training_has_the_same_averages(device):
    whole = advance(make_trainer(device, ema_lengths=LENGTHS), 9)
    state = {k: v.clone() for k, v in advance(make_trainer(device, ema_lengths=LENGTHS), 4).state().items()}
    continued = make_trainer(device, ema_lengths=LENGTHS)
    continued.load_state(4, state)
    assert_same_state(advance(continued, 5).state(), whole.state())
    with pytest.raises(UsageError, match=r"do not fit the model in training \(power2"):
        make_trainer(device, ema_lengths=(*LENGTHS, 0.2)).load_state(4, state)


def test_the_average_of_another_length_is_near_that_which_was_tracked(device, tmp_path):
    """Within the bound ||sum_i x_i p_i - p|| ||theta - c|| of each weight, and float32's rounding."""
    tracked = make_trainer(device, **OPTIONS, ema_lengths=(0.07,))
    courses = followed(tracked, 60)
    wanted = Profile(gamma_of(0.07), 60)
    norm = products([wanted], [wanted]).sqrt().item()
    errors = []
    for every in (20, 5):
        (tmp_path / str(every)).mkdir()
        paths = kept(tmp_path / str(every), make_trainer(device, **OPTIONS, ema_lengths=LENGTHS), 60, every)
        made = reconstruct(paths, 0.07)
        assert (made.step, made.description["average"]["snapshots"]) == (60, 60 // every)
        error = made.description["average"]["error"]
        errors.append(error)
        for name, course in courses.items():
            weights = torch.stack(course[1:])
            spread = (weights - weights.mean(0)).norm(dim=0)
            off = (made.tensors[f"ema.score.{name}"].to(device) - tracked.powers[0.07].tensors[name]).abs()
            assert (off <= error * norm * spread + 1e-6 * weights.abs().amax(0)).all(), name
    assert errors[1] < errors[0] / 4


def test_an_average_that_was_tracked_is_given_back(device, tmp_path):
    trainer = make_trainer(device, **OPTIONS, ema_lengths=LENGTHS)
    paths = kept(tmp_path, trainer, 40, 10)
    tracked = {k: v.clone() for k, v in trainer.powers[0.1].tensors.items()}
    model = reconstruct(paths, 0.1).model()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, tracked[name].cpu(), rtol=1e-6, atol=1e-7)
    earlier = reconstruct(paths, 0.05, step=20)
    alone = reconstruct(paths[:2], 0.05)
    assert (earlier.step, earlier.digest) == (20, alone.digest)  # what came later is not used
    snapshot = checkpoint.load(paths[1])
    for name, value in earlier.tensors.items():
        torch.testing.assert_close(value, snapshot.tensors[name.replace("ema.", "power0.")], rtol=1e-6, atol=1e-7)


def test_buffers_are_those_of_the_step_and_what_is_frozen_stays(device, tmp_path):
    model = normed_model(device)
    model.network.last.bias.requires_grad_(False)
    options = TrainingOptions(num_steps=30, batch_size=16, lr=0.1, ema_lengths=LENGTHS)
    paths = kept(tmp_path, Trainer(model, gaussian_data(), DenoisingObjective(), options), 30, 5)
    made = reconstruct(paths, 0.08).tensors
    for name, buffer in model.named_buffers():
        assert torch.equal(made[f"ema.score.{name}"], buffer.cpu()), name
    assert torch.equal(made["ema.score.network.last.bias"], model.network.last.bias.cpu())
    assert made["ema.score.network.norm.num_batches_tracked"] == 30
    assert not torch.equal(made["ema.score.network.last.weight"], model.network.last.weight.cpu())


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Three snapshots of one training."""
    folder = tmp_path_factory.mktemp("snapshots")
    return kept(folder, make_trainer(torch.device("cpu"), **OPTIONS, ema_lengths=LENGTHS), 30, 10)


def test_what_is_reconstructed_is_a_checkpoint(paths, tmp_path):
    made = reconstruct(paths, 0.07)
    file = tmp_path / "made.safetensors"
    checkpoint.save(file, made.step, made.description, made.tensors)
    loaded = checkpoint.load(file)
    assert loaded.digest == made.digest
    assert_same_state(loaded.model().state_dict(), made.model().state_dict())


def test_a_copy_of_a_snapshot_counts_once(paths, tmp_path):
    copy = tmp_path / "copy.safetensors"
    for path in paths[1:]:
        shutil.copy(path, copy)
        one, other = reconstruct(paths, 0.07), reconstruct([*paths, copy], 0.07)
        assert_same_state(one.tensors, other.tensors)


def test_a_length_that_is_far_from_the_snapshots_is_warned_of(paths):
    with pytest.warns(UserWarning, match=r"length=0\.02: the snapshots give its profile with a relative error of"):
        reconstruct(paths, 0.02)


def test_mistakes_are_named(paths, tmp_path, device):
    whole = make_trainer(device)
    with pytest.raises(UsageError, match=r"training\.ema_lengths=\(\): there are no averages to keep"):
        save_snapshot(tmp_path / "none.safetensors", whole)
    with pytest.raises(UsageError, match=r"ema_lengths=\(0\.05,\): fit keeps no snapshots; use a Trainer"):
        fit(make_model(device), gaussian_data().values, options=TrainingOptions(num_steps=1, ema_lengths=(0.05,)))
    with pytest.raises(UsageError, match=r"paths: there are no snapshots; train with training\.ema_lengths"):
        reconstruct([], 0.07)
    with pytest.raises(UsageError, match=r"length=0\.5: need 0 < length"):
        reconstruct(paths, 0.5)
    with pytest.raises(UsageError, match=r"step=15: there is no snapshot of this step; there are those of 10, 20, 30"):
        reconstruct(paths, 0.07, step=15)
    plain = tmp_path / "plain.safetensors"
    save_model(whole.model, plain)
    with pytest.raises(UsageError, match=r"plain\.safetensors': not a snapshot of averages; give files of a run's"):
        reconstruct([*paths, plain], 0.07)
    other = tmp_path / "other.safetensors"
    options = TrainingOptions(num_steps=3, ema_lengths=LENGTHS)
    trainer = Trainer(make_model(device, width=8), gaussian_data(), DenoisingObjective(), options)
    save_snapshot(other, advance(trainer, 1))
    with pytest.raises(UsageError, match=r"of another model than the others; give the snapshots of one training"):
        reconstruct([*paths, other], 0.07)


@pytest.mark.parametrize("place", [200, -20])
def test_a_damaged_snapshot_is_named(paths, tmp_path, place):
    content = bytearray(paths[0].read_bytes())
    content[place] ^= 1
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(content)
    with pytest.raises(UsageError, match=r"snapshot='.*damaged\.safetensors': cannot be read .* the others do without"):
        reconstruct([damaged, *paths[1:]], 0.07)
    assert reconstruct(paths[1:], 0.07).step == 30
