"""Declared properties, equalities with published updates, and the product of everything with everything."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from analytic import mixture
from conftest import SDES

from benchmarks import mixture_samplers
from benchmarks.orders import (
    asymptotic_slopes,
    chain_moments,
    counts,
    errors_on_a_gaussian,
    gaussian,
    inner_grid,
    kinked,
    noise_for,
    slopes,
    smooth,
    variance_errors,
)
from samplers import (
    DDIM,
    DEIS,
    EDM,
    Adams,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    DPMSolverSingle,
    EulerMaruyama,
    Heun,
    Midpoint,
    NormPredictorCorrector,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    RungeKutta4,
    SDEDPMSolver,
    SDEDPMSolverSingle,
    StepSampler,
    StochasticHeun,
    TableSampler,
    Trajectory,
    Trigonometric,
    UniPC,
    power_phi,
    quadratic_time,
    sample,
    uniform_log_snr,
    uniform_time,
)
from samplers.multistep import Multistep
from scoresde import (
    MLP,
    SDE,
    VESDE,
    VPSDE,
    CallableScoreModel,
    DiscreteVPSDE,
    EDMParametrization,
    ExactScoreModel,
    NetworkScoreModel,
    NoiseParametrization,
    ScoreParametrization,
    UsageError,
)
from scoresde.sde import Level
from sde_configs import default
from sde_configs.build import SAMPLERS as SAMPLER_NAMES
from sde_configs.build import build_sampler

SAMPLERS = [
    PredictorCorrector(),
    PredictorCorrector(predictor=Heun(), corrector_steps=2),
    PredictorCorrector(corrector_first=True),
    NormPredictorCorrector(),
    NormPredictorCorrector(predictor=None, corrector_steps=2),
    AnnealedLangevin(),
    AnnealedLangevin(corrector_steps=2),
    Ancestral(),
    Ancestral(variance="beta"),
    EulerMaruyama(),
    EulerMaruyama(eta=0.0),
    EulerMaruyama(eta=0.5),
    ReverseDiffusion(),
    ProbabilityFlow(),
    DDIM(),
    DDIM(eta=0.5),
    Heun(),
    Heun("denoised"),
    Heun("velocity"),
    Midpoint(),
    Midpoint("noise"),
    RungeKutta4(),
    StochasticHeun(),
    EDM(),
    EDM(churn=0.0),
    EDM(churn_scale=1.0),
    Adams(1, False),
    Adams(2, False, "noise", "noise_level"),
    Adams(3, True, "denoised", "log_snr"),
    Adams(4, False),
    Adams(3),
    Adams(2, True, sd=0.5),
    Trigonometric(1),
    Trigonometric(2),
    DEIS(1),
    DEIS(2),
    DEIS(3),
    DEIS(4),
    *(UniPC(p, variant) for p in (1, 2, 3) for variant in ("B1", "B2")),
    UniPC(3, integrand="noise"),
    *(cls(k, view) for cls in (DPMSolver, DPMSolverSingle) for k in (1, 2, 3) for view in ("denoised", "noise")),
    SDEDPMSolver(1),
    SDEDPMSolver(2),
    SDEDPMSolver(2, eta=0.5),
    SDEDPMSolver(3),
    SDEDPMSolverSingle(),
]
TABLES = [s for s in SAMPLERS if isinstance(s, TableSampler)]
MOVING = [s for s in SAMPLERS if not isinstance(s, AnnealedLangevin) and getattr(s, "predictor", s) is not None]
BATCH_FREE = [s for s in SAMPLERS if not isinstance(s, NormPredictorCorrector)]


def name(value):
    if isinstance(value, SDE):
        return next((key for key, sde in SDES.items() if sde is value), str(value))
    return str(value).replace("()", "")


# --- order of convergence -------------------------------------------------------------------------------------------


SPACINGS = ["time", "sqrt", "log_snr"]


def pairwise(*factors):
    """The product of factors, of which only enough to see every pair of values is not marked slow."""
    product = []
    for indices in itertools.product(*(range(len(factor)) for factor in factors)):
        first, second, *rest = indices
        kept = all(index == (first + second * (k + 1)) % len(factors[k + 2]) for k, index in enumerate(rest))
        values = [factor[index] for factor, index in zip(factors, indices, strict=True)]
        product.append(pytest.param(*values, marks=() if kept else pytest.mark.slow, id="-".join(map(name, values))))
    return product


DETERMINISTIC = [s for s in TABLES if s.noise == "none"]


@pytest.mark.parametrize(("sampler", "sde", "spacing"), pairwise(DETERMINISTIC, list(SDES.values()), SPACINGS))
def test_strong_order_against_the_exact_flow_of_a_gaussian(sampler, sde, spacing, device):
    if kinked(sampler, sde):
        pytest.skip("the path of a chain has kinks in t")
    errors = errors_on_a_gaussian(sampler, sde, spacing, counts(sampler), device, exact_history=True)
    assert min(asymptotic_slopes(errors)) > sampler.order - 0.1, errors


MULTISTEP = [s for s in DETERMINISTIC if isinstance(s, Multistep)]


@pytest.mark.parametrize(("sampler", "spacing", "sde"), pairwise(MULTISTEP, ["log_snr"], list(SDES.values())))
def test_a_start_with_fewer_values_costs_order(sampler, spacing, sde, device):
    """The first step knows one value. Without a corrector its error is h^2, with one h^3, whatever comes after."""
    if kinked(sampler, sde):
        pytest.skip("the path of a chain has kinks in t")
    errors = errors_on_a_gaussian(sampler, sde, spacing, counts(sampler), device, exact_history=False)
    assert min(asymptotic_slopes(errors)) > min(sampler.order, 2 + sampler.scheme(sde).corrector) - 0.1, errors


@pytest.mark.parametrize("sampler", [DDIM(), Heun(), EulerMaruyama(eta=0.0)], ids=name)
def test_strong_order_on_a_mixture_against_a_converged_solver(sampler, device):
    sde, errors = VPSDE(), []
    model = ExactScoreModel(mixture(device), sde)
    x_T = 3.0 * noise_for(64, device).normal(0, (2,), torch.float64)
    ends = inner_grid(sde, 1, "time")
    reference = ProbabilityFlow(rtol=1e-11, atol=1e-11).run(model, x_T, ends, noise_for(64, device))
    for num_steps in (256, 512, 1024):
        result = sampler.run(model, x_T, inner_grid(sde, num_steps, "log_snr"), noise_for(64, device))
        errors.append((result - reference).square().mean().sqrt().item())
    assert min(slopes(errors)) > sampler.order - 0.1, errors


STOCHASTIC = [s for s in TABLES if s.noise != "none" and s.order > 0]


@pytest.mark.parametrize(("sampler", "sde", "spacing"), pairwise(STOCHASTIC, list(SDES.values()), ["time", "log_snr"]))
def test_weak_order_without_monte_carlo(sampler, sde, spacing, device):
    sde = smooth(sde)
    for mean, variance in ((0.7, 0.09), (-0.4, 2.5)):
        mean_errors, errors = variance_errors(sampler, sde, spacing, mean, variance, device)
        assert max(mean_errors) < 1e-10 or min(slopes(mean_errors)) > sampler.order - 0.1, mean_errors
        assert min(slopes(errors)) > sampler.order - 0.1, errors


def test_path_noise_follows_one_motion(device):
    """With path noise a sample converges as its grid is refined: strong order 1. With fresh noise it goes nowhere."""
    sde, noise = VPSDE(), noise_for(200, device)
    model = ExactScoreModel(gaussian(device), sde)
    x_T = 3.0 * noise.normal(0, (3,), torch.float64)
    results = {}
    for sampler in (SDEDPMSolverSingle(), SDEDPMSolver(2)):
        runs = [sampler.run(model, x_T, inner_grid(sde, n, "log_snr"), noise) for n in (32, 64, 128, 256)]
        results[sampler.noise] = [(b - a).square().mean().sqrt().item() for a, b in itertools.pairwise(runs)]
    assert min(slopes(results["path"])) > 0.8, results
    assert results["independent"][-1] > 20 * results["path"][-1]


def test_a_langevin_chain_has_its_known_bias(device):
    # on N(0, v) the chain y' = (1 - e/v) y + sqrt(2e) z settles at the variance v / (1 - e / (2 v))
    sde, snr, variance = VESDE(), 0.2, 0.3
    grid = inner_grid(sde, 1, "time", first=1.001, last=1.0)
    level = sde.level(grid[-1])
    v = (variance + level.sigma**2).item()
    step = 2 * (snr * level.sigma.item()) ** 2
    _, got = chain_moments(AnnealedLangevin(snr, corrector_steps=400), sde, grid, 0.0, variance, device)
    assert got == pytest.approx(v / (1 - step / (2 * v)), rel=1e-9)


def test_the_error_of_the_adaptive_flow_follows_its_tolerance(sde, device):
    target, errors = gaussian(device), []
    model = ExactScoreModel(target, sde)
    grid = inner_grid(sde, 1, "time")
    start, end = (sde.level(t.to(device)) for t in grid)
    x_T = start.sigma * noise_for(16, device).normal(0, (3,), torch.float64)
    exact = target.probability_flow(x_T, (start.alpha, start.sigma), (end.alpha, end.sigma))
    for tolerance in (1e-3, 1e-6, 1e-9):
        result = ProbabilityFlow(tolerance, tolerance).run(model, x_T, grid, noise_for(16, device))
        errors.append((result - exact).abs().max().item())
        assert errors[-1] < 30 * tolerance
    assert errors[0] > 30 * errors[1] > 900 * errors[2]


# --- equalities -----------------------------------------------------------------------------------------------------


def test_ancestral_sampling_is_ddim_at_eta_one(sde):
    grid = Ancestral().default_grid(sde, 20)
    first, second = Ancestral().table(sde, grid), DDIM(eta=1.0).table(sde, grid)
    for part in "abc":  # written differently, so equal but for rounding
        torch.testing.assert_close(getattr(first, part), getattr(second, part), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_ancestral_sampling_of_a_chain_is_ddpm(variance, device):
    """Ho et al. 2020, algorithm 2, written out: mean of equation 11, variance betatilde or beta."""
    sde = DiscreteVPSDE(num_levels=50, beta_start=1e-3, beta_end=0.2)
    model = ExactScoreModel(mixture(device), sde)
    betas = sde.betas()
    alpha_bar = (1 - betas).cumprod(0)
    noise = noise_for(32, device)
    x = x_T = noise.normal(0, (2,), torch.float64)
    for row, i in enumerate(range(49, -1, -1)):
        beta, abar = betas[i].item(), alpha_bar[i].item()
        abar_before = alpha_bar[i - 1].item() if i else 1.0
        eps_hat = model.noise(x, (i + 1) / 50)
        x = (x - beta / (1 - abar) ** 0.5 * eps_hat) / (1 - beta) ** 0.5
        if i:
            added = beta if variance == "beta" else beta * (1 - abar_before) / (1 - abar)
            x = x + added**0.5 * noise.normal(row + 1, (2,), torch.float64)
    ours = Ancestral(variance).run(model, x_T, uniform_time(sde, 50), noise)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-12)


def test_ancestral_sampling_of_a_ladder_is_smlds(device):
    """Song et al. 2021, appendix F: x + (s_i^2 - s_{i-1}^2) score + sqrt(s_{i-1}^2 (s_i^2 - s_{i-1}^2) / s_i^2) z."""
    sde = VESDE()
    model, noise = ExactScoreModel(mixture(device), sde), noise_for(32, device)
    grid = uniform_time(sde, 40)[:-1]
    sigmas = sde.sigma(grid).tolist()
    x = x_T = sigmas[0] * noise.normal(0, (2,), torch.float64)
    for row, (t, high, low) in enumerate(zip(grid.tolist(), sigmas, sigmas[1:], strict=False)):
        gap = high**2 - low**2
        z = noise.normal(row + 1, (2,), torch.float64)
        x = x + gap * model.score(x, t) + (low**2 * gap / high**2) ** 0.5 * z
    ours = Ancestral().run(model, x_T, grid, noise)
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


def test_the_norm_rule_is_song_et_als(device):
    """Song et al. 2021, algorithm 4, on VE: e = 2 (snr |z| / |score|)^2 with mean norms over the batch."""
    sde, snr = VESDE(), 0.16
    model, noise = ExactScoreModel(mixture(device), sde), noise_for(32, device)
    grid = uniform_time(sde, 6)[:-1]
    x = x_T = 50 * noise.normal(0, (2,), torch.float64)
    for row, t in enumerate(grid[1:].tolist()):
        score, z = model.score(x, t), noise.normal(row + 1, (2,), torch.float64)
        size = 2 * (snr * z.norm(dim=1).mean() / score.norm(dim=1).mean()) ** 2
        x = x + size * score + (2 * size) ** 0.5 * z
    ours = NormPredictorCorrector(predictor=None, snr=snr).run(model, x_T, grid, noise)
    torch.testing.assert_close(ours, x, rtol=1e-10, atol=1e-10)


def test_the_corrector_may_come_first(sde):
    grid = ReverseDiffusion().default_grid(sde, 6)
    table = PredictorCorrector(corrector_first=True, snr=0.2).table(sde, grid)
    level = sde.level(grid[:-1])
    assert torch.equal(table.level.t[::2], level.t)  # corrected where the predictor starts from
    assert torch.equal(table.level.t[1:-1:2], level.t[:-1])
    torch.testing.assert_close(table.a[:-1:2], torch.full((5,), 1 - 2 * 0.2**2, dtype=torch.float64))


def test_reverse_diffusion_is_song_et_als_on_a_chain(device):
    """Song et al. 2021, equation 46 and appendix E: x + (1 - sqrt(1 - beta)) x + beta score + sqrt(beta) z."""
    sde = DiscreteVPSDE(num_levels=50, beta_start=1e-3, beta_end=0.2)
    model, noise, betas = ExactScoreModel(mixture(device), sde), noise_for(32, device), sde.betas()
    x = x_T = noise.normal(0, (2,), torch.float64)
    for row, i in enumerate(range(49, 0, -1)):
        beta = betas[i].item()
        z = noise.normal(row + 1, (2,), torch.float64)
        x = (2 - (1 - beta) ** 0.5) * x + beta * model.score(x, (i + 1) / 50) + beta**0.5 * z
    ours = ReverseDiffusion().run(model, x_T, uniform_time(sde, 50)[:-1], noise)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-10)


def test_annealed_langevin_is_smld(device):
    """Song and Ermon 2019, algorithm 1: steps e sigma_i^2 / sigma_L^2, here with e / 2 = 2 (snr sigma_L)^2."""
    sde, snr = VESDE(), 0.2
    model, noise = ExactScoreModel(mixture(device), sde), noise_for(32, device)
    grid = uniform_time(sde, 8)[:-1]
    sigmas = sde.sigma(grid[1:]).tolist()
    e = 4 * (snr * sigmas[-1]) ** 2
    x = x_T = 50 * noise.normal(0, (2,), torch.float64)
    row = 0
    for t, sigma in zip(grid[1:].tolist(), sigmas, strict=True):
        step = e * sigma**2 / sigmas[-1] ** 2
        for _ in range(3):
            row += 1
            x = x + step / 2 * model.score(x, t) + step**0.5 * noise.normal(row, (2,), torch.float64)
    ours = AnnealedLangevin(snr, corrector_steps=3).run(model, x_T, grid, noise)
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def test_annealed_langevin_is_predictor_corrector_without_the_predictor(sde):
    grid = AnnealedLangevin().default_grid(sde, 9)
    both = PredictorCorrector(DDIM(), snr=0.3, corrector_steps=2).table(sde, grid)
    alone = AnnealedLangevin(snr=0.3, corrector_steps=2).table(sde, grid)
    corrector = torch.tensor([row % 3 != 0 for row in range(len(both))])
    corrector[-1] = True  # the last row is the denoiser in both
    for part in "abc":
        assert torch.equal(getattr(both, part)[corrector], getattr(alone, part))
    predictor = DDIM().table(sde, grid)
    assert torch.equal(both.a[::3], predictor.a)


@pytest.mark.parametrize("sampler", [DDIM(), Heun(), Ancestral(), ProbabilityFlow(1e-9, 1e-9)], ids=name)
def test_vp_and_ve_are_the_same_up_to_scale(sampler, device):
    vp, ve = VPSDE(), VESDE(sigma_min=0.001, sigma_max=200.0)
    target = mixture(device)
    grid = inner_grid(vp, 25, "log_snr", first=50.0, last=0.01)
    grid_ve = ve.time(vp.log_snr(grid))
    clean, clean_ve = (torch.cat([g, g.new_zeros(1)]) for g in (grid, grid_ve))
    noise = noise_for(32, device)
    x_T = noise.normal(0, (2,), torch.float64)
    result = sampler.run(ExactScoreModel(target, vp), x_T, clean, noise)
    result_ve = sampler.run(ExactScoreModel(target, ve), x_T / vp.alpha(grid[0]).item(), clean_ve, noise)
    torch.testing.assert_close(result_ve, result, rtol=1e-6, atol=1e-6)


def test_heun_rows_are_heun_written_out(device):
    sde = VPSDE()
    model, noise = ExactScoreModel(mixture(device), sde), noise_for(8, device)
    grid = inner_grid(sde, 4, "log_snr")
    x = x_T = noise.normal(0, (2,), torch.float64)
    for t, s in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        start, end = (Level(*(p.item() for p in sde.level(torch.tensor(v, dtype=torch.float64)))) for v in (t, s))
        rise = end.sigma / end.alpha - start.sigma / start.alpha
        slope = model.noise(x, t)
        stage = end.alpha * (x / start.alpha + rise * slope)
        x = end.alpha * (x / start.alpha + rise * (slope + model.noise(stage, s)) / 2)
    torch.testing.assert_close(Heun().run(model, x_T, grid, noise), x, rtol=0, atol=1e-12)


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [s for s in TABLES if isinstance(s, StepSampler)], ids=name)
def test_rows_are_evaluations_and_the_last_row_is_the_denoiser(sde, sampler):
    grid = sampler.default_grid(sde, 7)
    table = sampler.table(sde, grid)
    calls = []
    model = ExactScoreModel(mixture(), sde)
    sampler.run(model, torch.zeros(2, 2, dtype=torch.float64), grid, noise_for(2), callback=lambda *a: calls.append(a))
    assert len(calls) == len(table) == sampler.num_evaluations(sde, grid)
    assert (table.a[-1], table.b[-1, 0], table.c[-1]) == (0, 1, 0)
    inside = (table.level.t >= sde.t_min * (1 - 1e-9)) & (table.level.t <= sde.t_max)
    assert inside.all()
    assert len(str(table).splitlines()) == len(table) + 1


@pytest.mark.parametrize("sampler", TABLES, ids=name)
def test_declared_noise_is_what_the_table_has(sde, sampler):
    table = sampler.table(sde, sampler.default_grid(sde, 7))
    assert (table.c[:-1] > 0).any() == (sampler.noise != "none")


@pytest.mark.parametrize(
    "sampler", [s for s in SAMPLERS if not isinstance(s, ProbabilityFlow | Trigonometric)], ids=name
)
def test_one_step_is_the_denoiser_at_t_max(sde, sampler):
    model = ExactScoreModel(mixture(), sde)
    x = sample(model, sampler, 3, num_steps=1).x
    x_T = sde.prior_std() * noise_for(3).normal(0, (2,), torch.float64)
    torch.testing.assert_close(x, model.denoise(x_T, sde.t_max))


# --- sampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "sde", "shape", "dtype"),
    pairwise(SAMPLERS, list(SDES.values()), [(2,), (2, 3, 5)], [torch.float32, torch.float64]),
)
def test_the_product_of_everything_runs(sampler, sde, shape, dtype, device):
    target = mixture(device, shape).to(dtype=dtype)
    steps = None if isinstance(sampler, ProbabilityFlow) else 8
    x, nfe = sample(ExactScoreModel(target, sde), sampler, 3, num_steps=steps)
    assert x.shape == (3, *shape)
    assert x.dtype == dtype
    assert x.isfinite().all()
    assert nfe > 7


@pytest.mark.parametrize("sampler", BATCH_FREE, ids=name)
def test_a_sample_is_the_same_for_every_batch_size(sampler, device):
    model = ExactScoreModel(mixture(device), VPSDE())
    settings = {"num_steps": None if isinstance(sampler, ProbabilityFlow) else 10, "seed": 3}
    together = sample(model, sampler, 7, **settings).x
    apart = sample(model, sampler, 7, batch_size=3, **settings).x
    halves = torch.cat([sample(model, sampler, n, first_index=i, **settings).x for i, n in ((0, 4), (4, 3))])
    # adaptive steps are shared by a batch: equal within the tolerance only
    tolerance = 1e-2 if isinstance(sampler, ProbabilityFlow) else 1e-10
    torch.testing.assert_close(apart, together, rtol=0, atol=tolerance)
    torch.testing.assert_close(halves, together, rtol=0, atol=tolerance)
    assert not torch.allclose(sample(model, sampler, 7, **(settings | {"seed": 4})).x, together)


@pytest.mark.parametrize("sampler", [s for s in TABLES if s.noise != "path"], ids=name)
def test_a_sample_is_bitwise_the_same_for_batches_of_1_7_and_64(sampler, device):
    """Noise and loop, that is; a network's kernels differ with the batch, and its samples by rounding."""
    sde = VPSDE()
    plain = CallableScoreModel(lambda x, t: 0.3 * x, NoiseParametrization(), sde, (3, 4), device)
    network = NetworkScoreModel(MLP(2, 32, 2), sde, EDMParametrization(0.5), (2,)).to(device)
    for model, tolerance in ((plain, 0.0), (network, 1e-5)):
        in_ones, in_sevens, together = (
            sample(model, sampler, 64, num_steps=8, seed=3, batch_size=size).x for size in (1, 7, 64)
        )
        for other in (in_ones, in_sevens):
            torch.testing.assert_close(other, together, rtol=0, atol=tolerance)


def test_a_trajectory_holds_every_state_and_estimate(device):
    model = ExactScoreModel(mixture(device), VPSDE())
    trajectory = Trajectory()
    x, nfe = sample(model, Ancestral(), 5, num_steps=6, batch_size=2, callback=trajectory)
    assert trajectory.x_t.shape == trajectory.x0_hat.shape == (nfe, 5, 2)
    torch.testing.assert_close(trajectory.x0_hat[-1], x.cpu())
    torch.testing.assert_close(
        trajectory.x0_hat[2].to(device), model.denoise(trajectory.x_t[2].to(device), trajectory.t[2].item())
    )


def test_a_cuda_graph_needs_a_gpu_and_a_table():
    model = ExactScoreModel(mixture(), VPSDE())
    with pytest.raises(UsageError, match="cuda_graph=True: the model is on cpu"):
        sample(model, DDIM(), 3, num_steps=3, cuda_graph=True)
    for sampler, callback in ((ProbabilityFlow(), None), (SDEDPMSolverSingle(), None), (DDIM(), print)):
        with pytest.raises(UsageError, match=r"cuda_graph=True: .* need a table without path noise, and no callback"):
            sample(model, sampler, 3, callback=callback, cuda_graph=True)


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", [s for s in TABLES if s.noise != "path"], ids=name)
def test_a_replayed_graph_gives_the_same_samples(sampler, device):
    network = MLP(2, 32, 2, num_classes=3)
    model = NetworkScoreModel(network, VPSDE(), EDMParametrization(0.5), (2,)).to(device)
    settings = {"num_steps": 8, "batch_size": 4, "cond": [i % 3 for i in range(10)]}
    plain, graphed = (sample(model, sampler, 10, cuda_graph=graph, **settings).x for graph in (False, True))
    assert torch.equal(plain, graphed)


def test_a_condition_may_be_a_list_or_one_number():
    seen = []

    def predict(x, t, cond):
        seen.append(cond.tolist())
        return -x

    model = CallableScoreModel(predict, ScoreParametrization(), VPSDE(), shape=(2,))
    sample(model, DDIM(), 3, num_steps=1, cond=[2, 0, 1])
    sample(model, DDIM(), 3, num_steps=1, cond=7)
    assert seen == [[2, 0, 1], [7, 7, 7]]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=name)
def test_nfe_is_the_number_of_times_the_model_was_asked(sampler):
    asked = []
    model = CallableScoreModel(lambda x, t: asked.append(1) or -x, ScoreParametrization(), VPSDE(), shape=(2,))
    steps = None if isinstance(sampler, ProbabilityFlow) else 6
    _, nfe = sample(model, sampler, 4, num_steps=steps)
    assert nfe == len(asked)
    assert sampler.num_evaluations(VPSDE(), sampler.default_grid(VPSDE(), steps)) in (nfe, None)


def test_the_configuration_reaches_the_corrector():
    config = default.get_config()
    config.sampling.pc.corrector_first = True
    assert build_sampler(config, "pc", None) == PredictorCorrector(corrector_first=True)
    config.sampling.langevin.step = "norm"
    config.sampling.langevin.snr = 0.2
    assert build_sampler(config, "langevin", None) == NormPredictorCorrector(None, snr=0.2)
    config.sampling.pc.step = "norm"
    with pytest.raises(UsageError, match=r"config\.sampling\.pc: .*corrector_first"):
        build_sampler(config, "pc", None)
    config.sampling.pc.step = "both"
    with pytest.raises(UsageError, match=r"config\.sampling\.pc\.step='both'"):
        build_sampler(config, "pc", None)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=name)
def test_sampling_leaves_the_random_state_alone(sampler):
    before = torch.get_rng_state()
    sample(ExactScoreModel(mixture(), VPSDE()), sampler, 2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("sde", [VPSDE(), SDES["edm"]], ids=name)
@pytest.mark.parametrize("sampler", MOVING, ids=name)
def test_samples_of_a_gaussian_have_its_moments(sde, sampler, device):
    target = gaussian(device)
    steps = None if isinstance(sampler, ProbabilityFlow) else 200
    x = sample(ExactScoreModel(target, sde), sampler, 4000, num_steps=steps, batch_size=4000).x.cpu()
    mean, rotation, variances = (
        part[0].cpu() for part in (target.mixture.means, target.mixture.rotations, target.mixture.variances)
    )
    z = (x - mean) @ rotation.T / variances.sqrt()
    # 4000 samples: means within 5/sqrt(4000) = 0.08, deviations within 5/sqrt(8000) = 0.056, and the steps' own bias
    assert z.mean(0).abs().max() < 0.12
    assert (z.std(0) - 1).abs().max() < 0.12


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
@pytest.mark.parametrize("sde", [n for n in SDES if n != "own"])
def test_mode_weights_and_widths_of_the_nine_modes(sde, sampler):
    result = mixture_samplers.measure(sde, sampler)
    assert result.weight_error <= (0.05 if sampler == "langevin" else 0.03)
    assert result.narrowest >= 0.9
    assert result.widest <= 1.1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_steps": 3, "grid": torch.tensor([1.0, 0.0])}, "num_steps, grid"),
        ({"cond": torch.zeros(3)}, "cond of length 3"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments_of_sample_are_named(arguments, complaint):
    model = ExactScoreModel(mixture(), VPSDE())
    with pytest.raises(UsageError, match=complaint):
        sample(model, DDIM(), **({"num_samples": 2} | arguments))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: DDIM(eta=1.5), "eta=1.5"),
        (lambda: EulerMaruyama(eta=-1), "eta=-1"),
        (lambda: Ancestral(variance="both"), "variance='both'"),
        (lambda: PredictorCorrector(snr=0), "snr=0"),
        (lambda: AnnealedLangevin(snr=1.0), "snr=1.0"),
        (lambda: PredictorCorrector(corrector_steps=0), "corrector_steps=0"),
        (lambda: ProbabilityFlow(rtol=0), "rtol=0"),
        (lambda: ProbabilityFlow().default_grid(VPSDE(), 50), "num_steps=50"),
        (lambda: PredictorCorrector(predictor=ProbabilityFlow()), "predictor="),
        (lambda: EulerMaruyama(eta=math.inf), "eta=inf"),
    ],
)
def test_bad_settings_of_samplers_are_named(make, complaint):
    with pytest.raises(UsageError, match=complaint):
        make()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=name)
def test_samplers_are_frozen(sampler):
    with pytest.raises((dataclasses.FrozenInstanceError, AttributeError)):
        sampler.order = 7


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", TABLES, ids=name)
def test_the_loop_never_waits_for_the_device(sampler, device):
    model, sde = ExactScoreModel(mixture(device), VPSDE()), VPSDE()
    grid, noise = sampler.default_grid(sde, 8), noise_for(4, device)
    x_T = noise.normal(0, (2,), torch.float64)
    table = sampler.table(sde, grid)
    table.level.like(x_T)  # the copy of the levels happens before the loop
    torch.cuda.synchronize()
    calls = []

    def watch(row, level, x_t, x0_hat):  # from the first evaluation on, any wait is an error
        calls.append(row)
        torch.cuda.set_sync_debug_mode("error")

    try:
        sampler.run(model, x_T, grid, noise, callback=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(calls) == len(table)


LABEL_MISTAKES = [(3, "from 3 to 3"), (-1, "from -1"), ([0.5] * 4, "float"), ([[1]] * 4, "shape")]


@pytest.mark.parametrize(("cond", "shown"), LABEL_MISTAKES)
def test_labels_that_a_network_does_not_know_are_named(cond, shown):
    model = NetworkScoreModel(MLP(2, 8, 1, num_classes=3), VPSDE(), NoiseParametrization(), (2,))
    with pytest.raises(UsageError, match=f"{shown}.*whole numbers from 0 to 2"):
        sample(model, DDIM(), 4, num_steps=2, cond=cond)
    plain = NetworkScoreModel(MLP(2, 8, 1), VPSDE(), NoiseParametrization(), (2,))
    with pytest.raises(UsageError, match="num_classes=0"):
        sample(plain, DDIM(), 4, num_steps=2, cond=1)


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: model.under(VESDE())], ids=["itself", "under"])
def test_sampling_is_in_evaluation_mode_and_leaves_the_mode(wrap):
    class Moody(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(2)

        def forward(self, x, c_noise, cond=None):
            return self.norm(x)

    model = NetworkScoreModel(Moody(), VPSDE(), NoiseParametrization(), (2,)).train()
    first = sample(wrap(model), DDIM(), 4, num_steps=3).x
    assert torch.equal(first, sample(wrap(model), DDIM(), 4, num_steps=3).x)
    assert model.network.norm.num_batches_tracked == 0
    assert model.training


def test_a_class_or_a_name_for_a_sampler_is_named():
    model = ExactScoreModel(mixture(), VPSDE())
    for sampler in (DDIM, "ddim"):
        with pytest.raises(UsageError, match=r"need a sampler object, such as DDIM\(\)"):
            sample(model, sampler, 3)
    with pytest.raises(UsageError, match="need a ScoreModel"):
        sample(MLP(2), DDIM(), 3)


@pytest.mark.parametrize("num_steps", [2, 3, 5, 7, 10, 20])
@pytest.mark.parametrize("sampler", [Ancestral(), Ancestral("beta"), ReverseDiffusion()], ids=name)
def test_few_steps_stay_near_the_data(sde, sampler, num_steps):
    """score_sde's VP is NaN below 20 steps; here the RMS is within 1.5 times the data's from 10 steps on, 10 below.

    Reverse diffusion and DDPM's larger variance add the forward step's noise, which in 2 or 3 steps from 50 or 80 times
    the data's scale is what remains: so few are refused.
    """
    if num_steps <= sampler.min_steps:  # and one for the last step
        with pytest.raises(UsageError, match=f"num_steps={num_steps}: .* needs at least 5"):
            sample(ExactScoreModel(mixture(), sde), sampler, 5, num_steps=num_steps)
        return
    target = mixture()
    x = sample(ExactScoreModel(target, sde), sampler, 500, num_steps=num_steps).x
    rms = target.sample(5000, torch.Generator().manual_seed(0)).square().mean().sqrt()
    assert x.square().mean().sqrt() < (1.5 if num_steps >= 10 else 10) * rms


@pytest.mark.parametrize("grid", [uniform_log_snr, power_phi, quadratic_time, uniform_time])
@pytest.mark.parametrize("sampler", TABLES, ids=name)
def test_few_steps_are_finite(sde, sampler, grid):
    for num_steps in (1, sampler.min_steps + 1, sampler.min_steps + 2):
        assert sample(ExactScoreModel(mixture(), sde), sampler, 20, grid=grid(sde, num_steps)).x.isfinite().all()


def test_a_predictor_on_a_path_is_refused():
    with pytest.raises(UsageError, match="needs path noise, and a corrector's is independent"):
        PredictorCorrector(predictor=SDEDPMSolverSingle())


def test_too_few_steps_are_named():
    with pytest.raises(UsageError, match=r"num_steps=3: DEIS\(order=3\) needs at least 4"):
        sample(ExactScoreModel(mixture(), VPSDE()), DEIS(3), 3, num_steps=3)
