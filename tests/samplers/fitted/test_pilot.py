"""A sampler fitted by a pilot run: what it costs, and that it is better than one that knows nothing of the model."""

from __future__ import annotations

import math

import pytest
import torch

from samplers import Trigonometric, fit_sampler, phi_to_clean, reference_coupling, sample
from samplers.fitted.pilot import NUM_EVALUATIONS, NUM_STEPS
from samplers.fitted.reference import COARSE, DENSE
from scoresde import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    CallableScoreModel,
    DenoisedParametrization,
    EDMParametrization,
    ExactScoreModel,
    Gaussian,
    NetworkScoreModel,
    Noise,
    UsageError,
)
from tests.analytic import SDES, mixture


def test_a_pilot_costs_what_is_promised(counted_pilot):
    sampler, evaluations = counted_pilot
    assert evaluations == NUM_EVALUATIONS <= 400
    assert list(sampler.tables) == list(NUM_STEPS)


def draws(model, sampler, grid):
    """Samples from noise that no pilot saw."""
    return sampler.prepare(model, grid).draw(Noise(9, torch.arange(200))).x


@pytest.mark.parametrize("num_steps", [5, 8, 12, 20, 40])
def test_fitted_tables_are_better_than_fixed_ones(model, piloted, num_steps):
    """By the median distance to the end of the converged flow. The fixed ones take 0.5 for the data's deviation."""
    same = CallableScoreModel(model.denoise, DenoisedParametrization(0.5), model.sde, (2,), dtype=torch.float64)
    fixed = draws(same, Trigonometric(), Trigonometric().grid(same, num_steps))
    fitted = draws(model, piloted, piloted.grid(model, num_steps))
    end = draws(model, Trigonometric(3), phi_to_clean(model.sde, 800, 2.0, 0.5))
    of_fitted, of_fixed = ((x - end).square().mean(1).sqrt().median() for x in (fitted, fixed))
    assert of_fitted < 0.8 * of_fixed


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), SDES["subvp"], SDES["flow"]], ids=["vp", "ve", "subvp", "flow"])
def test_every_path_has_its_pilot(sde, device):
    model = ExactScoreModel(mixture(device).to(dtype=torch.float32), sde)
    sampler = fit_sampler(model)
    x = sample(model, sampler, 500, num_steps=15).x
    truth = model.target.sample(5000, torch.Generator(device).manual_seed(0))
    torch.testing.assert_close(x.std(0), truth.std(0), rtol=0.1, atol=0.05)


def test_a_flow_that_stands_still_is_fitted(device):
    """A Gaussian of the scale that the pilot finds: h is zero, and least squares have nothing to say."""
    model = ExactScoreModel(Gaussian(torch.zeros(40), torch.eye(40)).to(device, torch.float64), VPSDE())
    assert sample(model, fit_sampler(model), 4, num_steps=6).x.isfinite().all()


@pytest.fixture
def short_pilot(monkeypatch):
    """One candidate is run at one number of steps, and two tables are made."""
    monkeypatch.setattr("samplers.fitted.pilot.TESTED", {5: ("equal",)})
    monkeypatch.setattr("samplers.fitted.pilot.NUM_STEPS", range(4, 6))


CONDITIONS = {
    "a number": (2, [2.0] * 32),
    "a tensor without dimensions": (torch.tensor(0.5), [0.5] * 32),
    "one entry": ([3], [3.0] * 32),
    "fewer than the samples": ([1, 2, 3], [1.0 + k % 3 for k in range(32)]),
    "as many as the samples": (torch.arange(1, 33) / 8, [(1 + k) / 8 for k in range(32)]),
    "more than the samples": (torch.arange(1, 81) / 16, [(1 + k * 80 // 32) / 16 for k in range(32)]),
}


@pytest.mark.parametrize(("given", "spread"), CONDITIONS.values(), ids=CONDITIONS.keys())
def test_any_number_of_conditions_is_spread_over_the_pilots_samples(short_pilot, given, spread):
    """By themselves and in a dict. Data under a condition have it for their deviation, and so have the samples."""
    seen = []

    def denoise(x, t, cond):
        std = cond["of"]["std"] if isinstance(cond, dict) else cond
        seen.append(std.tolist())
        std = std.to(x).view(-1, 1)
        return x * std**2 / (std**2 + t.view(-1, 1) ** 2)

    model = CallableScoreModel(denoise, DenoisedParametrization(), EDMSDE(), (16,))
    for cond in (given, {"of": {"std": given}, "strength": 0.5, "unused": None}):
        seen.clear()
        sampler = fit_sampler(model, cond)
        assert seen == [spread] * (COARSE + DENSE + 5), cond
        deviation = torch.tensor(spread).square().mean().sqrt().item()
        assert sampler.tables[5].sigma_data == pytest.approx(deviation, rel=0.15), cond  # of 512 entries
        own = sample(model, sampler, 32, num_steps=5, cond=torch.tensor(spread)).x
        assert own.std().item() == pytest.approx(deviation, rel=0.15), cond


REFUSED = {
    "a label that is none": (7, "labels from 7 to 7; need labels 0..2"),
    "one such among more": (torch.arange(40), "labels from 0 to 38; need labels 0..2"),
    "a negative label": ([0, -1], "labels from -1 to 0; need labels 0..2"),
    "fractions": (0.5, r"a tensor \(float32, \(32,\)\); need labels 0..2"),
    "vectors": (torch.zeros(3, 2, dtype=torch.long), r"a tensor \(int64, \(32, 2\)\); need labels 0..2"),
    "a dict": ({"labels": 0}, r"cond\['labels'\] .*; need labels 0..2"),
    "nothing": (None, "no condition; need labels 0..2"),
    "no entries": ([], "is empty; give at least one entry"),
    "a word": ("cat", "cannot be converted to a tensor"),
    "parts of other lengths": ({"a": [0, 1], "b": [0, 1, 2]}, r"\['a'\] has 2, cond\['b'\] has 3"),
}


@pytest.mark.parametrize(("cond", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_condition_that_the_network_refuses_is_one_line(cond, message):
    """Said before anything is evaluated, by couplings too."""
    model = NetworkScoreModel(MLP(2, width=8, depth=1, num_classes=3), EDMSDE(), EDMParametrization(0.5), (2,))
    told = []
    for use in (
        lambda: fit_sampler(model, cond, on_evaluation=lambda: told.append(1)),
        lambda: reference_coupling(model, 0.5, cond, on_evaluation=lambda: told.append(1), num_samples=32),
    ):
        with pytest.raises(UsageError, match=f"^cond: .*{message}") as error:
            use()
        assert "\n" not in str(error.value)
    assert not told


def test_a_model_that_takes_no_condition_says_so(model):
    with pytest.raises(UsageError, match="cond: an exact model of one distribution takes none"):
        fit_sampler(model, 1)


def test_a_model_without_samples_is_named():
    broken = CallableScoreModel(lambda x, t: x * math.nan, DenoisedParametrization(), VPSDE(), (2,))
    with pytest.raises(UsageError, match="has it been trained"):
        fit_sampler(broken)
