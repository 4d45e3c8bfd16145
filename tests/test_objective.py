"""Objectives: minimal at the exact denoiser, with the value of the closed form; training times as declared."""

import math

import pytest
import torch
from analytic import PARAMETRIZATIONS, gaussian, mixture, network_model
from scipy import stats
from torch import nn

from scoresde import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    CosineSDE,
    DenoisedWeighting,
    DenoisingObjective,
    DiscreteTimes,
    EDMParametrization,
    EDMWeighting,
    FlowWeighting,
    LadderTimes,
    LikelihoodWeighting,
    LogNormalNoiseLevels,
    MinSNRWeighting,
    NetworkScoreModel,
    NoiseParametrization,
    NoiseWeighting,
    RectifiedFlowSDE,
    ScoreParametrization,
    UniformTimes,
    UsageError,
    VariationalObjective,
    VelocityWeighting,
)
from scoresde.objective import Objective, TrainingTimes, Weighting

WEIGHTINGS = {  # with w of |D - x_0|^2 as the papers write it
    "noise": (NoiseWeighting(), lambda a, s: a**2 / s**2),
    "denoised": (DenoisedWeighting(), lambda a, s: torch.ones_like(s)),
    "velocity": (VelocityWeighting(), lambda a, s: (a**2 + s**2) / s**2),
    "edm": (EDMWeighting(0.7), lambda a, s: ((s / a) ** 2 + 0.49) / (s / a * 0.7) ** 2),
    "min-snr": (MinSNRWeighting(2.0), lambda a, s: (a**2 / s**2).clamp(max=2.0)),
}
weightings = pytest.mark.parametrize(("weighting", "formula"), WEIGHTINGS.values(), ids=WEIGHTINGS.keys())
parametrizations = pytest.mark.parametrize("parametrization", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS.keys())


def random_model(sde, parametrization, shape, device):
    torch.manual_seed(0)
    network = MLP(shape[0], width=16, depth=1).double().to(device)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return NetworkScoreModel(network, sde, parametrization, shape)


def draws(target, sde, device, num, seed=0, shared_t=None):
    generator = torch.Generator(device).manual_seed(seed)
    x_0 = target.sample(num, generator)
    eps = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype, device=device)
    u = torch.rand(num, generator=generator, dtype=x_0.dtype, device=device)
    t = sde.t_min + (sde.t_max - sde.t_min) * u if shared_t is None else torch.full_like(u, shared_t)
    return x_0, t, eps


@weightings
@parametrizations
def test_the_loss_is_the_weighted_error_of_the_denoiser(weighting, formula, parametrization, sde, device):
    """Computed in the network's units, it must be w |D - x_0|^2 / dim."""
    model = random_model(sde, parametrization, (3,), device)
    x_0, t, eps = draws(gaussian(device), sde, device, 16)
    t = t.clamp(0.05 * sde.t_max, sde.t_max)  # where D - x_0 itself keeps 1e-9 of its digits
    loss = DenoisingObjective(weighting=weighting).at(model, x_0, t, eps)
    x_t, alpha, sigma = sde.diffuse(x_0, t, eps), sde.alpha(t), sde.sigma(t)
    naive = formula(alpha, sigma) * (model.denoise(x_t, t) - x_0).square().mean(1)
    assert loss.shape == (16,)
    torch.testing.assert_close(loss, naive, rtol=1e-8, atol=0)


@parametrizations
def test_likelihood_weighting_is_g_squared_times_the_error_of_the_score(parametrization, sde, device):
    model = random_model(sde, parametrization, (3,), device)
    x_0, t, eps = draws(gaussian(device), sde, device, 16)
    t = t.clamp(0.05 * sde.t_max, sde.t_max)
    loss = DenoisingObjective(weighting=LikelihoodWeighting()).at(model, x_0, t, eps)
    error = model.score(sde.diffuse(x_0, t, eps), t) + eps / sde.sigma(t)[:, None]
    torch.testing.assert_close(loss, sde.diffusion(t) ** 2 * error.square().mean(1), rtol=1e-8, atol=0)


def slope(function, t):
    """The derivative of a function of time, zero for a constant."""
    t = t.clone().requires_grad_()
    value = function(t)
    return torch.autograd.grad(value.sum(), t)[0] if value.requires_grad else torch.zeros_like(t)


@parametrizations
def test_flow_weighting_is_the_error_of_the_path_s_own_velocity(parametrization, sde, device):
    """|alpha' D + sigma' eps_hat - (alpha' x_0 + sigma' eps)|^2, the slopes by differentiation."""
    model = random_model(sde, parametrization, (3,), device)
    x_0, t, eps = draws(gaussian(device), sde, device, 16)
    t = t.clamp(0.05 * sde.t_max, sde.t_max)
    loss = DenoisingObjective(weighting=FlowWeighting()).at(model, x_0, t, eps)
    slopes = [slope(f, t)[:, None] for f in (sde.alpha, sde.sigma)]
    x_t = sde.diffuse(x_0, t, eps)
    with torch.no_grad():
        flow = slopes[0] * (model.denoise(x_t, t) - x_0) + slopes[1] * (model.noise(x_t, t) - eps)
    torch.testing.assert_close(loss, flow.square().mean(1), rtol=1e-6, atol=0)


def test_flow_weighting_on_the_straight_path_is_rectified_flow_s(device):
    t = torch.linspace(1e-3, 0.99, 50, dtype=torch.float64, device=device)
    weight = FlowWeighting()(RectifiedFlowSDE(), RectifiedFlowSDE().level(t))
    torch.testing.assert_close(weight, 1 / t**2, rtol=1e-9, atol=0)


@parametrizations
def test_the_loss_keeps_its_digits_at_small_noise(parametrization, sde, device):
    """float32 at t_min, where D - x_0 would be rounding (eps / sigma, up to 1e-3 relative, and twice that squared)."""
    model = random_model(sde, parametrization, (3,), device)
    x_0, t, eps = (part.float() for part in draws(gaussian(device), sde, device, 16, shared_t=sde.t_min))
    objective = DenoisingObjective()
    exact = objective.at(model, x_0.double(), t.double(), eps.double())
    loss = objective.at(model.float(), x_0, t, eps)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=0)


@weightings
def test_the_least_loss_of_a_gaussian_is_the_closed_form(weighting, formula, sde, device):
    """w mean(l sigma^2 / (alpha^2 l + sigma^2)), l the eigenvalues: E|D - x_0|^2 is the posterior's variance.

    20,000 draws at each of three times, within 4.5 standard errors: level 2e-5 for the three.
    """
    target = gaussian(device)
    model = network_model(target, sde, EDMParametrization(0.7))
    eigenvalues = target.mixture.variances[0]
    for share in (0.02, 0.3, 0.8):
        x_0, t, eps = draws(target, sde, device, 20_000, shared_t=share * sde.t_max)
        loss = DenoisingObjective(weighting=weighting).at(model, x_0, t, eps)
        alpha, sigma = sde.alpha(t[0]), sde.sigma(t[0])
        variance = eigenvalues * sigma**2 / (alpha**2 * eigenvalues + sigma**2)
        expected = formula(alpha, sigma) * variance.mean()
        assert (loss.mean() - expected).abs() < 4.5 * loss.std() / len(loss) ** 0.5


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
    losses = []
    for h in (1.0, -1.0):

        def moved(x0_hat, x_t, h=h):
            return change(x0_hat) + h * direction(x_t)

        losses.append(objective.at(network_model(target, sde, parametrization, moved), *drawn))
    slopes = 0.5 * (losses[0] - losses[1])
    return (slopes.mean() / (slopes.std() / len(slopes) ** 0.5)).item()


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS.keys())
@pytest.mark.parametrize("parametrization", [NoiseParametrization(0.7), EDMParametrization(0.7)], ids=["noise", "edm"])
def test_the_expected_gradient_vanishes_at_the_exact_denoiser(direction, parametrization, sde, device):
    """20,000 draws, 4.5 standard errors: level 7e-6 for each of the 48."""
    slope = slope_in_standard_errors(lambda d: d, direction, sde, parametrization, DenoisedWeighting(), device)
    assert abs(slope) < 4.5


@weightings
def test_the_expected_gradient_vanishes_under_every_weighting(weighting, formula, device):
    for sde in (CosineSDE(t_min=0.05), EDMSDE(t_min=0.1, t_max=5.0)):
        slope = slope_in_standard_errors(
            lambda d: d, DIRECTIONS["sine"], sde, EDMParametrization(0.7), weighting, device
        )
        assert abs(slope) < 4.5


@pytest.mark.parametrize("parametrization", [NoiseParametrization(0.7), ScoreParametrization(0.7)])
def test_it_does_not_vanish_at_a_biased_denoiser(parametrization, sde, device):
    """The same statistic has the power to see a denoiser that is wrong by 0.1."""
    args = DIRECTIONS["constant"], sde, parametrization, DenoisedWeighting(), device
    assert slope_in_standard_errors(lambda d: d + 0.1, *args) > 10


def test_any_other_denoiser_has_a_larger_loss(sde, device):
    target, objective = mixture(device), DenoisingObjective(weighting=DenoisedWeighting())
    drawn = draws(target, sde, device, 20_000)
    least = objective.at(network_model(target, sde, NoiseParametrization(0.7)), *drawn).mean()
    for change in (lambda d, x: 0.8 * d, lambda d, x: d + 0.2, lambda d, x: d + 0.2 * torch.sin(3 * x)):
        assert objective.at(network_model(target, sde, NoiseParametrization(0.7), change), *drawn).mean() > least


def test_the_objective_draws_and_then_evaluates(device):
    """Calling it is `at` on times of its `times` and standard normal noise, and repeats under a generator."""
    sde, target = VPSDE(), gaussian(device, (1, 2, 2))
    recorded = []
    model = network_model(target, sde, NoiseParametrization(0.7), lambda d, x: recorded.append(x) or d)
    x_0 = target.sample(4000, torch.Generator(device).manual_seed(0))
    objective = DenoisingObjective(UniformTimes(), NoiseWeighting())
    first = objective(model, x_0, generator=torch.Generator(device).manual_seed(1))
    again = objective(model, x_0, generator=torch.Generator(device).manual_seed(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, objective(model, x_0, generator=torch.Generator(device).manual_seed(2)))
    t = UniformTimes().sample(sde, 4000, device, torch.Generator(device).manual_seed(1)).to(x_0)
    eps = (recorded[0] - sde.level(t).match_rank(x_0).alpha * x_0) / sde.level(t).match_rank(x_0).sigma
    torch.testing.assert_close(objective.at(model, x_0, t, eps), first, rtol=1e-6, atol=1e-8)
    # 16,000 numbers against N(0, 1); Kolmogorov and Smirnov at level 1e-4
    assert stats.kstest(eps.flatten().cpu().numpy(), "norm").pvalue > 1e-4


def test_the_condition_reaches_the_network(device):
    network = MLP(3, 8, 1, num_classes=2).double().to(device)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    model = NetworkScoreModel(network, VPSDE(), NoiseParametrization(), (3,))
    x_0, t, eps = draws(gaussian(device), VPSDE(), device, 4)
    first, second = (DenoisingObjective().at(model, x_0, t, eps, torch.full((4,), c, device=device)) for c in (0, 1))
    assert (first - second).abs().min() > 1e-4
    with pytest.raises(UsageError, match="cond"):
        DenoisingObjective().at(model, x_0, t, eps)


TIMES = {
    "uniform": UniformTimes(),
    "levels": DiscreteTimes(),
    "ladder": LadderTimes(),
    "log normal": LogNormalNoiseLevels(),
}
every_times = pytest.mark.parametrize("times", TIMES.values(), ids=TIMES.keys())


def sampled(times, sde, num, device, seed=0):
    return times.sample(sde, num, device, torch.Generator(device).manual_seed(seed))


@every_times
def test_times_lie_in_the_range_and_repeat(times, sde, device):
    t = sampled(times, sde, 5000, device)
    assert t.shape == (5000,)
    assert t.dtype == torch.float32
    assert t.device.type == device.type
    low, high = torch.tensor([sde.t_min, sde.t_max])  # as float32 has them
    assert low <= t.min() < t.max() <= high
    assert sde.log_snr(t).isfinite().all()
    assert torch.equal(t, sampled(times, sde, 5000, device))
    assert not torch.equal(t, sampled(times, sde, 5000, device, seed=1))


def share(times, sde, t):
    """The declared distribution function of a time, evaluated at it."""
    if isinstance(times, LogNormalNoiseLevels):
        return torch.special.ndtr((sde.noise_level(t.double()).log() - times.mean) / times.std)
    return (t.double() - sde.t_min) / (sde.t_max - sde.t_min)


@pytest.mark.parametrize("times", [UniformTimes(), LogNormalNoiseLevels(-1.0, 0.7)], ids=["uniform", "log normal"])
@pytest.mark.parametrize("wide", [VPSDE(), VESDE(sigma_min=1e-4), EDMSDE(1e-4, 100.0), RectifiedFlowSDE(1e-4, 0.9999)])
def test_a_batch_covers_its_distribution_evenly(times, wide, device):
    """One time in each of n equally likely cells; float32 rounds a few over an edge, never by more than 1e-3 cells."""
    num = 100
    cells = (share(times, wide, sampled(times, wide, num, device)) * num).sort().values
    edges = torch.arange(num, dtype=torch.float64, device=device)
    assert (cells > edges - 1e-3).all()
    assert (cells < edges + 1 + 1e-3).all()


@pytest.mark.parametrize("times", [UniformTimes(), LogNormalNoiseLevels(-1.0, 0.7)], ids=["uniform", "log normal"])
def test_each_place_in_a_batch_has_the_declared_distribution(times, device):
    """The first time of 3,000 batches of 4: Kolmogorov and Smirnov at level 1e-3."""
    sde, generator = EDMSDE(1e-4, 100.0), torch.Generator(device).manual_seed(0)
    first = torch.stack([times.sample(sde, 4, device, generator)[0] for _ in range(3000)])
    assert stats.kstest(share(times, sde, first).cpu().numpy(), "uniform").pvalue > 1e-3


def test_neighbours_in_a_batch_are_not_sorted(device):
    """The cells are in random order: the rank correlation with the place is that of chance, level 1e-4."""
    t = sampled(UniformTimes(), VPSDE(), 1000, device)
    assert stats.spearmanr(range(1000), t.cpu().numpy()).pvalue > 1e-4


@pytest.mark.parametrize("num_levels", [1, 7, 1000])
def test_discrete_times_are_the_levels_of_the_chain(num_levels, device):
    t = sampled(DiscreteTimes(num_levels), VPSDE(), 20 * num_levels, device)
    levels = torch.arange(1, num_levels + 1, device=device) / num_levels
    assert torch.isin(t, levels).all()
    count = torch.bincount((t * num_levels).round().long(), minlength=num_levels + 1)[1:]
    # 20 cells a level; float32 moves the time at a cell's edge to its neighbour at most
    assert (count - 20).abs().max() <= 1
    assert count.min() >= 1


def test_the_levels_of_a_chain_end_at_t_max(device):
    sde = EDMSDE(t_min=0.002, t_max=80.0)
    t = sampled(DiscreteTimes(40), sde, 400, device)
    torch.testing.assert_close(t.unique(), torch.arange(2.0, 81, 2, device=device))


def test_smld_s_discrete_loss(device):
    """Levels geometric from sigma_min to sigma_max, equally often, and the loss sigma_i^2 |s + eps / sigma_i|^2."""
    num_levels, sde = 10, VESDE(sigma_min=0.01, sigma_max=50.0, t_min=1e-9)
    sigma = sde.sigma(sampled(LadderTimes(num_levels), sde, 20 * num_levels, device).double())
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
    torch.testing.assert_close(DenoisingObjective(LadderTimes()).at(model, x_0, t, eps), smld, rtol=1e-3, atol=1e-4)


# three parametrisations, one objective


def test_predicting_data_noise_or_score_is_one_objective_under_the_matching_weights(sde, device):
    """(alpha/sigma)^2 |D - x_0|^2 = |eps_hat - eps|^2 = sigma^2 |score + eps / sigma|^2, and so their gradients in D.

    A denoiser moved by a network of two weights: the loss and its gradient are the same, whatever the network emits.
    """
    target = gaussian(device)
    x_0, t, eps = draws(target, sde, device, 64)
    t = t.clamp(0.05 * sde.t_max, sde.t_max)
    weights = torch.tensor([0.7, -0.4], dtype=torch.float64, device=device, requires_grad=True)

    def moved(x0_hat, x_t):
        return x0_hat + weights[0] * torch.sin(x_t) + weights[1]

    def loss_and_gradient(losses):
        return losses.detach(), torch.autograd.grad(losses.mean(), weights)[0]

    found = [
        loss_and_gradient(DenoisingObjective().at(network_model(target, sde, emitted, moved), x_0, t, eps))
        for emitted in PARAMETRIZATIONS.values()
    ]
    model, x_t, level = (
        network_model(target, sde, EDMParametrization(0.7), moved),
        sde.diffuse(x_0, t, eps),
        sde.level(t),
    )
    wide = level.match_rank(x_0)
    written = [
        level.log_snr.exp() * (model.denoise(x_t, t) - x_0).square().mean(1),
        (model.noise(x_t, t) - eps).square().mean(1),
        level.sigma**2 * (model.score(x_t, t) + eps / wide.sigma).square().mean(1),
    ]
    for loss, gradient in [*found, *map(loss_and_gradient, written)]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-7, atol=0)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-7, atol=1e-12)


# the variational bound; more of it in test_bounds and test_learned_sde


@parametrizations
def test_the_variational_objective_is_the_bound(parametrization, sde, device):
    """Prior, reconstruction, and (t_max - t_min)/2 gamma' |eps_hat - eps|^2 with gamma' by differentiation."""
    model = random_model(sde, parametrization, (3,), device)
    x_0, t, eps = draws(gaussian(device), sde, device, 16)
    t = t.clamp(0.05 * sde.t_max, sde.t_max)
    first, last = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64, device=device))
    loss = VariationalObjective().at(model, x_0, t, eps)
    error = (model.noise(sde.diffuse(x_0, t, eps), t) - eps).square().mean(1)
    diffusion = -0.5 * (sde.t_max - sde.t_min) * slope(sde.log_snr, t) * error
    ends = 0.5 * last.exp() * x_0.square().mean(1) + 0.5 * (math.log(2 * math.pi * math.e) - first)
    assert loss.shape == (16,)
    torch.testing.assert_close(loss, ends + diffusion, rtol=1e-7, atol=1e-9)


@parametrizations
def test_on_a_fixed_path_it_trains_as_likelihood_weighting_does(parametrization, sde, device):
    model = random_model(sde, parametrization, (3,), device)
    drawn = draws(gaussian(device), sde, device, 16)
    weights = [p for p in model.network.parameters() if p.requires_grad]
    bound, weighted = (
        torch.autograd.grad(objective.at(model, *drawn).sum(), weights)
        for objective in (VariationalObjective(), DenoisingObjective(weighting=LikelihoodWeighting()))
    )
    for one, other in zip(bound, weighted, strict=True):
        torch.testing.assert_close(one, 0.5 * (sde.t_max - sde.t_min) * other, rtol=1e-9, atol=1e-9 * other.abs().max())


@parametrizations
def test_the_bound_keeps_its_digits_at_small_noise(parametrization, sde, device):
    """As above, next to t_min: there gamma' of a DDPM chain jumps."""
    model = random_model(sde, parametrization, (3,), device)
    x_0, t, eps = (part.float() for part in draws(gaussian(device), sde, device, 16, shared_t=1.01 * sde.t_min))
    exact = VariationalObjective().at(model, x_0.double(), t.double(), eps.double())
    loss = VariationalObjective().at(model.float(), x_0, t, eps)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-4)


def test_the_variational_objective_draws_uniform_times(device):
    t, eps = VariationalObjective().draw(VPSDE(), (100, 3), device, torch.Generator(device).manual_seed(0))
    assert torch.equal(t, sampled(UniformTimes(), VPSDE(), 100, device))
    assert eps.shape == (100, 3)


MISTAKES = {
    "sigma_data": (lambda: EDMWeighting(0.0), "sigma_data=0.0"),
    "infinite sigma_data": (lambda: EDMWeighting(float("inf")), "sigma_data=inf"),
    "std": (lambda: LogNormalNoiseLevels(std=0.0), "std=0.0"),
    "num_levels": (lambda: DiscreteTimes(0), "num_levels=0"),
    "rungs": (lambda: LadderTimes(1), "num_levels=1"),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named(make, message):
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize("concept", [Objective, TrainingTimes, Weighting])
def test_concepts_are_abstract(concept):
    with pytest.raises(TypeError, match="abstract"):
        concept()
