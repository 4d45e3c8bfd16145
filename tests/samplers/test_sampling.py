"""From a model and a sampler to samples: everything with everything, batch after batch, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch

from samplers import (
    DDIM,
    Ancestral,
    DPMSolver,
    Heun,
    NormPredictorCorrector,
    ProbabilityFlow,
    Trajectory,
    prepare,
    sample,
    uniform_time,
)
from scoresde import (
    MLP,
    VESDE,
    VPSDE,
    CallableScoreModel,
    EDMParametrization,
    ExactScoreModel,
    NetworkScoreModel,
    Noise,
    NoiseParametrization,
    ScoreParametrization,
    UsageError,
    WrappedModel,
)
from tests.analytic import SDES, mixture
from tests.convergence import noise_for
from tests.samplers_under_test import BATCH_FREE, SAMPLERS, TABLES, name, steps_of

SHAPES = [(2,), (2, 3, 5)]
DTYPES = [torch.float32, torch.float64]

# --- everything with everything -------------------------------------------------------------------------------------


def assert_it_runs(sampler, sde_name, shape, dtype, device):
    case = f"{sde_name}, {shape}, {dtype}"
    model = ExactScoreModel(mixture(device, shape).to(dtype=dtype), SDES[sde_name])
    x, nfe = sample(model, sampler, 3, num_steps=steps_of(sampler, 8))
    assert x.shape == (3, *shape), case
    assert x.dtype == dtype, case
    assert x.isfinite().all(), case
    assert nfe > 7, case


@pytest.mark.parametrize("sampler", SAMPLERS, ids=name)
def test_the_product_of_everything_runs(sampler, device):
    """Each sampler under each SDE; every pair of a shape, a type, a sampler and an SDE occurs."""
    first = SAMPLERS.index(sampler)
    for k, sde_name in enumerate(SDES):
        shape, dtype = SHAPES[(first + k) % 2], DTYPES[(first // 2 + k // 2) % 2]
        assert_it_runs(sampler, sde_name, shape, dtype, device)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS, ids=name)
def test_the_whole_product_runs(sampler, device):
    for sde_name, shape, dtype in itertools.product(SDES, SHAPES, DTYPES):
        assert_it_runs(sampler, sde_name, shape, dtype, device)


# --- batches and noise ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", BATCH_FREE, ids=name)
def test_a_sample_is_the_same_for_every_batch_size(sampler, device):
    model = ExactScoreModel(mixture(device), VPSDE())
    settings = {"num_steps": steps_of(sampler, 10), "seed": 3}
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


def test_sampling_leaves_the_random_state_alone():
    for sampler in SAMPLERS:
        before = torch.get_rng_state()
        sample(ExactScoreModel(mixture(), VPSDE()), sampler, 2)
        assert torch.equal(before, torch.get_rng_state()), sampler


@torch.no_grad()
def test_a_prepared_sampler_draws_what_sample_draws(sde, device):
    """To the bit, batch after batch of any size, and from a start of one's own; each sampler under two SDEs."""
    model = ExactScoreModel(mixture(device), sde)
    for sampler in SAMPLERS[list(SDES.values()).index(sde) % 4 :: 4]:
        num_steps = steps_of(sampler, 7)
        prepared = prepare(model, sampler, num_steps=num_steps)
        for first, count in ((0, 4), (4, 4), (8, 3)):
            noise = Noise(5, torch.arange(first, first + count, device=device))
            wanted = sample(model, sampler, count, num_steps=num_steps, seed=5, first_index=first)
            drawn = prepared.draw(noise)
            assert torch.equal(drawn.x, wanted.x), sampler
            assert drawn.nfe == wanted.nfe, sampler
        assert torch.equal(prepared(prepared.prior(noise), noise).x, wanted.x), sampler


def test_the_prior_has_the_noise_of_the_grids_first_time(sde, device):
    model, noise = ExactScoreModel(mixture(device), sde), noise_for(5, device)
    whole = prepare(model, DDIM(), num_steps=4)
    assert torch.equal(whole.prior(noise), sde.prior_std() * noise.normal(0, (2,), torch.float64))
    part = prepare(model, DDIM(), grid=whole.grid[2:])
    sigma = sde.sigma(whole.grid[2]).item()
    assert torch.equal(part.prior(noise), sigma * noise.normal(0, (2,), torch.float64))


def test_a_trajectory_holds_every_state_and_estimate(device):
    model = ExactScoreModel(mixture(device), VPSDE())
    trajectory = Trajectory()
    x, nfe = sample(model, Ancestral(), 5, num_steps=6, batch_size=2, callback=trajectory)
    assert trajectory.x_t.shape == trajectory.x0_hat.shape == (nfe, 5, 2)
    torch.testing.assert_close(trajectory.x0_hat[-1], x.cpu())
    torch.testing.assert_close(
        trajectory.x0_hat[2].to(device), model.denoise(trajectory.x_t[2].to(device), trajectory.t[2].item())
    )


def test_sample_projects_batch_after_batch(device):
    """The projection gets each batch, and what it returns is the sample."""
    model, sizes = ExactScoreModel(mixture(device), VPSDE()), []

    def project(row, level, x):
        sizes.append(len(x))
        return x.clamp(-0.5, 0.5)

    x, nfe = sample(model, DDIM(), 5, num_steps=6, batch_size=2, project=project)
    assert sizes == [2] * nfe + [2] * nfe + [1] * nfe
    assert x.abs().max() <= 0.5


# --- network evaluations --------------------------------------------------------------------------------------------


class CalledThrice(WrappedModel):
    """A model that asks another three times for each of its answers."""

    def __init__(self, model):
        super().__init__(model, calls=3)

    def denoise_at(self, x_t, level, cond=None):
        return sum(self.model.denoise_at(x_t, level, cond) for _ in range(3)) / 3


def test_nfe_is_the_number_of_times_the_network_was_called():
    calls = []
    model = CallableScoreModel(lambda x, t: calls.append(1) or -x, ScoreParametrization(), VPSDE(), shape=(2,))
    for asked in (model, CalledThrice(model), CalledThrice(CalledThrice(model))):
        for sampler in SAMPLERS:
            num_steps = steps_of(sampler, 6)
            calls.clear()
            _, nfe = sample(asked, sampler, 4, num_steps=num_steps)
            case = f"{sampler}, {asked.num_calls(model.sde.span())} calls for two levels"
            assert nfe == len(calls), case
            assert sampler.num_evaluations(asked, sampler.grid(asked, num_steps)) in (nfe, None), case


def test_the_evaluations_of_batches_are_those_of_the_one_that_took_most(device):
    model = ExactScoreModel(mixture(device), VPSDE())
    sampler = ProbabilityFlow(1e-7, 1e-7)
    each = [sample(model, sampler, 1, first_index=i).nfe for i in range(6)]
    assert min(each) < max(each)
    assert sample(model, sampler, 6, batch_size=1).nfe == max(each)


# --- conditions -----------------------------------------------------------------------------------------------------


def seeing(seen):
    """A model that writes down the conditions that it is given."""

    def predict(x, t, cond):
        seen.append(cond)
        return -x

    return CallableScoreModel(predict, ScoreParametrization(), VPSDE(), shape=(2,))


def test_a_condition_may_be_a_list_or_one_number():
    seen = []
    sample(seeing(seen), DDIM(), 3, num_steps=1, cond=[2, 0, 1])
    sample(seeing(seen), DDIM(), 3, num_steps=1, cond=7)
    assert [cond.tolist() for cond in seen] == [[2, 0, 1], [7, 7, 7]]


@pytest.mark.parametrize("sampler", [DDIM(), Heun(), NormPredictorCorrector(), ProbabilityFlow()], ids=name)
def test_a_dict_of_conditions_is_cut_like_the_batch(sampler):
    """Nested as deep as one likes: each evaluation of a batch sees the entries of its samples."""
    seen = []
    tokens, mask = torch.arange(10).reshape(5, 2), torch.arange(5) % 2 == 0
    cond = {"text": {"tokens": tokens, "mask": mask.tolist()}, "label": 3, "image": torch.ones(5, 1, 2, 2)}
    sample(seeing(seen), sampler, 5, num_steps=steps_of(sampler, 5), batch_size=2, cond=cond)
    firsts = [int(given["text"]["tokens"][0, 0]) // 2 for given in seen]
    assert sorted(set(firsts)) == [0, 2, 4]
    for first, given in zip(firsts, seen, strict=True):
        part = slice(first, min(first + 2, 5))
        assert given.keys() == cond.keys()
        assert torch.equal(given["text"]["tokens"], tokens[part])
        assert torch.equal(given["text"]["mask"], mask[part])
        assert torch.equal(given["label"], torch.full((len(tokens[part]),), 3))
        assert torch.equal(given["image"], torch.ones(len(tokens[part]), 1, 2, 2))


@pytest.mark.parametrize(
    ("cond", "complaint"),
    [
        ({"a": [1, 2], "b": {"c": [1, 2, 3]}}, r"cond\['a'\] has 2, cond\['b'\]\['c'\] has 3"),
        ({"a": {"b": torch.zeros(4, 2)}}, "cond of length 4: need one entry a sample, 3"),
        ({"a": {"b": "red"}}, r"cond\['a'\]\['b'\]: cannot be converted to a tensor"),
    ],
)
def test_parts_of_a_dict_that_do_not_fit_are_named(cond, complaint):
    with pytest.raises(UsageError, match=complaint):
        sample(seeing([]), DDIM(), 3, num_steps=1, cond=cond)


LABEL_MISTAKES = [(3, "from 3 to 3"), (-1, "from -1"), ([0.5] * 4, "float"), ([[1]] * 4, r"\(4, 1\)")]


@pytest.mark.parametrize(("cond", "shown"), LABEL_MISTAKES)
def test_labels_that_a_network_does_not_know_are_named(cond, shown):
    model = NetworkScoreModel(MLP(2, 8, 1, num_classes=3), VPSDE(), NoiseParametrization(), (2,))
    with pytest.raises(UsageError, match=rf"{shown}.*need labels 0\.\.2"):
        sample(model, DDIM(), 4, num_steps=2, cond=cond)
    plain = NetworkScoreModel(MLP(2, 8, 1), VPSDE(), NoiseParametrization(), (2,))
    with pytest.raises(UsageError, match="num_classes=0"):
        sample(plain, DDIM(), 4, num_steps=2, cond=1)


# --- the model's mode, and mistakes ---------------------------------------------------------------------------------


class Moody(torch.nn.Module):
    """A network that computes otherwise in training."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)

    def forward(self, x, c_noise, cond=None):
        return self.norm(x)


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: model.under(VESDE())], ids=["itself", "under"])
def test_sampling_is_in_evaluation_mode_and_leaves_the_mode(wrap):
    network = Moody()
    for model in (
        NetworkScoreModel(network, VPSDE(), NoiseParametrization(), (2,)).train(),
        CallableScoreModel(network.train(), NoiseParametrization(), VPSDE(), (2,)),
    ):
        first = sample(wrap(model), DDIM(), 4, num_steps=3).x
        assert torch.equal(first, sample(wrap(model), DDIM(), 4, num_steps=3).x)
        assert network.norm.num_batches_tracked == 0
        assert network.training


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_steps": 3, "grid": torch.tensor([1.0, 0.0])}, "num_steps, grid"),
        ({"cond": torch.zeros(3)}, "cond of length 3"),
        ({"seed": -1}, "seed=-1"),
        ({"first_index": -1}, "first_index=-1"),
        ({"grid": uniform_time(VESDE(), 3) * 50}, "grid from"),
    ],
)
def test_bad_arguments_of_sample_are_named(arguments, complaint):
    model = ExactScoreModel(mixture(), VPSDE())
    with pytest.raises(UsageError, match=complaint):
        sample(model, DDIM(), **({"num_samples": 2} | arguments))


def test_a_class_or_a_name_for_a_sampler_is_named():
    model = ExactScoreModel(mixture(), VPSDE())
    for sampler in (DDIM, "ddim"):
        with pytest.raises(UsageError, match=r"need a sampler object, such as DDIM\(\)"):
            sample(model, sampler, 3)
    with pytest.raises(UsageError, match="need a ScoreModel"):
        sample(MLP(2), DDIM(), 3)


def test_prepare_checks_the_grid_as_sample_does():
    model = ExactScoreModel(mixture(), VPSDE())
    with pytest.raises(UsageError, match="num_steps, grid: give one of the two"):
        prepare(model, DDIM(), grid=torch.tensor([1.0, 0.0]), num_steps=3)
    with pytest.raises(UsageError, match="times must lie in"):
        prepare(model, DDIM(), grid=torch.tensor([2.0, 0.0]))
    with pytest.raises(UsageError, match=r"num_steps=2: DPMSolver\(order=2.*needs at least 3"):
        prepare(model, DPMSolver(2), num_steps=2)
