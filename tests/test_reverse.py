"""The eta-family: every member has the marginals of the forward SDE."""

from functools import partial

import pytest
import torch
from analytic import gaussian, mixture, slope

from scoresde import EDMSDE, VPSDE, ExactScoreModel
from scoresde.reverse import drift_coefficients, reverse_drift

ETAS = [0.0, 0.5, 1.0, 1.7]


@pytest.mark.parametrize("eta", ETAS)
def test_drift_is_that_of_anderson(sde, eta, device):
    """f x - (1 + eta^2)/2 g^2 score, the score from autograd and a time for each sample."""
    target = mixture(device, (1, 2, 2))
    t = torch.linspace(0.1, 0.90037, 6, dtype=torch.float64, device=device) * sde.t_max
    x_t = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    x = x_t.clone().requires_grad_()
    (score,) = torch.autograd.grad(target.log_prob(x, sde.alpha(t), sde.sigma(t)).sum(), x)
    f, g = (part.reshape(6, 1, 1, 1) for part in (sde.drift_coef(t), sde.diffusion(t)))
    expected = f * x_t - 0.5 * (1 + eta**2) * g**2 * score
    actual = reverse_drift(ExactScoreModel(target, sde), x_t, t, eta)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9 * float((g**2).max()))


@pytest.mark.parametrize("eta", ETAS)
def test_the_fokker_planck_equation_holds(sde, eta, device):
    """Backwards in time dx = d dt + eta g dw has p_t when dp/dt = -div(d p) - eta^2 g^2 / 2 lap(p); divided by p here.

    Linear in p, so a mixture holds it to more than a Gaussian would: drifts with the wrong curvature fail.
    """
    target = mixture(device)
    model = ExactScoreModel(target, sde)
    t = torch.tensor(0.50037 * sde.t_max, dtype=torch.float64, device=device)  # no kink of the DDPM chain
    g = sde.diffusion(t)

    def log_p(x, t):
        return target.log_prob(x[None], sde.alpha(t), sde.sigma(t))[0]

    def drift(x):
        return reverse_drift(model, x[None], t, eta)[0]

    for x in torch.tensor([[0.3, -0.2], [-1.1, 0.8]], dtype=torch.float64, device=device):
        score = torch.autograd.functional.jacobian(partial(log_p, t=t), x)
        laplacian = torch.autograd.functional.hessian(partial(log_p, t=t), x).trace()
        divergence = torch.autograd.functional.jacobian(drift, x).trace()
        curvature = laplacian + score.square().sum()
        right = -divergence - drift(x) @ score - 0.5 * eta**2 * g**2 * curvature
        left = slope(partial(log_p, x), t)
        size = divergence.abs() + g**2 * curvature.abs() + (drift(x) @ score).abs()
        assert (left - right).abs() < 1e-10 * size


def test_drift_coefficients_work_along_a_grid(sde, device):
    t = torch.linspace(sde.t_min, sde.t_max, 7, dtype=torch.float64, device=device)
    on_x, on_x0 = drift_coefficients(sde, t, 1.0)
    assert on_x.shape == on_x0.shape == (7,)
    # the reverse SDE pulls x / alpha towards D: f x + p (x - alpha D), p = g^2 / sigma^2
    pull = (sde.diffusion(t) / sde.sigma(t)) ** 2
    torch.testing.assert_close(on_x, sde.drift_coef(t) + pull, rtol=1e-13, atol=0)
    torch.testing.assert_close(on_x0, -pull * sde.alpha(t), rtol=1e-13, atol=0)
    assert (on_x0 < 0).all()


def test_probability_flow_of_edm_is_that_of_karras(device):
    """dx/dsigma = (x - D) / sigma (Karras et al. 2022, algorithm 1)."""
    model = ExactScoreModel(gaussian(device), EDMSDE())
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    sigma = torch.tensor(0.7, dtype=torch.float64, device=device)
    expected = (x - model.denoise(x, sigma)) / sigma
    torch.testing.assert_close(reverse_drift(model, x, sigma, eta=0.0), expected, rtol=1e-12, atol=1e-12)


def test_eta_one_is_the_default(device):
    model = ExactScoreModel(gaussian(device), VPSDE())
    x, t = torch.ones(2, 3, dtype=torch.float64, device=device), torch.tensor([0.2, 0.6], device=device).double()
    assert torch.equal(reverse_drift(model, x, t), reverse_drift(model, x, t, 1.0))
    assert (reverse_drift(model, x, t) - reverse_drift(model, x, t, 0.0)).abs().min() > 1e-3
