"""DiT and SiT by their authors' keys."""

import pytest
import torch

from scoresde import UsageError
from scoresde.interop import load_published
from scoresde.networks.dit import positions
from tests.interop.published import dit


def load(tmp_path, tensors, **arguments):
    torch.save(tensors, tmp_path / "w.pt")
    return load_published(tmp_path / "w.pt", **arguments)


def test_weights_go_to_their_places_and_the_table_of_positions_is_ours(tmp_path):
    tensors = dit(128, 2, table=positions((6, 6), 128).float()[None])
    model = load(tmp_path, tensors, sde="ddpm")
    network = model.network
    assert (network.depth, network.num_classes, network.num_heads, network.patch_size) == (2, 10, 2, 2)
    assert model.shape == (4, 12, 12)
    assert model.learned_variance
    torch.testing.assert_close(network.blocks[1].qkv.weight, tensors["blocks.1.attn.qkv.weight"])
    torch.testing.assert_close(network.first.weight, tensors["x_embedder.proj.weight"].flatten(1))
    count = sum(value.numel() for name, value in tensors.items() if name != "pos_embed")
    assert sum(p.numel() for p in network.parameters()) == count


def test_a_sit_is_a_flow_from_noise_to_data(tmp_path):
    """Its time is 1 - t and its velocity x_0 - eps; it has no learned variance, and its second output is left out."""
    tensors = dit(128, 1)
    flow, chain = load(tmp_path, tensors, sde="flow"), load(tmp_path, tensors, sde="ddpm")
    assert not flow.learned_variance
    x = torch.randn(2, *flow.shape, generator=torch.Generator().manual_seed(0))
    t, y = torch.tensor([0.25, 0.75]), torch.tensor([3, 10])
    theirs = chain.network(x, 1 - t, y)[:, :4]
    torch.testing.assert_close(flow.flow_velocity(x, t, y), -theirs, rtol=1e-4, atol=1e-4)


def test_latents_have_the_size_that_is_asked_for(tmp_path):
    tensors = dit(128, 1)
    assert load(tmp_path, tensors, sde="ddpm").shape == (4, 32, 32)
    assert load(tmp_path, tensors, sde="ddpm", size=(8, 6)).shape == (4, 8, 6)


@pytest.mark.parametrize(
    ("tensors", "arguments", "message"),
    [
        (dit(128, 1), {}, "sde=None: .* does not say whether it is a DiT, --sde ddpm, or a SiT, --sde flow"),
        (dit(128, 1, table=torch.zeros(1, 36, 128)), {"sde": "ddpm"}, "pos_embed is not a table of sines and cosines"),
        (dit(128, 1), {"sde": "ddpm", "settings": {"depth": 2}}, "lacks blocks.1"),
        (dit(128, 1) | {"extra": torch.ones(2)}, {"sde": "ddpm"}, "holds extra"),
        ({"w": torch.ones(1)}, {"kind": "dit", "sde": "ddpm"}, "not a DiT; it holds w"),
        ({}, {}, "of no known format; it holds nothing"),
        (
            dit(128, 1) | {"x_embedder.proj.weight": torch.ones(3)},
            {"sde": "ddpm"},
            "damaged, or of another architecture",
        ),
        (
            dit(128, 1),
            {"sde": "ddpm", "settings": {"fir": ()}},
            r"network\.fir=\(\): these weights are of a DiT",
        ),
        (dit(128, 1), {"sde": "ddpm", "size": (8, 9)}, "patch_size=2 does not divide 9.* 8 or 10"),
        (dit(128, 1), {"sde": "ddpm", "size": (8,)}, r"size=\(8,\): need \(height, width\)"),
    ],
)
def test_mistakes_are_named(tmp_path, tensors, arguments, message):
    with pytest.raises(UsageError, match=message):
        load(tmp_path, tensors, **arguments)


def test_the_averaged_weights_of_a_training_are_taken(tmp_path):
    tensors = dit(128, 1)
    last = {name: value + 1 for name, value in tensors.items()}
    model = load(tmp_path, {"model": last, "ema": tensors, "opt": {}}, sde="flow")
    torch.testing.assert_close(model.network.first.bias, tensors["x_embedder.proj.bias"])
