"""Weighted particles draw the posterior, where the models alone draw something else."""

from __future__ import annotations

import pytest
import torch

from samplers import Ancestral, pilot_variance, sample, sample_particles
from scoresde import VESDE, VPSDE, ExactScoreModel, Gaussian, GaussianMixture, RectifiedFlowSDE, UsageError
from scoresde.inverse import DPS, MMPS, DiffPIR, PiGDM
from scoresde.operators import MatrixOperator
from tests.analytic import gaussian
from tests.inverse.problems import MODELS, STD, measurement, projection
from tests.operators.cases import randn

COUNT = 2000
LINE = MatrixOperator(torch.tensor([[1.0, -0.6]], dtype=torch.float64))
weighed = pytest.mark.parametrize("name", ["PiGDM", "MMPS", "MMPS, exact"])


def two_modes(device="cpu"):
    """A narrow and a wide mode of equal weight, which a measurement of `LINE` tells apart by its density alone."""
    means = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64, device=device)
    return GaussianMixture(torch.ones(2).to(means), means, torch.tensor([0.04, 0.25]).to(means))


@pytest.mark.parametrize(
    ("sde", "name"),
    [(VPSDE(), "PiGDM"), (VESDE(), "MMPS, exact"), (RectifiedFlowSDE(), "PiGDM"), (VPSDE(), "MMPS")],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_particles_find_the_weights_of_the_modes(sde, name, device):
    """Within 5 standard errors of half as many samples, level 6e-7; the same models without weights miss by far more.

    The steps leave a bias of 2 / their number, measured; 0.01 here, and the bound is 0.05.
    """
    prior, y = two_modes(device), torch.tensor([[0.35]], dtype=torch.float64, device=device)
    truth = prior.posterior(LINE, y[0], 0.2).weights[1].item()
    model = MODELS[name](ExactScoreModel(prior, sde), LINE, 0.2)
    found = sample_particles(model, 1, COUNT, num_steps=200, cond=y)
    bar = 5 * (truth * (1 - truth) / (COUNT / 2)) ** 0.5
    share = (found.x[0].sum(1) > 0).double().mean().item()
    assert abs(share - truth) < bar
    assert found.effective.min() > 0.4
    assert found.nfe == 200
    plain = sample(model, Ancestral(), COUNT, num_steps=50, cond=y.expand(COUNT, 1)).x
    assert abs((plain.sum(1) > 0).double().mean().item() - truth) > 2 * bar


def test_particles_of_an_exact_posterior_weigh_nearly_the_same(device):
    """And have its mean and variances, to 5 standard errors of half as many samples: level 4e-6.

    The steps leave a bias of 15 / their number in the mean, 0.08 deviations, and as much of the variance (measured).
    """
    prior, y = gaussian(device, (6,)), measurement().to(device)
    posterior = prior.posterior(projection(), y, STD)
    model = MMPS(ExactScoreModel(prior, VPSDE()), projection(), STD, None)
    found = sample_particles(model, 1, COUNT, num_steps=200, cond=y[None])
    assert found.effective.median() > 0.95
    axes = posterior.mixture.rotations[0]
    z = (found.x[0] - posterior.mixture.means[0]) @ axes.mT / posterior.mixture.variances[0].sqrt()
    assert (z.mean(0).abs() < 5 * (2 / COUNT) ** 0.5 + 0.08).all()
    assert ((z.var(0) - 1).abs() < 5 * (4 / COUNT) ** 0.5 + 0.08).all()


@weighed
def test_particles_of_a_problem_do_not_change_if_others_are_added(name, device):
    model = MODELS[name](ExactScoreModel(two_modes(device), VPSDE()), LINE, STD)
    y = randn(3, 1).to(device)
    alone = sample_particles(model, 1, 40, num_steps=15, cond=y[:1])
    together = sample_particles(model, 3, 40, num_steps=15, cond=y, batch_size=17)
    torch.testing.assert_close(together.x[:1], alone.x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(together.effective[:, :1], alone.effective, rtol=1e-9, atol=1e-9)
    again = sample_particles(model, 3, 40, num_steps=15, cond={"y": y})
    torch.testing.assert_close(again.x, together.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [DPS, DiffPIR])
def test_a_model_without_weights_is_named(make):
    model = make(ExactScoreModel(two_modes(), VPSDE()), LINE, STD)
    with pytest.raises(UsageError, match=f"model of {make.__name__}: gives no weights"):
        sample_particles(model, 1, 10, cond=torch.zeros(1, 1))


def test_a_model_with_weights_needs_a_measurement_a_problem():
    model = PiGDM(ExactScoreModel(two_modes(), VPSDE()), LINE, STD)
    with pytest.raises(UsageError, match="cond of length 3: need one entry a sample, 2"):
        sample_particles(model, 2, 10, cond=torch.zeros(3, 1))


def test_the_measured_variance_of_the_steps_takes_their_bias(device):
    """On N(0, I) it is the variance of the true step: what is not measured keeps its own, at 20 steps too.

    To 5 standard errors of the variance of half as many samples, level 6e-7; that of the bridge alone is too small.
    """
    prior = Gaussian(torch.zeros(2, dtype=torch.float64, device=device), torch.ones(2, device=device).double())
    seen = MatrixOperator(torch.tensor([[1.0, 0.0]], dtype=torch.float64, device=device))
    exact = ExactScoreModel(prior, VPSDE())
    y = torch.zeros(1, 1, dtype=torch.float64, device=device)
    errors = []
    for variance in (None, pilot_variance(exact, intervals=1)):
        x = sample_particles(PiGDM(exact, seen, 0.3), 1, COUNT, num_steps=20, cond=y, variance=variance).x[0]
        errors.append(abs(x[:, 1].var().item() - 1))
    bar = 5 * (2 / (COUNT / 2)) ** 0.5
    assert errors[1] < bar < errors[0]
    with pytest.raises(UsageError, match="variance: differs from entry to entry"):
        sample_particles(PiGDM(exact, seen, 0.3), 1, 8, cond=y, variance=pilot_variance(exact, intervals=4))
