"""The learned schedule: an SDE like the others, trained by the bound at its ends and by its variance between them."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from samplers import DDIM, AnnealedLangevin, ProbabilityFlow, UniPC, sample
from scoresde import (
    MLP,
    SDE,
    VESDE,
    BatchNoise,
    DenoisingObjective,
    EDMParametrization,
    LearnedVPSDE,
    NetworkScoreModel,
    TrainingOptions,
    UsageError,
    VariationalObjective,
    checkpoint,
    load_model,
    registry,
    save_model,
)
from scoresde.data import ArrayData
from scoresde.learned_sde import shape_gradient
from scoresde.objective import Batch
from scoresde.training import Trainer
from tests.analytic import gaussian, network_model
from tests.processes import TRAIN, records, run
from tests.schedules import LEARNED, bent


def test_at_first_gamma_is_straight(device):
    sde = LearnedVPSDE(gamma_min=-8.0, gamma_max=4.0, t_min=0.25, t_max=0.75).to(device)
    t = torch.linspace(0.25, 0.75, 41, dtype=torch.float64, device=device)
    expected = 8 - 24 * (t - 0.25)
    torch.testing.assert_close(sde.log_snr(t), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(sde.alpha(t) ** 2, torch.sigmoid(expected), rtol=1e-13, atol=0)
    torch.testing.assert_close(sde.alpha(t) ** 2 + sde.sigma(t) ** 2, torch.ones_like(t), rtol=1e-13, atol=0)


def test_the_weights_are_the_rises_and_the_ends_stay(device):
    sde = LearnedVPSDE(gamma_min=-3.0, gamma_max=2.0, num_segments=4, t_min=1.0, t_max=5.0).to(device)
    with torch.no_grad():
        sde.weights.copy_(torch.tensor([1.0, 2.0, 4.0, 1.0]).log())
        sde.ends[0] = -0.5
    gamma = -sde.log_snr(torch.tensor([1.0, 2.0, 3.0, 3.5, 4.0, 5.0], dtype=torch.float64, device=device))
    shape = torch.tensor([0, 1, 3, 5, 7, 8], dtype=torch.float64, device=device) / 8
    torch.testing.assert_close(gamma, -3.5 + 5 * shape, rtol=0, atol=1e-6)  # weights are float32
    with torch.no_grad():
        sde.ends[1] = -30.0
    assert (sde.log_snr(torch.linspace(1.0, 5.0, 9, dtype=torch.float64, device=device)).diff() < 0).all()


def test_a_part_is_described_with_the_support_of_the_whole():
    for name, make in LEARNED.items():
        sde = make("cpu")
        low, high = (sde.t_min + share * (sde.t_max - sde.t_min) for share in (0.3, 0.6))
        part = sde.restricted(low, high)
        described = json.loads(json.dumps(registry.describe(part)))
        again = registry.construct(described, SDE, "sde")
        again.load_state_dict(part.state_dict())
        assert (again.t_min, again.t_max, again.support) == (low, high, (sde.t_min, sde.t_max)), name
        t = torch.linspace(low, high, 7, dtype=torch.float64)
        assert torch.equal(again.log_snr(t), sde.log_snr(t)), name
        assert torch.equal(again.time(sde.log_snr(t)), sde.time(sde.log_snr(t))), name


MISTAKES = {
    "order": ({"gamma_min": 3.0, "gamma_max": 2.0}, r"gamma_min=3\.0, gamma_max=2\.0"),
    "infinite": ({"gamma_max": math.inf}, "gamma_max=inf"),
    "no knots": ({"num_segments": 0}, "num_segments=0"),
    "many knots": ({"num_segments": 10**12}, "num_segments=1000000000000"),
    "times": ({"t_min": 2.0}, r"t_min=2\.0"),
    "support": ({"support": (0.1, 1.0)}, r"support=\(0\.1, 1\.0\): need the times from t_min=1e-05 to t_max=1\.0"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        LearnedVPSDE(**arguments)


# training


def exact_model(device, sde, shape=(3,)):
    return network_model(gaussian(device, shape), sde, EDMParametrization(0.7))


def drawn(model, device, num, seed=0):
    """A batch of the model's own target, and what the variational objective draws for it."""
    batch = Batch(model.network.target.sample(num, torch.Generator(device).manual_seed(seed)))
    noise = BatchNoise(seed, 0, num, torch.arange(num, device=device))
    return batch, VariationalObjective().draw(model, batch, noise)


def diffusion_loss(sde, model, x_0, t, eps):
    """(t_max - t_min)/2 gamma' |eps - eps_hat|^2 / dim, written naively, gamma' by differentiation."""
    log_snr = sde.log_snr(t)
    alpha, sigma = torch.sigmoid(log_snr).sqrt()[:, None], torch.sigmoid(-log_snr).sqrt()[:, None]
    x0_hat = model.network.target.denoise(alpha * x_0 + sigma * eps, alpha.squeeze(1), sigma.squeeze(1))
    error = (alpha / sigma * (x0_hat - x_0)).square().mean(1)
    time = t.clone().requires_grad_()
    slope = -torch.autograd.grad(sde.log_snr(time).sum(), time, create_graph=True)[0]
    return 0.5 * (sde.t_max - sde.t_min) * slope * error


def test_ends_get_the_gradient_of_the_bound_and_the_shape_that_of_its_variance(device):
    sde = bent(device).double()
    model = exact_model(device, sde)
    batch, draws = drawn(model, device, 32)
    x_0 = batch.raw
    VariationalObjective().at(model, batch, draws).sum().backward()
    loss = diffusion_loss(sde, model, x_0, draws["t"], draws["eps"])
    width = sde.log_snr(torch.tensor(sde.t_min, device=device)) - sde.log_snr(torch.tensor(sde.t_max, device=device))
    of_variance = torch.autograd.grad((loss**2).sum() / width.item(), sde.weights, retain_graph=True)[0]
    torch.testing.assert_close(sde.weights.grad, of_variance, rtol=1e-6, atol=1e-9)
    first, last = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64, device=device))
    ends = 0.5 * (math.log(2 * math.pi * math.e) - first) + 0.5 * torch.exp(last) * x_0.square().mean(1)
    of_bound = torch.autograd.grad((loss + ends).sum(), sde.ends)[0]
    torch.testing.assert_close(sde.ends.grad, of_bound, rtol=1e-9, atol=1e-9)


def test_outside_the_context_gradients_are_plain(device):
    sde = bent(device).double()
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64, device=device)
    plain = torch.autograd.grad(sde.log_snr(t).sum(), sde.weights)[0]
    with shape_gradient() as losses:
        log_snr = sde.log_snr(t)
    losses.append(torch.full_like(t, 1.5))
    width = (sde.log_snr(torch.tensor(sde.t_min)) - sde.log_snr(torch.tensor(sde.t_max))).item()
    hooked = torch.autograd.grad(log_snr.sum(), sde.weights)[0]
    torch.testing.assert_close(hooked, 3 / width * plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.autograd.grad(sde.log_snr(t).sum(), sde.weights)[0], plain, rtol=0, atol=0)


def test_training_the_shape_makes_the_bound_vary_less_and_leaves_its_mean(device):
    """150 steps of the shape alone, of an exact model in 64 dimensions.

    4,000 draws: the variance falls from 14.5 to 2.6, and the means agree within 4 standard errors.
    """
    sde = LearnedVPSDE(num_segments=16).to(device).double()
    model, objective = exact_model(device, sde, (64,)), VariationalObjective()
    optimizer = torch.optim.Adam([sde.weights], lr=0.1)
    test = drawn(model, device, 4000, seed=10**6)
    before = objective.at(model, *test).detach()
    for step in range(150):
        optimizer.zero_grad()
        objective.at(model, *drawn(model, device, 64, seed=step)).mean().backward()
        optimizer.step()
    after = objective.at(model, *test).detach()
    assert sde.weights.softmax(0).max() > 2 * sde.weights.softmax(0).min()
    assert after.var() < 0.25 * before.var()
    error = (before.var() / 4000 + after.var() / 4000) ** 0.5
    assert (after.mean() - before.mean()).abs() < 4 * error


def learned_model(device, seed=0, parametrization=EDMParametrization(0.5)):  # noqa: B008  frozen
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MLP(2, width=16, depth=1)
    return NetworkScoreModel(network, LearnedVPSDE(num_segments=8), parametrization, (2,)).to(device)


def make_trainer(device, objective=None, **options):
    data = ArrayData(0.5 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0)))
    options = TrainingOptions(**{"num_steps": 12, "batch_size": 16, "warmup_steps": 3, "lr": 0.02, **options})
    return Trainer(learned_model(device), data, objective or VariationalObjective(), options)


def advance(trainer, num_steps):
    for _ in range(num_steps):
        trainer.step()
    return trainer


def test_the_schedule_is_trained_averaged_and_resumed(device):
    whole = advance(make_trainer(device), 9)
    halves = [advance(make_trainer(device), 4), make_trainer(device)]
    halves[1].load_state(4, halves[0].state())
    advance(halves[1], 5)
    for name, value in whole.state().items():
        assert torch.equal(value, halves[1].state()[name]), name
    state = whole.state()
    for name in ("weights.score.sde.ends", "weights.score.sde.weights", "ema.score.sde.weights"):
        assert state[name].abs().min() > 0, name
    assert state["optimizer.exp_avg.score.sde.ends"].abs().min() > 0
    last = whole.model.sde.weights.detach().clone()
    with whole.average.applied(whole.model):
        assert torch.equal(whole.model.sde.weights, state["ema.score.sde.weights"])
        assert not torch.equal(whole.model.sde.weights, last)
    assert torch.equal(whole.model.sde.weights, last)


def test_the_denoising_objective_takes_the_path_as_it_is(device):
    """Otherwise it would lower its loss by moving to noise levels where it is low."""
    trainer = advance(make_trainer(device, DenoisingObjective(), weight_decay=0.1), 4)
    assert not trainer.model.sde.ends.any()
    assert not trainer.model.sde.weights.any()
    other = make_trainer(device, DenoisingObjective(), weight_decay=0.1)
    other.load_state(4, trainer.state())
    whole = advance(make_trainer(device, DenoisingObjective(), weight_decay=0.1), 7).state()
    for name, value in advance(other, 3).state().items():
        assert torch.equal(value, whole[name]), name


def test_gradients_of_the_path_are_averaged_over_processes(device):
    class Two:  # of which the other has no gradient
        rank, size, leader = 0, 1, True
        share = staticmethod(lambda count: slice(0, count))
        mean = staticmethod(lambda x: x / 2)

    alone, shared = make_trainer(device, grad_clip=1e9), make_trainer(device, grad_clip=1e9)
    shared.world = Two()
    for trainer in (alone, shared):
        trainer.step()
    assert torch.equal(shared.model.sde.ends.grad, alone.model.sde.ends.grad / 2)
    assert torch.equal(shared.model.sde.weights.grad, alone.model.sde.weights.grad / 2)
    assert torch.equal(shared.model.network.last.bias.grad, alone.model.network.last.bias.grad)


@pytest.mark.slow
def test_two_processes_train_a_schedule_as_one(tmp_path):
    arguments = [*TRAIN, "--sde=vdm", "--config.training.lr=0.05"]
    run(1, tmp_path, *arguments, "--workdir=one")
    run(2, tmp_path, *arguments, "--workdir=two", "--config.training.accumulate=2")
    one, two = (
        checkpoint.load(tmp_path / name / "checkpoints" / "step-000000050.safetensors").tensors
        for name in ("one", "two")
    )
    assert one["weights.score.sde.weights"].abs().max() > 0.1
    for name in ("weights.score.sde.weights", "weights.score.sde.ends", "ema.score.sde.weights"):
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=2e-3)
    assert len(records(tmp_path / "one")) == 50


# files


def trained_model(device):
    model = learned_model(device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator(device).manual_seed(parameter.numel()))
    return model


def test_a_description_builds_it_again():
    sde = LearnedVPSDE(gamma_min=-9.0, gamma_max=4.0, num_segments=7, t_min=1e-3, t_end=1e-2)
    described = json.loads(json.dumps(registry.describe(sde)))
    again = registry.construct(described, SDE, "sde")
    assert json.loads(json.dumps(registry.describe(again))) == described
    with pytest.raises(UsageError, match=r"network\.name 'LearnedVPSDE'"):  # a module, but no network
        registry.construct(described, nn.Module, "network")


def test_the_weights_of_the_schedule_travel_with_the_model(tmp_path, device):
    model = trained_model(device)
    save_model(model, tmp_path / "m.safetensors")
    back = load_model(tmp_path / "m.safetensors", device)
    t = torch.linspace(1e-5, 1, 9, dtype=torch.float64)
    assert torch.equal(back.sde.log_snr(t), model.sde.log_snr(t).detach())
    x = torch.randn(5, 2, device=device)
    assert torch.equal(back.denoise(x, 0.4), model.denoise(x, 0.4).detach())
    assert not back.sde.ends.requires_grad


def test_a_checkpoint_without_the_weights_of_the_schedule_is_refused(tmp_path):
    model = trained_model("cpu")
    tensors = {f"ema.score.{name}": value for name, value in model.state_dict().items() if name != "sde.ends"}
    description = {"models": {"score": checkpoint.describe_model(model)}}
    checkpoint.save(tmp_path / "m.safetensors", 3, description, tensors)
    with pytest.raises(UsageError, match=r"do not fit.*sde\.ends"):
        load_model(tmp_path / "m.safetensors")


def test_samplers_take_a_model_in_training(device):
    """Tables are made of a float64 copy on the host; what is drawn is as under the fixed SDE of the same path."""
    model = exact_model(device, bent(device, gamma_min=-9.0))
    fixed = copy.deepcopy(model).requires_grad_(False)
    for sampler in (DDIM(), UniPC(), AnnealedLangevin(), ProbabilityFlow()):
        steps = None if isinstance(sampler, ProbabilityFlow) else 20
        x, _ = sample(model, sampler, 50, num_steps=steps)
        assert torch.equal(x, sample(fixed, sampler, 50, num_steps=steps).x), sampler
        assert not x.requires_grad, sampler
        assert (x.std(0) > 0.5 * gaussian(device).sample(4000).std(0)).all(), sampler
        assert x.isfinite().all(), sampler


def test_a_learned_path_is_re_expressed_as_any_other(device):
    model = exact_model(device, bent(device))
    under = model.under(VESDE(sigma_min=0.002, sigma_max=10.0))
    x = torch.randn(6, 3, dtype=torch.float64, device=device)
    level = under.sde.level(torch.tensor(0.5, dtype=torch.float64, device=device))
    expected = gaussian(device).denoise(x, level.alpha, level.sigma)
    torch.testing.assert_close(under.denoise(x, 0.5).detach(), expected, rtol=1e-9, atol=1e-9)
