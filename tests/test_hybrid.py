"""The hybrid objective: it trains the variance to the closed form of a Gaussian, and leaves the mean as it was."""

from dataclasses import dataclass

import pytest
import torch
from torch.distributions import Normal

from scoresde import (
    MLP,
    VPSDE,
    BatchNoise,
    DenoisedParametrization,
    DenoisingObjective,
    DiscreteTimes,
    DiscreteVPSDE,
    EDMParametrization,
    Gaussian,
    HybridObjective,
    LadderTimes,
    NetworkScoreModel,
    NoiseParametrization,
    Scaling,
    TrainingOptions,
    UsageError,
    ddpm_bound,
)
from scoresde.data import ArrayData
from scoresde.objective import Batch, TrainingTimes
from scoresde.reverse import decoder_range, variance_range
from scoresde.training import Trainer
from tests.analytic import ExactNetwork, gaussian
from tests.reverse import STEPS, TwoOutputs, best_growth, levels, posterior_variance


@dataclass(frozen=True)
class TwoTimes(TrainingTimes):
    """Two times, equally likely: a chain of one step, and of the last one from its end."""

    start: float
    end: float

    def at(self, sde, u):
        return torch.where(u < 0.5, self.end, self.start)


def random_network(dim, device, **arguments):
    network = MLP(dim, width=16, depth=1, learned_variance=True, **arguments).double().to(device)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator(device).manual_seed(0))
    return network


@pytest.mark.parametrize("last", [False, True], ids=["step", "decoder"])
@pytest.mark.parametrize("step", STEPS, ids=str)
def test_the_learned_variance_of_a_gaussian_is_the_closed_form(step, last, device):
    """Three variances at once, within 0.02: v at a step, the log variance of the decoder where it arrives."""
    variances = torch.tensor([1.0, 0.25, 0.01], dtype=torch.float64, device=device)
    sde, parametrization = VPSDE(), DenoisedParametrization()
    target = Gaussian(torch.zeros_like(variances), variances.diag())
    exact = ExactNetwork(target.to(device, torch.float32), sde, parametrization)
    torch.manual_seed(0)
    model = NetworkScoreModel(TwoOutputs(exact, MLP(3, width=8, depth=1)), sde, parametrization, (3,)).to(device)
    objective = HybridObjective(TwoTimes(*step), num_steps=2)
    optimizer = torch.optim.Adam(model.parameters())
    generator = torch.Generator(device).manual_seed(0)
    for k in range(600):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - k / 600)
        x = target.sample(2000, generator).float()
        noise = BatchNoise(0, k, len(x), torch.arange(len(x), device=device))
        draws = dict(objective.draw(model, Batch(x), noise))
        draws["u"] = torch.full_like(draws["u"], 0.25 if last else 0.75)
        optimizer.zero_grad()
        objective.at(model, Batch(x), draws).mean().backward()
        optimizer.step()
    t, s = (level[0].to(device, torch.float64) for level in levels(sde, *([time] for time in step)))
    expected = best_growth(variances, s, t) / variance_range(s, t)
    at = s if last else t
    x_t = (at.alpha * x + at.sigma * torch.randn(x.shape, device=device)).float()
    got = model.denoise_with_variance(x_t, at.to(device, torch.float32))[1].double().mean(0)
    if last:
        got = (got - 1) * decoder_range(s, t)
        expected = (posterior_variance(variances, s) / s.noise_level**2).log()
    torch.testing.assert_close(got, expected, rtol=0, atol=0.02)


def test_the_mean_learns_from_the_denoising_loss_alone(device):
    """The gradient in the weights of the first output is that of DenoisingObjective, to rounding."""
    x = gaussian(device).sample(64, torch.Generator(device).manual_seed(0))
    model = NetworkScoreModel(random_network(3, device), VPSDE(), EDMParametrization(0.7), (3,))
    draws = HybridObjective().draw(model, Batch(x), BatchNoise(0, 0, 64, torch.arange(64, device=device)))
    both = HybridObjective(num_steps=50, vlb_weight=0.3)
    simple = DenoisingObjective()
    t = simple.times.at(model.sde, draws["u"])
    gradients = []
    for loss in (both.at(model, Batch(x), draws), simple.at(model, Batch(x), {"t": t, "eps": draws["eps"]})):
        gradients.append(torch.autograd.grad(loss.sum(), model.network.last.weight)[0])
    torch.testing.assert_close(gradients[0][:3], gradients[1][:3], rtol=1e-9, atol=1e-12)
    assert gradients[0][3:].abs().min() > 1e-6
    assert gradients[1][3:].abs().max() == 0


@pytest.mark.parametrize("whole", [True, False])
def test_on_a_chain_it_is_the_bound_of_its_steps(whole, device):
    """The mean over all times is the sum of `ddpm_bound`'s costs, 40,000 draws each, within 4.5 errors.

    Whole numbers have mass, here with no values near the ends of the range; floats have a density at the last step.
    """
    sde = DiscreteVPSDE(beta_start=0.02, beta_end=0.3, num_levels=6)
    codec = Scaling(3.0, 2.0)
    model = NetworkScoreModel(random_network(2, device), sde, NoiseParametrization(0.7), (2,), codec)
    raw = torch.tensor([[2, 5]], device=device).expand(40_000, 2)
    x_0 = codec.encode(raw, torch.float64)
    times = DiscreteTimes(6)
    both = HybridObjective(times, num_steps=6, vlb_weight=1.0)
    noise = BatchNoise(0, 0, 40_000, torch.arange(40_000, device=device))
    with torch.no_grad():
        batch = Batch(raw if whole else raw.double())
        draws = both.draw(model, batch, noise)
        t = times.at(sde, draws["u"])
        costs = both.at(model, batch, draws)
        costs -= DenoisingObjective(times).at(model, batch, {"t": t, "eps": draws["eps"]})
    grid = torch.arange(6, -1, -1, dtype=torch.float64) / 6
    levels_of_data = {"bin_width": 0.5, "low": -20.0, "high": 20.0}
    bound = ddpm_bound(model, x_0, grid, variance="learned", **levels_of_data)
    decoder = bound.decoder
    if not whole:
        decoder = -_density(model, sde, x_0, device)
    expected = (bound.steps.sum(1) + decoder) / 2
    error = (costs.var() / 40_000 + expected.var() / 40_000).sqrt()
    assert (costs.mean() - expected.mean()).abs() < 4.5 * error


def _density(model, sde, x_0, device):
    """log of the decoder's density at x_0, at fresh noise."""
    s, t = (sde.level(torch.tensor(k / 6, dtype=torch.float64, device=device)) for k in (1, 2))
    eps = torch.randn(x_0.shape, dtype=x_0.dtype, device=device, generator=torch.Generator(device).manual_seed(3))
    mean, v = model.denoise_with_variance(s.alpha * x_0 + s.sigma * eps, s)
    variance = s.noise_level**2 * torch.exp(-(1 - v) * decoder_range(s, t))
    return Normal(mean, variance.sqrt()).log_prob(x_0).sum(1).detach()


def test_the_weight_is_a_thousandth_and_the_steps_are_counted(device):
    x = gaussian(device).sample(16, torch.Generator(device).manual_seed(0))
    model = NetworkScoreModel(random_network(3, device), VPSDE(), EDMParametrization(0.7), (3,))
    draws = HybridObjective().draw(model, Batch(x), BatchNoise(0, 0, 16, torch.arange(16, device=device)))
    one, two, three = (
        HybridObjective(num_steps=1000, **weight).at(model, Batch(x), draws)
        for weight in ({}, {"vlb_weight": 0.002}, {"vlb_weight": 0.003})
    )
    torch.testing.assert_close(two - one, three - two, rtol=1e-6, atol=1e-9)
    simple = DenoisingObjective().at(
        model, Batch(x), {"t": DenoisingObjective().times.at(model.sde, draws["u"]), "eps": draws["eps"]}
    )
    torch.testing.assert_close(one, simple + (two - one), rtol=1e-6, atol=1e-9)


def test_at_extreme_times_and_in_float32_it_is_finite(sde, device):
    """Also its gradient; the quantiles of both ends, of the first step, and of all between."""
    x = gaussian(device).sample(64, torch.Generator(device).manual_seed(0)).float()
    model = NetworkScoreModel(random_network(3, device).float(), sde, EDMParametrization(0.7), (3,))
    u = torch.linspace(0, 1 - 1e-7, 64, dtype=torch.float64, device=device)
    u[1:4] = torch.tensor([1e-9, 1e-4, 1e-3], dtype=torch.float64)
    loss = HybridObjective().at(model, Batch(x), {"u": u, "eps": torch.randn_like(x)})
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    loss.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_network_and_an_objective_that_do_not_fit_are_named(device):
    data = ArrayData(torch.randn(64, 2))
    one, two = (
        NetworkScoreModel(MLP(2, 8, 1, learned_variance=learned), VPSDE(), EDMParametrization(0.5), (2,))
        for learned in (False, True)
    )
    with pytest.raises(UsageError, match=r"network has no second output.*network.learned_variance=True"):
        HybridObjective()(one, torch.zeros(4, 2))
    with pytest.raises(UsageError, match=r"DenoisingObjective: does not train the network's second output"):
        Trainer(two, data, DenoisingObjective(), TrainingOptions())
    Trainer(two, data, HybridObjective(), TrainingOptions()).step()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 1}, "num_steps=1"),
        ({"vlb_weight": 0.0}, r"vlb_weight=0\.0"),
        ({"times": DiscreteTimes(100), "num_steps": 70}, "num_steps=70: need a divisor of num_levels=100"),
        ({"times": LadderTimes(10), "num_steps": 20}, "num_steps=20"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        HybridObjective(**arguments)


def test_the_default_is_the_published_one():
    assert (HybridObjective().num_steps, HybridObjective().vlb_weight) == (1000, 0.001)
