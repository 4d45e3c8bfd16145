"""Published autoencoders: the same outputs as diffusers' own, to the rounding of float64, and TAESD's two files."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from scoresde import UsageError, checkpoint
from scoresde.interop import load_published_autoencoder
from scoresde.models.latent_codec import AutoencoderCodec
from scoresde.networks import TinyAutoencoder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")
    from diffusers import AutoencoderKL, AutoencoderTiny

pytestmark = pytest.mark.filterwarnings("ignore")
WEIGHTS = "diffusion_pytorch_model.safetensors"
KL = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "sample_size": 16,
}
KINDS = {
    "as Stable Diffusion": KL | {"layers_per_block": 2},
    "as FLUX": KL
    | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
    | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
    "without attention, by channel": KL
    | {"mid_block_add_attention": False, "in_channels": 1, "out_channels": 1}
    | {"latents_mean": (0.1, -0.2, 0.3, 0.4), "latents_std": (1.5, 0.5, 2.0, 1.0), "scaling_factor": 0.5},
}
TINY = {
    "encoder_block_out_channels": (16, 16, 16),
    "decoder_block_out_channels": (16, 16, 16),
    "num_encoder_blocks": (1, 2, 3),
    "num_decoder_blocks": (2, 1, 1),
}


def saved(folder, network):
    """A network of diffusers with weights that all matter, written to a folder and returned in float64."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    network.eval().save_pretrained(folder)
    return network.double()


def samples(*shape):
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS.keys())
@torch.no_grad()
def test_an_autoencoder_of_diffusers_gives_the_same(config, tmp_path):
    theirs = saved(tmp_path / "vae", AutoencoderKL(**config))
    model = load_published_autoencoder(tmp_path).double()
    channels = theirs.config.in_channels
    assert model.shape == (channels, 16, 16)
    x = 2 * samples(channels, 16, 12) - 1
    posterior = theirs.encode(x).latent_dist
    latents = model.network.encode(x)
    torch.testing.assert_close(latents.mean, posterior.mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(latents.log_variance, posterior.logvar, rtol=1e-10, atol=1e-10)
    z = posterior.mean
    torch.testing.assert_close(model.network.decode(z), theirs.decode(z).sample, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "config"), KINDS.items(), ids=KINDS.keys())
@torch.no_grad()
def test_latents_have_the_scale_of_the_configuration(name, config, tmp_path):
    theirs = saved(tmp_path, AutoencoderKL(**config))
    model = load_published_autoencoder(tmp_path).double()
    raw = 255 * samples(theirs.config.in_channels, 16, 16)
    z = theirs.encode(raw / 127.5 - 1).latent_dist.mean
    factor = theirs.config.scaling_factor
    if name.endswith("by channel"):
        mean, std = (torch.tensor(config[part]).double().view(1, -1, 1, 1) for part in ("latents_mean", "latents_std"))
        expected = (z - mean) * factor / std
    else:
        expected = (z - (theirs.config.shift_factor or 0)) * factor
    codec = AutoencoderCodec(model)
    torch.testing.assert_close(codec.encode(raw, torch.float64), expected, rtol=1e-6, atol=1e-6)
    decoded = 127.5 * (theirs.decode(z).sample + 1)
    torch.testing.assert_close(codec.decode(expected), decoded, rtol=1e-5, atol=1e-3)


@torch.no_grad()
def test_a_tiny_autoencoder_of_diffusers_gives_the_same(tmp_path):
    theirs = saved(tmp_path, AutoencoderTiny(**TINY))
    model = load_published_autoencoder(tmp_path, size=(16, 12)).double()
    assert (model.shape, model.latent_shape) == ((3, 16, 12), (4, 4, 3))
    raw = 255 * samples(3, 16, 12)
    z = theirs.encode(raw / 127.5 - 1).latents
    codec = AutoencoderCodec(model)
    torch.testing.assert_close(codec.encode(raw, torch.float64), z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(codec.decode(z), 127.5 * (theirs.decode(z).sample + 1), rtol=1e-10, atol=1e-8)


def two_files(folder, network, suffix=".safetensors"):
    for half in ("encoder", "decoder"):
        state = {name: value.half() for name, value in getattr(network, half).state_dict().items()}
        file = folder / f"tae_{half}{suffix}"
        save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("pooled", [False, True])
def test_two_files_say_which_network_they_are_of(pooled, suffix, tmp_path):
    torch.manual_seed(0)
    network = TinyAutoencoder(3, 16, 5, (1, 2, 1), (2, 0, 1), pooled)
    two_files(tmp_path, network, suffix)
    model = load_published_autoencoder(tmp_path)
    assert (model.network.encoder_blocks, model.network.decoder_blocks) == (
        network.encoder_blocks,
        network.decoder_blocks,
    )
    assert model.network.pooled == pooled
    assert model.shape == (3, 256, 256)
    for name, value in network.half().float().state_dict().items():
        assert torch.equal(model.network.state_dict()[name], value)
    assert torch.equal(model.codec.encode(torch.tensor([[0.0, 255.0]])), torch.tensor([[0.0, 1.0]]))


def test_a_published_autoencoder_is_saved_and_loaded_as_a_codec(tmp_path):
    saved(tmp_path / "theirs", AutoencoderKL(**KINDS["as FLUX"]))
    model = load_published_autoencoder(tmp_path / "theirs")
    checkpoint.save_model(model, tmp_path / "ours.safetensors")
    codec = checkpoint.load_autoencoder(tmp_path / "ours.safetensors")
    raw = (255 * samples(3, 16, 16)).float()
    assert torch.equal(codec.encode(raw), AutoencoderCodec(model).encode(raw))


# mistakes


def changed(folder, **fields):
    """The configuration of a folder with other fields."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"act_fn": "gelu"}, r"act_fn='gelu' of AutoencoderKL is not known here; need 'silu'"),
        ({"out_channels": 4}, r"out_channels=4 of AutoencoderKL"),
        ({"use_post_quant_conv": False}, r"use_post_quant_conv=False of AutoencoderKL"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, r"blocks AttnDownEncoderBlock2D of AutoencoderKL"),
        ({"block_out_channels": [32, 48]}, r"block_out_channels=\[32, 48\]: need multiples"),
        ({"latents_mean": [0.0] * 4}, r"need the first two together"),
        ({"_class_name": "VQModel"}, r"is of class VQModel; need AutoencoderKL or AutoencoderTiny"),
        ({"layers_per_block": 2}, r"lacks encoder.down_blocks.0.resnets.1"),
        ({"latent_channels": 5}, r"has shape .*and this architecture needs"),
    ],
)
def test_another_architecture_is_refused_by_its_field(fields, message, tmp_path):
    saved(tmp_path, AutoencoderKL(**KL))
    changed(tmp_path, **fields)
    with pytest.raises(UsageError, match=message) as error:
        load_published_autoencoder(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"act_fn": "silu"}, r"act_fn='silu' of AutoencoderTiny"),
        ({"upsampling_scaling_factor": 4}, r"upsampling_scaling_factor=4 of AutoencoderTiny"),
        ({"decoder_block_out_channels": [16, 16, 8]}, r"need one width at all levels"),
    ],
)
def test_another_tiny_architecture_is_refused_by_its_field(fields, message, tmp_path):
    saved(tmp_path, AutoencoderTiny(**TINY))
    changed(tmp_path, **fields)
    with pytest.raises(UsageError, match=message):
        load_published_autoencoder(tmp_path)


def test_folders_that_hold_something_else_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no such folder"):
        load_published_autoencoder(tmp_path / "none")
    with pytest.raises(UsageError, match=r"no config.json of diffusers and 0 files named \*encoder\*"):
        load_published_autoencoder(tmp_path)
    two_files(tmp_path, TinyAutoencoder(3, 8, 4, (1, 1), (1, 1)))
    with pytest.raises(UsageError, match=r"side 5 is not a multiple of 2"):
        load_published_autoencoder(tmp_path, size=(5, 4))
    with pytest.raises(UsageError, match=r"size=\(4,\): need \(height, width\)"):
        load_published_autoencoder(tmp_path, size=(4,))
    file = tmp_path / "tae_decoder.safetensors"
    save_file({"alien": torch.zeros(2)} | load_file(file), file)
    with pytest.raises(UsageError, match=r"holds decoder.alien"):
        load_published_autoencoder(tmp_path)
