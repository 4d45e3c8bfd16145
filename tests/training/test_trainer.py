"""The training step: clipping, resuming, steps without a finite gradient, and that the loss reaches its known floor."""

import contextlib
import math

import numpy as np
import pytest
import torch

from scoresde import VPSDE, EDMParametrization, NetworkScoreModel, TrainingOptions, UNet, UsageError, checkpoint, fit
from scoresde.data import ArrayData
from scoresde.objective import Batch, DenoisingObjective
from scoresde.training import DivergedError, Trainer
from tests.training.jobs import trainer_of
from tests.training.trainers import (
    STD,
    Recorder,
    advance,
    assert_same_state,
    gaussian_data,
    make_model,
    make_trainer,
)


def test_each_step_uses_its_learning_rate(device):
    trainer = make_trainer(device)
    for n in range(5):
        trainer.step()
        assert trainer.optimizer.param_groups[0]["lr"] == trainer.options.lr_at(n)
        assert trainer.pop_metrics()["lr"] == trainer.options.lr_at(n)


def test_gradients_are_clipped_and_their_full_norm_is_reported(device):
    trainer = make_trainer(device, grad_clip=1e-3)
    trainer.step()
    norm = torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert trainer.pop_metrics()["grad_norm"] > 1e-2


def test_equal_seeds_end_bitwise_equal_and_others_do_not(device):
    one, other, third = (advance(make_trainer(device, seed), 6) for seed in (7, 7, 8))
    assert_same_state(one.state(), other.state())
    assert one.pop_metrics() == other.pop_metrics()
    weight = "weights.score.network.last.weight"
    assert not torch.equal(one.state()[weight], third.state()[weight])


@pytest.mark.parametrize("stop", [1, 4, 7, 11])
def test_resuming_from_a_file_is_as_if_never_stopped(device, tmp_path, stop):
    whole = advance(make_trainer(device), 12)
    part = advance(make_trainer(device), stop)
    path = tmp_path / "checkpoint.safetensors"
    description = {"models": {checkpoint.SCORE: checkpoint.describe_model(part.model)}}
    checkpoint.save(path, part.step_number, description, part.state())
    saved = checkpoint.load(path)
    resumed = make_trainer(device)
    resumed.load_state(saved.step, saved.tensors)
    advance(resumed, 12 - stop)
    assert_same_state(resumed.state(), whole.state())
    assert resumed.pop_metrics() == whole.pop_metrics()  # the losses before the stop count too


def test_dropout_is_the_same_in_a_run_that_resumes_and_leaves_the_random_state_alone(device):
    def trainer():
        torch.manual_seed(0)
        network = UNet(1, channels=8, dropout=0.5)
        model = NetworkScoreModel(network, VPSDE(), EDMParametrization(sigma_data=1.0), (1, 8, 8)).to(device)
        data = ArrayData(torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
        return Trainer(model, data, DenoisingObjective(), TrainingOptions(num_steps=4, batch_size=8))

    whole, part = advance(trainer(), 4), advance(trainer(), 2)
    resumed = trainer()
    resumed.load_state(2, part.state())
    before = torch.get_rng_state()
    assert_same_state(advance(resumed, 2).state(), whole.state())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_after_metrics_were_taken_holds_no_old_losses(device):
    trainer = advance(make_trainer(device), 3)
    trainer.pop_metrics()
    resumed = advance(make_trainer(device), 5)
    resumed.load_state(3, trainer.state())
    resumed.step()
    trainer.step()
    assert resumed.pop_metrics() == trainer.pop_metrics()


def test_two_runs_that_continue_from_one_state_share_nothing(device):
    state = {name: value.clone() for name, value in advance(make_trainer(device), 3).state().items()}
    before = {name: value.clone() for name, value in state.items()}
    runs = [make_trainer(device), make_trainer(device)]
    for trainer in runs:
        trainer.load_state(3, state)
    for trainer in runs:  # the second finds what the first has found
        advance(trainer, 2)
    assert_same_state(runs[0].state(), runs[1].state())
    assert_same_state(state, before)


def test_a_model_with_weights_that_stay_as_they_are_is_continued(device):
    def begun():
        trainer = make_trainer(device)
        trainer.model.network.first.requires_grad_(False)
        return trainer

    whole = advance(begun(), 4)
    resumed = begun()
    part = advance(begun(), 2)
    resumed.load_state(2, part.state())
    assert_same_state(advance(resumed, 2).state(), whole.state())
    assert torch.equal(whole.model.network.first.weight, make_model(device).network.first.weight)


def test_state_of_another_model_is_refused(device):
    options = TrainingOptions(num_steps=1)
    wide = Trainer(make_model(device, width=24), gaussian_data(), DenoisingObjective(), options)
    with pytest.raises(UsageError, match="do not fit"):
        wide.load_state(1, advance(make_trainer(device), 1).state())
    tensors = {k: v for k, v in advance(make_trainer(device), 1).state().items() if "optimizer" not in k}
    with pytest.raises(UsageError, match="its step of the optimiser does not fit"):
        make_trainer(device).load_state(1, tensors)


def take_average(trainer, other):
    """Gives a trainer the averaged weights of another one."""
    for own, new in zip(trainer.average.tensors.values(), other.average.tensors.values(), strict=True):
        own.copy_(new)


def test_held_out_loss_is_repeatable_and_weighs_samples_equally(device):
    trainer = advance(make_trainer(device), 3)
    data = gaussian_data(30, seed=1)
    loss = trainer.held_out_loss(data)
    other = advance(make_trainer(device, seed=5), 1)  # neither the seed nor the step matters, only the weights
    take_average(other, trainer)
    assert trainer.held_out_loss(data) == other.held_out_loss(data) == loss
    small = advance(make_trainer(device, batch_size=4, accumulate=2), 1)  # of 4 samples at a time, the last 2
    take_average(small, trainer)
    assert small.held_out_loss(data) == pytest.approx(loss, rel=1e-6)
    assert math.isfinite(trainer.held_out_loss(ArrayData(data.values[:20])))
    assert trainer.held_out_loss(ArrayData(data.values + 3)) > loss


def test_held_out_loss_is_of_the_averaged_model(device):
    trainer = advance(make_trainer(device), 3)
    data = gaussian_data(30, seed=1)
    loss = trainer.held_out_loss(data)
    with torch.no_grad():
        trainer.model.network.last.weight += 1
    assert trainer.held_out_loss(data) == loss


def test_the_loss_on_a_gaussian_reaches_the_bayes_error(device):
    """At the exact denoiser |eps_hat - eps|^2 / dim has mean v = alpha^2 STD^2 / (alpha^2 STD^2 + sigma^2)."""
    options = TrainingOptions(num_steps=400, batch_size=256, lr=1e-2, warmup_steps=20, ema_decay=0.98)
    model = make_model(device, width=32)
    objective = DenoisingObjective()
    generator = torch.Generator(device).manual_seed(3)
    x_0 = STD * torch.randn(20_000, 2, device=device, generator=generator)
    eps = torch.randn(20_000, 2, device=device, generator=generator)
    t = objective.times.at(model.sde, torch.rand(20_000, device=device, generator=generator))
    before = objective.at(model, Batch(x_0), {"t": t, "eps": eps}).mean().item()
    trained = fit(model, gaussian_data(20_000).values, options=options, progress=False)
    with torch.no_grad():
        loss = objective.at(trained, Batch(x_0), {"t": t, "eps": eps})

    alpha = model.sde.alpha(t)
    sigma = model.sde.sigma(t)
    floor = (alpha * STD) ** 2 / ((alpha * STD) ** 2 + sigma**2)
    x_t = alpha[:, None] * x_0 + sigma[:, None] * eps
    eps_hat = (sigma / ((alpha * STD) ** 2 + sigma**2))[:, None] * x_t
    exact = (eps_hat - eps).square().mean(1)
    error = (exact - floor).std().item() / math.sqrt(len(t))
    assert abs((exact - floor).mean().item()) < 4 * error  # the closed form is right: 4 standard errors
    assert before > 3 * exact.mean().item()
    excess = (loss - exact).mean().item() / exact.mean().item()  # paired: the same times and noises
    assert -0.005 < excess < 0.03


def test_training_leaves_the_global_random_state_alone(device):
    trainer = make_trainer(device)
    state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()
    advance(trainer, 2)
    trainer.held_out_loss(gaussian_data(8))
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()


def spoil(trainer):
    with torch.no_grad():
        trainer.model.network.first.weight.fill_(math.nan)


class Failing(Recorder):
    """The denoising loss, which is not a number in steps 2 and 3."""

    def at(self, model, batch, draws, averaged=contextlib.nullcontext):
        self.batches.append(batch)
        factor = math.nan if len(self.batches) in (3, 4) else 1.0
        return factor * DenoisingObjective().at(model, batch, draws)


def test_a_step_without_a_finite_gradient_changes_no_weight_and_is_counted(device):
    trainer = advance(make_trainer(device, objective=Failing()), 2)
    before = {
        name: tensor.clone() for name, tensor in trainer.state().items() if name.startswith(("weights", "optimizer"))
    }
    advance(trainer, 2)
    after = {name: tensor for name, tensor in trainer.state().items() if name in before}
    assert len(before) > 8
    assert_same_state(before, after)
    metrics = advance(trainer, 1).pop_metrics()
    assert metrics["skipped"] == 2
    assert math.isfinite(metrics["loss"])
    assert math.isfinite(metrics["grad_norm"])
    weight = "weights.score.network.first.weight"
    assert not torch.equal(trainer.state()[weight], before[weight])


def test_a_run_of_bad_steps_is_a_divergence_that_names_the_learning_rate(device):
    trainer = make_trainer(device, max_bad_steps=3)
    spoil(trainer)
    metrics = advance(trainer, 2).pop_metrics()
    assert (metrics["loss"], metrics["skipped"]) == (None, 2)
    with pytest.raises(DivergedError, match=r"last 3 steps before step 3 .* lower training\.lr=0\.002"):
        advance(trainer, 1).pop_metrics()


@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_batch_in_parts_is_the_same_step(device, accumulate):
    whole = advance(make_trainer(device), 1)
    parts = advance(make_trainer(device, accumulate=accumulate), 1)
    for name, p in whole.model.named_parameters():  # only the order of additions differs
        torch.testing.assert_close(parts.model.get_parameter(name).grad, p.grad, rtol=1e-4, atol=1e-6)
    assert parts.pop_metrics()["loss"] == pytest.approx(whole.pop_metrics()["loss"], rel=1e-5)


def test_bfloat16_trains_float32_weights_to_nearly_the_same_loss(device):
    exact, rough = (make_trainer(device, precision=p) for p in ("float32", "bfloat16"))
    losses = [advance(trainer, 20).pop_metrics()["loss"] for trainer in (exact, rough)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # bfloat16 keeps eight bits
    assert {p.dtype for p in rough.model.parameters()} == {torch.float32}


@pytest.mark.gpu
def test_steps_never_wait_for_the_device(device):
    """Across the edge of an epoch too, where the order of the samples is copied."""
    trainer = advance(make_trainer(device, batch_size=32), 1)  # the first step makes what is kept
    torch.cuda.set_sync_debug_mode("error")
    try:
        advance(trainer, 5)  # two steps an epoch
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_codec_that_embeds_tokens_is_trained_averaged_and_saved_with_the_network(tmp_path):
    trainer = trainer_of("a codec with weights")
    first = trainer.model.codec.table.detach().clone()
    expected = first.clone()
    for n in range(5):
        trainer.step()
        expected.lerp_(trainer.model.codec.table.detach(), 1 - (1 + n) / (10 + n))
    last = trainer.model.codec.table.detach()
    assert (last - first).abs().min() > 1e-6
    torch.testing.assert_close(trainer.average.tensors["codec.table"], expected, rtol=1e-12, atol=0)
    description = {"models": {checkpoint.SCORE: checkpoint.describe_model(trainer.model)}}
    checkpoint.save(tmp_path / "run.safetensors", 5, description, trainer.state())
    saved = checkpoint.load(tmp_path / "run.safetensors")
    for weights, table in (("weights", last), ("ema", trainer.average.tensors["codec.table"])):
        model = saved.model(weights)
        assert torch.equal(model.codec.table, table)
        tokens = torch.arange(5).repeat(2, 1)[:, :4]
        assert torch.equal(model.codec.decode(model.codec.encode(tokens, torch.float64)), tokens)
    resumed = trainer_of("a codec with weights")
    resumed.load_state(5, saved.tensors)
    assert_same_state(advance(resumed, 1).state(), advance(trainer, 1).state())
