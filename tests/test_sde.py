"""SDEs: the four functions of each agree with one another, with the literature and with a path given by hand."""

import math

import pytest
import torch
from analytic import slope

from scoresde import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    DiscreteVPSDE,
    GaussianPathSDE,
    RectifiedFlowSDE,
    SubVPSDE,
    UsageError,
)
from scoresde.sde import Level, bridge, transition

EPS = torch.finfo(torch.float64).eps


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_finite_on_the_whole_range(sde, dtype, device):
    t = torch.linspace(sde.t_min, sde.t_max, 501, dtype=dtype, device=device)
    for function in (sde.alpha, sde.sigma, sde.drift_coef, sde.diffusion, sde.log_snr, sde.noise_level):
        assert function(t).dtype == dtype
        assert function(t).isfinite().all()
    assert (sde.sigma(t) > 0).all()
    assert (sde.alpha(t) > 0).all()


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


@pytest.mark.parametrize("shape", [(), (1,), (5,), (5, 1, 1)])
def test_functions_work_element_by_element(sde, shape, device):
    t = torch.full(shape, 0.5 * (sde.t_min + sde.t_max), dtype=torch.float64, device=device)
    reference = torch.tensor([0.5 * (sde.t_min + sde.t_max)] * 3, dtype=torch.float64, device=device)
    for function in (sde.alpha, sde.sigma, sde.drift_coef, sde.diffusion, sde.log_snr, lambda t: sde.time(-t)):
        assert function(t).shape == shape
        torch.testing.assert_close(function(t), function(reference)[0].expand(shape), rtol=4 * EPS, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_same_numbers(sde, mode, device):
    t = times(sde, device, 5)
    expected = [sde.drift_coef(t), sde.diffusion(t), sde.time(sde.log_snr(t))]
    with mode():
        actual = [sde.drift_coef(t), sde.diffusion(t), sde.time(sde.log_snr(t))]
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


def test_first_use_in_inference_mode_leaves_gradients_intact(device):
    sde = DiscreteVPSDE()  # fresh: its table is made at the first call
    with torch.inference_mode():
        sde.alpha(torch.tensor([0.3], device=device))
    t = torch.tensor([0.30042], device=device, requires_grad=True)
    sde.alpha(t).sum().backward()
    torch.testing.assert_close(t.grad, (sde.drift_coef(t) * sde.alpha(t)).detach())


def test_vp_at_the_end():
    # b(1) = (0.1 + 20)/2 = 10.05 (Song et al. 2021, appendix C)
    assert VPSDE().alpha(torch.tensor(1.0)).item() == pytest.approx(0.006572, abs=5e-7)
    assert VPSDE().prior_std() == pytest.approx(math.sqrt(1 - math.exp(-10.05)), rel=1e-15)


def test_subvp_is_the_square_of_vp():
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(SubVPSDE().sigma(t), VPSDE().sigma(t) ** 2, rtol=1e-14, atol=0)
    torch.testing.assert_close(SubVPSDE().alpha(t), VPSDE().alpha(t), rtol=0, atol=0)
    # Song et al. 2021, equation 31: g^2 = beta (1 - e^{-2b})
    b = -2 * torch.log(VPSDE().alpha(t))
    expected = VPSDE().diffusion(t) ** 2 * (1 - torch.exp(-2 * b))
    torch.testing.assert_close(SubVPSDE().diffusion(t) ** 2, expected, rtol=1e-12, atol=0)


def test_ve_is_a_geometric_ladder():
    ladder = VESDE().sigma(torch.linspace(0, 1, 1000, dtype=torch.float64))
    torch.testing.assert_close(ladder[[0, -1]], torch.tensor([0.01, 50.0], dtype=torch.float64), rtol=1e-13, atol=0)
    ratio = ladder[1:] / ladder[:-1]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1.008562), rtol=0, atol=5e-7)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 5000 ** (1 / 999)), rtol=1e-13, atol=0)


def test_cosine_is_that_of_nichol_and_dhariwal():
    t = torch.linspace(1e-4, 0.995, 40, dtype=torch.float64)
    angle = (t + 0.008) / 1.008 * math.pi / 2  # their equation 17
    alpha_bar = torch.cos(angle) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(CosineSDE().alpha(t) ** 2, alpha_bar, rtol=1e-12, atol=0)
    torch.testing.assert_close(CosineSDE().sigma(t) ** 2, 1 - alpha_bar, rtol=0, atol=1e-15)


def test_ddpm_passes_through_the_chain_of_ho_et_al(device):
    sde = DiscreteVPSDE()
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64, device=device)
    alpha_bar = torch.cumprod(1 - betas, 0)
    t = torch.arange(1, 1001, dtype=torch.float64, device=device) / 1000
    # 1000 products against 1000 sums of logarithms: at most 1000 roundings each
    torch.testing.assert_close(sde.alpha(t) ** 2, alpha_bar, rtol=2000 * EPS, atol=0)
    torch.testing.assert_close(sde.sigma(t) ** 2, 1 - alpha_bar, rtol=1e-11, atol=0)
    assert alpha_bar[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)  # what is left of the data: known of the chain
    log_snr = torch.log(alpha_bar / (1 - alpha_bar))
    torch.testing.assert_close(sde.time(log_snr), t, rtol=1e-10, atol=0)


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


@pytest.mark.parametrize("shape", [(3,), (2, 4, 5)])
def test_diffuse_and_prior(sde, shape, device):
    generator = torch.Generator(device).manual_seed(0)
    x_0, eps = torch.randn(2, 6, *shape, dtype=torch.float64, device=device, generator=generator)
    t = torch.linspace(sde.t_min, sde.t_max, 6, dtype=torch.float64, device=device)
    x_t = sde.diffuse(x_0, t, eps)
    for i in range(6):  # one sample at a time, no broadcasting
        torch.testing.assert_close(x_t[i], sde.alpha(t[i]) * x_0[i] + sde.sigma(t[i]) * eps[i], rtol=1e-14, atol=1e-14)
    expected = torch.distributions.Normal(torch.zeros_like(t[-1]), sde.sigma(t[-1])).log_prob(x_t).flatten(1).sum(1)
    torch.testing.assert_close(sde.prior_log_prob(x_t), expected, rtol=1e-12, atol=1e-12)


def test_steps_of_the_sde_have_the_marginals(sde, device):
    """Euler-Maruyama of dx = f x dt + g dw on one point: mean and variance follow alpha and sigma^2, O(step)."""
    errors = []
    for num_steps in (2000, 4000):
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


def test_level_is_shaped_typed_and_indexed(device):
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, device=device)
    level = VPSDE().level(t)
    x = torch.zeros(3, 2, 4, 4, device=device)
    assert level.match_rank(x).sigma.shape == (3, 1, 1, 1)
    assert level.at(0).match_rank(x).sigma.shape == ()
    assert level.like(x).alpha.dtype == torch.float32
    assert torch.equal(level.at(slice(1, 3)).alpha, level.alpha[1:])
    torch.testing.assert_close(level.log_snr, -2 * level.noise_level.log())
    assert isinstance(level, Level)


MISTAKES = {
    "beta order": (lambda: VPSDE(beta_min=3.0, beta_max=2.0), ["beta_min=3.0", "beta_max=2.0"]),
    "beta sign": (lambda: SubVPSDE(beta_min=-1.0), ["beta_min=-1.0"]),
    "sigma order": (lambda: VESDE(sigma_min=2.0, sigma_max=1.0), ["sigma_min=2.0", "sigma_max=1.0"]),
    "sigma zero": (lambda: VESDE(sigma_min=0.0), ["sigma_min=0.0"]),
    "s": (lambda: CosineSDE(s=0.0), ["s=0.0"]),
    "t_min": (lambda: VPSDE(t_min=0.0), ["t_min=0.0"]),
    "t order": (lambda: EDMSDE(t_min=2.0, t_max=1.0), ["t_min=2.0", "t_max=1.0"]),
    "nan": (lambda: EDMSDE(t_min=math.nan), ["t_min=nan"]),
    "flow singular": (lambda: RectifiedFlowSDE(t_max=1.0), ["t_max=1.0"]),
    "cosine singular": (lambda: CosineSDE(t_max=1.0), ["t_max=1.0"]),
    "beta_end": (lambda: DiscreteVPSDE(beta_end=1.0), ["beta_end=1.0"]),
    "num_levels": (lambda: DiscreteVPSDE(num_levels=1), ["num_levels=1"]),
    "own not falling": (lambda: GaussianPathSDE(lambda t: 1 + 0 * t, lambda t: 1 - t, 0.1, 0.9), ["alpha, sigma"]),
    "own not finite": (lambda: GaussianPathSDE(lambda t: 1 - t, lambda t: t, 0.1, 1.0), ["alpha, sigma", "1.0"]),
}


@pytest.mark.parametrize(("make", "names"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named_with_its_value(make, names):
    with pytest.raises(UsageError) as error:
        make()
    assert all(name in str(error.value) for name in names)


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


def test_prior_samples_have_the_priors_deviation(sde):
    x = sde.prior_sample((20_000, 1), torch.Generator().manual_seed(0))
    assert x.dtype == torch.float32
    assert abs(x.std().item() / sde.prior_std() - 1) < 5 / 40_000**0.5  # five deviations


def test_a_cut_range_keeps_the_sampling_end_inside():
    assert VPSDE().restricted(0.01, 0.5).t_end == 0.01
    assert VPSDE().restricted(1e-4, 0.5).t_end == VPSDE().t_end
    assert EDMSDE(t_min=0.01).t_end == 0.01
