"""What holds of every SDE: its four functions agree with one another, and with a path given by hand."""

import math

import pytest
import torch

from scoresde import (
    EDMSDE,
    SDE,
    VPSDE,
    DiscreteVPSDE,
    GaussianPathSDE,
    RectifiedFlowSDE,
    UsageError,
)
from scoresde.sde import Level, bridge, transition
from tests.analytic import SDES, slope
from tests.schedules import LEARNED

EPS = torch.finfo(torch.float64).eps


@pytest.fixture(params=[*SDES, *LEARNED])
def sde(request, device):
    """Each fixed SDE in turn, one of a user's own among them, and learned ones."""
    return SDES[request.param] if request.param in SDES else LEARNED[request.param](device)


def times(sde, device, num=101):
    """Times over the whole range, dense at its start, and away from the kinks i/N of a DDPM chain."""
    t = torch.logspace(math.log10(sde.t_min), math.log10(sde.t_max), num, dtype=torch.float64, device=device)
    t = torch.cat([t, torch.linspace(sde.t_min, sde.t_max, num, dtype=torch.float64, device=device)])
    t = t.clamp(sde.t_min, sde.t_max)
    return (((t * 1000).floor() + 0.37) / 1000).clamp(max=0.99937) if isinstance(sde, DiscreteVPSDE) else t


def test_moments_satisfy_their_differential_equations(sde, device):
    t = times(sde, device)
    f, g = sde.drift_coef(t), sde.diffusion(t)
    torch.testing.assert_close(slope(sde.alpha, t), f * sde.alpha(t), rtol=1e-10, atol=0)
    # (sigma^2)' is the difference of two terms: relative to the larger of them
    variance_slope = slope(lambda t: sde.sigma(t) ** 2, t)
    residual = variance_slope - (2 * f * sde.sigma(t) ** 2 + g**2)
    assert (residual.abs() / g**2).max() < 1e-10


def test_time_inverts_log_snr(sde, device):
    t = times(sde, device)
    # log_snr is a difference of logarithms, so it carries an absolute error of some 10 eps, and dt = d log_snr / slope
    conditioning = 1 / slope(sde.log_snr, t).abs()
    assert ((sde.time(sde.log_snr(t)) - t).abs() <= 200 * EPS * (conditioning + t)).all()


def test_log_snr_falls_strictly(sde, device):
    t = torch.linspace(sde.t_min, sde.t_max, 2001, dtype=torch.float64, device=device)
    assert (sde.log_snr(t).diff() < 0).all()


def test_everything_is_finite_on_the_whole_range(sde, device):
    for dtype in (torch.float32, torch.float64):
        t = torch.linspace(sde.t_min, sde.t_max, 501, dtype=dtype, device=device)
        for function in (sde.alpha, sde.sigma, sde.drift_coef, sde.diffusion, sde.log_snr, sde.noise_level):
            assert function(t).dtype == dtype, function
            assert function(t).isfinite().all(), (function, dtype)
        assert (sde.sigma(t) > 0).all(), dtype
        assert (sde.alpha(t) > 0).all(), dtype


def test_float32_keeps_its_digits(sde, device):
    single = times(sde, device).float()
    double = single.double()  # the same times exactly, so that only the arithmetic differs
    for name in ("alpha", "sigma", "drift_coef", "diffusion", "noise_level"):
        function = getattr(sde, name)
        torch.testing.assert_close(function(single).double(), function(double), rtol=1e-5, atol=0, msg=name)
    # a log-SNR is of the size of 10 and may pass through 0: absolutely
    torch.testing.assert_close(sde.log_snr(single).double(), sde.log_snr(double), rtol=0, atol=1e-5)


def test_float32_time_of_a_log_snr(sde, device):
    t = times(sde, device)
    log_snr = sde.log_snr(t).float()
    # a log-SNR has an absolute error of eps times its size, and dt = d log_snr / slope
    rounding = torch.finfo(torch.float32).eps * (log_snr.abs() + 1) / slope(sde.log_snr, t).abs()
    assert ((sde.time(log_snr).double() - sde.time(log_snr.double())).abs() <= 1e-5 * t + rounding).all()


def test_functions_work_element_by_element(sde, device):
    middle = 0.5 * (sde.t_min + sde.t_max)
    reference = torch.tensor([middle] * 3, dtype=torch.float64, device=device)
    for shape in ((), (1,), (5,), (5, 1, 1)):
        t = torch.full(shape, middle, dtype=torch.float64, device=device)
        for function in (sde.alpha, sde.sigma, sde.drift_coef, sde.diffusion, sde.log_snr, lambda t: sde.time(-t)):
            assert function(t).shape == shape, (function, shape)
            torch.testing.assert_close(function(t), function(reference)[0].expand(shape), rtol=4 * EPS, atol=0)


def test_without_gradients_the_same_numbers(sde, device):
    t = times(sde, device, 5)
    expected = [sde.drift_coef(t), sde.diffusion(t), sde.time(sde.log_snr(t))]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            actual = [sde.drift_coef(t), sde.diffusion(t), sde.time(sde.log_snr(t))]
        for a, b in zip(actual, expected, strict=True):
            assert torch.equal(a, b), mode


def test_a_path_by_hand_is_vp_when_given_its_alpha_and_sigma(device):
    vp = VPSDE()

    def b(t):
        return 0.1 * t + 9.95 * t**2

    own = GaussianPathSDE(
        alpha=lambda t: torch.exp(-b(t) / 2), sigma=lambda t: torch.sqrt(-torch.expm1(-b(t))), t_min=1e-5, t_max=1.0
    )
    t = times(vp, device)
    torch.testing.assert_close(own.drift_coef(t), vp.drift_coef(t), rtol=1e-12, atol=0)
    # g^2 is a difference in which sigma sigma' and f sigma^2 may share their leading digits, but not vanish
    torch.testing.assert_close(own.diffusion(t), vp.diffusion(t), rtol=1e-11, atol=0)
    log_snr = vp.log_snr(t)
    torch.testing.assert_close(own.time(log_snr), vp.time(log_snr), rtol=1e-10, atol=0)


def test_a_path_by_hand_gives_the_straight_paths_coefficients(device):
    own = GaussianPathSDE(alpha=lambda t: 1 - t, sigma=lambda t: t, t_min=1e-3, t_max=0.99)
    flow = RectifiedFlowSDE()
    t = torch.linspace(1e-3, 0.99, 50, dtype=torch.float64, device=device)
    torch.testing.assert_close(own.drift_coef(t), flow.drift_coef(t), rtol=1e-13, atol=0)
    torch.testing.assert_close(own.diffusion(t), flow.diffusion(t), rtol=1e-13, atol=0)


def test_diffuse_and_prior(sde, device):
    for shape in ((3,), (2, 4, 5)):
        generator = torch.Generator(device).manual_seed(0)
        x_0, eps = torch.randn(2, 6, *shape, dtype=torch.float64, device=device, generator=generator)
        t = torch.linspace(sde.t_min, sde.t_max, 6, dtype=torch.float64, device=device)
        x_t = sde.diffuse(x_0, t, eps)
        for i in range(6):  # one sample at a time, no broadcasting
            alone = sde.alpha(t[i]) * x_0[i] + sde.sigma(t[i]) * eps[i]
            torch.testing.assert_close(x_t[i], alone, rtol=1e-14, atol=1e-14)
        normal = torch.distributions.Normal(torch.zeros_like(t[-1]), sde.sigma(t[-1]))
        expected = normal.log_prob(x_t).flatten(1).sum(1)
        torch.testing.assert_close(sde.prior_log_prob(x_t), expected, rtol=1e-12, atol=1e-12)


def test_steps_of_the_sde_have_the_marginals(sde, device):
    """Euler-Maruyama of dx = f x dt + g dw on one point: mean and variance follow alpha and sigma^2, O(step)."""
    errors = []
    for num_steps in (37 * 54, 37 * 108):  # the knots of learned schedules are among the times
        half = 0.5 * (sde.t_min + sde.t_max)  # away from the end, where some are nearly singular
        t = torch.linspace(sde.t_min, half, num_steps + 1, dtype=torch.float64, device=device)
        h, f, g = t.diff(), sde.drift_coef(t[:-1]), sde.diffusion(t[:-1])
        growth = 1 + f * h
        later = torch.cat([growth.flip(0).cumprod(0).flip(0)[1:], torch.ones(1, dtype=t.dtype, device=device)])
        variance = (growth.prod() * sde.sigma(t[0])) ** 2 + (later**2 * g**2 * h).sum()
        mean = growth.prod() * sde.alpha(t[0])
        errors.append([(mean / sde.alpha(t[-1]) - 1).abs().item(), (variance / sde.sigma(t[-1]) ** 2 - 1).abs().item()])
    for coarse, fine in zip(*errors, strict=True):
        assert fine < 0.02
        assert fine <= 0.6 * coarse + 1e-12  # first order: halving the step halves the error


def test_sde_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        SDE()


def three_times(sde):
    """Levels r < s < t well inside the range, float64."""
    fractions = torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64)
    return [sde.level(sde.t_min + f * (sde.t_max - sde.t_min)) for f in fractions]


def test_transitions_compose_to_the_marginal_and_to_each_other(sde):
    r, s, t = three_times(sde)
    ratio, std = transition(s, t)
    torch.testing.assert_close(ratio * s.alpha, t.alpha, rtol=1e-12, atol=0)
    torch.testing.assert_close((ratio * s.sigma) ** 2 + std**2, t.sigma**2, rtol=1e-12, atol=0)
    first, first_std = transition(r, s)
    whole, whole_std = transition(r, t)
    torch.testing.assert_close(ratio * first, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close((ratio * first_std) ** 2 + std**2, whole_std**2, rtol=1e-12, atol=0)


def test_the_bridge_is_bayes_rule_on_transition_and_marginal(sde):
    _, s, t = three_times(sde)
    on_x0, on_xt, std = bridge(s, t)
    ratio, added = transition(s, t)
    precision = 1 / s.sigma**2 + (ratio / added) ** 2  # of N(alpha_s x_0, sigma_s^2) times N(x_t; ratio x_s, added^2)
    torch.testing.assert_close(std**2, 1 / precision, rtol=1e-10, atol=0)
    torch.testing.assert_close(on_xt, ratio / added**2 / precision, rtol=1e-10, atol=0)
    torch.testing.assert_close(on_x0, s.alpha / s.sigma**2 / precision, rtol=1e-10, atol=0)


def test_the_span_is_the_levels_of_both_ends(sde):
    span = sde.span()
    assert (span.t.dtype, span.t.device.type) == (torch.float64, "cpu")
    assert span.t.tolist() == [sde.t_max, sde.t_min]
    assert torch.equal(span.alpha, sde.alpha(span.t))
    assert torch.equal(span.sigma, sde.sigma(span.t))
    assert sde.prior_std() == span.sigma[0].item()


def test_a_noise_level_has_its_time_and_one_out_of_reach_the_nearest_end(sde, device):
    lowest, highest = (sde.span().noise_level[end].item() for end in (1, 0))
    inside = torch.logspace(math.log10(lowest), math.log10(highest), 9, dtype=torch.float64, device=device)[1:-1]
    torch.testing.assert_close(sde.at_noise_level(inside).noise_level, inside, rtol=1e-9, atol=0)
    outside = sde.at_noise_level(torch.tensor([0.1 * lowest, 10 * highest], dtype=torch.float64, device=device))
    assert outside.t.tolist() == [sde.t_min, sde.t_max]


def test_a_part_is_the_same_path_over_other_times(sde, device):
    before = (sde.t_min, sde.t_max, sde.t_end)
    low, high = (sde.t_min + share * (sde.t_max - sde.t_min) for share in (0.3, 0.6))
    part, t = sde.restricted(low, high), torch.linspace(low, high, 7, dtype=torch.float64, device=device)
    assert (part.t_min, part.t_max) == (low, high)
    assert low <= part.t_end <= high
    for function in ("alpha", "sigma", "drift_coef", "diffusion", "log_snr"):
        assert torch.equal(getattr(part, function)(t), getattr(sde, function)(t)), function
    assert torch.equal(part.time(sde.log_snr(t)), sde.time(sde.log_snr(t)))
    assert (sde.t_min, sde.t_max, sde.t_end) == before


@pytest.mark.parametrize(("t_min", "t_max"), [(0.5, 0.5), (0.6, 0.4), (0.0, 0.5), (-0.1, 0.5), (0.1, math.inf)])
def test_a_part_of_no_times_is_refused(t_min, t_max):
    with pytest.raises(UsageError, match=f"t_min={t_min}, .*t_max={t_max} of VPSDE"):
        VPSDE().restricted(t_min, t_max)


def test_a_part_keeps_the_sampling_end_inside():
    assert VPSDE().restricted(0.01, 0.5).t_end == 0.01
    assert VPSDE().restricted(1e-4, 0.5).t_end == VPSDE().t_end
    assert VPSDE().restricted(1e-5, 5e-4).t_end == 5e-4
    assert EDMSDE(t_min=0.01).t_end == 0.01


# levels


def vp_level(device):
    return VPSDE().level(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, device=device))


def test_a_level_is_indexed_as_its_parts_are(device):
    level = vp_level(device)
    assert len(level) == 3
    indices = (1, -1, slice(1, 3), slice(None, None, 2), torch.tensor([2, 0], device=device))
    for index in indices:
        some = level[index]
        assert isinstance(some, Level)
        for part in ("t", "alpha", "sigma"):
            assert torch.equal(getattr(some, part), getattr(level, part)[index]), (part, index)
    column = level.map(lambda part: part[:, None])
    assert torch.equal(column[:, 0].alpha, level.alpha)


def test_a_level_is_shaped_and_typed(device):
    level = vp_level(device)
    x = torch.zeros(3, 2, 4, 4, device=device)
    assert level.match_rank(x).sigma.shape == (3, 1, 1, 1)
    assert level[0].match_rank(x).sigma.shape == ()
    single = level.to(x.device, x.dtype)
    assert (single.alpha.dtype, single.t.device) == (torch.float32, x.device)
    doubled = level.map(lambda part: 2 * part)
    assert torch.equal(doubled.t, 2 * level.t)
    assert torch.equal(doubled.sigma, 2 * level.sigma)
    torch.testing.assert_close(level.log_snr, -2 * level.noise_level.log())
    torch.testing.assert_close(level.noise_level, level.sigma / level.alpha)


def test_levels_are_joined_and_end_in_clean_data():
    level = vp_level("cpu")
    whole = Level.join(torch.cat, [level[1:], level[:1], Level.clean()])
    assert whole.t.tolist() == [0.5, 0.9, 0.1, 0.0]
    assert torch.equal(whole.sigma[:3], level.sigma[[1, 2, 0]])
    assert (whole.alpha[3], whole.sigma[3]) == (1, 0)
    assert whole.alpha.dtype == torch.float64
    pair = Level.join(torch.stack, [level, level])
    assert pair.alpha.shape == (2, 3)
    assert Level.clean(torch.float32).alpha.dtype == torch.float32
