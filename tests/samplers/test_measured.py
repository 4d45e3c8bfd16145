"""Samplers that use a measurement themselves: what they hold fast, for every sample alone, and what they refuse."""

from __future__ import annotations

import itertools

import pytest
import torch

from samplers import (
    DDIM,
    DDRM,
    Ancestral,
    AnnealedLangevin,
    Heun,
    ProbabilityFlow,
    RePaint,
    Replacement,
    SDEDPMSolver,
    SplitGibbs,
    Trajectory,
    sample,
    uniform_log_snr,
)
from scoresde import VESDE, VPSDE, ExactScoreModel, Gaussian, UsageError
from scoresde.inverse import MMPS, MeasuredModel
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
from tests.analytic import mixture
from tests.inverse.problems import PATHS
from tests.operators.cases import randn
from tests.samplers_under_test import BATCH_FREE, SAMPLERS, name, steps_of

paths = pytest.mark.parametrize("sde", PATHS.values(), ids=PATHS)
SHAPE = (2, 2, 2)
MASK = Mask.random(SHAPE, 0.5)
OWN = [Replacement(), Replacement(DDIM()), Replacement(RePaint(2, 3)), DDRM(), DDRM(0.5, 0.7), SplitGibbs()]
own = pytest.mark.parametrize("sampler", OWN, ids=str)


def measured(operator=MASK, noise=0.0, sde=None, device="cpu", shape=SHAPE):
    """A mixture that is measured."""
    return MeasuredModel(ExactScoreModel(mixture(device, shape), sde or VPSDE()), operator, noise)


def given(operator, count, device="cpu"):
    """A measurement for each sample."""
    return randn(count, *operator.measured_shape, seed=3).to(device)


# --- replacement ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if not isinstance(s, ProbabilityFlow)], ids=name)
def test_every_sampler_ends_with_what_is_known(sampler, device):
    """To the bit under a mask; a sampler that ends above noise level 0 holds it at that level's noise."""
    model, y = measured(device=device), given(MASK, 5, device)
    drawn_samples = sample(model, Replacement(sampler), 5, num_steps=steps_of(sampler, 8), cond=y)
    assert drawn_samples.x.isfinite().all()
    known = model.operator(drawn_samples.x)
    if isinstance(sampler, AnnealedLangevin):
        assert (known - y).abs().max() < 6 * model.sde.sigma(torch.tensor(model.sde.t_end))
    else:
        assert torch.equal(known, y)


@pytest.mark.parametrize("operator", [Grey(SHAPE), BlockAverage(SHAPE, 2), MatrixOperator(randn(3, 8), SHAPE)], ids=str)
def test_averages_and_projections_hold_too(operator, device):
    model = measured(operator, device=device)
    y = given(operator, 5, device)
    for sampler in (Ancestral(), Heun(), RePaint(2, 2)):
        x = sample(model, Replacement(sampler), 5, num_steps=6, cond=y).x
        torch.testing.assert_close(model.operator(x), y, rtol=1e-11, atol=1e-11)


@paths
@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("sampler", [Ancestral(), DDIM(), SDEDPMSolver(2)], ids=name)
def test_what_is_known_has_the_noise_of_its_level(sampler, noise, sde, device):
    """At each level a mean alpha y and a deviation sigma, of which the measurement brings its own part.

    4 known entries of 1000 samples: mean and variance within 5 standard errors, level 1e-5 for all levels.
    """
    model, y = measured(noise=noise, sde=sde, device=device), given(MASK, 1, device)
    trajectory = Trajectory()
    sample(model, Replacement(sampler), 1000, num_steps=8, cond=y.expand(1000, -1), callback=trajectory)
    z = []
    for t, x_t in zip(trajectory.t[1:].tolist(), trajectory.x_t[1:], strict=True):
        level = sde.level(torch.tensor(t, dtype=torch.float64))
        left = level.noise_level.item() ** 2 - noise**2
        if left > 0:
            z.append((MASK(x_t) / level.alpha - y.cpu()) / left**0.5)
    assert len(z) >= 2
    for each in z:
        assert abs(each.mean().item()) < 5 / 4000**0.5
        assert abs(each.var().item() - 1) < 5 * (2 / 4000) ** 0.5
    fresh = torch.stack([(a * b).mean() for a, b in itertools.pairwise(z)])  # noise of neighbouring levels
    assert (fresh.abs() < 5 / 4000**0.5).all() if sampler.noise != "none" else (fresh > 0.8).all()


def test_a_hidden_entry_is_the_samplers_own(device):
    """Replacement of independent entries changes no other: hidden ones are those of the sampler alone."""
    prior = Gaussian(torch.zeros(SHAPE, device=device).double(), randn(*SHAPE).exp().to(device))
    model = MeasuredModel(ExactScoreModel(prior, VPSDE()), MASK, 0.0)
    x = sample(model, Replacement(Heun()), 5, num_steps=6, cond=given(MASK, 5, device)).x
    alone = sample(model.model, Heun(), 5, num_steps=6).x
    hidden = ~MASK.seen.to(device)
    torch.testing.assert_close(x[:, hidden], alone[:, hidden], rtol=1e-12, atol=1e-12)


# --- all of them ----------------------------------------------------------------------------------------------------


@own
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_sample_is_the_same_for_every_batch_size_and_seeds_repeat(sampler, noise, device):
    model, y = measured(noise=noise, device=device), given(MASK, 7, device)
    settings = {"num_steps": 8, "seed": 3}
    together = sample(model, sampler, 7, cond=y, **settings).x
    apart = sample(model, sampler, 7, cond=y, batch_size=3, **settings).x
    last = sample(model, sampler, 3, cond=y[4:], first_index=4, **settings).x
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-10)
    torch.testing.assert_close(last, together[4:], rtol=0, atol=1e-10)
    assert torch.equal(sample(model, sampler, 7, cond=y, **settings).x, together)
    assert not torch.allclose(sample(model, sampler, 7, cond=y, **(settings | {"seed": 4})).x, together, atol=0.01)


@pytest.mark.parametrize("sampler", [s for s in BATCH_FREE if not isinstance(s, ProbabilityFlow)][::5], ids=name)
def test_replacement_does_not_mix_samples_whatever_the_sampler(sampler, device):
    model, y = measured(noise=0.1, device=device), given(MASK, 5, device)
    together = sample(model, Replacement(sampler), 5, num_steps=8, cond=y).x
    apart = sample(model, Replacement(sampler), 5, num_steps=8, cond=y, batch_size=2).x
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-10)


@own
def test_evaluations_are_counted_and_shown(sampler, device):
    model, rows = measured(noise=0.1, device=device), []

    def callback(row, level, x_t, x0_hat):
        rows.append(row)
        torch.testing.assert_close(x0_hat, model.model.denoise_at(x_t, level), rtol=1e-9, atol=1e-9)

    found = sample(model, sampler, 3, num_steps=7, cond=given(MASK, 3, device), callback=callback)
    assert rows == list(range(found.nfe))
    assert sampler.num_evaluations(model, sampler.grid(model, 7)) == found.nfe


@own
@pytest.mark.parametrize("to_clean", [True, False])
def test_a_projection_has_the_last_word(sampler, to_clean, device):
    model, seen = measured(noise=0.1, device=device), []
    grid = uniform_log_snr(model.sde, 7)
    grid = grid if to_clean else grid[:-1]

    def project(row, level, x):
        seen.append(level.t.item())
        return x.clamp(-0.4, 0.4)

    x = sample(model, sampler, 3, grid=grid, cond=given(MASK, 3, device), project=project).x
    assert x.abs().max() <= 0.4
    assert seen[-1] == pytest.approx(grid[-1].item())


@pytest.mark.parametrize("sampler", [each for each in OWN if each != DDRM(0.5, 0.7)], ids=str)
def test_a_grid_that_ends_above_zero_gives_noisy_states(sampler, device):
    """The known entries of 2000 samples have the noise of its last level: within 5 standard errors, level 6e-7."""
    model, y = measured(device=device), given(MASK, 1, device)
    grid = uniform_log_snr(model.sde, 12)[:8]
    x = sample(model, sampler, 2000, grid=grid, cond=y.expand(2000, -1)).x
    level = model.sde.level(grid[-1])
    z = (model.operator(x) - level.alpha * y) / level.sigma
    assert abs(z.var().item() - 1) < 5 * (2 / 8000) ** 0.5


@own
def test_a_posterior_model_may_stand_for_the_measured_one(sampler, device):
    """Then its own estimate is that of the steps."""
    model = MMPS(ExactScoreModel(mixture(device, SHAPE), VESDE()), MASK, 0.1)
    x = sample(model, sampler, 3, num_steps=6, cond=given(MASK, 3, device)).x
    assert x.isfinite().all()


CURVED = FunctionOperator(torch.sin, SHAPE)
LARGE = Blur((1, 40, 40), gaussian_kernel(1.0), "zeros")


@pytest.mark.parametrize("sampler", [Replacement(), DDRM(), SplitGibbs()], ids=str)
def test_a_model_without_a_measurement_is_named(sampler):
    with pytest.raises(UsageError, match=r"model of ExactScoreModel: .* wrap it, as in MeasuredModel\(model, operator"):
        sample(ExactScoreModel(mixture(), VPSDE()), sampler, 2)
    with pytest.raises(UsageError, match="cond: no condition; need the measurements"):
        sample(measured(), sampler, 2)


@pytest.mark.parametrize("sampler", [Replacement(), DDRM()], ids=str)
@pytest.mark.parametrize(
    ("operator", "noise", "message"),
    [
        (
            CURVED,
            0.1,
            r"operator=FunctionOperator\(2x2x2 to 2x2x2\): \w+ needs a linear operator with a known eigenbasis",
        ),
        (
            MASK,
            PoissonNoise(10.0),
            r"noise=PoissonNoise\(gain=10\.0, offset=1\.0\): \w+ needs Gaussian noise; MMPS, Pi",
        ),
        (LARGE, 0.1, r"operator=Blur\(1x40x40 to 1x40x40\): .* eigenbasis of A'A; MMPS, DPS and SplitGibbs take any"),
    ],
    ids=["curved", "counts", "no eigenbasis"],
)
def test_what_has_no_spectrum_is_refused_in_one_line(sampler, operator, noise, message):
    prior = Gaussian(torch.zeros(operator.shape), torch.ones(operator.shape))
    with pytest.raises(UsageError, match=message) as caught:
        sample(
            MeasuredModel(ExactScoreModel(prior, VPSDE()), operator, noise), sampler, 2, cond=given(operator, 2).float()
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: sample(measured(), Replacement(ProbabilityFlow()), 2, cond=torch.zeros(2, 4)),
            "project: ProbabilityFlow chooses its steps and has no rows to project after",
        ),
        (lambda: DDRM(eta=1.5), r"eta=1\.5: need 0 <= eta <= 1"),
        (lambda: DDRM(eta_b=-0.1), r"eta_b=-0\.1: need 0 <= eta_b <= 1"),
        (lambda: RePaint(repeats=0), "repeats=0: need at least 1"),
        (lambda: RePaint(jump=0), "jump=0: need at least 1"),
        (
            lambda: sample(measured(CURVED), SplitGibbs(), 2, cond=torch.zeros(2, *SHAPE)),
            "noise=0: SplitGibbs needs some for an operator that is not linear",
        ),
    ],
)
def test_a_mistake_is_named(make, message):
    with pytest.raises(UsageError, match=message):
        make()
