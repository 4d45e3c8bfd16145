"""Training: the schedule, the average, the batches, resuming, and that the loss reaches its known floor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scoresde import (
    MLP,
    VPSDE,
    EDMParametrization,
    NetworkScoreModel,
    NoiseParametrization,
    TrainingOptions,
    UNet,
    UsageError,
    checkpoint,
    fit,
)
from scoresde.data import ArrayData, Scaling
from scoresde.objective import DenoisingObjective, Objective
from scoresde.training import DivergedError, Trainer

STD = 0.5  # of the Gaussian that is learned


def make_model(device, width=16, num_classes=0, label_dropout=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MLP(2, width=width, depth=2, num_classes=num_classes, label_dropout=label_dropout)
    return NetworkScoreModel(network, VPSDE(), NoiseParametrization(sigma_data=STD), (2,)).to(device)


def gaussian_data(num_samples=64, seed=0):
    return ArrayData(STD * torch.randn(num_samples, 2, generator=torch.Generator().manual_seed(seed)))


def make_trainer(device, seed=0, objective=None, data=None, **settings):
    settings = TrainingOptions(**{"num_steps": 12, "batch_size": 16, "warmup_steps": 3, **settings})
    return Trainer(make_model(device), data or gaussian_data(), objective or DenoisingObjective(), settings, seed)


def advance(trainer, num_steps):
    for _ in range(num_steps):
        trainer.step()
    return trainer


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value.cpu(), other[name].cpu()), name


class Recorder:
    """Stands in for an objective and keeps the batches that it is given."""

    def __init__(self):
        self.batches = []

    def draw(self, sde, shape, device, generator):
        return DenoisingObjective().draw(sde, shape, device, generator)

    def at(self, model, x_0, t, eps, cond):
        self.batches.append(x_0[:, 0].cpu())
        return 0 * next(model.parameters()).sum() + torch.zeros(len(x_0), device=x_0.device)


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.2),  # 1/10 of the way up
        (4, 1.0),
        (9, 2.0),  # the last step of the warm-up reaches lr
        (10, 2.0),  # where the cosine begins
        (60, 2.0 * (0.1 + 0.9 / 2)),  # half way down
        (85, 2.0 * (0.1 + 0.9 * 0.5 * (1 - math.sqrt(0.5)))),
        (110, 0.2),  # lr_final lr
        (10_000, 0.2),
    ],
)
def test_learning_rate_is_a_ramp_and_half_a_cosine(step, lr):
    settings = TrainingOptions(num_steps=110, lr=2.0, lr_final=0.1, warmup_steps=10)
    assert settings.lr_at(step) == pytest.approx(lr, rel=1e-12)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert TrainingOptions(num_steps=10, lr=0.3, warmup_steps=0).lr_at(0) == pytest.approx(0.3, rel=1e-12)


def test_each_step_uses_its_learning_rate(device):
    trainer = make_trainer(device)
    for n in range(5):
        trainer.step()
        assert trainer.optimizer.param_groups[0]["lr"] == trainer.settings.lr_at(n)
        assert trainer.pop_metrics()["lr"] == trainer.settings.lr_at(n)


def test_averaged_weights_are_those_of_a_plain_loop(device):
    trainer = make_trainer(device, lr=0.05, ema_decay=0.3)  # the ramp 1/10, 2/11, 3/12, .. ends at step 4
    expected = {name: p.clone().double() for name, p in trainer.model.named_parameters()}
    for n in range(8):
        trainer.step()
        decay = min(0.3, (1 + n) / (10 + n))
        for name, p in trainer.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach().double()
    for name, p in trainer.ema_model.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=1e-5, atol=1e-6)
    moved = trainer.model.network.last.weight - trainer.ema_model.network.last.weight
    assert moved.abs().max() > 1e-3  # or the comparison says nothing


def test_the_average_carries_no_history(device):
    trainer = advance(make_trainer(device), 3)
    for p in trainer.ema_model.parameters():
        assert p.is_leaf
        assert p.grad_fn is None
        assert not p.requires_grad


def test_gradients_are_clipped_and_their_full_norm_is_reported(device):
    trainer = make_trainer(device, grad_clip=1e-3)
    trainer.step()
    norm = torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert trainer.pop_metrics()["grad_norm"] > 1e-2


def test_an_epoch_is_every_sample_once_in_an_order_of_its_own(device):
    data = ArrayData(torch.arange(12.0)[:, None].repeat(1, 2))
    recorder = Recorder()
    advance(make_trainer(device, data=data, objective=recorder, batch_size=4), 6)
    first, second = torch.cat(recorder.batches[:3]), torch.cat(recorder.batches[3:])
    assert torch.equal(first.sort().values, torch.arange(12.0))
    assert torch.equal(second.sort().values, torch.arange(12.0))
    assert not torch.equal(first, second)


def test_a_batch_that_does_not_divide_the_data_repeats_nothing_within_an_epoch(device):
    data = ArrayData(torch.arange(11.0)[:, None].repeat(1, 2))
    recorder = Recorder()
    advance(make_trainer(device, data=data, objective=recorder, batch_size=4), 40)
    assert {len(batch) for batch in recorder.batches} == {4}
    for epoch in range(20):
        assert len(torch.cat(recorder.batches[2 * epoch : 2 * epoch + 2]).unique()) == 8
    assert len(torch.cat(recorder.batches).unique()) == 11  # who is left out changes


def test_a_batch_larger_than_the_data_holds_everyone_about_equally_often(device):
    data = ArrayData(torch.arange(3.0)[:, None].repeat(1, 2))
    recorder = Recorder()
    advance(make_trainer(device, data=data, objective=recorder, batch_size=8), 2)
    for batch in recorder.batches:
        assert sorted(batch.unique(return_counts=True)[1].tolist()) == [2, 3, 3]


def test_equal_seeds_end_bitwise_equal_and_others_do_not(device):
    one, other, third = (advance(make_trainer(device, seed), 6) for seed in (7, 7, 8))
    assert_same_state(one.state(), other.state())
    assert one.pop_metrics() == other.pop_metrics()
    weight = "weights.network.last.weight"
    assert not torch.equal(one.state()[weight], third.state()[weight])


@pytest.mark.parametrize("stop", [1, 4, 7, 11])
def test_resuming_from_a_file_is_as_if_never_stopped(device, tmp_path, stop):
    whole = advance(make_trainer(device), 12)
    part = advance(make_trainer(device), stop)
    path = tmp_path / "checkpoint.safetensors"
    description = {"model": checkpoint.describe_model(part.model)}
    checkpoint.save(path, part.step_number, description, part.state())
    saved = checkpoint.load(path)
    resumed = make_trainer(device)
    resumed.load_state(saved.step, saved.tensors)
    advance(resumed, 12 - stop)
    assert_same_state(resumed.state(), whole.state())
    assert resumed.pop_metrics() == whole.pop_metrics()  # the losses before the stop count too


def test_a_state_after_metrics_were_taken_holds_no_old_losses(device):
    trainer = advance(make_trainer(device), 3)
    trainer.pop_metrics()
    resumed = advance(make_trainer(device), 5)
    resumed.load_state(3, trainer.state())
    resumed.step()
    trainer.step()
    assert resumed.pop_metrics() == trainer.pop_metrics()


def test_state_of_another_model_is_refused(device):
    settings, data = TrainingOptions(num_steps=1), gaussian_data()
    wide = Trainer(make_model(device, width=24), data, DenoisingObjective(), settings)
    with pytest.raises(UsageError, match="do not fit"):
        wide.load_state(1, advance(make_trainer(device), 1).state())
    tensors = {k: v for k, v in advance(make_trainer(device), 1).state().items() if "optimizer" not in k}
    with pytest.raises(UsageError, match="do not fit"):
        make_trainer(device).load_state(1, tensors)


def test_held_out_loss_is_repeatable_and_weighs_samples_equally(device):
    trainer, data = advance(make_trainer(device), 3), gaussian_data(30, seed=1)
    loss = trainer.held_out_loss(data)
    other = advance(make_trainer(device, seed=5), 1)  # neither the seed nor the step matters, only the weights
    other.ema_model.load_state_dict(trainer.ema_model.state_dict())
    assert trainer.held_out_loss(data) == other.held_out_loss(data) == loss
    halves = [trainer.held_out_loss(ArrayData(data.values[:20])), trainer.held_out_loss(data, batch_size=20)]
    assert halves[1] != loss  # other strata of times
    assert math.isfinite(halves[0])
    assert trainer.held_out_loss(ArrayData(data.values + 3)) > loss


def test_held_out_loss_is_of_the_averaged_model(device):
    trainer, data = advance(make_trainer(device), 3), gaussian_data(30, seed=1)
    loss = trainer.held_out_loss(data)
    with torch.no_grad():
        trainer.model.network.last.weight += 1
    assert trainer.held_out_loss(data) == loss


def test_the_loss_on_a_gaussian_reaches_the_bayes_error(device):
    """At the exact denoiser |eps_hat - eps|^2 / dim has mean v = alpha^2 STD^2 / (alpha^2 STD^2 + sigma^2)."""
    settings = TrainingOptions(num_steps=400, batch_size=256, lr=1e-2, warmup_steps=20, ema_decay=0.98)
    model = make_model(device, width=32)
    objective = DenoisingObjective()
    generator = torch.Generator(device).manual_seed(3)
    x_0 = STD * torch.randn(20_000, 2, device=device, generator=generator)
    eps = torch.randn(20_000, 2, device=device, generator=generator)
    t = objective.times.sample(model.sde, 20_000, device, generator)
    before = objective.at(model, x_0, t, eps).mean().item()
    trained = fit(model, gaussian_data(20_000).values, settings=settings, progress=False)
    with torch.no_grad():
        loss = objective.at(trained, x_0, t, eps)

    alpha, sigma = model.sde.alpha(t), model.sde.sigma(t)
    floor = (alpha * STD) ** 2 / ((alpha * STD) ** 2 + sigma**2)
    x_t = alpha[:, None] * x_0 + sigma[:, None] * eps
    eps_hat = (sigma / ((alpha * STD) ** 2 + sigma**2))[:, None] * x_t
    exact = (eps_hat - eps).square().mean(1)
    error = (exact - floor).std().item() / math.sqrt(len(t))
    assert abs((exact - floor).mean().item()) < 4 * error  # the closed form is right: 4 standard errors
    assert before > 3 * exact.mean().item()
    excess = (loss - exact).mean().item() / exact.mean().item()  # paired: the same times and noises
    assert -0.005 < excess < 0.03


def test_fit_trains_a_conditional_model_from_a_tensor(device):
    x_0 = gaussian_data(32).values
    labels = (x_0[:, 0] > 0).long()
    model = make_model(device, num_classes=2)
    before = model.network.conditioning.label.weight.detach().clone()
    trained = fit(model, x_0, labels, settings=TrainingOptions(num_steps=3, batch_size=8), progress=False)
    assert not trained.training
    assert not any(p.requires_grad for p in trained.parameters())
    assert not torch.equal(trained.network.conditioning.label.weight, before)


def test_fit_refuses_data_that_does_not_fit(device):
    with pytest.raises(UsageError, match="the model takes"):
        fit(make_model(device), torch.randn(8, 3), progress=False)
    with pytest.raises(UsageError, match="1 of 8 samples hold NaN"):
        fit(make_model(device), torch.randn(8, 2).index_fill(0, torch.tensor([2]), math.nan), progress=False)


def test_training_leaves_the_global_random_state_alone(device):
    trainer = make_trainer(device)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    advance(trainer, 2)
    trainer.held_out_loss(gaussian_data(8))
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()


def spoil(trainer):
    with torch.no_grad():
        trainer.model.network.first.weight.fill_(math.nan)


def test_a_step_without_a_finite_gradient_changes_no_weight_and_is_counted(device):
    class Failing(Recorder):
        """The denoising loss, which is not a number in steps 2 and 3."""

        def at(self, model, x_0, t, eps, cond):
            self.batches.append(x_0)
            factor = math.nan if len(self.batches) in (3, 4) else 1.0
            return factor * DenoisingObjective().at(model, x_0, t, eps, cond)

    trainer = advance(make_trainer(device, objective=Failing()), 2)
    before = {
        name: tensor.clone() for name, tensor in trainer.state().items() if name[:9] in ("weights.n", "optimizer")
    }
    advance(trainer, 2)
    after = {name: tensor for name, tensor in trainer.state().items() if name in before}
    assert_same_state(before, after)
    metrics = advance(trainer, 1).pop_metrics()
    assert metrics["skipped"] == 2
    assert math.isfinite(metrics["loss"])
    assert math.isfinite(metrics["grad_norm"])
    assert not torch.equal(trainer.state()["weights.network.first.weight"], before["weights.network.first.weight"])


def test_a_run_of_bad_steps_is_a_divergence_that_names_the_learning_rate(device):
    trainer = make_trainer(device, max_bad_steps=3)
    spoil(trainer)
    metrics = advance(trainer, 2).pop_metrics()
    assert (metrics["loss"], metrics["skipped"]) == (None, 2)
    with pytest.raises(DivergedError, match=r"last 3 steps before step 3 .* lower training\.lr=0\.002"):
        advance(trainer, 1).pop_metrics()


@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_batch_in_parts_is_the_same_step(device, accumulate):
    whole, parts = make_trainer(device), make_trainer(device, accumulate=accumulate)
    advance(whole, 1)
    advance(parts, 1)
    for name, p in whole.model.named_parameters():  # only the order of additions differs
        torch.testing.assert_close(parts.model.get_parameter(name).grad, p.grad, rtol=1e-4, atol=1e-6)
    assert parts.pop_metrics()["loss"] == pytest.approx(whole.pop_metrics()["loss"], rel=1e-5)


def test_flips_mirror_about_half_of_the_images(device):
    recorder, images = Recorder(), torch.arange(4.0).repeat(64, 1)[:, None, None]  # 0 1 2 3: mirrored 3 2 1 0
    model = NetworkScoreModel(UNet(1, channels=2), VPSDE(), NoiseParametrization(), (1, 1, 4)).to(device)
    recorder.at = lambda model, x_0, t, eps, cond: (
        recorder.batches.append(x_0[:, 0, 0].cpu()),
        0 * next(model.parameters()).sum() + torch.zeros(len(x_0), device=x_0.device),
    )[1]
    trainer = Trainer(model, ArrayData(images), recorder, TrainingOptions(batch_size=64, flip=True))
    advance(trainer, 4)
    rows = torch.cat(recorder.batches)
    flipped = (rows == torch.arange(3.0, -1, -1)).all(1)
    assert (flipped | (rows == torch.arange(4.0)).all(1)).all()
    assert 128 - 5 * 8 < flipped.sum() < 128 + 5 * 8  # 256 coins, five deviations


def test_bfloat16_trains_float32_weights_to_nearly_the_same_loss(device):
    exact, rough = (make_trainer(device, precision=p) for p in ("float32", "bfloat16"))
    losses = [advance(trainer, 20).pop_metrics()["loss"] for trainer in (exact, rough)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # bfloat16 keeps eight bits
    assert {p.dtype for p in rough.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", 0),
        ("batch_size", 0),
        ("warmup_steps", -1),
        ("num_steps", 2.5),
        ("weight_decay", -0.1),
        ("weight_decay", math.inf),
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr_final", -0.1),
        ("lr_final", math.nan),
        ("grad_clip", 0.0),
        ("ema_decay", 1.0),
        ("ema_decay", -0.1),
        ("accumulate", 0),
        ("max_bad_steps", 0),
        ("precision", "'half'"),
        ("on_divergence", "'pray'"),
    ],
)
def test_settings_that_make_no_sense_are_named(field, value):
    with pytest.raises(UsageError, match=rf"training\.{field}={value}"):
        TrainingOptions(**{field: value.strip("'") if isinstance(value, str) else value})


class LabelRecorder(Recorder):
    """Keeps times, noises and labels."""

    def at(self, model, x_0, t, eps, cond):
        self.batches.append((x_0, t, eps, cond))
        return 0 * next(model.parameters()).sum() + torch.zeros(len(x_0), device=x_0.device)


def labelled_run(device, label_dropout, **settings):
    data = ArrayData(gaussian_data(256).values, torch.arange(256) % 3)
    recorder, settings = LabelRecorder(), TrainingOptions(num_steps=8, batch_size=256, **settings)
    model = make_model(device, num_classes=3, label_dropout=label_dropout)
    state = torch.get_rng_state()
    advance(Trainer(model, data, recorder, settings), 8)
    assert torch.equal(torch.get_rng_state(), state)
    return [torch.cat(parts) for parts in zip(*recorder.batches, strict=True)]


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
    assert trainer.ema_model.denoise(x, 0.5).isfinite().all()


def test_labels_that_the_network_does_not_know_are_refused_before_the_first_step(device):
    x_0, labels = gaussian_data(6).values, torch.tensor([0, 1, 2, 3, 1, 0])
    for dropout in (0.0, 0.1):  # index 3 stands for no label, and is no class either
        model = make_model(device, num_classes=3, label_dropout=dropout)
        with pytest.raises(UsageError, match=r"labels: the largest is 3, and this network knows 0\.\.2"):
            Trainer(model, ArrayData(x_0, labels), DenoisingObjective(), TrainingOptions())
        with pytest.raises(UsageError, match="the largest is 3"):
            fit(model, x_0, labels, progress=False)
    with pytest.raises(UsageError, match="without classes"):
        fit(make_model(device), x_0, labels, progress=False)


def quick_fit(model, x_0, labels=None):
    return fit(model, x_0, labels, settings=TrainingOptions(num_steps=3, batch_size=8), progress=False)


@pytest.mark.parametrize("kind", [torch.Tensor.double, torch.Tensor.numpy, torch.Tensor.tolist])
@pytest.mark.parametrize("label_type", ["uint8", "int16", "int32", "uint16", list])
def test_fit_takes_arrays_and_lists(device, kind, label_type):
    x_0 = gaussian_data(32).values
    labels = [k % 2 for k in range(32)]
    expected = quick_fit(make_model(device, num_classes=2), x_0, torch.tensor(labels))
    given = labels if label_type is list else np.array(labels, label_type)
    trained = quick_fit(make_model(device, num_classes=2), kind(x_0), given)
    assert_same_state(trained.state_dict(), expected.state_dict())


def test_fit_trains_in_the_type_of_the_model(device):
    x_0 = gaussian_data(32).values
    exact, rough = quick_fit(make_model(device).double(), x_0), quick_fit(make_model(device), x_0)
    assert {p.dtype for p in exact.parameters()} == {torch.float64}
    for name, p in exact.named_parameters():
        torch.testing.assert_close(rough.get_parameter(name).double(), p, rtol=1e-3, atol=1e-3)


def test_fit_refuses_whole_numbers_and_what_is_no_array(device):
    with pytest.raises(UsageError, match=r"x_0 of type torch\.uint8: need floats.*127\.5"):
        fit(make_model(device), torch.zeros(8, 2, dtype=torch.uint8), progress=False)
    with pytest.raises(UsageError, match="x_0: cannot be made a tensor"):
        fit(make_model(device), [[1.0, 2.0], [3.0]], progress=False)


def test_what_fit_returns_can_be_trained_again(device):
    x_0 = gaussian_data(32).values
    first = quick_fit(make_model(device), x_0)
    before = {name: p.clone() for name, p in first.named_parameters()}
    second = quick_fit(first, x_0)
    assert any(not torch.equal(p, before[name]) for name, p in second.named_parameters())


def test_the_average_has_the_buffers_of_the_model(device):
    class Normed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.last = torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 2)

        def forward(self, x, c_noise, cond=None):
            return self.last(self.norm(x))

    model = NetworkScoreModel(Normed(), VPSDE(), NoiseParametrization(), (2,)).to(device)
    trainer = Trainer(model, gaussian_data(), DenoisingObjective(), TrainingOptions(num_steps=5))
    advance(trainer, 5)
    assert trainer.ema_model.network.norm.num_batches_tracked == 5
    assert model.network.norm.running_mean.abs().max() > 0
    for average, buffer in zip(trainer.ema_model.buffers(), model.buffers(), strict=True):
        assert torch.equal(average, buffer)


@pytest.mark.gpu
def test_steps_never_wait_for_the_device(device):
    """Across the edge of an epoch too, where the order of the samples is copied."""
    trainer = advance(make_trainer(device, batch_size=32), 1)  # the first step makes what is kept
    torch.cuda.set_sync_debug_mode("error")
    try:
        advance(trainer, 5)  # two steps an epoch
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_whole_numbers_are_spread_over_their_unit_intervals(device):
    """The network sees x + u with |u| < 1/2 in raw units, as many as there are samples in a batch."""
    raw = torch.randint(0, 4, (64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data, seen = ArrayData(raw, None, Scaling(center=2.0, scale=4.0)), []

    class Watching(Objective):
        def draw(self, sde, shape, device, generator=None):
            return DenoisingObjective().draw(sde, shape, device, generator)

        def at(self, model, x_0, t, eps, cond=None):
            seen.append(data.scaling.to_raw(x_0).cpu())
            return DenoisingObjective().at(model, x_0, t, eps, cond)

    model = NetworkScoreModel(MLP(3, width=8, depth=1), VPSDE(), EDMParametrization(1.0), (3,)).to(device)
    settings = TrainingOptions(num_steps=4, batch_size=64, dequantize=True)
    trainer = Trainer(model, data, Watching(), settings)
    for _ in range(2):
        trainer.step()
    first, second = (x - x.round() for x in seen)
    for u in (first, second):
        assert u.abs().max() <= 0.5
        assert abs(u.var().item() - 1 / 12) < 0.015  # 192 numbers: a standard error of 0.0054
    assert not torch.equal(first, second)
    assert trainer.held_out_loss(data) == trainer.held_out_loss(data)
    with pytest.raises(UsageError, match="data are floats, no whole numbers"):
        Trainer(model, ArrayData(torch.randn(64, 3)), Watching(), settings)
