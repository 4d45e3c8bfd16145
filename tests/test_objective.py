"""Objectives: minimal at the exact denoiser, with the value of the closed form."""

import contextlib
import itertools
import math

import pytest
import torch
from scipy import stats
from torch import nn

from scoresde import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    BatchNoise,
    CosineSDE,
    DenoisedWeighting,
    DenoisingObjective,
    EDMParametrization,
    EDMWeighting,
    ExactScoreModel,
    FlowWeighting,
    LadderTimes,
    LikelihoodWeighting,
    MinSNRWeighting,
    NetworkScoreModel,
    NoiseParametrization,
    NoiseWeighting,
    RectifiedFlowSDE,
    ScoreParametrization,
    TrainingOptions,
    UniformTimes,
    UsageError,
    VariationalObjective,
    VelocityWeighting,
)
from scoresde.data import ArrayData
from scoresde.objective import Batch, Objective, Weighting
from scoresde.training import Trainer
from tests.analytic import PARAMETRIZATIONS, gaussian, mixture, network_model, slope
from tests.losses import away_from_the_start, draws, losses, random_model, whole_batch

WEIGHTINGS = {  # with w of |D - x_0|^2 as the papers write it
    "noise": (NoiseWeighting(), lambda a, s: a**2 / s**2),
    "denoised": (DenoisedWeighting(), lambda a, s: torch.ones_like(s)),
    "velocity": (VelocityWeighting(), lambda a, s: (a**2 + s**2) / s**2),
    "edm": (EDMWeighting(), lambda a, s: ((s / a) ** 2 + 0.49) / (s / a * 0.7) ** 2),
    "min-snr": (MinSNRWeighting(2.0), lambda a, s: (a**2 / s**2).clamp(max=2.0)),
}


def test_the_loss_is_the_weighted_error_of_the_denoiser(sde, device):
    """Computed in the network's units, it must be w |D - x_0|^2 / dim."""
    x_0, t, eps = draws(gaussian(device), sde, device, 16)
    t = away_from_the_start(sde, t)
    x_t, alpha, sigma = sde.diffuse(x_0, t, eps), sde.alpha(t), sde.sigma(t)
    for emitted, parametrization in PARAMETRIZATIONS.items():
        model = random_model(sde, parametrization, (3,), device)
        error = (model.denoise(x_t, t) - x_0).square().mean(1)
        for name, (weighting, formula) in WEIGHTINGS.items():
            loss = losses(DenoisingObjective(weighting=weighting), model, x_0, t, eps)
            assert loss.shape == (16,)
            expected = formula(alpha, sigma) * error
            torch.testing.assert_close(loss, expected, rtol=1e-8, atol=0, msg=f"{name}, {emitted}")


def test_likelihood_weighting_is_g_squared_times_the_error_of_the_score(sde, device):
    x_0, t, eps = draws(gaussian(device), sde, device, 16)
    t = away_from_the_start(sde, t)
    for emitted, parametrization in PARAMETRIZATIONS.items():
        model = random_model(sde, parametrization, (3,), device)
        loss = losses(DenoisingObjective(weighting=LikelihoodWeighting()), model, x_0, t, eps)
        error = model.score(sde.diffuse(x_0, t, eps), t) + eps / sde.sigma(t)[:, None]
        expected = sde.diffusion(t) ** 2 * error.square().mean(1)
        torch.testing.assert_close(loss, expected, rtol=1e-8, atol=0, msg=emitted)


def test_flow_weighting_is_the_error_of_the_path_s_own_velocity(sde, device):
    """|alpha' D + sigma' eps_hat - (alpha' x_0 + sigma' eps)|^2, the slopes by differentiation."""
    x_0, t, eps = draws(gaussian(device), sde, device, 16)
    t = away_from_the_start(sde, t)
    x_t, slopes = sde.diffuse(x_0, t, eps), [slope(f, t)[:, None] for f in (sde.alpha, sde.sigma)]
    for emitted, parametrization in PARAMETRIZATIONS.items():
        model = random_model(sde, parametrization, (3,), device)
        loss = losses(DenoisingObjective(weighting=FlowWeighting()), model, x_0, t, eps)
        with torch.no_grad():
            flow = slopes[0] * (model.denoise(x_t, t) - x_0) + slopes[1] * (model.noise(x_t, t) - eps)
        torch.testing.assert_close(loss, flow.square().mean(1), rtol=1e-6, atol=0, msg=emitted)


def test_flow_weighting_on_the_straight_path_is_rectified_flow_s(device):
    t = torch.linspace(1e-3, 0.99, 50, dtype=torch.float64, device=device)
    model = ExactScoreModel(gaussian(device), RectifiedFlowSDE())
    weight = FlowWeighting()(model, model.sde.level(t))
    torch.testing.assert_close(weight, 1 / t**2, rtol=1e-9, atol=0)


def test_edm_weighting_takes_the_scale_of_the_model_s_data(device):
    level = EDMSDE().level(torch.tensor([0.1, 2.0], dtype=torch.float64, device=device))
    for sigma_data in (0.3, 2.0):
        model = random_model(EDMSDE(), EDMParametrization(sigma_data), (3,), device)
        c_out = model.parametrization.c_out(level)
        torch.testing.assert_close(EDMWeighting()(model, level), 1 / c_out**2, rtol=1e-12, atol=0)


def test_the_loss_keeps_its_digits_at_small_noise(sde, device):
    """float32 at t_min, where D - x_0 would be rounding (eps / sigma, up to 1e-3 relative, and twice that squared)."""
    single = [part.float() for part in draws(gaussian(device), sde, device, 16, shared_t=sde.t_min)]
    for emitted, parametrization in PARAMETRIZATIONS.items():
        model = random_model(sde, parametrization, (3,), device)
        exact = losses(DenoisingObjective(), model, *(part.double() for part in single))
        loss = losses(DenoisingObjective(), model.float(), *single)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=0, msg=emitted)


def test_the_least_loss_of_a_gaussian_is_the_closed_form(sde, device):
    """w mean(l sigma^2 / (alpha^2 l + sigma^2)), l the eigenvalues: E|D - x_0|^2 is the posterior's variance.

    20,000 draws at each of three times, within 4.5 standard errors: level 2e-5 for the three.
    """
    target = gaussian(device)
    model = network_model(target, sde, EDMParametrization(0.7))
    eigenvalues = target.mixture.variances[0]
    for share in (0.02, 0.3, 0.8):
        x_0, t, eps = draws(target, sde, device, 20_000, shared_t=share * sde.t_max)
        alpha, sigma = sde.alpha(t[0]), sde.sigma(t[0])
        variance = eigenvalues * sigma**2 / (alpha**2 * eigenvalues + sigma**2)
        for name, (weighting, formula) in WEIGHTINGS.items():
            loss = losses(DenoisingObjective(weighting=weighting), model, x_0, t, eps)
            expected = formula(alpha, sigma) * variance.mean()
            assert (loss.mean() - expected).abs() < 4.5 * loss.std() / len(loss) ** 0.5, (name, share)


DIRECTIONS = {
    "constant": lambda x: torch.ones_like(x),
    "x": lambda x: x / (1 + x.square().mean(1, keepdim=True)).sqrt(),
    "sine": lambda x: torch.sin(3 * x.flip(1)),
}


def slope_in_standard_errors(change, direction, sde, parametrization, weighting, device):
    """The derivative of the mean loss as the denoiser moves along a direction, in its own standard errors.

    The loss is quadratic in h, so the central difference is the derivative, whatever h.
    """
    target, objective = mixture(device), DenoisingObjective(weighting=weighting)
    drawn = draws(target, sde, device, 20_000)
    ends = []
    for h in (1.0, -1.0):

        def moved(x0_hat, x_t, h=h):
            return change(x0_hat) + h * direction(x_t)

        ends.append(losses(objective, network_model(target, sde, parametrization, moved), *drawn))
    slopes = 0.5 * (ends[0] - ends[1])
    return (slopes.mean() / (slopes.std() / len(slopes) ** 0.5)).item()


def test_the_expected_gradient_vanishes_at_the_exact_denoiser(sde, device):
    """20,000 draws, 4.5 standard errors: level 7e-6 for each of the 48."""
    emitted = (NoiseParametrization(0.7), EDMParametrization(0.7))
    for (name, direction), parametrization in itertools.product(DIRECTIONS.items(), emitted):
        found = slope_in_standard_errors(lambda d: d, direction, sde, parametrization, DenoisedWeighting(), device)
        assert abs(found) < 4.5, (name, parametrization)


@pytest.mark.parametrize("weighting", [weighting for weighting, _ in WEIGHTINGS.values()], ids=WEIGHTINGS.keys())
def test_the_expected_gradient_vanishes_under_every_weighting(weighting, device):
    for sde in (CosineSDE(t_min=0.05), EDMSDE(t_min=0.1, t_max=5.0)):
        args = DIRECTIONS["sine"], sde, EDMParametrization(0.7), weighting, device
        assert abs(slope_in_standard_errors(lambda d: d, *args)) < 4.5, sde


def test_it_does_not_vanish_at_a_biased_denoiser(sde, device):
    """The same statistic has the power to see a denoiser that is wrong by 0.1."""
    for parametrization in (NoiseParametrization(0.7), ScoreParametrization(0.7)):
        args = DIRECTIONS["constant"], sde, parametrization, DenoisedWeighting(), device
        assert slope_in_standard_errors(lambda d: d + 0.1, *args) > 10, parametrization


def test_any_other_denoiser_has_a_larger_loss(sde, device):
    target, objective = mixture(device), DenoisingObjective(weighting=DenoisedWeighting())
    drawn = draws(target, sde, device, 20_000)
    least = losses(objective, network_model(target, sde, NoiseParametrization(0.7)), *drawn).mean()
    for change in (lambda d, x: 0.8 * d, lambda d, x: d + 0.2, lambda d, x: d + 0.2 * torch.sin(3 * x)):
        other = network_model(target, sde, NoiseParametrization(0.7), change)
        assert losses(objective, other, *drawn).mean() > least


def test_the_objective_draws_and_then_evaluates(device):
    """Calling it is `at` on times of its `times` and standard normal noise, and repeats under the same noise."""
    sde, target = VPSDE(), gaussian(device, (1, 2, 2))
    recorded = []
    model = network_model(target, sde, NoiseParametrization(0.7), lambda d, x: recorded.append(x) or d)
    x_0 = target.sample(4000, torch.Generator(device).manual_seed(0))
    objective, noise = DenoisingObjective(UniformTimes(), NoiseWeighting()), whole_batch(4000, device)
    first = objective(model, x_0, noise=noise)
    assert torch.equal(first, objective(model, x_0, noise=noise))
    assert not torch.equal(first, objective(model, x_0, noise=whole_batch(4000, device, seed=2)))
    t = UniformTimes().at(sde, noise.stratified("times")).to(x_0)
    eps = (recorded[0] - sde.level(t).match_rank(x_0).alpha * x_0) / sde.level(t).match_rank(x_0).sigma
    torch.testing.assert_close(losses(objective, model, x_0, t, eps), first, rtol=1e-6, atol=1e-8)
    # 16,000 numbers against N(0, 1); Kolmogorov and Smirnov at level 1e-4
    assert stats.kstest(eps.flatten().cpu().numpy(), "norm").pvalue > 1e-4


def test_without_noise_that_is_given_it_follows_the_global_random_state(device):
    model, found = random_model(VPSDE(), NoiseParametrization(), (3,), device), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(DenoisingObjective()(model, torch.zeros(4, 3, device=device)))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("objective", [DenoisingObjective(), VariationalObjective()], ids=["denoising", "variational"])
def test_a_process_draws_for_its_share_what_one_would_draw_for_all(objective, device):
    model = random_model(VPSDE(), NoiseParametrization(), (3,), device)
    whole = objective.draw(model, Batch(torch.zeros(12, 3, device=device)), whole_batch(12, device))
    assert {name: values.shape for name, values in whole.items()} == {"t": (12,), "eps": (12, 3)}
    assert {values.dtype for values in whole.values()} == {model.dtype}
    for share in (slice(0, 4), slice(4, 12)):
        places = torch.arange(12, device=device)[share]
        noise = BatchNoise(1, 0, 12, places)
        part = objective.draw(model, Batch(torch.zeros(len(places), 3, device=device)), noise)
        for name, values in part.items():
            assert torch.equal(values, whole[name][share]), name


def test_an_objective_may_evaluate_the_averaged_weights(device):
    """As for the targets of a distillation: in a trainer they are the average's, outside the model's own."""
    seen = []

    class Recording(Objective):
        def draw(self, model, batch, noise):
            return {}

        def at(self, model, batch, draws, averaged=contextlib.nullcontext):
            with averaged(), torch.no_grad():
                seen.append(model.network.last.bias.clone())
            seen.append(model.network.last.bias.detach().clone())
            return (model.network.last.bias - 1).square().mean().expand(len(batch.raw))

    model = NetworkScoreModel(MLP(2, 8, 1).to(device), VPSDE(), NoiseParametrization(), (2,))
    trainer = Trainer(model, ArrayData(torch.zeros(8, 2)), Recording(), TrainingOptions(batch_size=4, warmup_steps=0))
    for _ in range(3):
        trainer.step()
    average = trainer.average.tensors["network.last.bias"].clone()
    trainer.step()
    averaged, own = seen[-2:]
    assert torch.equal(averaged, average)
    assert not torch.equal(averaged, own)
    Recording()(model, torch.zeros(4, 2, device=device))
    assert torch.equal(*seen[-2:])


def test_the_condition_reaches_the_network(device):
    network = MLP(3, 8, 1, num_classes=2).double().to(device)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    model = NetworkScoreModel(network, VPSDE(), NoiseParametrization(), (3,))
    x_0, t, eps = draws(gaussian(device), VPSDE(), device, 4)
    given = (torch.full((4,), label, device=device) for label in (0, 1))
    first, second = (losses(DenoisingObjective(), model, x_0, t, eps, cond) for cond in given)
    assert (first - second).abs().min() > 1e-4
    with pytest.raises(UsageError, match="cond"):
        losses(DenoisingObjective(), model, x_0, t, eps)


def test_smld_s_discrete_loss(device):
    """Levels geometric from sigma_min to sigma_max, equally often, and the loss sigma_i^2 |s + eps / sigma_i|^2."""
    num_levels, sde = 10, VESDE(sigma_min=0.01, sigma_max=50.0, t_min=1e-9)
    u = whole_batch(20 * num_levels, device).stratified("times")
    sigma = sde.sigma(LadderTimes(num_levels).at(sde, u).double())
    ladder = torch.logspace(math.log10(0.01), math.log10(50.0), num_levels, dtype=torch.float64, device=device)
    nearest = (sigma[:, None] / ladder - 1).abs().min(1)
    assert nearest.values.max() < 1e-5
    assert (torch.bincount(nearest.indices) - 20).abs().max() <= 1

    torch.manual_seed(0)
    x_0, eps = torch.randn(6, 2, device=device), torch.randn(6, 2, device=device)
    model = NetworkScoreModel(MLP(2, 8, 2), sde, NoiseParametrization(sigma_data=1.0), (2,)).to(device)
    torch.nn.init.normal_(model.network.last.weight)
    t = sde.time(-2 * ladder[2:8].log()).float()
    sigma_i = sde.sigma(t)[:, None]
    score = model.score(x_0 + sigma_i * eps, t)
    smld = (sigma_i**2 * (score + eps / sigma_i) ** 2).mean(1)
    loss = losses(DenoisingObjective(LadderTimes()), model, x_0, t, eps)
    torch.testing.assert_close(loss, smld, rtol=1e-3, atol=1e-4)


# three parametrisations, one objective


def test_predicting_data_noise_or_score_is_one_objective_under_the_matching_weights(sde, device):
    """(alpha/sigma)^2 |D - x_0|^2 = |eps_hat - eps|^2 = sigma^2 |score + eps / sigma|^2, and so their gradients in D.

    A denoiser moved by a network of two weights: the loss and its gradient are the same, whatever the network emits.
    """
    target = gaussian(device)
    x_0, t, eps = draws(target, sde, device, 64)
    t = away_from_the_start(sde, t)
    weights = torch.tensor([0.7, -0.4], dtype=torch.float64, device=device, requires_grad=True)

    def moved(x0_hat, x_t):
        return x0_hat + weights[0] * torch.sin(x_t) + weights[1]

    def loss_and_gradient(loss):
        return loss.detach(), torch.autograd.grad(loss.mean(), weights)[0]

    found = [
        loss_and_gradient(losses(DenoisingObjective(), network_model(target, sde, emitted, moved), x_0, t, eps))
        for emitted in PARAMETRIZATIONS.values()
    ]
    model = network_model(target, sde, EDMParametrization(0.7), moved)
    x_t = sde.diffuse(x_0, t, eps)
    level = sde.level(t)
    wide = level.match_rank(x_0)
    written = [
        level.log_snr.exp() * (model.denoise(x_t, t) - x_0).square().mean(1),
        (model.noise(x_t, t) - eps).square().mean(1),
        level.sigma**2 * (model.score(x_t, t) + eps / wide.sigma).square().mean(1),
    ]
    for loss, gradient in [*found, *map(loss_and_gradient, written)]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-7, atol=0)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-7, atol=1e-12)


def test_a_mistake_is_named():
    with pytest.raises(UsageError, match="gamma=0"):
        MinSNRWeighting(0)


@pytest.mark.parametrize("concept", [Objective, Weighting])
def test_concepts_are_abstract(concept):
    with pytest.raises(TypeError, match="abstract"):
        concept()
