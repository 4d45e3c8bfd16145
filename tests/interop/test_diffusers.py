"""Folders of diffusers, both ways: the same outputs as diffusers' own networks, to the rounding of float64."""

import json
import math
import warnings

import pytest
import torch

from scoresde import (
    EDMSDE,
    VPSDE,
    DiscreteVPSDE,
    EDMParametrization,
    FlowParametrization,
    NetworkScoreModel,
    NoiseParametrization,
    RectifiedFlowSDE,
    Scaling,
    TimeInput,
    UNet,
    UsageError,
    VelocityParametrization,
)
from scoresde.interop import load_published, to_diffusers
from scoresde.networks.presets import DDPM

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    diffusers = pytest.importorskip("diffusers")
    from diffusers import (
        DDIMScheduler,
        DDPMScheduler,
        DiTTransformer2DModel,
        EDMEulerScheduler,
        FlowMatchEulerDiscreteScheduler,
        ScoreSdeVeScheduler,
        UNet2DModel,
    )
    from diffusers.models import embeddings

pytestmark = pytest.mark.filterwarnings("ignore")
DOWN, ATTN_DOWN, UP, ATTN_UP = "DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"
SMALL = {"block_out_channels": (32, 64), "layers_per_block": 1, "sample_size": 8}
PLAIN = SMALL | {"down_block_types": (DOWN, ATTN_DOWN), "up_block_types": (ATTN_UP, UP)}
ADM_LIKE = {"downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift"}


@pytest.fixture(autouse=True)
def embedding_in_float64(monkeypatch):
    """diffusers embeds times in float32, whatever the network's type."""

    def embed(timesteps, embedding_dim, flip_sin_to_cos=False, downscale_freq_shift=1, scale=1, max_period=10000):
        half = embedding_dim // 2
        exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float64) / (half - downscale_freq_shift)
        phase = timesteps[:, None].double() * exponents.exp()
        parts = (phase.cos(), phase.sin()) if flip_sin_to_cos else (phase.sin(), phase.cos())
        return torch.cat(parts, 1)

    monkeypatch.setattr(embeddings, "get_timestep_embedding", embed)


def saved(folder, network, scheduler, part="unet"):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    network.eval().save_pretrained(folder / part)
    scheduler.save_pretrained(folder / "scheduler")
    return network.double()


NETWORKS = {
    "ddpm": (
        PLAIN
        | {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6}
        | {"attention_head_dim": None},
        lambda: DDPMScheduler(),
        (DiscreteVPSDE, NoiseParametrization),
    ),
    "classes": (
        PLAIN | {"num_class_embeds": 3},
        lambda: DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction"),
        (DiscreteVPSDE, VelocityParametrization),
    ),
    "adm": (
        SMALL
        | ADM_LIKE
        | {"down_block_types": (ATTN_DOWN,) * 2, "up_block_types": (ATTN_UP,) * 2}
        | {"out_channels": 6, "attn_norm_num_groups": 32},
        lambda: DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        (DiscreteVPSDE, NoiseParametrization),
    ),
    "edm": (
        SMALL
        | {"down_block_types": ("ResnetDownsampleBlock2D",) * 2, "up_block_types": ("ResnetUpsampleBlock2D",) * 2}
        | {"add_attention": False},
        lambda: EDMEulerScheduler(sigma_max=50.0),
        (EDMSDE, EDMParametrization),
    ),
    "flow": (PLAIN, lambda: FlowMatchEulerDiscreteScheduler(), (RectifiedFlowSDE, FlowParametrization)),
}


@pytest.mark.parametrize(("config", "scheduler", "kinds"), NETWORKS.values(), ids=NETWORKS.keys())
def test_a_network_gives_what_diffusers_own_gives(tmp_path, config, scheduler, kinds):
    theirs = saved(tmp_path, UNet2DModel(**config), scheduler())
    model = load_published(tmp_path).double()
    assert (type(model.sde), type(model.parametrization)) == kinds
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3.0, 700.0], dtype=torch.float64)
    y = torch.tensor([0, 2]) if "num_class_embeds" in config else None
    expected = theirs(x, t, class_labels=y).sample
    torch.testing.assert_close(model.network(x, t, y), expected, rtol=1e-9, atol=1e-9)


def test_a_ve_network_gives_its_score(tmp_path):
    config = PLAIN | {"time_embedding_type": "fourier", "center_input_sample": True}
    theirs = saved(tmp_path, UNet2DModel(**config), ScoreSdeVeScheduler(sigma_max=50.0))
    model = load_published(tmp_path).double()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.3, 20.0], dtype=torch.float64)
    ours = 2 * model.score(2 * x - 1, model.sde.time(-2 * torch.log(2 * sigma)))
    torch.testing.assert_close(ours, theirs(x, sigma).sample, rtol=1e-8, atol=1e-8)


def transformer(**more):
    arguments = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "sample_size": 4,
        "norm_eps": 1e-6,
    }
    return DiTTransformer2DModel(**arguments, out_channels=8, **more)


def saved_transformer(folder):
    theirs = transformer()
    state = theirs.state_dict()
    for name in state:  # published files hold copies of one embedding
        if ".1.norm1.emb." in name:
            state[name].copy_(state[name.replace(".1.", ".0.", 1)])
    theirs.eval().save_pretrained(folder / "transformer")
    DDIMScheduler().save_pretrained(folder / "scheduler")
    return theirs


def test_a_dit_gives_what_diffusers_own_gives(tmp_path):
    theirs, model = saved_transformer(tmp_path).double(), load_published(tmp_path).double()
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t, y = torch.tensor([3.0, 700.0], dtype=torch.float64), torch.tensor([5, 1000])
    torch.testing.assert_close(model.network(x, t, y), theirs(x, t, class_labels=y).sample, rtol=1e-6, atol=1e-6)
    assert model.shape == (4, 4, 4)  # its table of positions is in float32


def test_blocks_with_embeddings_of_their_own_are_refused(tmp_path):
    transformer().save_pretrained(tmp_path / "transformer")
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    with pytest.raises(UsageError, match="differs from that of the first block"):
        load_published(tmp_path)


WRITTEN = {
    "ddpm": lambda: (UNet(3, **SIZES | DDPM_OF), DiscreteVPSDE(), NoiseParametrization(0.5, TimeInput(1000.0, -1.0))),
    "cosine": lambda: (
        UNet(1, num_classes=3, label_dropout=0.1, **SIZES | DDPM_OF | {"scale_shift": True}),
        DiscreteVPSDE(betas=torch.linspace(1e-4, 0.03, 50).tolist()),
        VelocityParametrization(0.5, TimeInput(50.0, -1.0)),
    ),
    "edm": lambda: (UNet(3, **SIZES | DDPM_OF | {"resample": "adm"} | ALL), EDMSDE(), EDMParametrization(0.6)),
    "flow": lambda: (UNet(3, **SIZES | DDPM_OF), RectifiedFlowSDE(), FlowParametrization(0.5, TimeInput(1000.0))),
}
SIZES = {"channels": 32, "multipliers": (1, 2), "num_blocks": 1, "attention_levels": (1,), "dropout": 0.0}
DDPM_OF = {name: value for name, value in DDPM.items() if name not in SIZES} | {"xavier": False}
ALL = {"attention_levels": (0, 1)}


def model_of(parts):
    network, sde, rule = parts
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    shape = (network.channels_in, 8, 8)
    return NetworkScoreModel(network, sde, rule, shape, Scaling(127.5, 127.5)).eval().requires_grad_(False)


@pytest.mark.parametrize("parts", WRITTEN.values(), ids=WRITTEN.keys())
def test_what_is_written_is_read_by_diffusers_and_by_us(tmp_path, parts):
    model = model_of(parts())
    to_diffusers(model, tmp_path)
    pipeline = diffusers.DDPMPipeline if "ddpm" in str(model.sde).lower() else None
    theirs = UNet2DModel.from_pretrained(tmp_path / "unet").double().eval()
    ours = load_published(tmp_path)
    model = model.double()
    assert ours.sde == model.sde
    assert ours.shape == model.shape
    x = torch.randn(2, *model.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3.0, 40.0], dtype=torch.float64)
    y = torch.tensor([0, 3]) if model.network.num_classes else None
    expected = model.network(x, t, y)
    torch.testing.assert_close(theirs(x, t, class_labels=y).sample, expected, rtol=1e-9, atol=1e-9)
    assert pipeline is None or pipeline.from_pretrained(tmp_path).unet.config.in_channels == 3
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert hasattr(diffusers, index["scheduler"][1])


@pytest.mark.parametrize("learned", [False, True])
def test_a_pipeline_of_ours_samples_in_diffusers(tmp_path, learned):
    network = UNet(3, **SIZES | DDPM_OF, learned_variance=learned)
    to_diffusers(model_of((network, *WRITTEN["ddpm"]()[1:])), tmp_path)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=3, output_type="np").images
    assert images.shape == (2, 8, 8, 3)


UNWRITABLE = {
    "label": (lambda: (UNet(3, 32), VPSDE(), NoiseParametrization()), "network.noise_embedding='octaves'"),
    "sde": (lambda: (UNet(3, **SIZES | DDPM_OF), VPSDE(), NoiseParametrization()), "has no scheduler for VPSDE"),
    "heads": (
        lambda: (UNet(3, **SIZES | DDPM_OF | {"head_channels": 48}), DiscreteVPSDE(), NoiseParametrization()),
        r"network\.head_channels=48: UNet2DModel needs a number that divides \[.*64\]",
    ),
    "groups": (
        lambda: (UNet(3, **SIZES | DDPM_OF | {"norm_groups": 24}), DiscreteVPSDE(), NoiseParametrization()),
        "network.norm_groups=24",
    ),
}


@pytest.mark.parametrize(("parts", "message"), UNWRITABLE.values(), ids=UNWRITABLE.keys())
def test_what_diffusers_lacks_is_named(tmp_path, parts, message):
    with pytest.raises(UsageError, match=message):
        to_diffusers(model_of(parts()), tmp_path)


def rewrite(file, **fields):
    """Changes fields of a JSON file; those that are None are removed."""
    written = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in written.items() if value is not None}))


def test_a_dit_of_the_class_that_it_had_before_is_read(tmp_path):
    saved_transformer(tmp_path)
    model = load_published(tmp_path)
    config = tmp_path / "transformer" / "config.json"
    rewrite(config, _class_name="Transformer2DModel")
    old = load_published(tmp_path, size=(8, 6))
    assert (model.shape, old.shape) == ((4, 4, 4), (4, 8, 6))
    assert all(torch.equal(a, b) for a, b in zip(old.parameters(), model.parameters(), strict=True))
    rewrite(config, norm_type="layer_norm")
    with pytest.raises(UsageError, match="is of class Transformer2DModel; need UNet2DModel or DiTTransformer2DModel"):
        load_published(tmp_path)


UNREADABLE = {
    "field": (
        PLAIN,
        lambda folder: rewrite(folder / "unet" / "config.json", block_out_channels=None),
        "lacks block_out_channels; it is damaged",
    ),
    "scheduler": (PLAIN, lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(), "has no scheduler"),
    "variance": (
        PLAIN,
        lambda folder: rewrite(folder / "scheduler" / "scheduler_config.json", variance_type="learned"),
        "of learned variances only 'learned_range' is known",
    ),
    "weights": (PLAIN, lambda folder: next((folder / "unet").glob("*.safetensors")).unlink(), "holds no weights"),
    "json": (PLAIN, lambda folder: (folder / "unet" / "config.json").write_text("{"), "config.json is not JSON"),
    "middle": (
        SMALL | ADM_LIKE | {"down_block_types": (ATTN_DOWN,) * 2, "up_block_types": (ATTN_UP,) * 2},
        lambda folder: None,
        "attention without normalisation",
    ),
    "mixed": (
        PLAIN | {"upsample_type": "resnet"},
        lambda folder: None,
        "convolutions halve or double at some levels, and residual blocks at others",
    ),
}


@pytest.mark.parametrize(("config", "change", "message"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_mistakes_are_named(tmp_path, config, change, message):
    saved(tmp_path, UNet2DModel(**config), DDPMScheduler())
    change(tmp_path)
    with pytest.raises(UsageError, match=message):
        load_published(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        load_published(tmp_path / "none", "diffusers")
