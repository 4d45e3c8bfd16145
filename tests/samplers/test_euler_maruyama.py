"""The eta-family: every member has the marginals of the forward SDE, and Euler-Maruyama takes its plain step."""

from __future__ import annotations

import itertools
from functools import partial

import torch

from samplers import EulerMaruyama
from samplers.euler_maruyama import drift_coefficients
from scoresde import EDMSDE, VPSDE, ExactScoreModel
from scoresde._shape import match_rank
from tests.analytic import gaussian, mixture, slope
from tests.convergence import inner_grid, noise_for

ETAS = [0.0, 0.5, 1.0, 1.7]


def reverse_drift(model, x_t, t, eta):
    """The drift of the reverse process at x_t `(B, *shape)`, at one time or one for each sample."""
    on_x, on_x0 = (match_rank(part, x_t) for part in drift_coefficients(model.sde, t, eta))
    return on_x * x_t + on_x0 * model.denoise(x_t, t)


def test_drift_is_that_of_anderson(sde, device):
    """f x - (1 + eta^2)/2 g^2 score, the score from autograd and a time for each sample."""
    target = mixture(device, (1, 2, 2))
    t = torch.linspace(0.1, 0.90037, 6, dtype=torch.float64, device=device) * sde.t_max
    x_t = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    x = x_t.clone().requires_grad_()
    (score,) = torch.autograd.grad(target.log_prob(x, sde.alpha(t), sde.sigma(t)).sum(), x)
    f, g = (part.reshape(6, 1, 1, 1) for part in (sde.drift_coef(t), sde.diffusion(t)))
    for eta in ETAS:
        expected = f * x_t - 0.5 * (1 + eta**2) * g**2 * score
        actual = reverse_drift(ExactScoreModel(target, sde), x_t, t, eta)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9 * float((g**2).max()))


def test_the_fokker_planck_equation_holds(sde, device):
    """Backwards in time dx = d dt + eta g dw has p_t when dp/dt = -div(d p) - eta^2 g^2 / 2 lap(p); divided by p here.

    Linear in p, so a mixture holds it to more than a Gaussian would: drifts with the wrong curvature fail.
    """
    model = ExactScoreModel(mixture(device), sde)
    t = torch.tensor(0.50037 * sde.t_max, dtype=torch.float64, device=device)  # no kink of the DDPM chain
    points = torch.tensor([[0.3, -0.2], [-1.1, 0.8]], dtype=torch.float64, device=device)
    for eta, x in itertools.product(ETAS, points):
        assert_fokker_planck(model, x, t, eta)


def assert_fokker_planck(model, x, t, eta):
    sde = model.sde
    g = sde.diffusion(t)

    def log_p(x, t):
        return model.target.log_prob(x[None], sde.alpha(t), sde.sigma(t))[0]

    def drift(x):
        return reverse_drift(model, x[None], t, eta)[0]

    score = torch.autograd.functional.jacobian(partial(log_p, t=t), x)
    laplacian = torch.autograd.functional.hessian(partial(log_p, t=t), x).trace()
    divergence = torch.autograd.functional.jacobian(drift, x).trace()
    curvature = laplacian + score.square().sum()
    right = -divergence - drift(x) @ score - 0.5 * eta**2 * g**2 * curvature
    left = slope(partial(log_p, x), t)
    size = divergence.abs() + g**2 * curvature.abs() + (drift(x) @ score).abs()
    assert (left - right).abs() < 1e-10 * size, f"eta={eta}"


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


def test_a_step_is_euler_maruyamas_written_out(sde, device):
    """x - (t - s) drift + eta g sqrt(t - s) z, with drift and g of the step's start."""
    model, noise = ExactScoreModel(mixture(device), sde), noise_for(8, device)
    grid = inner_grid(sde, 3, "log_snr")
    x_T = sde.sigma(grid[0]).item() * noise.normal(0, (2,), torch.float64)
    for eta in ETAS:
        x = x_T
        for row, (t, s) in enumerate(itertools.pairwise(grid)):
            z = noise.normal(row + 1, (2,), torch.float64)
            x = x - (t - s) * reverse_drift(model, x, t, eta) + eta * sde.diffusion(t) * (t - s).sqrt() * z
        torch.testing.assert_close(EulerMaruyama(eta).run(model, x_T, grid, noise), x, rtol=1e-10, atol=1e-10)


def test_the_reverse_sde_is_the_default():
    model = ExactScoreModel(gaussian(), VPSDE())
    grid = EulerMaruyama().default_grid(model, 5)
    samplers = (EulerMaruyama(), EulerMaruyama(1.0), EulerMaruyama(0.0))
    default, sde, flow = (sampler.table(model, grid) for sampler in samplers)
    for part in "abc":
        assert torch.equal(getattr(default, part), getattr(sde, part))
        assert (getattr(default, part) - getattr(flow, part))[:-1].abs().min() > 1e-4
