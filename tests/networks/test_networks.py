"""Networks: every parameter and every input matters, at any size."""

import json

import pytest
import torch
from torch import nn

from scoresde import MLP, DiT, MPUNet, Network, UNet, UsageError, registry
from scoresde.networks.presets import ADM, DDPM, NCSNPP

SMALL = {
    "channels": 8,
    "multipliers": (1, 2),
    "num_blocks": 1,
    "attention_levels": (1,),
    "dropout": 0.0,
    "group_channels": 4,
}
SKIP = {"input_pyramid": "skip", "output_pyramid": "skip", "resample": "conv"}
JOINED = {"pyramid_combine": "cat", "end_padding": False, "fir": ()}
NETWORKS = {
    "mlp": (MLP, {"dim": 3, "width": 16, "depth": 2}, (3,)),
    "unet": (UNet, {"channels_in": 1, "channels": 16}, (1, 8, 8)),
    "narrow unet": (UNet, {"channels_in": 1, "channels": 8}, (1, 4, 4)),
    "deep unet": (UNet, {"channels_in": 3, "channels": 12, "multipliers": (1, 2, 3), "num_blocks": 2}, (3, 9, 6)),
    "ddpm": (UNet, {"channels_in": 2} | DDPM | SMALL | {"num_blocks": 1}, (2, 7, 8)),
    "ncsnpp": (UNet, {"channels_in": 2} | NCSNPP | SMALL, (2, 7, 8)),
    "skip pyramids": (UNet, {"channels_in": 2} | NCSNPP | SMALL | SKIP, (2, 8, 5)),
    "joined pyramids": (UNet, {"channels_in": 2} | NCSNPP | SMALL | SKIP | JOINED, (2, 8, 5)),
    "residual output": (UNet, {"channels_in": 1} | NCSNPP | SMALL | {"output_pyramid": "residual"}, (1, 6, 6)),
    "adm": (UNet, {"channels_in": 1} | {k: v for k, v in ADM.items() if k != "learned_variance"} | SMALL, (1, 6, 5)),
    "unet of series": (UNet, {"channels_in": 2, "channels": 8, "dims": 1}, (2, 13)),
    "unet of volumes": (UNet, {"channels_in": 1, "channels": 8, "dims": 3, "fir": (1.0, 3.0, 3.0, 1.0)}, (1, 5, 4, 6)),
    "mp unet": (MPUNet, {"channels_in": 1, "channels": 8, "attention_levels": (1,)}, (1, 7, 6)),
    "mp unet of series": (MPUNet, {"channels_in": 2, "channels": 8, "dims": 1}, (2, 9)),
    "dit": (DiT, {"channels_in": 2, "width": 16, "depth": 2, "num_heads": 2}, (2, 4, 6)),
    "dit of series": (DiT, {"channels_in": 2, "width": 16, "depth": 1, "dims": 1, "patch_size": 3}, (2, 9)),
    "dit of volumes": (DiT, {"channels_in": 1, "width": 36, "depth": 1, "dims": 3, "num_heads": 6}, (1, 4, 2, 2)),
}
every_network = pytest.mark.parametrize(("kind", "arguments", "shape"), NETWORKS.values(), ids=NETWORKS.keys())


def perturbed(network, device):
    """The network in float64 with every parameter moved, so that no layer multiplies by zero."""
    network = network.double().to(device)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(device)
    return network


def first_outputs(network, name, value, count):
    """The part of a network's parameter with which it gives the first of its two outputs."""
    if isinstance(network, DiT) and name.startswith("last."):
        return value.unflatten(0, (-1, 2 * count))[:, :count].flatten(0, 1)  # the channels of each value in a row
    painter = getattr(network, "output_pyramid", "") == "skip" and name.startswith("pyramid_up") and ".conv." in name
    return value[:count] if name.startswith("last.") or painter else value


def inputs(shape, device, batch=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(device)
    return x, torch.linspace(-1.5, 1, batch, dtype=torch.float64, device=device)


@every_network
def test_it_starts_from_zero(kind, arguments, shape, device):
    """The last layer starts at zero: an untrained network adds nothing to D."""
    x, c_noise = inputs(shape, device)
    network = kind(**arguments).to(device)
    assert torch.equal(network(x.float(), c_noise.float()), torch.zeros_like(x.float()))


@every_network
def test_the_gradient_reaches_every_parameter(kind, arguments, shape, device):
    for num_classes in (0, 4):
        network = perturbed(kind(**arguments, num_classes=num_classes), device)
        x, c_noise = inputs(shape, device)
        network(x, c_noise, torch.arange(4, device=device) if num_classes else None).square().sum().backward()
        small = [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6]
        assert small == [], num_classes  # rounding alone gives 1e-13


@every_network
def test_the_output_depends_on_every_entry_and_on_the_noise(kind, arguments, shape, device):
    network = perturbed(kind(**arguments), device)
    x, c_noise = (part.requires_grad_() for part in inputs(shape, device))
    out = network(x, c_noise)
    assert out.shape == x.shape
    for part in torch.autograd.grad(out.square().sum(), (x, c_noise)):
        assert part.abs().min() > 1e-9


@every_network
def test_samples_do_not_see_one_another(kind, arguments, shape, device):
    network = perturbed(kind(**arguments), device)
    x, c_noise = inputs(shape, device)
    together = network(x, c_noise)
    for i in range(4):
        alone = network(x[i : i + 1], c_noise[i : i + 1])[0]
        torch.testing.assert_close(together[i], alone, rtol=1e-10, atol=1e-10)


@every_network
def test_the_label_matters(kind, arguments, shape, device):
    network = perturbed(kind(**arguments, num_classes=3), device)
    x, c_noise = inputs(shape, device)
    outs = [network(x, c_noise, torch.full((4,), label, device=device)) for label in range(3)]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (outs[i] - outs[j]).flatten(1).norm(dim=1).min() > 1e-3
    mixed = network(x, c_noise, torch.tensor([0, 1, 2, 0], device=device))
    for i, label in enumerate([0, 1, 2, 0]):  # each sample has its own
        torch.testing.assert_close(mixed[i], outs[label][i], rtol=1e-10, atol=1e-10)


@every_network
def test_the_second_output_is_behind_the_first_and_both_see_everything(kind, arguments, shape, device):
    """Twice the channels; the first half is as without it, for the same weights."""
    x, c_noise = (part.requires_grad_() for part in inputs(shape, device))
    network = perturbed(kind(**arguments, learned_variance=True), device)
    plain = kind(**arguments).double().to(device)
    count = shape[0]
    plain.load_state_dict(
        {name: first_outputs(network, name, value, count) for name, value in network.state_dict().items()}
    )
    out = network(x, c_noise)
    assert out.shape == (4, 2 * count, *shape[1:])
    torch.testing.assert_close(out[:, :count], plain(x, c_noise), rtol=1e-12, atol=1e-12)
    for half in out.split(count, 1):
        for part in torch.autograd.grad(half.square().sum(), (x, c_noise), retain_graph=True):
            assert part.abs().min() > 1e-9


@every_network
def test_a_missing_or_needless_label_is_an_error(kind, arguments, shape, device):
    x, c_noise = (part.float() for part in inputs(shape, device))
    with pytest.raises(UsageError, match=r"cond.*0\.\.2"):
        kind(**arguments, num_classes=3).to(device)(x, c_noise)
    with pytest.raises(UsageError, match="cond"):
        kind(**arguments).to(device)(x, c_noise, torch.zeros(4, dtype=torch.long, device=device))


@every_network
def test_its_description_makes_it_again(kind, arguments, shape, device):
    for labels in ({}, {"num_classes": 4}, {"num_classes": 4, "label_dropout": 0.25, "learned_variance": True}):
        network = perturbed(kind(**arguments, **labels), device)
        described = json.loads(json.dumps(registry.describe(network)))  # as a checkpoint keeps it
        again = registry.construct(described, nn.Module, "network").double().to(device)
        again.load_state_dict(network.state_dict())
        x, c_noise = inputs(shape, device)
        cond = torch.arange(4, device=device) if labels else None
        assert torch.equal(network(x, c_noise, cond), again(x, c_noise, cond)), labels
        assert again.cond_dropout == network.cond_dropout == labels.get("label_dropout", 0)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 8), (9, 4), (13, 13)])
def test_unet_takes_images_of_any_size(size, device):
    torch.manual_seed(0)
    for channels_in in (1, 3):
        network = perturbed(UNet(channels_in, channels=8, multipliers=(1, 1, 2)), device)
        x, c_noise = inputs((channels_in, *size), device)
        out = network(x, c_noise)
        assert out.shape == x.shape
        assert out.isfinite().all()
        assert (out[0] - out[1]).abs().min() > 1e-6, channels_in  # it is not constant


def test_unet_takes_any_number_of_channels(device):
    """52 channels twice over are 104, which three heads do not divide."""
    x, c_noise = inputs((1, 4, 4), device, batch=2)
    for channels in (1, 5, 12, 52):
        assert perturbed(UNet(1, channels), device)(x, c_noise).shape == x.shape, channels


def test_the_noise_label_is_told_apart_over_its_whole_range(device):
    """c_noise spans [-2, 2]; a hundredth of it moves the embedding, and no two labels look alike."""
    network = MLP(2).to(device)
    features = []
    network.conditioning.noise.register_forward_pre_hook(lambda module, given: features.extend(given))
    network(torch.zeros(401, 2, device=device), torch.linspace(-2, 2, 401, device=device))
    distance = torch.cdist(features[0], features[0]) + 100 * torch.eye(401, device=device)
    assert features[0].shape == (401, 64)
    assert distance.min() > 0.5


@every_network
def test_a_network_in_bfloat16_sees_the_noise_label_in_full(kind, arguments, shape, device):
    """The frequencies go up to 32, so a rounded label would be another: only the output is rounded."""
    network = perturbed(kind(**arguments), device).bfloat16()
    features = []
    network.conditioning.noise.register_forward_pre_hook(lambda module, given: features.extend(given))
    x, c_noise = inputs(shape, device)
    assert network(x.bfloat16(), c_noise.float()).dtype == torch.bfloat16
    network.double()(x, c_noise)
    torch.testing.assert_close(features[0].double(), features[1], rtol=0, atol=0.6 * torch.finfo(torch.bfloat16).eps)


MISTAKES = {
    "dim": (lambda: MLP(0), "dim=0"),
    "width": (lambda: MLP(2, width=0), "width=0"),
    "depth": (lambda: MLP(2, depth=0), "depth=0"),
    "channels_in": (lambda: UNet(0), "channels_in=0"),
    "channels": (lambda: UNet(1, channels=0), "channels=0"),
    "multipliers": (lambda: UNet(1, multipliers=()), r"multipliers=\(\)"),
    "fraction": (lambda: UNet(1, multipliers=(1, 1.5)), r"multipliers=\(1, 1.5\)"),
    "blocks": (lambda: UNet(1, num_blocks=0), "num_blocks=0"),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_the_state_is_what_is_trained():
    for network in (MLP(2), UNet(1)):
        assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}
        assert isinstance(network, Network)


@every_network
def test_without_label_dropout_the_state_is_that_of_the_classes_alone(kind, arguments, shape):
    plain, hiding = kind(**arguments, num_classes=3), kind(**arguments, num_classes=3, label_dropout=0.1)
    axis = 1 if kind is MPUNet else 0  # a linear map of one-hot labels, or a table
    rows = {
        n.conditioning.label.weight.shape[axis] for n in (plain, kind(**arguments, num_classes=3, label_dropout=0.0))
    }
    assert rows == {3}
    assert hiding.conditioning.label.weight.shape[axis] == 4
    assert hiding.label_dropout == hiding.cond_dropout == 0.1


@every_network
def test_with_label_dropout_no_label_is_a_label_of_its_own_and_nothing_is_drawn(kind, arguments, shape, device):
    network = perturbed(kind(**arguments, num_classes=3, label_dropout=0.5), device).train()
    x, c_noise = inputs(shape, device)
    state = torch.get_rng_state()
    none = network(x, c_noise)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(none, network.eval()(x, c_noise))
    assert torch.equal(none, network(x, c_noise, torch.full((4,), 3, device=device)))
    for label in range(3):
        given = network(x, c_noise, torch.full((4,), label, device=device))
        assert (none - given).flatten(1).norm(dim=1).min() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": -1}, "num_classes=-1"),
        ({"num_classes": 2.5}, r"num_classes=2\.5"),
        ({"num_classes": 2, "label_dropout": 1.0}, r"label_dropout=1\.0"),
        ({"num_classes": 2, "label_dropout": -0.1}, r"label_dropout=-0\.1"),
        ({"label_dropout": 0.1}, r"label_dropout=0\.1: this network has no classes"),
    ],
)
def test_mistakes_about_labels_are_named(arguments, message):
    for kind in (MLP, UNet):
        with pytest.raises(UsageError, match=message):
            kind(1, **arguments)


def test_attention_suits_fused_kernels(monkeypatch, device):
    """Queries, keys and values lie with their features side by side; otherwise the whole matrix would be made."""
    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watch(*parts):
        seen.extend(part.stride(-1) for part in parts)
        return attend(*parts)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    UNet(1, channels=8).to(device)(torch.zeros(2, 1, 8, 8, device=device), torch.zeros(2, device=device))
    assert seen == [1, 1, 1]
