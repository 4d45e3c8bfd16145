"""One model, four views, under any SDE."""

import logging

import pytest
import torch
from torch import nn

from samplers.euler_maruyama import drift_coefficients
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
    TimeInput,
    UsageError,
    VelocityParametrization,
)
from tests.analytic import SDES, gaussian, mixture, network_model

EPS = torch.finfo(torch.float64).eps


def noisy(target, sde, device, num=9, seed=0):
    """x_t at `num` times over the whole range."""
    generator = torch.Generator(device).manual_seed(seed)
    x_0 = target.sample(num, generator)
    t = torch.linspace(sde.t_min, sde.t_max, num, dtype=torch.float64, device=device)
    return sde.diffuse(x_0, t, torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype, device=device)), t


def test_score_is_the_gradient_of_the_noisy_density(sde, device):
    for shape in ((2,), (1, 2, 2)):
        target = mixture(device, shape)
        x_t, t = noisy(target, sde, device)
        x = x_t.clone().requires_grad_()
        (expected,) = torch.autograd.grad(target.log_prob(x, sde.alpha(t), sde.sigma(t)).sum(), x)
        score = ExactScoreModel(target, sde).score(x_t, t)
        # alpha D - x_t is a difference of terms of the size of |x_t|, divided by sigma^2
        rounding = 100 * EPS * (1 + x_t.abs().amax()) / sde.level(t).match_rank(x_t).sigma ** 2
        assert ((score - expected).abs() <= rounding + 1e-10 * expected.abs()).all(), shape


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


def test_under_another_sde_it_is_the_exact_model_of_that_sde(sde, device):
    target = mixture(device)
    own = sde.span().t.flip(0)
    for name, other in SDES.items():
        model = ExactScoreModel(target, other).under(sde)
        x_t, t = noisy(target, model.sde, device)
        actual, expected = model.denoise(x_t, t), target.denoise(x_t, sde.alpha(t), sde.sigma(t))
        size = 1 + x_t.norm(dim=1) / sde.alpha(t)  # u = x_t / alpha is what both see
        assert ((actual - expected).norm(dim=1) <= 1e-11 * size).all(), name
        assert sde.t_min <= model.sde.t_min < model.sde.t_max <= sde.t_max, name
        # never outside the noise levels of the model itself, and as far as either allows
        highest = torch.minimum(other.span().log_snr[1], sde.log_snr(own)[0])
        lowest = torch.maximum(other.span().log_snr[0], sde.log_snr(own)[1])
        ends = model.sde.span().log_snr.flip(0)
        torch.testing.assert_close(ends, torch.stack([highest, lowest]), rtol=0, atol=1e-9)


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


def test_score_model_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        ScoreModel()


def edm_output(model, x, t):
    """The value of F at which D is the model's, for sigma_data 0.6."""
    level, edm = model.sde.level(t).match_rank(x), EDMParametrization(0.6)
    return (model.denoise(x, t) - edm.c_skip(level) * x) / edm.c_out(level)


VIEWS = {
    "noise": (NoiseParametrization(), lambda model, x, t: model.noise(x, t)),
    "denoised": (DenoisedParametrization(), lambda model, x, t: model.denoise(x, t)),
    "score": (ScoreParametrization(), lambda model, x, t: model.score(x, t)),
    "velocity": (VelocityParametrization(), lambda model, x, t: model.velocity(x, t)),
    "edm": (EDMParametrization(0.6), edm_output),
}


def test_a_function_that_returns_any_view_is_a_model(sde, device):
    exact = ExactScoreModel(mixture(device), sde)
    x_t = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    t = torch.linspace(sde.t_min + 0.05 * sde.t_max, 0.9 * sde.t_max, 8, dtype=torch.float64, device=device)
    for predicts, view in VIEWS.values():
        model = CallableScoreModel(lambda x, t, f=view: f(exact, x, t), predicts, sde, (2,), device, torch.float64)
        torch.testing.assert_close(model.denoise(x_t, t), exact.denoise(x_t, t), rtol=1e-9, atol=1e-9)


def test_flow_velocity_is_the_drift_of_the_probability_flow(sde, device):
    model = ExactScoreModel(mixture(device), sde)
    x_t = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    t = torch.linspace(sde.t_min + 0.05 * sde.t_max, 0.9 * sde.t_max, 8, dtype=torch.float64, device=device)
    on_x, on_x0 = (part[:, None] for part in drift_coefficients(sde, t, eta=0.0))
    drift = on_x * x_t + on_x0 * model.denoise(x_t, t)
    torch.testing.assert_close(model.flow_velocity(x_t, t), drift, rtol=1e-9, atol=1e-9)


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
    assert (model.dtype, single.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(single.denoise(x_t, 0.3), model.denoise(x_t.double(), 0.3).float(), rtol=1e-4, atol=1e-4)
    assert single.under(VESDE()).dtype == torch.float32
    assert single.sigma_data == pytest.approx(model.sigma_data, rel=1e-6)


def test_a_model_under_its_own_sde_is_not_cut(sde, caplog):
    model = ExactScoreModel(mixture(), sde).under(sde)
    assert model.sde is sde
    assert not caplog.records


def test_times_in_a_tensor_are_checked_too():
    model = ExactScoreModel(gaussian(), VPSDE())
    with pytest.raises(UsageError, match=r"t=2\.0: must lie in \[1e-05, 1\]"):
        model.denoise(torch.zeros(3, 3, dtype=torch.float64), torch.tensor([0.5, 2.0, 0.1]))


def test_a_model_on_a_grid_is_the_model_at_its_times(sde, device):
    """Every kind of model: exact, a network, a function, and each of these under another SDE."""
    target = mixture(device)
    exact = ExactScoreModel(target, sde)
    models = [
        exact,
        network_model(target, sde, NoiseParametrization(0.7)),
        network_model(target, sde, EDMParametrization(0.7, TimeInput())),
        CallableScoreModel(exact.score, ScoreParametrization(), sde, (2,), device, torch.float64),
    ]
    models += [model.under(other) for model in models for other in (EDMSDE(), VPSDE())]
    x_t = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    for model in models:
        times = torch.linspace(model.sde.t_min, model.sde.t_max, 7, dtype=torch.float64)[1:-1]
        levels = model.sde.level(times)
        on_grid = model.on_grid(levels, x_t)
        assert on_grid.c_skip.shape == on_grid.c_out.shape == times.shape
        assert on_grid.c_skip.dtype == on_grid.c_out.dtype == torch.float64
        for k, t in enumerate(times.tolist()):
            x0_hat = on_grid.c_skip[k].item() * x_t + on_grid.c_out[k].item() * on_grid.network(k, x_t, None)
            torch.testing.assert_close(x0_hat, model.denoise(x_t, t), rtol=1e-9, atol=1e-9, msg=f"{model} at {t}")


def test_a_model_at_a_level_is_the_model_at_its_times(sde, device):
    model = ExactScoreModel(mixture(device), sde)
    x_t, t = noisy(mixture(device), sde, device)
    assert torch.equal(model.denoise_at(x_t, sde.level(t)), model.denoise(x_t, t))
