"""Predictor-corrector sampling: which predictors it takes, in which order, and Song et al.'s rule of norms."""

from __future__ import annotations

import pytest
import torch

from samplers import (
    NormPredictorCorrector,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    SDEDPMSolver,
    SDEDPMSolverSingle,
    Trigonometric,
    uniform_time,
)
from samplers.table import Loop
from scoresde import VESDE, VPSDE, DiscreteVPSDE, ExactScoreModel, Gaussian, UsageError
from scoresde.noise import Noise
from scoresde.sde import transition
from sde_configs import default
from sde_configs.build import build_sampler
from tests.analytic import mixture
from tests.convergence import inner_grid, noise_for
from tests.samplers_under_test import STEPS, name

BOTH = [PredictorCorrector, NormPredictorCorrector]


@pytest.mark.parametrize("kind", BOTH)
def test_a_method_that_is_not_one_step_is_refused_as_predictor(kind):
    for predictor in STEPS:
        if predictor.noise == "path":
            continue
        if predictor.one_step:
            assert kind(predictor=predictor).predictor == predictor
        else:
            with pytest.raises(UsageError, match="need a one-step method, such as ReverseDiffusion"):
                kind(predictor=predictor)


@pytest.mark.parametrize("kind", BOTH)
def test_a_predictor_on_a_path_is_refused(kind):
    with pytest.raises(UsageError, match=r"needs path noise, and a corrector's is independent; take SDEDPMSolver\(1\)"):
        kind(predictor=SDEDPMSolverSingle())
    assert kind(predictor=SDEDPMSolver(1)).predictor == SDEDPMSolver(1)  # the remedy works


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("predictor", [ProbabilityFlow(), Trigonometric(), "ddim"], ids=name)
def test_a_predictor_whose_steps_are_no_tables_is_refused(kind, predictor):
    with pytest.raises(UsageError, match=r"predictor=.*need a sampler that is a table"):
        kind(predictor=predictor)


def test_the_corrector_may_come_first(sde):
    model = ExactScoreModel(mixture(), sde)
    grid = ReverseDiffusion().default_grid(model, 6)
    table = PredictorCorrector(corrector_first=True, snr=0.2).table(model, grid)
    level = sde.level(grid[:-1])
    assert torch.equal(table.level.t[::2], level.t)  # corrected where the predictor starts from
    assert torch.equal(table.level.t[1:-1:2], level.t[:-1])
    torch.testing.assert_close(table.a[:-1:2], torch.full((5,), 1 - 2 * 0.2**2, dtype=torch.float64))


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


def test_the_norm_rule_with_a_predictor_written_out_on_a_chain(device):
    """Reverse diffusion's step, then e = 2 (1 - beta) (snr |z| / |score|)^2 at the level reached, beta the step's."""
    sde, snr = DiscreteVPSDE(num_levels=20, beta_start=1e-3, beta_end=0.2), 0.16
    model, noise = ExactScoreModel(mixture(device), sde), noise_for(32, device)
    grid = uniform_time(sde, 20)[:-1]
    betas = sde.variances().flip(0).tolist()  # of the step from grid[k] to grid[k + 1]
    x = x_T = noise.normal(0, (2,), torch.float64)
    for k, (t, s) in enumerate(zip(grid.tolist(), grid[1:].tolist(), strict=False)):
        z = noise.normal(2 * k + 1, (2,), torch.float64)
        x = (2 - (1 - betas[k]) ** 0.5) * x + betas[k] * model.score(x, t) + betas[k] ** 0.5 * z
        score, z = model.score(x, s), noise.normal(2 * k + 2, (2,), torch.float64)
        size = 2 * (1 - betas[k]) * (snr * z.norm(dim=1).mean() / score.norm(dim=1).mean()) ** 2
        x = x + size * score + (2 * size) ** 0.5 * z
    ours = NormPredictorCorrector(snr=snr).run(model, x_T, grid, noise)
    torch.testing.assert_close(ours, x, rtol=1e-10, atol=1e-10)


def test_a_corrected_step_is_the_predictors_step_and_then_langevins(sde, device):
    model, noise, snr = ExactScoreModel(mixture(device), sde), noise_for(16, device), 0.2
    grid = inner_grid(sde, 1, "log_snr")
    level = sde.level(grid)
    ratio, std = transition(level[1], level[0])
    x = x_T = level.sigma[0].item() * noise.normal(0, (2,), torch.float64)
    x = (2 - ratio.item()) * x + std.item() ** 2 * model.score(x, grid[0].item())
    x = x + std.item() * noise.normal(1, (2,), torch.float64)
    e = 2 * (snr * level.sigma[1].item()) ** 2
    x = x + e * model.score(x, grid[1].item()) + (2 * e) ** 0.5 * noise.normal(2, (2,), torch.float64)
    steps = PredictorCorrector(ReverseDiffusion(), snr=snr).steps(model, level[:1], level[1:])
    torch.testing.assert_close(Loop(steps, model, x_T)(x_T, noise), x, rtol=1e-10, atol=1e-10)


def test_the_configuration_reaches_the_corrector():
    config = default.get_config()
    config.sampling.pc.corrector_first = True
    assert build_sampler(config, "pc", None) == PredictorCorrector(corrector_first=True)
    config.sampling.norm_pc.snr = 0.2
    config.sampling.norm_pc.corrector_steps = 3
    assert build_sampler(config, "norm_pc", None) == NormPredictorCorrector(snr=0.2, corrector_steps=3)
    config.sampling.pc.step = "norm"
    with pytest.raises(UsageError, match=r"config\.sampling\.pc: .*step"):
        build_sampler(config, "pc", None)


def test_large_steps_of_leimkuhler_and_matthews_keep_the_variance_of_a_gaussian(device):
    """100 corrections of snr 0.5 at one level of a standard normal. Euler's have the variance V = 1 + snr^2.

    The steps are h = 2 snr^2 / V, and V = 1 / (1 - h / 2).
    """
    target = Gaussian(torch.zeros(2, dtype=torch.float64, device=device), torch.ones(2, device=device).double())
    model = ExactScoreModel(target, VPSDE())
    grid = torch.tensor([0.31, 0.3], dtype=torch.float64)
    noise = Noise(0, torch.arange(8000, device=device))
    x_T = Noise(1, torch.arange(8000, device=device)).normal(0, (2,), torch.float64)
    variances = {}
    for scheme in ("euler", "leimkuhler_matthews"):
        sampler = NormPredictorCorrector(snr=0.5, corrector_steps=100, scheme=scheme)
        variances[scheme] = sampler.run(model, x_T, grid, noise).var().item()
    assert variances["leimkuhler_matthews"] == pytest.approx(1.0, abs=0.04)
    assert variances["euler"] == pytest.approx(1.25, abs=0.04)
    with pytest.raises(UsageError, match="scheme='heun'"):
        NormPredictorCorrector(scheme="heun")
