"""The variational objective is the bound; more of it in test_bounds and test_learned_sde."""

import math

import torch

from scoresde import (
    VPSDE,
    DenoisingObjective,
    LikelihoodWeighting,
    NoiseParametrization,
    UniformTimes,
    VariationalObjective,
)
from scoresde.objective import Batch
from tests.analytic import PARAMETRIZATIONS, gaussian, slope
from tests.losses import away_from_the_start, draws, losses, random_model, whole_batch


def test_the_variational_objective_is_the_bound(sde, device):
    """Prior, reconstruction, and (t_max - t_min)/2 gamma' |eps_hat - eps|^2 with gamma' by differentiation."""
    x_0, t, eps = draws(gaussian(device), sde, device, 16)
    t = away_from_the_start(sde, t)
    first, last = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64, device=device))
    ends = 0.5 * last.exp() * x_0.square().mean(1) + 0.5 * (math.log(2 * math.pi * math.e) - first)
    for emitted, parametrization in PARAMETRIZATIONS.items():
        model = random_model(sde, parametrization, (3,), device)
        loss = losses(VariationalObjective(), model, x_0, t, eps)
        error = (model.noise(sde.diffuse(x_0, t, eps), t) - eps).square().mean(1)
        diffusion = -0.5 * (sde.t_max - sde.t_min) * slope(sde.log_snr, t) * error
        assert loss.shape == (16,)
        torch.testing.assert_close(loss, ends + diffusion, rtol=1e-7, atol=1e-9, msg=emitted)


def test_on_a_fixed_path_it_trains_as_likelihood_weighting_does(sde, device):
    drawn = draws(gaussian(device), sde, device, 16)
    for emitted, parametrization in PARAMETRIZATIONS.items():
        model = random_model(sde, parametrization, (3,), device)
        weights = [p for p in model.network.parameters() if p.requires_grad]
        bound, weighted = (
            torch.autograd.grad(losses(objective, model, *drawn).sum(), weights)
            for objective in (VariationalObjective(), DenoisingObjective(weighting=LikelihoodWeighting()))
        )
        for one, other in zip(bound, weighted, strict=True):
            expected = 0.5 * (sde.t_max - sde.t_min) * other
            torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-9 * other.abs().max(), msg=emitted)


def test_the_bound_keeps_its_digits_at_small_noise(sde, device):
    """As above, next to t_min: there gamma' of a DDPM chain jumps."""
    single = [part.float() for part in draws(gaussian(device), sde, device, 16, shared_t=1.01 * sde.t_min)]
    for emitted, parametrization in PARAMETRIZATIONS.items():
        model = random_model(sde, parametrization, (3,), device)
        exact = losses(VariationalObjective(), model, *(part.double() for part in single))
        loss = losses(VariationalObjective(), model.float(), *single)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-4, msg=emitted)


def test_the_variational_objective_draws_uniform_times(device):
    model, noise = random_model(VPSDE(), NoiseParametrization(), (3,), device), whole_batch(100, device)
    drawn = VariationalObjective().draw(model, Batch(torch.zeros(100, 3, device=device)), noise)
    assert torch.equal(drawn["t"], UniformTimes().at(VPSDE(), noise.stratified("times")).double())
    assert drawn["eps"].shape == (100, 3)
