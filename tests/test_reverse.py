"""The variance of a reverse step: between the two fixed ones, and the best one of a Gaussian in closed form."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from scoresde import VPSDE, MeasuredVariance, UsageError
from scoresde.reverse import decoder_range, step_cost, variance_range
from scoresde.sde import bridge, transition
from tests.reverse import STEPS, best_growth, levels, posterior_variance


def test_the_fixed_variances_are_the_ends_of_the_range(sde):
    t, s = levels(sde, [0.8 * sde.t_max, 0.5 * sde.t_max], [0.6 * sde.t_max, 0.1 * sde.t_max])
    ratio = (transition(s, t)[1] / bridge(s, t)[2]) ** 2
    torch.testing.assert_close(variance_range(s, t), ratio.log(), rtol=1e-9, atol=1e-12)


def test_the_best_v_of_a_gaussian_is_the_closed_form():
    """v of the true reverse variance on VP: the two fixed variances are right for unit and for vanishing variance."""
    t, s = levels(VPSDE(), *zip(*STEPS, strict=True))
    expected = {1.0: (1, 1, 1), 0.25: (0.270, 0.539, 0.971), 0.01: (0.011, 0.034, 0.560), 1e-9: (0, 0, 0)}
    for variance, v in expected.items():
        got = best_growth(variance, s, t) / variance_range(s, t)
        torch.testing.assert_close(got, torch.tensor(v, dtype=torch.float64), rtol=0, atol=6e-4)


def test_it_is_the_variance_of_the_reversed_gaussian(sde):
    """p(x_s | x_t) of N(0, variance): var_s - cov^2 / var_t, with the covariance of the forward step."""
    t, s = levels(sde, [0.9 * sde.t_max, 0.3 * sde.t_max], [0.7 * sde.t_max, 0.2 * sde.t_max])
    for variance in (0.04, 2.5):
        var_t, var_s = (level.alpha**2 * variance + level.sigma**2 for level in (t, s))
        covariance = transition(s, t)[0] * var_s
        sigma = bridge(s, t)[2] ** 2 * best_growth(variance, s, t).exp()
        torch.testing.assert_close(sigma, var_s - covariance**2 / var_t, rtol=1e-7, atol=0)


def test_the_cost_is_the_divergence_of_two_gaussians(sde):
    t, s = (level[0] for level in levels(sde, [0.7 * sde.t_max], [0.4 * sde.t_max]))
    on_x0, _, std = bridge(s, t)
    error = torch.linspace(-1, 2, 7, dtype=torch.float64)
    growth = torch.linspace(-0.3, 1.1, 7, dtype=torch.float64)
    q = Normal(torch.zeros(7, dtype=torch.float64), std)
    p = Normal(on_x0 * error, std * torch.exp(0.5 * growth))
    torch.testing.assert_close(step_cost(error, growth, s, t), kl_divergence(q, p), rtol=1e-8, atol=1e-12)


def test_the_decoder_lies_between_the_noise_and_the_bridge_that_arrived():
    t, s = levels(VPSDE(), [0.2], [0.05])
    narrow = bridge(s, t)[2] / s.alpha  # betatilde of the step that arrived, in units of x_0
    torch.testing.assert_close(s.noise_level * torch.exp(-0.5 * decoder_range(s, t)), narrow, rtol=1e-9, atol=0)


def measured(variance, sde, num_levels=200):
    """What a perfect measurement of N(0, variance) gives."""
    log_snr = torch.linspace(*sde.span().log_snr.tolist(), num_levels, dtype=torch.float64)
    level = sde.level(sde.time(log_snr).clamp(sde.t_min, sde.t_max))
    share = posterior_variance(variance, level) / level.noise_level**2
    return MeasuredVariance(tuple(log_snr.tolist()), tuple(share.tolist()))


def test_the_measured_variance_is_the_best_one_at_any_step(sde):
    times = torch.linspace(0.95, 0.05, 14, dtype=torch.float64) * sde.t_max
    level = sde.level(times)
    t, s = level[:-1], level[1:]
    for variance in (0.03, 0.4):
        torch.testing.assert_close(measured(variance, sde).growth(s, t), best_growth(variance, s, t), rtol=0, atol=2e-3)


def test_the_measured_variance_has_the_ends_of_the_paper(sde):
    """betatilde for a perfect denoiser, and at most what data of a very large variance have."""
    t, s = levels(sde, [0.5 * sde.t_max, 0.1 * sde.t_max], [0.4 * sde.t_max, 0.05 * sde.t_max])
    widest = variance_range(s, t) + 2 * torch.log(s.alpha / t.alpha)
    torch.testing.assert_close(widest, best_growth(1e12, s, t), rtol=1e-6, atol=0)
    for share, end in ((0.0, torch.zeros(2, dtype=torch.float64)), (1.0, widest), (40.0, widest)):
        got = MeasuredVariance((-10.0, 10.0), (share, share)).growth(s, t)
        torch.testing.assert_close(got, end, rtol=1e-9, atol=0)


def test_beyond_the_levels_and_between_them():
    t, s = levels(VPSDE(), [0.9, 1e-4], [0.5, 1e-5])
    known = MeasuredVariance((-1.0, 1.0), (0.1, 0.3))
    torch.testing.assert_close(known.at(t), torch.tensor([0.1, 0.3], dtype=torch.float64))
    middle = VPSDE().level(VPSDE().time(torch.tensor([0.5], dtype=torch.float64)))
    torch.testing.assert_close(known.at(middle), torch.tensor([0.25], dtype=torch.float64))
    assert s.t.min() > 0


@pytest.mark.parametrize(
    ("log_snr", "share", "message"),
    [
        ((0.0, 1.0), (0.5,), "have 2 and 1 numbers"),
        ((0.0,), (0.5,), "at least 2"),
        ((1.0, 0.0), (0.5, 0.5), "log_snr rising"),
        ((0.0, 1.0), (0.5, -0.1), "negative"),
        ((0.0, 1.0), (0.5, math.nan), "not finite"),
    ],
)
def test_a_measurement_that_is_none_is_named(log_snr, share, message):
    with pytest.raises(UsageError, match=message):
        MeasuredVariance(log_snr, share)


def test_by_interval_each_entry_has_the_growth_of_its_own():
    known = MeasuredVariance((-1.0, 1.0), ((0.1, 0.5, 0.9), (0.3, 0.5, 0.7)), (-0.5, 0.5))
    t, s = levels(VPSDE(), [0.5, 0.4], [0.3, 0.2])
    growth = known.growth(s, t)
    for k, share in enumerate(known.at(t).T.tolist()):
        alone = MeasuredVariance((-1.0, 1.0), tuple(row[k] for row in known.share))
        torch.testing.assert_close(alone.at(t).tolist(), share)
        torch.testing.assert_close(alone.growth(s, t), growth[:, k])
    x0_hat = torch.tensor([[-2.0, 0.0, 3.0], [0.6, -0.6, 0.4]])
    expected = torch.stack([growth[0, [0, 1, 2]], growth[1, [2, 0, 1]]])
    assert torch.equal(known.of_entries(growth, x0_hat), expected)
    assert torch.equal(known.of_entries(growth[0], x0_hat)[1], growth[0, [2, 0, 1]])


@pytest.mark.parametrize(
    ("share", "edges"),
    [
        (((0.1, 0.2), (0.1, 0.2)), ()),
        ((0.1, 0.2), (0.0,)),
        (((0.1, 0.2), (0.1, 0.2)), (0.0, 1.0)),
        (((0.1, 0.2, 0.3), (0.1, 0.2, 0.3)), (1.0, 0.0)),
    ],
)
def test_edges_that_do_not_fit_the_shares_are_named(share, edges):
    with pytest.raises(UsageError, match="edges="):
        MeasuredVariance((0.0, 1.0), share, edges)
