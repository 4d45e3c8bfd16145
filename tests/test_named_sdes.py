"""The SDEs of the literature have the constants of their papers, and refuse parameters that make no sense."""

import math

import pytest
import torch

from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineSDE,
    DiscreteVPSDE,
    GaussianPathSDE,
    RectifiedFlowSDE,
    SubVPSDE,
    UsageError,
)

EPS = torch.finfo(torch.float64).eps


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


def test_edm_s_time_is_its_noise_level():
    t = torch.tensor([0.002, 1.0, 80.0], dtype=torch.float64)
    assert torch.equal(EDMSDE().sigma(t), t)
    assert torch.equal(EDMSDE().alpha(t), torch.ones_like(t))
    torch.testing.assert_close(EDMSDE().diffusion(t) ** 2, 2 * t, rtol=1e-15, atol=0)


def test_the_rectified_flow_is_straight():
    t = torch.tensor([0.01, 0.3, 0.9], dtype=torch.float64)
    x_0, eps = torch.tensor([[1.0], [-2.0], [3.0]]).double(), torch.tensor([[0.5], [0.1], [-1.0]]).double()
    torch.testing.assert_close(RectifiedFlowSDE().diffuse(x_0, t, eps), torch.lerp(x_0, eps, t[:, None]))


# DDPM's chain


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


def test_first_use_in_inference_mode_leaves_gradients_intact(device):
    sde = DiscreteVPSDE()  # fresh: its table is made at the first call
    with torch.inference_mode():
        sde.alpha(torch.tensor([0.3], device=device))
    t = torch.tensor([0.30042], device=device, requires_grad=True)
    sde.alpha(t).sum().backward()
    torch.testing.assert_close(t.grad, (sde.drift_coef(t) * sde.alpha(t)).detach())


def latent_betas(num_levels=1000):
    """The betas of Rombach et al. 2022: their square roots lie on a straight line."""
    return torch.linspace(0.00085**0.5, 0.012**0.5, num_levels, dtype=torch.float64) ** 2


def test_a_chain_of_given_betas_is_the_linear_one_for_the_same_betas(device):
    linear = DiscreteVPSDE(1e-3, 0.05, 100)
    for betas in (linear.variances(), linear.variances().tolist(), linear.variances().numpy()):
        given = DiscreteVPSDE(betas=betas)
        assert (given.beta_start, given.beta_end, given.num_levels) == (1e-3, 0.05, 100)
        for one in (given, linear):
            assert (one.t_min, one.t_max, one.t_end) == (0.01, 1.0, 0.01)
        t = torch.linspace(0.01, 1, 333, dtype=torch.float64, device=device)
        for function in ("alpha", "sigma", "drift_coef", "diffusion", "log_snr"):
            assert torch.equal(getattr(given, function)(t), getattr(linear, function)(t)), function
        assert torch.equal(given.time(linear.log_snr(t)), linear.time(linear.log_snr(t)))


def test_a_chain_of_given_betas_passes_through_its_own_products(device):
    betas = latent_betas().to(device)
    sde = DiscreteVPSDE(betas=betas)
    t = torch.arange(1, 1001, dtype=torch.float64, device=device) / 1000
    torch.testing.assert_close(sde.alpha(t) ** 2, torch.cumprod(1 - betas, 0), rtol=2000 * EPS, atol=0)
    torch.testing.assert_close(sde.time(sde.log_snr(t)), t, rtol=1e-10, atol=0)
    assert torch.equal(sde.variances(), betas.cpu())
    falling = DiscreteVPSDE(betas=[0.3, 0.1, 0.2])  # betas need not rise
    assert falling.alpha(torch.tensor(1.0, dtype=torch.float64)).item() ** 2 == pytest.approx(0.7 * 0.9 * 0.8)


def test_chains_are_equal_if_their_betas_are():
    assert DiscreteVPSDE(betas=latent_betas()) == DiscreteVPSDE(betas=latent_betas())
    assert DiscreteVPSDE(betas=latent_betas()) != DiscreteVPSDE(betas=latent_betas().flip(0))
    assert DiscreteVPSDE() == DiscreteVPSDE()
    assert DiscreteVPSDE() != DiscreteVPSDE(num_levels=999)


def test_variances_are_a_copy():
    sde = DiscreteVPSDE()
    before = sde.alpha(torch.tensor(0.5))
    sde.variances().zero_()
    assert torch.equal(sde.alpha(torch.tensor(0.5)), before)
    assert sde.variances().max() == 0.02


# mistakes


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
    "betas of shape": (
        lambda: DiscreteVPSDE(betas=torch.full((3, 2), 0.1)),
        ["betas of shape (3, 2)", "(num_levels,)"],
    ),
    "one beta": (lambda: DiscreteVPSDE(betas=[0.1]), ["betas of length 1"]),
    "beta of 1": (lambda: DiscreteVPSDE(betas=[0.1, 1.0]), ["betas", "between 0 and 1"]),
    "beta of 0": (lambda: DiscreteVPSDE(betas=[0.0, 0.1]), ["betas", "between 0 and 1"]),
    "beta nan": (lambda: DiscreteVPSDE(betas=[0.1, math.nan]), ["betas", "between 0 and 1"]),
    "own not falling": (lambda: GaussianPathSDE(lambda t: 1 + 0 * t, lambda t: 1 - t, 0.1, 0.9), ["alpha, sigma"]),
    "own not finite": (lambda: GaussianPathSDE(lambda t: 1 - t, lambda t: t, 0.1, 1.0), ["alpha, sigma", "1.0"]),
}


@pytest.mark.parametrize(("make", "names"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named_with_its_value(make, names):
    with pytest.raises(UsageError) as error:
        make()
    assert all(name in str(error.value) for name in names)
