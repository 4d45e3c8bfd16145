"""RePaint, DDRM and split Gibbs sampling: their formulas, and how near they come to the posterior."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from samplers import (
    DDRM,
    Ancestral,
    RePaint,
    Replacement,
    SplitGibbs,
    sample,
    uniform_log_snr,
)
from samplers.measured.split_gibbs import drawn
from scoresde import VPSDE, ExactScoreModel, Gaussian, Noise
from scoresde.inverse import MeasuredModel
from scoresde.operators import (
    BlockAverage,
    Blur,
    FunctionOperator,
    Grey,
    Mask,
    MatrixOperator,
    PoissonNoise,
    gaussian_kernel,
)
from tests.analytic import gaussian, mixture
from tests.inverse.problems import PATHS, STD, dense_pull, matrix, measurement, projection
from tests.operators.cases import randn
from tests.samplers.test_measured import MASK, SHAPE, given, measured

paths = pytest.mark.parametrize("sde", PATHS.values(), ids=PATHS)


# --- RePaint --------------------------------------------------------------------------------------------------------


@paths
@pytest.mark.parametrize(("repeats", "jump"), [(1, 1), (1, 5), (3, 1), (2, 4), (4, 20)])
def test_repainting_is_a_chain_of_bridges(repeats, jump, sde):
    """Rows start where the last arrived, and each carries N(alpha x_0, sigma^2) at its level to that at its arrival."""
    model = ExactScoreModel(mixture(), sde)
    grid = uniform_log_snr(sde, 12)
    table = RePaint(repeats, jump).table(model, grid)
    assert len(table) == 11 * repeats + 1
    for part in ("t", "alpha", "sigma"):
        assert torch.equal(getattr(table.level, part)[1:], getattr(table.arrival, part)[:-1])
    assert table.level.t[0] == grid[0]
    assert table.arrival.t[-1] == 0
    level, arrival = table.level, table.arrival
    mean = table.a * level.alpha + table.b[:, 0]
    torch.testing.assert_close(mean, arrival.alpha, rtol=1e-10, atol=1e-12)
    variance = table.a**2 * level.sigma**2 + table.c**2
    torch.testing.assert_close(variance[:-1], arrival.sigma[:-1] ** 2, rtol=1e-10, atol=1e-14)
    assert (arrival.t >= level.t).sum() == (repeats - 1) * math.ceil(11 / jump)  # rows that end upwards


def test_repainting_once_is_ancestral_sampling(sde):
    model, grid = ExactScoreModel(mixture(), sde), uniform_log_snr(sde, 9)
    once, ancestral = RePaint(1, 4).table(model, grid), Ancestral().table(model, grid)
    for field in dataclasses.fields(once):
        if field.name not in ("level", "arrival"):
            assert torch.equal(getattr(once, field.name), getattr(ancestral, field.name)), field.name
    assert torch.equal(once.level.t, ancestral.level.t)


def pair(correlation, device="cpu"):
    """Two entries of deviation 1."""
    matrix = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64, device=device)
    return Gaussian(torch.zeros(2, dtype=torch.float64, device=device), matrix)


def test_repeats_bring_replacement_to_the_posterior(device):
    """The unknown entry has the mean 1.35 and the variance 0.19. The error of the mean falls to chance.

    Of 2000 samples, to 5 standard errors, level 6e-7; what is left of the variance is the error of 50 ancestral steps,
    0.03, which halves with them (measured).
    """
    mask = Mask(torch.tensor([True, False]))
    model = MeasuredModel(ExactScoreModel(pair(0.9, device), VPSDE()), mask, 0.0)
    y, errors = torch.full((2000, 1), 1.5, dtype=torch.float64, device=device), []
    for repeats in (1, 4, 20):
        x = sample(model, Replacement(RePaint(repeats, 1)), 2000, num_steps=50, cond=y).x[:, 1]
        errors.append(abs(x.mean().item() - 1.35))
    assert errors[1] < 0.4 * errors[0]
    assert errors[2] < 0.4 * errors[1]
    assert errors[2] < 5 * (0.19 / 2000) ** 0.5
    assert abs(x.var().item() - 0.19) < 5 * 0.19 * (2 / 2000) ** 0.5 + 0.03


# --- DDRM -----------------------------------------------------------------------------------------------------------


def ddrm_of_entries(model, scales, std, y, sampler, grid, noise):
    """DDRM written out for y_i = s_i x_i + std eps_i, entry by entry (Kawar et al. 2022, equations 7 and 8)."""
    levels = [model.sde.level(t) for t in grid[grid > 0]]
    x = model.sde.sigma(grid[0]) * noise.normal(0, model.shape, torch.float64)
    r = [level.noise_level.item() for level in levels] + [0.0]
    keep = (1 - sampler.eta**2) ** 0.5
    for i, s in enumerate(scales):
        if s > 0 and std / s <= r[0]:
            x[:, i] = levels[0].alpha * y[:, i] / s + (1 - (std / s / r[0]) ** 2) ** 0.5 * x[:, i]
    for k, level in enumerate(levels):
        x0_hat = model.denoise_at(x, level)
        z = noise.normal(k + 1, model.shape, torch.float64) if r[k + 1] > 0 else torch.zeros_like(x)
        u, q = x / level.alpha, r[k + 1]
        after = torch.empty_like(x)
        for i, s in enumerate(scales):
            clean = x0_hat[:, i]
            if s == 0:
                after[:, i] = clean + keep * q * (u[:, i] - clean) / r[k] + sampler.eta * q * z[:, i]
            elif std / s > q:
                after[:, i] = clean + keep * q * (y[:, i] / s - clean) / (std / s) + sampler.eta * q * z[:, i]
            else:
                width = (q**2 - (sampler.eta_b * std / s) ** 2) ** 0.5
                after[:, i] = clean + sampler.eta_b * (y[:, i] / s - clean) + width * z[:, i]
        x = after if q == 0 else levels[k + 1].alpha * after
    return x


@paths
@pytest.mark.parametrize("sampler", [DDRM(), DDRM(1.0, 0.6), DDRM(0.0, 1.0)], ids=str)
def test_ddrm_is_its_formula_entry_by_entry(sampler, sde, device):
    """Scales that are measured well at all levels, at some, at none but the first, and not at all."""
    prior = Gaussian(randn(5).to(device), randn(5, seed=1).exp().to(device))
    scales, std = [2.0, 0.5, 0.02, 0.0, -0.7], 0.1
    positive = torch.tensor([abs(s) for s in scales], dtype=torch.float64, device=device)
    model = ExactScoreModel(prior, sde)
    grid, noise = uniform_log_snr(sde, 12), Noise(4, torch.arange(3, device=device))
    y = randn(3, 5, seed=3).to(device)
    expected = ddrm_of_entries(model, positive.tolist(), std, y, sampler, grid, noise)
    operator = MatrixOperator(torch.diag(torch.tensor(scales, dtype=torch.float64)))
    signs = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0], dtype=torch.float64, device=device)
    found = sample(MeasuredModel(model, operator, std), sampler, 3, grid=grid, cond=signs * y, seed=4).x
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "operator", [MASK, Grey(SHAPE), BlockAverage(SHAPE, 2), Blur((1, 4, 4), gaussian_kernel(0.6, 2, 1))], ids=str
)
@pytest.mark.parametrize("sampler", [DDRM(), DDRM(0.2, 1.0), SplitGibbs()], ids=str)
def test_without_noise_what_is_measured_is_met(sampler, operator, device):
    model = measured(operator, device=device, shape=operator.shape)
    y = given(operator, 4, device)
    x = sample(model, sampler, 4, num_steps=8, cond=y).x
    torch.testing.assert_close(model.operator(x), y, rtol=1e-9, atol=1e-9)


def test_ddrm_is_the_posterior_where_nothing_is_known_about_anything(device):
    """With eta = 1 and no measured entry but one that is independent of all others, those are ancestral samples."""
    prior = Gaussian(randn(3).to(device), randn(3, seed=1).exp().to(device))
    mask = Mask(torch.tensor([True, False, False]))
    model, grid = ExactScoreModel(prior, VPSDE()), uniform_log_snr(VPSDE(), 10)
    found = sample(MeasuredModel(model, mask, STD), DDRM(1.0), 4, grid=grid, cond=given(mask, 4, device)).x
    levels = [VPSDE().level(t) for t in grid[:-1]]
    noise = Noise(0, torch.arange(4, device=device))
    x = VPSDE().sigma(grid[0]) * noise.normal(0, (3,), torch.float64)
    for k, level in enumerate(levels[:-1]):
        x0_hat = model.denoise_at(x, level)
        x = levels[k + 1].alpha * x0_hat + levels[k + 1].sigma * noise.normal(k + 1, (3,), torch.float64)
    torch.testing.assert_close(found[:, 1:], model.denoise_at(x, levels[-1])[:, 1:], rtol=1e-10, atol=1e-10)


# --- split Gibbs ----------------------------------------------------------------------------------------------------


def test_split_gibbs_comes_to_the_posterior_as_steps_grow(device):
    """Three correlated entries, of which one sum is measured: the covariance in units of the posterior's, from 3000."""
    root = randn(3, 3, seed=6)
    prior = Gaussian(randn(3).to(device), (root @ root.mT + 0.1 * torch.eye(3)).to(device))
    operator = MatrixOperator(torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64))
    y = torch.tensor([2.0], dtype=torch.float64, device=device)
    posterior = prior.posterior(operator, y, STD).mixture
    model = MeasuredModel(ExactScoreModel(prior, VPSDE()), operator, STD)
    errors = []
    for num_steps in (10, 300):
        x = sample(model, SplitGibbs(), 3000, num_steps=num_steps, cond=y.expand(3000, 1)).x
        z = (x - posterior.means[0]) @ posterior.rotations[0].mT / posterior.variances[0].sqrt()
        assert (z.mean(0).abs() < 0.05 + 5 / 3000**0.5).all()
        errors.append((z.mT @ z / 3000 - torch.eye(3).to(z)).abs().max().item())
    assert errors[1] < 0.3 * errors[0]
    assert errors[1] < 5 * (2 / 3000) ** 0.5


def conditional(mean, v, y, std):
    """Mean and covariance of x_0 given y, for N(mean, v I)."""
    A = matrix()
    covariance = v * torch.eye(6).double() - v**2 * A.mT @ torch.linalg.solve(
        v * A @ A.mT + std**2 * torch.eye(3).double(), A
    )
    return mean + v * dense_pull(A, (y - A @ mean)[None], v, std**2)[0], covariance


@pytest.mark.parametrize(("linear", "v"), [(True, 0.05), (True, 1.0), (False, 0.05)])
def test_draws_given_a_measurement_have_its_mean_and_covariance(linear, v):
    """Exact for a linear operator; by Langevin steps to a share of 0.1, where the curvatures are of one order.

    6 means and 36 products of 8000 draws, to 5 standard errors: level 3e-5.
    """
    operator = projection() if linear else FunctionOperator(lambda x: x @ matrix().to(x).mT, (6,))
    mean, y, count = randn(6), measurement(), 8000
    model = MeasuredModel(ExactScoreModel(gaussian(shape=(6,)), VPSDE()), operator, STD)
    draws = drawn(
        model, mean.expand(count, 6), torch.tensor(v).double(), y.expand(count, 3), Noise(0, torch.arange(count))
    )
    expected, covariance = conditional(mean, torch.tensor(v).double(), y, STD)
    bias = 0.0 if linear else 0.1
    deviations = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - expected).abs() < (5 / count**0.5 + bias) * deviations).all()
    error = (draws.mT.cov() - covariance).abs() / torch.outer(deviations, deviations)
    assert (error < 5 * (2 / count) ** 0.5 + bias).all()


@pytest.mark.parametrize("noise", [0.1, PoissonNoise(100.0, offset=0.0)], ids=["gaussian", "poisson"])
@pytest.mark.parametrize("function", [torch.abs, torch.square], ids=["abs", "square"])
def test_split_gibbs_takes_what_is_not_linear(function, noise, device):
    """The size of a normal number is measured: its sign is open, and half of 400 samples are at either."""
    prior = Gaussian(torch.zeros(1, dtype=torch.float64, device=device), torch.ones(1, device=device).double())
    model = MeasuredModel(ExactScoreModel(prior, VPSDE()), FunctionOperator(function, (1,)), noise)
    y = function(torch.full((400, 1), 1.2, dtype=torch.float64, device=device))
    x = sample(model, SplitGibbs(), 400, num_steps=12, cond=y).x[:, 0]
    assert abs((x > 0).double().mean().item() - 0.5) < 5 * 0.5 / 400**0.5
    assert abs(x.abs().mean().item() - 1.2) < 0.05
