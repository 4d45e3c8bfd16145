"""Models of networks and functions: what they see, in which type they compute, and how they move."""

import contextlib
import dataclasses
import math

import pytest
import torch
from torch import nn

from samplers import DDIM, DPMSolver, Heun, sample
from scoresde import (
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    CallableScoreModel,
    DenoisingObjective,
    EDMParametrization,
    ExactScoreModel,
    LogSigmaInput,
    NetworkScoreModel,
    NoiseParametrization,
    Scaling,
    ScoreModel,
    ScoreParametrization,
    TimeInput,
    TrainingOptions,
    UnitVarianceInput,
    UsageError,
    WrappedModel,
    fit,
    load_model,
    save_model,
)
from tests.analytic import PARAMETRIZATIONS, gaussian, mixture, network_model
from tests.schedules import bent

INPUTS = {"unit variance": UnitVarianceInput(), "time": TimeInput(), "log sigma": LogSigmaInput()}


def random_network(device="cpu", dtype=torch.float64, dim=3, **arguments):
    torch.manual_seed(0)
    network = MLP(dim, width=16, depth=1, **arguments)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.to(device, dtype)


@pytest.mark.parametrize("what", INPUTS.values(), ids=INPUTS.keys())
def test_a_perfect_network_is_the_exact_model(what, sde, device):
    """The network sees c_in x_t and c_noise alone: they carry all that it needs, in every parametrisation."""
    for shape in ((2,), (1, 2, 2)):
        target = mixture(device, shape)
        generator = torch.Generator(device).manual_seed(0)
        x_0 = target.sample(9, generator)
        t = torch.linspace(sde.t_min, sde.t_max, 9, dtype=torch.float64, device=device)
        x_t = sde.diffuse(x_0, t, torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype, device=device))
        expected = ExactScoreModel(target, sde).denoise(x_t, t)
        # c_noise to t and back, and x_t / alpha that cancels: some 1e-14 of x_t / alpha
        size = 1 + x_t.flatten(1).norm(dim=1) / sde.alpha(t)
        for name, parametrization in PARAMETRIZATIONS.items():
            seen = dataclasses.replace(parametrization, input=what)
            actual = network_model(target, sde, seen).denoise(x_t, t)
            assert ((actual - expected).flatten(1).norm(dim=1) <= 1e-12 * size).all(), (name, shape)


def test_samples_of_a_perfect_network_do_not_depend_on_what_it_sees(device):
    target = gaussian(device)
    exact = ExactScoreModel(target, EDMSDE())
    for name, what in INPUTS.items():
        model = network_model(target, EDMSDE(), EDMParametrization(0.7, what))
        for one, expected in ((model, exact), (model.under(VPSDE()), exact.under(VPSDE()))):
            x = sample(one, Heun(), 8, num_steps=12).x
            torch.testing.assert_close(x, sample(expected, Heun(), 8, num_steps=12).x, rtol=1e-9, atol=1e-9, msg=name)


class Recorder(nn.Module):
    """A network of one weight that keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.seen = []

    def forward(self, x, c_noise, cond=None):
        self.seen.append((x, c_noise, cond))
        return self.weight * x


def test_what_the_network_is_given(device):
    model = NetworkScoreModel(Recorder(), VPSDE(), NoiseParametrization(0.7, TimeInput(500.0, 1.0)), (2,)).to(device)
    x_t, cond = torch.randn(3, 2, device=device), {"any": torch.arange(3, device=device)}
    model.denoise(x_t, torch.tensor([0.1, 0.2, 0.3], device=device), cond)
    x, c_noise, given = model.network.seen[-1]
    assert torch.equal(x, x_t)
    torch.testing.assert_close(c_noise, torch.tensor([51.0, 101.0, 151.0], device=device))
    assert given is cond
    model.on_grid(VPSDE().level(torch.tensor([0.1, 0.2], dtype=torch.float64)), x_t).network(1, x_t, cond)
    x, c_noise, given = model.network.seen[-1]
    assert torch.equal(x, x_t)
    torch.testing.assert_close(c_noise, torch.full((3,), 101.0, device=device))
    assert given is cond


@pytest.mark.parametrize("what", [TimeInput(), LogSigmaInput()], ids=["time", "log sigma"])
def test_a_network_of_another_input_is_trained_moved_and_saved(what, device, tmp_path):
    data = 0.2 * torch.randn(256, 3, generator=torch.Generator().manual_seed(0)) + 1
    torch.manual_seed(0)
    model = NetworkScoreModel(MLP(3, 16, 1), VPSDE(), NoiseParametrization(1.0, what), (3,)).to(device)
    objective = DenoisingObjective()
    torch.manual_seed(1)
    before = objective(model, data.to(device)).mean()
    trained = fit(model, data, options=TrainingOptions(num_steps=150, batch_size=64, lr=1e-2), progress=False)
    torch.manual_seed(1)
    assert objective(trained, data.to(device)).mean() < 0.5 * before
    save_model(trained, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors", device)
    assert loaded.parametrization == NoiseParametrization(1.0, what)
    x = torch.randn(4, 3, device=device)
    assert torch.equal(loaded.denoise(x, 0.3), trained.denoise(x, 0.3))
    double = loaded.to("cpu", torch.float64)
    assert (double.device.type, double.dtype) == ("cpu", torch.float64)
    torch.testing.assert_close(double.denoise(x.double().cpu(), 0.3).float(), trained.denoise(x, 0.3).cpu())
    assert sample(double, DDIM(), 5, num_steps=5).x.dtype == torch.float64


# modules


def test_a_network_model_is_a_module(device):
    model = NetworkScoreModel(MLP(3, 8, 1), VPSDE(), NoiseParametrization(), [3]).to(device)
    assert isinstance(model, ScoreModel)
    assert model.shape == (3,)
    assert set(model.state_dict()) == {f"network.{name}" for name in model.network.state_dict()}
    assert math.prod(model.denoise(torch.zeros(2, 3, device=device), 0.5).shape) == 6
    assert model.codec == Scaling()
    assert model.num_calls(VPSDE().span()) == 2


MISTAKES = {
    "shape": (lambda net: NetworkScoreModel(net, VPSDE(), NoiseParametrization(), 3), "shape=3: need the shape of one"),
    "a shape of 0": (lambda net: NetworkScoreModel(net, VPSDE(), NoiseParametrization(), (0,)), r"shape=\(0,\)"),
    "a word": (lambda net: NetworkScoreModel(net, VPSDE(), NoiseParametrization(), "12"), "shape='12'"),
    "sde": (lambda net: NetworkScoreModel(net, "vp", NoiseParametrization(), (3,)), "sde='vp': need an SDE"),
    "codec": (lambda net: NetworkScoreModel(net, VPSDE(), NoiseParametrization(), (3,), 127.5), r"codec=127\.5"),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named(make, message):
    with pytest.raises(UsageError, match=message):
        make(MLP(3, 8, 1))


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


# types


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_a_short_type_keeps_a_float32_state(dtype, device, tmp_path):
    model = NetworkScoreModel(random_network(device, dtype), VPSDE(), EDMParametrization(), (3,))
    whole = NetworkScoreModel(random_network(device, torch.float32), VPSDE(), EDMParametrization(), (3,))
    x_t = torch.randn(5, 3, device=device)
    assert model.dtype == torch.float32
    t = torch.linspace(0.1, 0.9, 5, device=device)
    assert model.denoise(x_t, t).dtype == torch.float32
    # the network's output is rounded, and what it is added to is not
    level = model.sde.level(t).match_rank(x_t)
    rounding = 30 * torch.finfo(dtype).eps * model.parametrization.c_out(level).abs() * (1 + x_t.abs())
    assert ((model.denoise(x_t, t) - whole.denoise(x_t, t)).abs() <= rounding).all()
    x = sample(model, DPMSolver(), 6, num_steps=5).x
    assert x.dtype == torch.float32
    assert not torch.equal(x, x.to(dtype).float())  # more digits than the network has
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors", device)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.denoise(x_t, t), model.denoise(x_t, t).detach())


def test_what_a_network_of_each_type_is_given(device):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = NetworkScoreModel(Recorder(), VPSDE(), NoiseParametrization(), (2,)).to(device, dtype)
        x_t = torch.randn(3, 2, device=device, dtype=model.dtype)
        x0_hat = [model.denoise(x_t, 0.3)]
        on_grid = model.on_grid(VPSDE().level(torch.tensor([0.3], dtype=torch.float64)), x_t)
        x0_hat.append(on_grid.network(0, x_t, None))
        for x, c_noise, _ in model.network.seen:
            assert x.dtype == dtype
            assert c_noise.dtype == model.dtype  # a short type would round the label
        assert {part.dtype for part in x0_hat} == {model.dtype}


def test_a_network_without_tensors_computes_in_the_type_of_its_input():
    class Zero(nn.Module):
        def forward(self, x, c_noise, cond=None):
            return 0 * x

    model = NetworkScoreModel(Zero(), VPSDE(), NoiseParametrization(), (2,))
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
    assert model.denoise(torch.ones(1, 2, dtype=torch.float64), 0.5).dtype == torch.float64


def test_the_type_is_the_network_s_whatever_else_has_weights():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.ones((), dtype=torch.float64))

        def forward(self, x, c_noise, cond=None):
            assert x.dtype == torch.float64
            return self.weight * x

    model = NetworkScoreModel(Frozen(), bent(), NoiseParametrization(), (2,))
    assert model.dtype == torch.float64
    assert model.denoise(torch.ones(1, 2, dtype=torch.float64), 0.5).dtype == torch.float64


# functions


def test_a_module_in_a_function_s_place_is_moved_and_evaluated(device):
    class Score(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(-1.0))
            self.modes = []

        def forward(self, x, t, cond=None):
            self.modes.append(self.training)
            return self.weight * x

    model = CallableScoreModel(Score(), ScoreParametrization(), VPSDE(), (2,)).to(device, torch.float64)
    assert (model.dtype, model.device.type) == (torch.float64, device.type)
    assert model.function.weight.dtype == torch.float64
    assert sample(model, DDIM(), 4, num_steps=3).x.dtype == torch.float64
    assert model.function.modes == [False] * 3
    assert model.function.training  # as it was
    kept = model.to(dtype=torch.float32)
    assert kept.device.type == device.type
    assert kept.dtype == torch.float32


def test_a_function_is_given_a_condition_only_if_there_is_one():
    seen = []

    def function(x, t, *cond):
        seen.append(cond)
        return -x

    model = CallableScoreModel(function, ScoreParametrization(), VPSDE(), (2,))
    cond = {"tokens": torch.zeros(3, 4)}
    model.denoise(torch.zeros(3, 2), 0.5)
    model.denoise(torch.zeros(3, 2), 0.5, cond)
    assert seen == [(), (cond,)]
    model.check_cond(cond)  # every condition will do
    with pytest.raises(UsageError, match="does not define a null condition"):
        model.null_cond(cond, torch.ones(3, dtype=torch.bool))


# models of models


class Mixed(WrappedModel):
    """The mean of two models, shifted on some entries."""

    def __init__(self, model, other, target, shift, mask):
        super().__init__(model, calls=2)
        self.other = other
        self.target = target
        self.shift = shift
        self.mask = mask
        self.head = nn.Linear(3, 3, dtype=torch.float64)
        self.note = "a note"

    def denoise_at(self, x_t, level, cond=None):
        mean = 0.5 * (self.model.denoise_at(x_t, level, cond) + self.other.denoise_at(x_t, level, cond))
        return torch.where(self.mask, mean + self.shift, self.head(mean))


def mixed(device):
    parts = [
        NetworkScoreModel(random_network(device, num_classes=2), VPSDE(), NoiseParametrization(0.7), (3,)).train()
        for _ in range(2)
    ]
    mask = torch.tensor([True, False, True], device=device)
    model = Mixed(*parts, gaussian(device), torch.tensor(0.5, dtype=torch.float64, device=device), mask)
    return model.to(device)


def test_a_wrapped_model_passes_on_what_it_does_not_change(device):
    model = mixed(device)
    assert (model.shape, model.sigma_data, model.dtype) == ((3,), 0.7, torch.float64)
    assert model.device.type == device.type
    assert model.sde is model.model.sde
    levels = VPSDE().span()
    assert model.num_calls(levels) == 4
    assert Mixed(model, model, None, 0.0, None).num_calls(levels) == 8
    assert model.under(VESDE()).num_calls(levels[0]) == 2
    labels = torch.tensor([0, 1], device=device)
    model.check_cond(labels)
    with pytest.raises(UsageError, match="cond: labels from 0 to 2"):
        model.check_cond(torch.tensor([0, 2], device=device))
    with pytest.raises(UsageError, match="label_dropout=0"):
        model.under(VESDE()).null_cond(labels, labels == 1)
    with pytest.raises(UsageError, match=r"t=0\.0"):  # times are checked in every model
        model.denoise(torch.zeros(2, 3, dtype=torch.float64, device=device), 0.0, labels)


def test_a_wrapped_model_moves_with_all_its_parts(device):
    whole = mixed("cpu")
    model = whole.to(device, torch.float32)
    assert type(model) is Mixed
    assert (model.dtype, model.other.dtype, model.target.dtype) == (torch.float32,) * 3
    assert model.shift.dtype == torch.float32
    assert model.mask.dtype == torch.bool  # only floats have a type to change
    assert model.head.weight.dtype == torch.float32
    assert {model.device.type, model.target.device.type, model.mask.device.type} == {device.type}
    assert model.note == "a note"
    assert (whole.shift.dtype, whole.target.dtype) == (torch.float64,) * 2  # networks are moved in place, as torch does
    labels = torch.tensor([0, 1], device=device)
    assert model.denoise(torch.zeros(2, 3, device=device), 0.3, labels).dtype == torch.float32
    under = mixed("cpu").under(VESDE()).to(device, torch.float32)
    assert under.model.shift.dtype == under.dtype == torch.float32
    assert under.sde.sigma_max == VESDE().sigma_max
    assert sample(under, DDIM(), 2, num_steps=3, cond=labels).x.dtype == torch.float32


def test_evaluation_mode_reaches_every_network_and_leaves_it_as_it_was(device):
    model = mixed(device)
    networks = [model.model.network, model.other.network, model.head]
    networks[1].eval()  # as one part of a model in training may be
    for whole in (model, model.under(VESDE())):
        with whole.eval_mode():
            assert [network.training for network in networks] == [False, False, False]
        with contextlib.suppress(RuntimeError), whole.eval_mode():
            raise RuntimeError
        assert [network.training for network in networks] == [True, False, True]


def test_weights_are_constants_in_evaluation_without_gradients_and_learn_again_afterwards(device):
    model = mixed(device)
    networks = nn.ModuleList([model.model.network, model.other.network, model.head])
    fixed = model.head.weight.requires_grad_(False)
    before = [weight.requires_grad for weight in networks.parameters()]
    with model.eval_mode():
        assert [weight.requires_grad for weight in networks.parameters()] == before
    with contextlib.suppress(RuntimeError), torch.no_grad(), model.eval_mode():
        assert not any(weight.requires_grad for weight in networks.parameters())
        x = torch.zeros(2, 3, device=device, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            x0_hat = model.denoise(x, 0.3, torch.tensor([0, 1], device=device))
        assert torch.autograd.grad(x0_hat.sum(), x)[0].abs().sum() > 0
        raise RuntimeError
    assert [weight.requires_grad for weight in networks.parameters()] == before
    assert not fixed.requires_grad


def test_a_wrapped_model_on_a_grid_is_its_denoiser(device):
    model, cond = mixed(device), torch.tensor([0, 1, 1], device=device)
    x_t = torch.randn(3, 3, dtype=torch.float64, device=device)
    for whole in (model, model.under(VESDE())):
        levels = whole.sde.level(torch.tensor([0.7, 0.3], dtype=torch.float64))
        on_grid = whole.on_grid(levels, x_t)
        for k, t in enumerate((0.7, 0.3)):
            x0_hat = on_grid.c_skip[k].item() * x_t + on_grid.c_out[k].item() * on_grid.network(k, x_t, cond)
            torch.testing.assert_close(x0_hat, whole.denoise(x_t, t, cond), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_second_output_gives_v_and_leaves_the_denoiser_alone(dtype, device):
    """D by all three ways, v = (second half + 1) / 2, both in the type of the state."""
    network = MLP(3, width=16, depth=1, learned_variance=True).to(device, dtype)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator(device).manual_seed(0))
    model = NetworkScoreModel(network, VPSDE(), EDMParametrization(0.5), (3,))
    x_t = torch.randn(6, 3, device=device, dtype=model.dtype)
    level = VPSDE().level(torch.tensor([0.3, 0.7], dtype=torch.float64))
    on_grid = model.on_grid(level, x_t)
    for k in range(2):
        here = level[k].to(x_t.device, x_t.dtype)
        x0_hat, v = model.denoise_with_variance(x_t, here)
        assert v.dtype == x0_hat.dtype == x_t.dtype
        torch.testing.assert_close(model.denoise_at(x_t, here), x0_hat, rtol=0, atol=0)
        folded = on_grid.c_skip[k] * x_t + on_grid.c_out[k] * on_grid.network(k, x_t, None)
        torch.testing.assert_close(folded.to(x_t.dtype), x0_hat, rtol=0, atol=1e-5)
        raw = network(
            (model.parametrization.c_in(here) * x_t).to(dtype),
            model.parametrization.c_noise(here).expand(6).to(model.dtype),
        )
        torch.testing.assert_close(2 * v - 1, raw[:, 3:].to(x_t.dtype), rtol=1e-5, atol=1e-5)
    assert model.learned_variance


def test_an_output_of_the_wrong_size_is_named_for_two_outputs_too(device):
    class Wrong(MLP):
        def forward(self, x, c_noise, cond=None):
            return super().forward(x, c_noise, cond)[:, :-1]

    model = NetworkScoreModel(Wrong(2, 8, 1, learned_variance=True).to(device), VPSDE(), EDMParametrization(0.5), (2,))
    with pytest.raises(UsageError, match=r"returns \(5, 3\) for x_t of shape \(5, 2\): need twice"):
        model.denoise(torch.zeros(5, 2, device=device), 0.5)
