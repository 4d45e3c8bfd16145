"""Models of posteriors beside their formulas, written out with whole matrices."""

from __future__ import annotations

import itertools

import pytest
import torch

from scoresde import (
    VPSDE,
    DiscreteVPSDE,
    ExactScoreModel,
    GaussianMixture,
)
from scoresde.inverse import DPS, MMPS, DiffPIR, PiGDM
from scoresde.operators import (
    BlockAverage,
    FunctionOperator,
    Grey,
    LinearFunctionOperator,
    Mask,
    MatrixOperator,
    PoissonNoise,
)
from scoresde.sde import bridge
from tests.analytic import mixture
from tests.inverse.problems import (
    MODELS,
    PATHS,
    STD,
    dense_pull,
    level_at,
    matrix,
    projection,
    states,
)
from tests.operators.cases import randn

paths = pytest.mark.parametrize("sde", PATHS.values(), ids=PATHS)
SHARES = (0.02, 0.3, 0.9)


def jacobian(model, x_t, level):
    """dD / dx of each sample, `(B, D, D)`."""
    return torch.stack(
        [torch.autograd.functional.jacobian(lambda x: model.denoise_at(x[None], level)[0], x) for x in x_t]
    )


def fitting(model, x_t, level, A, e, w, noise):
    """c g with the c for which c (A g + S w) is nearest to e, by least squares."""
    g = level.sigma**2 / level.alpha * torch.einsum("bij,bi->bj", jacobian(model, x_t, level), w @ A)
    m = g @ A.mT + noise * w
    return torch.linalg.lstsq(m[..., None], e[..., None]).solution[..., 0] * g


@paths
def test_pseudo_inverse_guidance_is_its_formula(sde, device):
    """D + c g, g = sigma^2 / alpha J' A' w, w = (v A A' + S)^-1 e; the value is log N(y; A D, v A A' + S)."""
    model, A = ExactScoreModel(mixture(device, (6,)), sde), matrix().to(device)
    y = randn(4, 3, seed=3).to(device)
    for share in SHARES:
        level = level_at(sde, share, device)
        x_t = states(level, (6,))
        r2, s2 = level.noise_level**2, model.sigma_data**2
        x0_hat = model.denoise_at(x_t, level)
        e = y - x0_hat @ A.mT
        spread = r2 * s2 / (r2 + s2) * A @ A.mT + STD**2 * torch.eye(3).to(A)
        w = torch.linalg.solve(spread, e[..., None])[..., 0]
        expected = x0_hat + fitting(model, x_t, level, A, e, w, STD**2)
        given = PiGDM(model, MatrixOperator(A), STD)
        torch.testing.assert_close(given.denoise_at(x_t, level, y), expected, rtol=1e-9, atol=1e-9)
        weighed = given.weigh(x_t, level, y)
        torch.testing.assert_close(weighed.x0_hat, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(weighed.own, x0_hat, rtol=1e-12, atol=1e-12)
        log_p = torch.distributions.MultivariateNormal(x0_hat @ A.mT, spread).log_prob(y)
        torch.testing.assert_close(weighed.value - log_p, (weighed.value - log_p)[:1].expand(4), rtol=0, atol=1e-9)


def test_a_step_never_leads_away_from_the_measurement_though_entries_vary_together(device):
    """All entries are one number, of deviation s: along it the variance is 100 times that of an entry alone."""
    shared = torch.full((100, 100), 0.999, dtype=torch.float64) + 0.001 * torch.eye(100, dtype=torch.float64)
    prior = GaussianMixture(torch.ones(1), torch.zeros(1, 100), shared[None]).to(device, torch.float64)
    model = ExactScoreModel(prior, VPSDE())
    operator = Mask.random((100,), 0.5).to(device, torch.float64)
    for share in SHARES:
        level = level_at(VPSDE(), share, device)
        x_t = states(level, (100,))
        y = operator(prior.sample(4, torch.Generator(device).manual_seed(1)))
        before = torch.linalg.vector_norm(y - operator(model.denoise_at(x_t, level)), dim=1)
        after = torch.linalg.vector_norm(y - operator(PiGDM(model, operator, STD).denoise_at(x_t, level, y)), dim=1)
        assert (after <= before).all()


@paths
@pytest.mark.parametrize("linear", [True, False])
def test_moment_matching_is_its_formula(sde, linear, device):
    """D + C A' (A C A' + S)^-1 e with C = sigma^2 / alpha J; A is the derivative at D if it is not linear."""
    model, A = ExactScoreModel(mixture(device, (4,)), sde), matrix(2, 4).to(device)
    y = randn(4, 2, seed=3).to(device)

    def curved(x):
        return (x @ A.to(x).mT).sinh()

    for share in SHARES:
        level = level_at(sde, share, device)
        x_t = states(level, (4,))
        x0_hat = model.denoise_at(x_t, level)
        C = level.sigma**2 / level.alpha * jacobian(model, x_t, level)
        operator = MatrixOperator(A) if linear else FunctionOperator(curved, (4,))
        slope = A.expand(4, 2, 4) if linear else (x0_hat @ A.mT).cosh()[..., None] * A
        e = y - operator(x0_hat)
        spread = slope @ C @ slope.mT + STD**2 * torch.eye(2).to(A)
        expected = x0_hat + (C @ slope.mT @ torch.linalg.solve(spread, e[..., None]))[..., 0]
        for iterations in (None, 2):
            given = MMPS(model, operator, STD, iterations)
            torch.testing.assert_close(given.denoise_at(x_t, level, y), expected, rtol=1e-8, atol=1e-8)
        weighed = MMPS(model, operator, STD, None).weigh(x_t, level, y)
        log_p = torch.distributions.MultivariateNormal(operator(x0_hat), 0.5 * (spread + spread.mT)).log_prob(y)
        torch.testing.assert_close(weighed.value - log_p, (weighed.value - log_p)[:1].expand(4), rtol=0, atol=1e-9)


@pytest.mark.parametrize("strength", [0.3, 1.0, 5.0])
def test_plug_and_play_minimises_its_cost(strength, device):
    """|y - A x|^2 / S + lambda |x - D|^2 / v has no slope at D_y."""
    model, A = ExactScoreModel(mixture(device, (6,)), VPSDE()), matrix().to(device)
    y, level = randn(4, 3, seed=3).to(device), level_at(VPSDE(), 0.3, device)
    x_t = states(level, (6,))
    found = DiffPIR(model, MatrixOperator(A), STD, strength).denoise_at(x_t, level, y)
    r2, s2 = level.noise_level**2, model.sigma_data**2
    slope = (found @ A.mT - y) @ A / STD**2 + strength * (found - model.denoise_at(x_t, level)) * (1 / r2 + 1 / s2)
    assert slope.abs().max() < 1e-10


@pytest.mark.parametrize("make", [PiGDM, DiffPIR])
def test_counts_are_weighed_entry_by_entry(make, device):
    """Each has the variance that it shows itself; the system is solved to a residual of 1e-6."""
    model, A = ExactScoreModel(mixture(device, (6,)), VPSDE()), matrix().to(device)
    noise = PoissonNoise(20.0, offset=3.0)
    y, level = noise.add(randn(4, 3, seed=3).to(device), torch.Generator(device).manual_seed(0)), level_at(VPSDE(), 0.3)
    level = level.to(device, torch.float64)
    x_t = states(level, (6,))
    x0_hat = model.denoise_at(x_t, level)
    v = 1 / (level.noise_level**-2 + model.sigma_data**-2)
    e, variance = y - x0_hat @ A.mT, noise.variance(y)
    if make is PiGDM:
        w = torch.linalg.solve(v * A @ A.mT + torch.diag_embed(variance), e[..., None])[..., 0]
        expected = x0_hat + fitting(model, x_t, level, A, e, w, variance)
    else:
        expected = x0_hat + v * dense_pull(A, e, v, variance)
    found = make(model, MatrixOperator(A), noise).denoise_at(x_t, level, y)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_linear_function_is_what_its_matrix_is(device):
    model, y = ExactScoreModel(mixture(device, (6,)), VPSDE()), randn(4, 3, seed=3).to(device)
    level = level_at(VPSDE(), 0.3, device)
    x_t = states(level, (6,))
    as_function = FunctionOperator(lambda x: x @ matrix().to(x).mT, (6,))
    as_linear = LinearFunctionOperator(as_function.function, (6,))
    for name, make in MODELS.items():
        expected = make(model, projection(), STD).denoise_at(x_t, level, y)
        for operator in (as_linear, as_function):
            if operator is as_linear or name not in ("PiGDM", "DiffPIR"):
                found = make(model, operator, STD).denoise_at(x_t, level, y)
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# --- steps of one length --------------------------------------------------------------------------------------------


def test_short_steps_are_those_of_the_chain(device):
    """On DDPM's chain an ancestral step with D_y moves the state by zeta times the gradient, up to 1 / sqrt(1 - beta).

    The bridge gives on_x0 sigma^2 / alpha = beta / sqrt(1 - beta); VPSDE's beta(t) is that of the chain to one part in
    a thousand.
    """
    chain, zeta = DiscreteVPSDE(), 1e-4
    model, A = ExactScoreModel(mixture(device, (6,)), chain), matrix().to(device)
    y = randn(4, 3, seed=3).to(device)
    for k in (50, 300, 900):
        t, s = (
            chain.level(chain.t_min + torch.tensor(i, dtype=torch.float64, device=device) / 1000) for i in (k, k - 1)
        )
        x_t = states(t, (6,)).requires_grad_()
        x0_hat = model.denoise_at(x_t, t)
        norm = torch.linalg.vector_norm(y - x0_hat @ A.mT, dim=1)
        (gradient,) = torch.autograd.grad(norm.sum(), x_t)
        found = DPS(model, MatrixOperator(A), STD, zeta).denoise_at(x_t.detach(), t, y)
        moved = bridge(s, t)[0] * (found - x0_hat.detach())
        torch.testing.assert_close(moved, -zeta * gradient, rtol=0.02, atol=0)


@paths
def test_a_step_never_leads_beyond_the_nearest_measurement(sde, device):
    """Along its direction the residual is smallest at the end of a long step, and falls over a short one."""
    model, y = ExactScoreModel(mixture(device, (6,)), sde), randn(4, 3, seed=3).to(device)
    operator = projection().to(device, torch.float64)
    for share in SHARES:
        level = level_at(sde, share, device)
        x_t = states(level, (6,))
        x0_hat = model.denoise_at(x_t, level)
        residuals = [torch.linalg.vector_norm(y - operator(x0_hat), dim=1)]
        for zeta in (1e-5, 1e-3, 0.1, 10.0, 1e6):
            found = DPS(model, operator, STD, zeta).denoise_at(x_t, level, y)
            residuals.append(torch.linalg.vector_norm(y - operator(found), dim=1))
        pairs = itertools.pairwise(residuals)
        assert all((after <= before * (1 + 1e-12)).all() for before, after in pairs)
        longest = operator(found - x0_hat)
        assert ((y - operator(found)) * longest).sum(1).abs().max() < 1e-9


# --- no noise -------------------------------------------------------------------------------------------------------


def test_without_noise_plug_and_play_puts_what_is_known(device):
    """A D_y = y, as DDNM has it; a mask's other entries stay those of D."""
    shape = (2, 2, 2)
    model, level = ExactScoreModel(mixture(device, shape), VPSDE()), level_at(VPSDE(), 0.3, device)
    x_t = states(level, shape)
    for operator in (Mask.random(shape, 0.5), Grey(shape), BlockAverage(shape, 2), MatrixOperator(randn(3, 8), shape)):
        given = DiffPIR(model, operator, 0.0)
        y = randn(4, *operator.measured_shape, seed=3).to(device)
        found = given.denoise_at(x_t, level, y)
        torch.testing.assert_close(given.operator(found), y, rtol=1e-10, atol=1e-10)
        if isinstance(operator, Mask):
            hidden = ~operator.seen.to(device)
            assert torch.equal(found[:, hidden], model.denoise_at(x_t, level)[:, hidden])
