"""One model, four views, under any SDE."""

import logging
import math

import pytest
import torch
from analytic import PARAMETRIZATIONS, gaussian, mixture, network_model
from conftest import SDES
from torch import nn

from samplers import DDIM, sample
from scoresde import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    CallableScoreModel,
    DenoisedParametrization,
    DiscreteVPSDE,
    EDMParametrization,
    ExactScoreModel,
    GaussianPathSDE,
    NetworkScoreModel,
    NoiseParametrization,
    RectifiedFlowSDE,
    ScoreModel,
    ScoreParametrization,
    UsageError,
    VelocityParametrization,
)
from scoresde.reverse import reverse_drift

EPS = torch.finfo(torch.float64).eps


def noisy(target, sde, device, num=9, seed=0):
    """x_t at `num` times over the whole range."""
    generator = torch.Generator(device).manual_seed(seed)
    x_0 = target.sample(num, generator)
    t = torch.linspace(sde.t_min, sde.t_max, num, dtype=torch.float64, device=device)
    return sde.diffuse(x_0, t, torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype, device=device)), t


@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)])
def test_score_is_the_gradient_of_the_noisy_density(sde, shape, device):
    target = mixture(device, shape)
    x_t, t = noisy(target, sde, device)
    x = x_t.clone().requires_grad_()
    (expected,) = torch.autograd.grad(target.log_prob(x, sde.alpha(t), sde.sigma(t)).sum(), x)
    score = ExactScoreModel(target, sde).score(x_t, t)
    # alpha D - x_t is a difference of terms of the size of |x_t|, divided by sigma^2
    rounding = 100 * EPS * (1 + x_t.abs().amax()) / sde.level(t).match_rank(x_t).sigma ** 2
    assert ((score - expected).abs() <= rounding + 1e-10 * expected.abs()).all()


def test_each_view_gives_back_the_denoiser(sde, device):
    target = mixture(device)
    model = ExactScoreModel(target, sde)
    x_t, t = noisy(target, sde, device)
    level = sde.level(t).match_rank(x_t)
    x0_hat = model.denoise(x_t, t)
    square = level.alpha**2 + level.sigma**2
    views = {
        "score": (x_t + level.sigma**2 * model.score(x_t, t)) / level.alpha,
        "noise": (x_t - level.sigma * model.noise(x_t, t)) / level.alpha,
        "velocity": (level.alpha * x_t - level.sigma * model.velocity(x_t, t)) / square,
    }
    rounding = 100 * EPS * (1 + x0_hat.abs() + x_t.abs() / level.alpha)
    for name, view in views.items():
        assert ((view - x0_hat).abs() <= rounding).all(), name


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS.keys())
@pytest.mark.parametrize("shape", [(2,), (1, 2, 2)])
def test_a_perfect_network_is_the_exact_model(parametrization, shape, sde, device):
    """The network sees c_in x_t and c_noise alone: they carry all that it needs, in every parametrisation."""
    target = mixture(device, shape)
    x_t, t = noisy(target, sde, device)
    actual = network_model(target, sde, parametrization).denoise(x_t, t)
    expected = ExactScoreModel(target, sde).denoise(x_t, t)
    # c_noise to t and back, and x_t / alpha that cancels: some 1e-13 of x_t / alpha
    size = 1 + x_t.flatten(1).norm(dim=1) / sde.alpha(t)
    assert ((actual - expected).flatten(1).norm(dim=1) <= 1e-11 * size).all()


@pytest.mark.parametrize("other", SDES.values(), ids=SDES.keys())
def test_under_another_sde_it_is_the_exact_model_of_that_sde(sde, other, device):
    target = mixture(device)
    model = ExactScoreModel(target, other).under(sde)
    x_t, t = noisy(target, model.sde, device)
    actual, expected = model.denoise(x_t, t), target.denoise(x_t, sde.alpha(t), sde.sigma(t))
    size = 1 + x_t.norm(dim=1) / sde.alpha(t)  # u = x_t / alpha is what both see
    assert ((actual - expected).norm(dim=1) <= 1e-11 * size).all()
    assert sde.t_min <= model.sde.t_min < model.sde.t_max <= sde.t_max
    # never outside the noise levels of the model itself, and as far as either allows
    ends = torch.tensor([model.sde.t_min, model.sde.t_max], dtype=torch.float64)
    known = torch.tensor([other.t_min, other.t_max], dtype=torch.float64)
    own = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    highest = torch.minimum(other.log_snr(known)[0], sde.log_snr(own)[0])
    lowest = torch.maximum(other.log_snr(known)[1], sde.log_snr(own)[1])
    torch.testing.assert_close(sde.log_snr(ends), torch.stack([highest, lowest]), rtol=0, atol=1e-9)


def test_under_works_for_a_network_and_back(device):
    torch.manual_seed(0)
    network = MLP(3, width=16, depth=1).double().to(device)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    model = NetworkScoreModel(network, VPSDE(), NoiseParametrization(), (3,))
    x_t, t = noisy(gaussian(device), VPSDE(), device)
    assert (model.denoise(x_t, t) - model.denoise(x_t, t.flip(0))).abs().max() > 0.1  # it does look at t
    seen = model.under(EDMSDE())
    r = VPSDE().noise_level(t)[1:-1]
    u = (x_t / VPSDE().alpha(t)[:, None])[1:-1]
    torch.testing.assert_close(seen.denoise(u, r), model.denoise(x_t, t)[1:-1], rtol=1e-9, atol=1e-9)
    back = seen.under(VPSDE())
    inside = slice(1, -1)  # EDM's range of noise levels is narrower than VP's
    torch.testing.assert_close(
        back.denoise(x_t[inside], t[inside]), model.denoise(x_t, t)[inside], rtol=1e-9, atol=1e-9
    )
    assert seen.shape == back.shape == (3,)


def test_under_passes_the_condition_on(device):
    network = MLP(3, width=8, depth=1, num_classes=2).double().to(device)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    model = NetworkScoreModel(network, VPSDE(), NoiseParametrization(), (3,)).under(VESDE())
    x = torch.ones(2, 3, dtype=torch.float64, device=device)
    first, second = model.denoise(x, 0.5, torch.tensor([0, 1], device=device))
    assert (first - second).abs().max() > 1e-3


def test_the_cut_of_the_range_is_said(caplog, device):
    caplog.set_level(logging.INFO, logger="scoresde")
    model = ExactScoreModel(gaussian(device), EDMSDE(t_min=0.02, t_max=10.0))
    model.under(EDMSDE(t_min=0.1, t_max=5.0))
    assert not caplog.records  # nothing was cut
    cut = model.under(EDMSDE())
    assert (cut.sde.t_min, cut.sde.t_max) == (pytest.approx(0.02), pytest.approx(10.0))
    assert "[0.02, 10]" in caplog.text


def test_the_users_own_sde_is_left_as_it_was(device):
    own = GaussianPathSDE(alpha=lambda t: 1 - t, sigma=lambda t: t, t_min=1e-4, t_max=0.9999)
    cut = ExactScoreModel(gaussian(device), DiscreteVPSDE()).under(own)
    assert (own.t_min, own.t_max) == (1e-4, 0.9999)
    assert own.t_min < cut.sde.t_min < cut.sde.t_max < own.t_max


def test_nothing_in_common_is_an_error(device):
    model = ExactScoreModel(gaussian(device), EDMSDE(t_min=0.1, t_max=1.0))
    with pytest.raises(UsageError, match="shares no noise level"):
        model.under(EDMSDE(t_min=2.0, t_max=80.0))


def test_a_number_for_t_is_that_time_for_every_sample(sde, device):
    target = gaussian(device)
    model = ExactScoreModel(target, sde)
    x_t, _ = noisy(target, sde, device)
    t = 0.37 * sde.t_max
    each = torch.full((len(x_t),), t, dtype=torch.float64, device=device)
    for view in (model.denoise, model.score, model.noise, model.velocity):
        torch.testing.assert_close(view(x_t, t), view(x_t, each), rtol=1e-10, atol=1e-10)


def test_no_batch_is_special(sde, device):
    """One sample, and a batch whose size equals that of the data: broadcasting the wrong way would show."""
    target = gaussian(device, (3, 3, 3))
    model = ExactScoreModel(target, sde)
    x_t, t = noisy(target, sde, device, num=3)
    t = t.clamp(0.2 * sde.t_max, 0.9 * sde.t_max)  # sigma of at least 0.05: views divide rounding by its square
    for view in (model.score, model.noise, model.velocity):
        for i in range(3):
            expected = view(x_t[i : i + 1], t[i : i + 1])[0]
            torch.testing.assert_close(view(x_t, t)[i], expected, rtol=1e-10, atol=1e-10)


def test_mistakes_are_named(device):
    exact = ExactScoreModel(gaussian(device), VPSDE())
    network = NetworkScoreModel(MLP(3, 8, 1).to(device), VPSDE(), NoiseParametrization(), (3,))
    x = torch.zeros(4, 3, dtype=torch.float64, device=device)
    t = torch.full((3,), 0.5, dtype=torch.float64, device=device)
    for model in (exact, network):
        with pytest.raises(UsageError, match=r"t of shape \(3,\).*\(4,\)"):
            model.denoise(x, t)
        with pytest.raises(UsageError, match=r"t of shape \(4, 1\)"):
            model.score(x, torch.full((4, 1), 0.5, device=device))
    with pytest.raises(UsageError, match=r"x_t of shape \(4, 2\)"):
        network.denoise(x[:, :2].float(), 0.5)
    with pytest.raises(UsageError, match=r"x_t of shape \(3,\)"):
        network.denoise(x[0].float(), 0.5)
    for wrong in (x[:, :2], x[0], x[:, :1]):
        with pytest.raises(UsageError, match="x_t of shape"):
            exact.denoise(wrong, 0.5)
    with pytest.raises(UsageError, match="cond"):
        exact.denoise(x, 0.5, torch.zeros(4, dtype=torch.long, device=device))


def test_a_network_model_is_a_module(device):
    model = NetworkScoreModel(MLP(3, 8, 1), VPSDE(), NoiseParametrization(), [3]).to(device)
    assert isinstance(model, ScoreModel)
    assert model.shape == (3,)
    assert set(model.state_dict()) == {f"network.{name}" for name in model.network.state_dict()}
    assert math.prod(model.denoise(torch.zeros(2, 3, device=device), 0.5).shape) == 6


def test_score_model_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        ScoreModel()


VIEWS = {
    "noise": (NoiseParametrization(), lambda model, x, t: model.noise(x, t)),
    "denoised": (DenoisedParametrization(), lambda model, x, t: model.denoise(x, t)),
    "score": (ScoreParametrization(), lambda model, x, t: model.score(x, t)),
    "velocity": (VelocityParametrization(), lambda model, x, t: model.velocity(x, t)),
    "edm": (EDMParametrization(0.6), lambda model, x, t: model.edm_output(x, t, 0.6)),
}


@pytest.mark.parametrize(("predicts", "view"), VIEWS.values(), ids=VIEWS.keys())
def test_a_function_that_returns_any_view_is_a_model(predicts, view, sde, device):
    exact = ExactScoreModel(mixture(device), sde)
    model = CallableScoreModel(lambda x, t: view(exact, x, t), predicts, sde, (2,), device, torch.float64)
    x_t = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    t = torch.linspace(sde.t_min + 0.05 * sde.t_max, 0.9 * sde.t_max, 8, dtype=torch.float64, device=device)
    torch.testing.assert_close(model.denoise(x_t, t), exact.denoise(x_t, t), rtol=1e-9, atol=1e-9)


def test_flow_velocity_is_the_drift_of_the_probability_flow(sde, device):
    model = ExactScoreModel(mixture(device), sde)
    x_t = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    t = torch.linspace(sde.t_min + 0.05 * sde.t_max, 0.9 * sde.t_max, 8, dtype=torch.float64, device=device)
    torch.testing.assert_close(model.flow_velocity(x_t, t), reverse_drift(model, x_t, t, eta=0.0), rtol=1e-9, atol=1e-9)


def test_flow_velocity_on_a_rectified_flow_is_noise_minus_data(device):
    model = ExactScoreModel(mixture(device), RectifiedFlowSDE())
    x_t = torch.ones(3, 2, dtype=torch.float64, device=device)
    expected = model.noise(x_t, 0.3) - model.denoise(x_t, 0.3)
    torch.testing.assert_close(model.flow_velocity(x_t, 0.3), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [0.0, -1.0, 1.5, float("nan")])
def test_a_time_outside_the_range_is_refused(t):
    model = ExactScoreModel(mixture(), VPSDE())
    with pytest.raises(UsageError, match=f"t={t}: must lie in"):
        model.score(torch.zeros(1, 2, dtype=torch.float64), t)


def test_an_exact_model_moves_between_types():
    model = ExactScoreModel(gaussian(), VPSDE())
    x_t = torch.ones(2, 3)
    single = model.to(dtype=torch.float32)
    assert (model.like().dtype, single.like().dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(single.denoise(x_t, 0.3), model.denoise(x_t.double(), 0.3).float(), rtol=1e-4, atol=1e-4)
    assert single.under(VESDE()).like().dtype == torch.float32


def test_a_model_under_its_own_sde_is_not_cut(sde, caplog):
    model = ExactScoreModel(mixture(), sde).under(sde)
    assert model.sde is sde
    assert not caplog.records


@pytest.mark.parametrize("wrong", [lambda x: x[:, :1], lambda x: x[:, 0], lambda x: x.sum(1)], ids=["B,1", "B", "sum"])
def test_an_output_that_would_broadcast_is_refused(wrong, device):
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x, c_noise, cond=None):
            return self.weight * wrong(x)

    x = torch.randn(2, 2, device=device)
    network = NetworkScoreModel(Wrong(), VPSDE(), NoiseParametrization(), (2,)).to(device)
    function = CallableScoreModel(lambda x, t: wrong(x), NoiseParametrization(), VPSDE(), (2,), device=device)
    for model in (network, function):
        for use in (lambda model=model: model.score(x, 0.5), lambda model=model: sample(model, DDIM(), 2, num_steps=3)):
            with pytest.raises(UsageError, match="need the same shape"):
                use()


def test_times_in_a_tensor_are_checked_too():
    model = ExactScoreModel(gaussian(), VPSDE())
    with pytest.raises(UsageError, match=r"t=2\.0: must lie in \[1e-05, 1\]"):
        model.denoise(torch.zeros(3, 3, dtype=torch.float64), torch.tensor([0.5, 2.0, 0.1]))


def test_sigma_data_may_be_a_tensor():
    assert NoiseParametrization(torch.tensor(0.5)) == NoiseParametrization(0.5)
    assert type(NoiseParametrization(torch.tensor(0.5)).sigma_data) is float
