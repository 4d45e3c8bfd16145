"""Variational bounds: below the exact log density, near it, and equal to their closed forms on a Gaussian."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from samplers import grids, measure_variance
from scoresde import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    CallableScoreModel,
    DenoisedParametrization,
    DiscreteVPSDE,
    EDMParametrization,
    ExactScoreModel,
    Gaussian,
    LearnedVPSDE,
    NetworkScoreModel,
    UsageError,
    VariationalObjective,
    ddpm_bound,
    elbo,
)
from scoresde.bounds import prior_cost, reconstruction_cost
from scoresde.reverse import decoder_log_prob
from tests.analytic import SDES, gaussian, mixture, network_model
from tests.densities import exact_log_prob
from tests.losses import whole_batch
from tests.reverse import KnownVariance, best_growth

PATHS = [*SDES.values(), LearnedVPSDE().requires_grad_(False)]
paths = pytest.mark.parametrize("sde", PATHS, ids=lambda sde: type(sde).__name__)


def ends(sde, device="cpu"):
    """The levels of t_min and t_max."""
    level = sde.span().to(device, torch.float64)
    return level[1], level[0]


def copies(target, num, device, seed=0):
    """The same sample many times."""
    x_0 = target.sample(1, torch.Generator(device).manual_seed(seed))
    return x_0.expand(num, *x_0.shape[1:])


def gaussian_error(target, x_0, level):
    """E |D(x_t) - x_0|^2 over eps, `(n,)`, at levels `(n,)`, for one x_0: the bias and the variance of a linear D."""
    offset = (target.mixture.rotations[0] @ (x_0 - target.mixture.means[0])) ** 2
    variances, alpha, sigma = target.mixture.variances[0], level.alpha[:, None], level.sigma[:, None]
    v = alpha**2 * variances + sigma**2
    return ((sigma**2 / v) ** 2 * offset + (sigma * alpha * variances / v) ** 2).sum(1)


def gaussian_diffusion(target, x_0, sde):
    """The diffusion loss of one x_0, by Simpson's rule in log-SNR."""
    first, last = ends(sde)
    log_snr = torch.linspace(float(last.log_snr), float(first.log_snr), 4001, dtype=torch.float64)
    integrand = 0.5 * log_snr.exp() * gaussian_error(target, x_0, sde.level(sde.time(log_snr)))
    weights = torch.ones_like(log_snr)
    weights[1:-1:2] = 4
    weights[2:-1:2] = 2
    return (weights * integrand).sum() * (log_snr[1] - log_snr[0]) / 3


@paths
def test_the_bound_of_a_gaussian_is_the_closed_form(sde, device):
    """2,000 copies of one sample, within 4 standard errors; and they scatter as each says it does."""
    target = gaussian(device)
    x_0 = copies(target, 2000, device)
    bound = elbo(
        ExactScoreModel(target, sde), x_0, num_evaluations=16, generator=torch.Generator(device).manual_seed(0)
    )
    first, last = ends(sde)
    exact = gaussian_diffusion(gaussian(), x_0[0].cpu(), sde).to(device)
    error = bound.diffusion.std() / len(x_0) ** 0.5
    assert (bound.diffusion.mean() - exact).abs() < 4 * error
    assert bound.standard_error.square().mean().sqrt() == pytest.approx(bound.bound.std().item(), rel=0.15)
    sigma_data = ExactScoreModel(target, sde).sigma_data
    of_data = Normal(last.alpha * x_0[0], last.sigma)
    of_model = Normal(torch.zeros_like(x_0[0]), torch.hypot(last.alpha * sigma_data, last.sigma))
    prior = kl_divergence(of_data, of_model).sum()
    reconstruction = 1.5 * torch.log(2 * math.pi * math.e * (first.sigma / first.alpha) ** 2)
    torch.testing.assert_close(bound.prior, prior.to(device).expand(2000), rtol=1e-9, atol=0)
    torch.testing.assert_close(bound.reconstruction, reconstruction.to(device).expand(2000), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(bound.bound, -(bound.prior + bound.reconstruction + bound.diffusion), rtol=0, atol=0)


def test_a_bound_is_the_same_for_every_batch_size(device):
    target = mixture(device)
    model = ExactScoreModel(target, VPSDE())
    x_0 = rounded(target, 11, device)

    def of(evaluate, batch_size):
        return evaluate(batch_size, torch.Generator(device).manual_seed(5))

    for evaluate in (
        lambda size, draws: elbo(model, x_0, num_evaluations=6, generator=draws, batch_size=size),
        lambda size, draws: elbo(model, x_0, num_evaluations=6, prior=target, generator=draws, batch_size=size),
        lambda size, draws: ddpm_bound(model, x_0, CHAIN, **FINE, num_terms=2, generator=draws, batch_size=size),
    ):
        together = of(evaluate, None)
        for part, one in zip(of(evaluate, 4), together, strict=True):
            torch.testing.assert_close(part, one, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(evaluate(None, torch.Generator(device).manual_seed(6)).bound, together.bound)


@paths
def test_it_lies_below_the_log_density_and_near_it(sde, device):
    """For an exact model whose prior is the true one, only the decoder is wrong, by some (r / std)^2 at noise r.

    1,000 samples, both within 4 standard errors of their mean.
    """
    for name, target, smallest in (
        ("gaussian", gaussian(device), gaussian().mixture.variances.min().item()),
        ("mixture", mixture(device), 0.02),
    ):
        x_0 = target.sample(1000, torch.Generator(device).manual_seed(1))
        generator = torch.Generator(device).manual_seed(0)
        bound = elbo(ExactScoreModel(target, sde), x_0, prior=target, generator=generator)
        gap = exact_log_prob(target, x_0) - bound.bound
        error = bound.standard_error.square().sum().sqrt() / len(x_0)
        assert gap.mean() > -4 * error, name
        tolerance = x_0[0].numel() * (ends(sde)[0].noise_level ** 2 / smallest).item()
        assert gap.mean() < tolerance + 4 * error, name
        assert error < 0.05, name


def test_only_the_ends_of_the_schedule_matter(device):
    """The same noise levels in other times and at another scale: the same numbers, draw by draw."""
    target = mixture(device)
    x_0 = target.sample(50, torch.Generator(device).manual_seed(0))
    model = ExactScoreModel(target, EDMSDE(0.002, 80.0))
    same = model.under(VESDE(sigma_min=0.002, sigma_max=80.0, t_min=1e-12))
    one, other = (elbo(m, x_0, generator=torch.Generator(device).manual_seed(0)) for m in (model, same))
    torch.testing.assert_close(one.bound, other.bound, rtol=1e-6, atol=1e-6)


def test_a_wrong_model_has_a_smaller_bound_and_a_better_prior_a_larger_one(device):
    target, sde = mixture(device), VPSDE(beta_max=1.0)  # where much of the data is left at t_max
    x_0 = target.sample(500, torch.Generator(device).manual_seed(0))

    def mean(model, **options):
        return elbo(model, x_0, generator=torch.Generator(device).manual_seed(0), **options).bound.mean()

    exact = ExactScoreModel(target, sde)
    wrong = CallableScoreModel(
        lambda x, t: exact.denoise(x, t) + 0.1, DenoisedParametrization(), sde, (2,), dtype=torch.float64
    )
    assert mean(wrong) < mean(exact) - 1
    assert mean(exact, prior=target) > mean(exact) + 0.1


def test_the_objective_is_the_same_bound_by_one_time_a_sample(device):
    """20,000 draws, within 4 standard errors of their difference."""
    target, sde = gaussian(device), VPSDE()
    x_0 = target.sample(20_000, torch.Generator(device).manual_seed(0))
    model = network_model(target, sde, EDMParametrization(0.7))
    losses = 3 * VariationalObjective()(model, x_0, noise=whole_batch(20_000, device))
    bound = elbo(model, x_0, num_evaluations=4, generator=torch.Generator(device).manual_seed(2)).bound
    difference = losses + bound
    assert difference.mean().abs() < 4 * difference.std() / len(x_0) ** 0.5


@pytest.mark.parametrize("shape", [(1,), (2, 3, 4)])
def test_any_shape_type_and_condition(shape, device):
    target = gaussian(device, shape)
    x_0 = target.sample(6, torch.Generator(device).manual_seed(0))
    model = ExactScoreModel(target, VPSDE())
    double = elbo(model, x_0, generator=torch.Generator(device).manual_seed(0))
    assert {part.shape for part in double} == {(6,)}
    assert {part.dtype for part in double} == {torch.float64}
    single = elbo(model.to(dtype=torch.float32), x_0.float(), generator=torch.Generator(device).manual_seed(0))
    assert {part.dtype for part in single} == {torch.float64}
    # drawn in another type, so other noise: within their errors of one another
    error = (double.standard_error**2 + single.standard_error**2).sqrt()
    assert ((single.bound - double.bound).abs() < 5 * error).all()


def test_the_condition_reaches_the_network_and_training_is_as_it_was(device):
    network = MLP(2, width=8, depth=1, num_classes=3).double().to(device)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator(device).manual_seed(0))
    model = NetworkScoreModel(network, VPSDE(), EDMParametrization(0.5), (2,))
    x_0 = torch.randn(5, 2, dtype=torch.float64, device=device)

    def of(cond, evaluate):
        return evaluate(model, x_0, cond=torch.full((5,), cond, device=device)).bound

    for evaluate in (
        lambda *a, **k: elbo(*a, **k, num_evaluations=4, generator=torch.Generator(device).manual_seed(0)),
        lambda m, x, cond: ddpm_bound(
            m, x.round(), CHAIN, cond, **WHOLE, generator=torch.Generator(device).manual_seed(0)
        ),
    ):
        assert (of(0, evaluate) - of(1, evaluate)).abs().min() > 1e-6
        assert model.training
        assert not of(0, evaluate).requires_grad
        with pytest.raises(UsageError, match="cond"):
            of(7, evaluate)
    with pytest.raises(UsageError, match="cond of length 4"):
        elbo(model, x_0, torch.zeros(4, dtype=torch.long))


def test_the_costs_at_the_ends(device):
    sde = VPSDE(beta_max=5.0)
    first, last = ends(sde, device)
    x_0 = torch.randn(4, 2, 3, dtype=torch.float64, device=device)
    q, p = Normal(last.alpha * x_0, last.sigma), Normal(torch.zeros_like(x_0), last.sigma)
    torch.testing.assert_close(prior_cost(x_0, last), kl_divergence(q, p).flatten(1).sum(1), rtol=1e-9, atol=0)
    wider = Normal(torch.zeros_like(x_0), torch.hypot(1.7 * last.alpha, last.sigma))
    expected = kl_divergence(q, wider).flatten(1).sum(1)
    torch.testing.assert_close(prior_cost(x_0, last, 1.7), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(reconstruction_cost(6, first), 6 * Normal(0.0, first.noise_level).entropy())


# DDPM's chain

CHAIN = torch.tensor([1.0, 0.5, 0.2, 0.05, 0.0], dtype=torch.float64)
WHOLE = {"bin_width": 1.0, "low": -5, "high": 5}


def rounded(target, num, device):
    """Samples on levels 0.25 apart."""
    return (target.sample(num, torch.Generator(device).manual_seed(0)) * 4).round().clamp(-20, 20) / 4


FINE = {"bin_width": 0.25, "low": -5.0, "high": 5.0}


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_its_terms_add_up_and_none_is_negative(variance, device):
    target = mixture(device)
    x_0 = rounded(target, 50, device)
    bound = ddpm_bound(ExactScoreModel(target, VPSDE()), x_0, CHAIN, variance=variance, **FINE)
    assert bound.steps.shape == (50, 3)
    torch.testing.assert_close(bound.bound, -(bound.prior + bound.steps.sum(1) + bound.decoder), rtol=1e-12, atol=0)
    assert min(part.min().item() for part in (bound.prior, bound.steps, bound.decoder)) >= 0


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_on_a_chain_of_betas_it_is_that_of_ho_et_al(variance, device):
    """Their equations 4, 5, 7 and 13, written with betas, against the mean of 4,000 draws, within 4.5 errors."""
    sde, target = DiscreteVPSDE(beta_start=0.02, beta_end=0.3, num_levels=8), gaussian(device)
    x = rounded(target, 1, device)
    betas = sde.variances().to(device)
    abar = torch.cumprod(1 - betas, 0)
    generator = torch.Generator(device).manual_seed(5)
    expected = []
    for i in range(8):
        eps = torch.randn(4000, 3, dtype=torch.float64, device=device, generator=generator)
        x_t = abar[i].sqrt() * x + (1 - abar[i]).sqrt() * eps
        x0_hat = target.denoise(x_t, abar[i].sqrt(), (1 - abar[i]).sqrt())
        if i == 0:
            normal = Normal(x0_hat, ((1 - abar[0]) / abar[0]).sqrt())
            expected.append(-(normal.cdf(x + 0.125) - normal.cdf(x - 0.125)).log().sum(1))
            continue
        on_x0 = abar[i - 1].sqrt() * betas[i] / (1 - abar[i])
        on_xt = (1 - betas[i]).sqrt() * (1 - abar[i - 1]) / (1 - abar[i])
        tilde = (1 - abar[i - 1]) / (1 - abar[i]) * betas[i]
        q = Normal(on_x0 * x + on_xt * x_t, tilde.sqrt())
        p = Normal(on_x0 * x0_hat + on_xt * x_t, (tilde if variance == "posterior" else betas[i]).sqrt())
        expected.append(kl_divergence(q, p).sum(1))
    bound = ddpm_bound(
        ExactScoreModel(target, sde), x.expand(4000, 3), grids.uniform_time(sde, 8), variance=variance, **FINE
    )
    drawn = torch.cat([bound.steps, bound.decoder[:, None]], 1)  # from the noisiest down
    for mine, theirs in zip(drawn.unbind(1), reversed(expected), strict=True):
        error = ((mine.var() + theirs.var()) / 4000) ** 0.5
        assert (mine.mean() - theirs.mean()).abs() < 4.5 * error + 1e-12
    torch.testing.assert_close(bound.prior[0], 0.5 * abar[-1] / (1 - abar[-1]) * x.square().sum(), rtol=1e-9, atol=0)


def test_the_steps_of_a_gaussian_are_the_closed_form(device):
    """(SNR(s) - SNR(t)) E|D - x_0|^2 / 2, and the divergence of the two variances besides: 2,000 copies, 4.5 errors."""
    sde, target = VPSDE(), gaussian(device)
    x_0 = copies(target, 2000, device)
    x_0 = (4 * x_0).round() / 4
    level = sde.level(CHAIN[:-1])
    snr = level.log_snr.exp()
    error = gaussian_error(gaussian(), x_0[0].cpu(), level)[:-1]
    forward = 1 - (level.alpha[:-1] / level.alpha[1:]) ** 2
    back = level.sigma[1:] ** 2 / level.sigma[:-1] ** 2 * forward
    posterior = 0.5 * snr.diff() * error
    ratio = back / forward
    beta = 1.5 * (ratio - 1 - ratio.log()) + ratio * posterior
    for variance, exact in (("posterior", posterior), ("beta", beta)):
        steps = ddpm_bound(ExactScoreModel(target, sde), x_0, CHAIN, variance=variance, **FINE).steps
        assert ((steps.mean(0).cpu() - exact).abs() < 4.5 * steps.std(0).cpu() / 2000**0.5).all()


def test_the_true_variance_has_the_best_bound_and_its_steps_are_the_closed_form(device):
    """2,000 copies: learned by the entry, measured on all, on independent Gaussians; within 4.5 errors.

    The expected step of the best variance is 1/2 sum of its growth, where x_0 has the data's own law.
    """
    sde = VPSDE()
    variances = torch.tensor([1.0, 0.25, 0.04], dtype=torch.float64)
    target = Gaussian(torch.zeros_like(variances), variances.diag()).to(device)
    exact = ExactScoreModel(target, sde)
    x_0 = rounded(target, 20_000, device)
    learned = KnownVariance(exact, CHAIN, variances)
    measured = measure_variance(exact, x_0[:5000], intervals=1)
    level = sde.level(CHAIN[:-1])
    t, s = level[:-1], level[1:]
    growth = best_growth(variances[:, None], s, t)
    mean = torch.log1p(torch.expm1(growth).mean(0))
    means = {}
    for name, model, variance, expected in (
        ("learned", learned, "learned", growth.sum(0) / 2),
        ("measured", exact, measured, 1.5 * mean),
        ("posterior", exact, "posterior", 1.5 * torch.expm1(mean)),
        ("beta", exact, "beta", None),
    ):
        generator = torch.Generator(device).manual_seed(1)
        bound = ddpm_bound(model, x_0, CHAIN, variance=variance, generator=generator, **FINE)
        means[name] = bound.bound.mean().item()
        if expected is not None:
            error = bound.steps.std(0).cpu() / 20_000**0.5
            assert ((bound.steps.mean(0).cpu() - expected).abs() < 4.5 * error + 0.01 * expected).all(), name
    assert means["learned"] > means["measured"] > max(means["posterior"], means["beta"])


def test_more_steps_are_better_down_to_the_continuous_loss(device):
    """Each doubling of the grid lowers the steps of an exact model towards the integral, by about half the rest."""
    sde, target = VPSDE(t_min=1e-3), gaussian()
    x_0 = copies(target, 1, "cpu")[0]
    exact, sums = gaussian_diffusion(target, x_0, sde), []
    for num_steps in (5, 9, 17, 33, 65):
        level = sde.level(grids.uniform_log_snr(sde, num_steps)[:-1])
        sums.append((0.5 * level.log_snr.exp().diff() * gaussian_error(target, x_0, level)[:-1]).sum() - exact)
        x = (4 * x_0.to(device)).round().expand(1000, 3) / 4
        model = ExactScoreModel(gaussian(device), sde)
        steps = ddpm_bound(model, x, grids.uniform_log_snr(sde, num_steps), **FINE).steps.sum(1)
        mean = (0.5 * level.log_snr.exp().diff() * gaussian_error(target, x[0].cpu(), level)[:-1]).sum()
        assert (steps.mean().cpu() - mean).abs() < 4.5 * steps.std().cpu() / 1000**0.5
    for coarse, fine in itertools.pairwise(sums):
        assert 0 < fine < 0.7 * coarse
    assert sums[-1] < 0.65 * sums[-2]


def test_a_part_of_the_steps_stands_for_all(device):
    """10,000 copies, 3 of 15 steps each: the same mean within 4 standard errors; each costs 4 evaluations."""
    target, sde, calls = mixture(device), VPSDE(), []
    exact = ExactScoreModel(target, sde)

    def counted(x, t):
        calls.append(t.unique().numel())
        return exact.denoise(x, t)

    model = CallableScoreModel(counted, DenoisedParametrization(), sde, (2,), device, torch.float64)
    x_0 = rounded(target, 1, device).expand(10_000, 2)
    grid = grids.uniform_log_snr(sde, 16)
    part = ddpm_bound(model, x_0, grid, **FINE, num_terms=3, batch_size=10_000)
    assert len(calls) == 4
    assert calls[:3] == [5, 5, 5]
    assert part.steps.shape == (10_000, 3)
    whole = ddpm_bound(model, x_0, grid, **FINE)
    error = ((part.bound.var() + whole.bound.var()) / 10_000) ** 0.5
    assert (part.bound.mean() - whole.bound.mean()).abs() < 4 * error
    assert part.bound.std() > whole.bound.std()


@pytest.mark.parametrize("std", [1e-3, 0.1, 1.0, 30.0])
def test_the_decoder_is_a_distribution_over_the_levels(std, device):
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64, device=device)
    for mean in (-3.0, -1.0, 0.1234, 0.996, 40.0):
        log_prob = decoder_log_prob(
            levels[:, None], torch.full_like(levels[:, None], mean), torch.full_like(levels, std), 2 / 255, -1, 1
        )
        assert log_prob.isfinite().all() or std == 1e-3
        torch.testing.assert_close(log_prob.exp().sum().item(), 1.0, rtol=1e-12, atol=0)


def test_the_decoder_keeps_its_digits_in_the_tails(device):
    x, std = torch.tensor([[0.0], [0.5]], dtype=torch.float64, device=device), 0.05
    mean = torch.tensor([[2.0], [-2.0]], dtype=torch.float64, device=device)  # 40 and 50 deviations away
    log_prob = decoder_log_prob(x, mean, torch.full((2,), std, dtype=torch.float64, device=device), 0.5, -1.0, 1.0)
    edge = (torch.tensor([[1.75], [2.25]], dtype=torch.float64, device=device)) / std
    torch.testing.assert_close(log_prob, torch.special.log_ndtr(-edge), rtol=1e-12, atol=0)


def test_levels_may_differ_between_entries(device):
    """Each channel with a scaling of its own, as data that were standardised by channel."""
    target = gaussian(device, (2, 3))
    scale = torch.tensor([1.0, 4.0], dtype=torch.float64, device=device)[:, None]
    x_0 = (target.sample(20, torch.Generator(device).manual_seed(0)) * scale).round() / scale
    levels = {"bin_width": 1 / scale, "low": -20 / scale, "high": 20 / scale}
    assert ddpm_bound(ExactScoreModel(target, VPSDE()), x_0, CHAIN, **levels).bound.isfinite().all()
    with pytest.raises(UsageError, match="holds values that are not low="):
        ddpm_bound(ExactScoreModel(target, VPSDE()), x_0, CHAIN, **WHOLE)


def bad(change, x_0=None, grid=CHAIN, **options):
    model = ExactScoreModel(gaussian(), VPSDE())
    x_0 = torch.zeros(4, 3, dtype=torch.float64) if x_0 is None else x_0
    return change(model, x_0, grid, options)


def evaluate_elbo(model, x_0, grid, options):
    return elbo(model, x_0, **options)


def evaluate_ddpm(model, x_0, grid, options):
    return ddpm_bound(model, x_0, grid, **{**WHOLE, **options})


MISTAKES = {
    "shape": (evaluate_elbo, {"x_0": torch.zeros(4, 2)}, r"x_0 of shape \(4, 2\)"),
    "whole numbers": (evaluate_elbo, {"x_0": torch.zeros(4, 3, dtype=torch.uint8)}, "torch.uint8: need floats"),
    "evaluations": (evaluate_elbo, {"num_evaluations": 2}, "num_evaluations=2"),
    "prior": (evaluate_elbo, {"prior": mixture()}, r"prior of shape \(2,\)"),
    "condition": (evaluate_elbo, {"cond": torch.zeros(4, dtype=torch.long)}, "cond: an exact model"),
    "noise": (evaluate_ddpm, {"x_0": torch.full((4, 3), 0.3)}, "x_0: holds values that are not low=-5"),
    "outside": (evaluate_ddpm, {"x_0": torch.full((4, 3), 6.0)}, "high=5"),
    "bins": (evaluate_ddpm, {"bin_width": -1.0}, r"bin_width=-1\.0"),
    "variance": (evaluate_ddpm, {"variance": "both"}, "variance='both'"),
    "no learned variance": (evaluate_ddpm, {"variance": "learned"}, "variance='learned': this model has learned none"),
    "end of the grid": (evaluate_ddpm, {"grid": CHAIN[:-1]}, r"grid=\[1\.0, 0\.5"),
    "rising grid": (evaluate_ddpm, {"grid": CHAIN.flip(0)}, "that fall from"),
    "late grid": (evaluate_ddpm, {"grid": 2 * CHAIN}, "t_max=1"),
    "early grid": (evaluate_ddpm, {"grid": 1e-6 * CHAIN}, "t_min=1e-05"),
    "terms": (evaluate_ddpm, {"num_terms": 4}, "num_terms=4: need 1 to 3"),
    "no terms": (evaluate_ddpm, {"num_terms": 0}, "num_terms=0"),
}


@pytest.mark.parametrize(("change", "arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named(change, arguments, message):
    with pytest.raises(UsageError, match=message):
        bad(change, **arguments)


def test_a_chain_of_one_step_is_its_decoder():
    bound = bad(evaluate_ddpm, grid=torch.tensor([0.5, 0.0], dtype=torch.float64))
    assert bound.steps.shape == (4, 0)
    torch.testing.assert_close(bound.bound, -(bound.prior + bound.decoder), rtol=0, atol=0)
