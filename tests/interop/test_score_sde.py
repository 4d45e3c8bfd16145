"""Checkpoints of score_sde_pytorch: settings that follow from shapes, averaged weights, units and signs."""

import pytest
import torch
from torch import nn

from scoresde import VESDE, VPSDE, SubVPSDE, UNet, UsageError
from scoresde.interop import load_published, score_sde
from scoresde.networks.presets import DDPM, DDPMPP, NCSNPP
from tests.interop.published import song, song_checkpoint

PUBLISHED = {  # tensors of the file, with the frozen one but without sigmas, and the preset
    "vp ddpm++": ({"mults": (1, 2, 2, 2), "num_blocks": 4, "attention": (1,)}, 564, DDPMPP),
    "ve ncsn++": (
        {"mults": (1, 2, 2, 2), "num_blocks": 4, "attention": (1,), "fourier": True, "pyramid": "residual"},
        571,
        NCSNPP,
    ),
    "ve ncsn++ deep": (
        {"mults": (1, 2, 2, 2), "num_blocks": 8, "attention": (1,), "fourier": True, "pyramid": "residual"},
        963,
        NCSNPP | {"num_blocks": 8},
    ),
    "vp ddpm": (
        {"mults": (1, 2, 2, 2), "num_blocks": 2, "attention": (1,), "biggan": False},
        308,
        DDPM | {"attention_up": "last"},
    ),
}


@pytest.mark.parametrize(("structure", "count", "preset"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_the_settings_of_published_networks_follow_from_their_shapes(structure, count, preset):
    tensors = song(128, **structure, device="meta")
    assert len(tensors) == count
    inferred = score_sde.infer(score_sde._modules(tensors), "file")
    with torch.device("meta"):
        found, wanted = UNet(**inferred), UNet(3, **preset)
    for name, value in preset.items():
        assert getattr(found, name) == value or (name, value) == ("group_channels", 1), name
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in wanted.state_dict().items()}


SMALL = {
    "residual": {"fourier": True, "pyramid": "residual"},
    "skip": {"fourier": True, "pyramid": "skip", "painted": "skip"},
    "plain": {},
    "ddpm": {"biggan": False},
}


def written(tmp_path, tensors, **more):
    torch.save(song_checkpoint(tensors, **more), tmp_path / "checkpoint.pth")
    return tmp_path / "checkpoint.pth"


@pytest.mark.parametrize("structure", SMALL.values(), ids=SMALL.keys())
def test_the_averaged_weights_go_to_their_places(tmp_path, structure):
    tensors = song(32, (1, 2), 1, (1,), **structure)
    network = load_published(written(tmp_path, tensors)).network
    start = 3 if structure.get("fourier") else 2
    torch.testing.assert_close(network.first.weight, tensors[f"all_modules.{start}.weight"])
    block = network.down[0]
    torch.testing.assert_close(block.conv_in.weight, tensors[f"all_modules.{start + 1}.Conv_0.weight"])
    torch.testing.assert_close(block.modulation.weight, tensors[f"all_modules.{start + 1}.Dense_0.weight"])
    attention = next(int(n.split(".")[1]) for n in tensors if n.endswith("NIN_3.W"))
    merged = torch.cat([tensors[f"all_modules.{attention}.NIN_{i}.W"].T for i in range(3)])
    found = next(layer for layer in network.down if getattr(layer, "attention", None) is not None).attention
    torch.testing.assert_close(found.qkv.weight[:, :, 0, 0], merged)
    half = network.conditioning.features.size // 2
    first = tensors[f"all_modules.{start - 2}.weight"]
    torch.testing.assert_close(network.conditioning.noise.weight, torch.cat([first[:, half:], first[:, :half]], 1))
    assert sum(p.numel() for p in network.state_dict().values()) == sum(value.numel() for value in tensors.values())


class Raw(nn.Module):
    """score_sde_pytorch's VE network around ours: images in [0, 1], sigma itself, and the score."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, sigma):
        return -self.network(2 * x - 1, sigma.log()) / sigma[:, None, None, None]


def test_a_ve_network_gives_the_score_of_images_between_0_and_1(tmp_path):
    """In their units the score is their network's output; ours is half of it, as our units are twice as large."""
    model = load_published(written(tmp_path, song(32, (1, 2), 1, (1,), True, "residual"), sigma_max=30.0)).double()
    assert model.sde == VESDE(sigma_min=model.sde.sigma_min, sigma_max=model.sde.sigma_max)
    assert (model.sde.sigma_min, model.sde.sigma_max) == pytest.approx((0.02, 60.0), rel=1e-5)
    x = torch.rand(3, *model.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.02, 1.0, 25.0], dtype=torch.float64)
    theirs = Raw(model.network)(x, sigma)
    t = torch.log(sigma / (model.sde.sigma_min / 2)) / torch.log(
        torch.tensor(model.sde.sigma_max / model.sde.sigma_min)
    )
    torch.testing.assert_close(2 * model.score(2 * x - 1, t), theirs, rtol=1e-6, atol=1e-8)


def test_a_vp_network_gives_the_score_by_its_noise_at_999_t(tmp_path):
    file = written(tmp_path, song(32, (1, 2), 1, (1,)))
    for sde, kind in ((None, VPSDE), ("vp", VPSDE), ("subvp", SubVPSDE)):
        model = load_published(file, sde=sde).double()
        assert type(model.sde) is kind
        x = torch.randn(2, *model.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        t = torch.tensor([0.1, 0.9], dtype=torch.float64)
        theirs = -model.network(x, 999 * t) / model.sde.sigma(t)[:, None, None, None]
        torch.testing.assert_close(model.score(x, t), theirs, rtol=1e-8, atol=1e-8)


def test_images_are_as_large_as_attention_says(tmp_path):
    """In all published networks attention is at 16 x 16."""
    assert load_published(written(tmp_path, song(32, (1, 2, 2), 1, (1,)))).shape == (3, 32, 32)
    assert load_published(written(tmp_path, song(32, (1, 2, 2), 1, (2,)))).shape == (3, 64, 64)
    assert load_published(written(tmp_path, song(32, (1, 2, 2), 1, (2,))), size=(8, 12)).shape == (3, 8, 12)


def test_filters_follow_from_the_pyramid_unless_they_are_told(tmp_path):
    assert load_published(written(tmp_path, song(32, (1, 2), 1, (1,), True, "residual"))).network.fir == (1, 3, 3, 1)
    plain = written(tmp_path, song(32, (1, 2), 1, (1,)))
    assert load_published(plain).network.fir == ()
    assert load_published(plain, settings={"fir": (1.0, 3.0, 3.0, 1.0)}).network.fir == (1, 3, 3, 1)


def changed(change):
    checkpoint = song_checkpoint(song(32, (1, 2), 1, (1,)))
    change(checkpoint)
    return checkpoint


MISTAKES = {
    "no average": (lambda c: c.pop("ema"), {}, "of no known format; it holds optimizer, model, step"),
    "other average": (lambda c: c["ema"].update(shadow_params=3), {}, "lacks ema.shadow_params"),
    "short average": (lambda c: c["ema"]["shadow_params"].pop(), {}, r"has \d+ averaged tensors for \d+ trained ones"),
    "turned average": (lambda c: c["ema"]["shadow_params"].reverse(), {}, "the averaged all_modules.0.weight does not"),
    "no sigmas": (lambda c: c["model"].pop("module.sigmas"), {}, "lacks sigmas"),
    "missing": (
        lambda c: (c["model"].pop("module.all_modules.2.bias"), c["ema"]["shadow_params"].pop(5)),
        {},
        "lacks all_modules.2.bias",
    ),
    "unexpected": (
        lambda c: (c["model"].update(extra=torch.ones(1)), c["ema"]["shadow_params"].append(torch.ones(1))),
        {},
        "not a network of score_sde_pytorch|holds extra",
    ),
    "a VE network": (lambda c: None, {"sde": "ve"}, "sde='ve': .* has positional labels, of vp or subvp"),
    "other settings": (lambda c: None, {"settings": {"channels": 64}}, "has shape .*, and this architecture needs"),
    "an option of others": (lambda c: None, {"qkv": "new"}, "qkv='new': says nothing about a file of score_sde"),
    "an unknown format": (
        lambda c: None,
        {"kind": "edm"},
        "as='edm': need score_sde, guided",
    ),
}


@pytest.mark.parametrize(("change", "arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named(tmp_path, change, arguments, message):
    torch.save(changed(change), tmp_path / "c.pth")
    with pytest.raises(UsageError, match=message):
        load_published(tmp_path / "c.pth", **arguments)


class Evil:
    def __reduce__(self):
        return (print, ("this ran",))


def test_code_in_a_file_is_not_run_and_the_way_out_is_named(tmp_path, capsys):
    torch.save({"model": Evil(), "ema": {}}, tmp_path / "c.pth")
    with pytest.raises(UsageError, match=r"not made of tensors alone.*safetensors.torch.save_file"):
        load_published(tmp_path / "c.pth")
    assert capsys.readouterr().out == ""
    (tmp_path / "d.pth").write_bytes(b"no pickle")
    with pytest.raises(UsageError, match="is damaged"):
        load_published(tmp_path / "d.pth")
    with pytest.raises(UsageError, match="no such file"):
        load_published(tmp_path / "e.pth")
