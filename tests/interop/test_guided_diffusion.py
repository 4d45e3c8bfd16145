"""Files of guided-diffusion: settings that follow from shapes, and those that must be told."""

import pytest
import torch

from scoresde import DiscreteVPSDE, UNet, UsageError
from scoresde.interop import guided_diffusion, load_published
from scoresde.named_sdes import cosine_betas
from scoresde.networks.presets import ADM
from tests.interop.published import adm


def test_the_settings_of_the_published_network_follow_from_its_shapes():
    tensors = adm(192, (1, 2, 3, 4), 3, (1, 2, 3), 1000, device="meta")
    assert len(tensors) == 541
    inferred = guided_diffusion.infer(tensors, "file")
    assert inferred["num_classes"] == 1000
    with torch.device("meta"):
        found, wanted = UNet(**inferred), UNet(3, num_classes=1000, **ADM)
    assert {name for name, value in ADM.items() if getattr(found, name) != value} == {"dropout"}  # not in the file
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in wanted.state_dict().items()}


def load(tmp_path, tensors, **arguments):
    torch.save(tensors, tmp_path / "w.pt")
    given = {"qkv": "new", "schedule": "linear", "settings": {"head_channels": 16}} | arguments
    return load_published(tmp_path / "w.pt", **{name: value for name, value in given.items() if value is not None})


@pytest.mark.parametrize("by_blocks", [True, False])
@pytest.mark.parametrize("scale_shift", [True, False])
def test_weights_go_to_their_places(tmp_path, by_blocks, scale_shift):
    tensors = adm(32, (1, 2), 2, (1,), 5, by_blocks, scale_shift)
    model = load(tmp_path, tensors)
    network = model.network
    assert network.resample == ("adm" if by_blocks else "conv")
    assert network.scale_shift == scale_shift
    assert model.learned_variance
    torch.testing.assert_close(network.first.weight, tensors["input_blocks.0.0.weight"])
    torch.testing.assert_close(network.conditioning.noise.weight, tensors["time_embed.0.weight"])
    torch.testing.assert_close(network.down[4].attention.qkv.weight[..., 0], tensors["input_blocks.5.1.qkv.weight"])
    torch.testing.assert_close(network.up[2].attention.out.bias, tensors["output_blocks.2.1.proj_out.bias"])
    assert sum(p.numel() for p in network.parameters()) == sum(value.numel() for value in tensors.values())
    assert model.shape == (3, 16, 16)


def test_the_legacy_order_is_heads_first(tmp_path):
    """With rows sorted accordingly, both orders are the same attention."""
    tensors = adm(32, (1, 2), 1, (1,), 5)
    legacy = dict(tensors)
    for name, value in tensors.items():
        if ".qkv." in name:
            heads = value.shape[0] // 3 // 16
            legacy[name] = value.unflatten(0, (3, heads, 16)).transpose(0, 1).flatten(0, 2)
    first, second = load(tmp_path, tensors), load(tmp_path, legacy, qkv="legacy")
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 0.7]), torch.tensor([0, 4])
    assert torch.equal(first.denoise(x, t, y), second.denoise(x, t, y))
    assert not torch.allclose(first.denoise(x, t, y), load(tmp_path, legacy).denoise(x, t, y), atol=1e-3)


def test_the_network_sees_the_index_of_a_level(tmp_path):
    """Level i of the chain is the time i / 1000, and the network counts from 0."""
    model = load(tmp_path, adm(32, (1, 2), 1, (1,), 5))
    assert model.sde == DiscreteVPSDE()
    x, y = torch.randn(2, 3, 16, 16), torch.tensor([0, 4])
    noise = model.noise(x, torch.tensor([1 / 1000, 1.0]), y)
    torch.testing.assert_close(noise, model.network(x, torch.tensor([0.0, 999.0]), y)[:, :3], rtol=1e-3, atol=1e-3)


def test_cosine_betas_are_nichols_and_dhariwals():
    chain = cosine_betas()
    f = torch.cos((torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
    kept = torch.cumprod(1 - chain, 0)
    torch.testing.assert_close(kept[:-1], (f[1:] / f[0])[:-1], rtol=1e-9, atol=1e-12)
    assert chain[-1] == 0.999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"qkv": None}, "qkv=None: .* does not say which.*'new' for the 64 x 64 networks"),
        ({"schedule": None}, "schedule=None: .* does not say which.*'cosine' for the 64 x 64 networks"),
        ({"qkv": "old"}, "qkv='old'"),
        ({"settings": {"num_blocks": 2}}, "input_blocks.3.0.in_layers.2.weight has shape .* needs"),
        ({"settings": {"attention_levels": ()}}, "lacks output_blocks.1.1.in_layers.0.weight"),
        ({"sde": "ddpm"}, "sde='ddpm': says nothing about a file of guided_diffusion"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        load(tmp_path, adm(32, (1, 2), 1, (1,), 5), **arguments)


def test_a_tensor_that_settings_follow_from_is_named_if_it_is_missing(tmp_path):
    tensors = adm(32, (1, 2), 1, (1,), 5)
    del tensors["input_blocks.1.0.emb_layers.1.weight"]
    with pytest.raises(UsageError, match=r"lacks input_blocks\.1\.0\.emb_layers\.1\.weight; it is damaged"):
        load(tmp_path, tensors)


def test_an_upsampler_is_refused(tmp_path):
    """It takes as many channels as a network with a learned variance gives."""
    tensors = adm(32, (1, 2), 1, (1,), 5)
    tensors["input_blocks.0.0.weight"] = torch.zeros(32, 6, 3, 3)
    with pytest.raises(UsageError, match="it is an upsampler"):
        load(tmp_path, tensors)
