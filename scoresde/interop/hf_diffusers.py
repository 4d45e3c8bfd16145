"""Folders of Hugging Face diffusers: UNet2DModel and DiTTransformer2DModel, with the configuration of a scheduler.

A folder is a model's own, or a pipeline's with the model in `unet/` or `transformer/` and the scheduler's configuration
in `scheduler/`. The scheduler says what the network was trained on: a chain of betas, VE, EDM or rectified flow.

Its position embedding rescales the places of images of other sizes than the trained one, and the normalisation before a
DiT's linear layers adds 1e-6 here, as its authors' does, where diffusers' default is 1e-5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde._json import parse_json
from scoresde.codec import Scaling
from scoresde.errors import UsageError, require
from scoresde.interop.dit import of_patches
from scoresde.interop.weights import (
    Place,
    build,
    copy_in,
    negate,
    only_tensors,
    places,
    read_file,
    swap_halves,
    thirds,
)
from scoresde.models.network import NetworkScoreModel
from scoresde.named_sdes import EDMSDE, VESDE, DiscreteVPSDE, RectifiedFlowSDE, cosine_betas
from scoresde.networks import DiT, UNet
from scoresde.networks.layers import Attention, ResBlock, StridedConv
from scoresde.parametrization import (
    DenoisedParametrization,
    EDMParametrization,
    FlowParametrization,
    LogSigmaInput,
    NoiseParametrization,
    Parametrization,
    TimeInput,
    VelocityParametrization,
)
from scoresde.sde import SDE

CLASSES = ("UNet2DModel", "DiTTransformer2DModel")
OLD_DIT = "Transformer2DModel"  # the class of DiT before diffusers 0.29, and of other transformers
SCHEDULER = "scheduler_config.json"
FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
DOWN = {"DownBlock2D": (False, False), "AttnDownBlock2D": (True, None), "ResnetDownsampleBlock2D": (False, True)}
UP = {"UpBlock2D": (False, False), "AttnUpBlock2D": (True, None), "ResnetUpsampleBlock2D": (False, True)}
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def convert(folder: Path, source: str, settings: Mapping[str, Any], size: Sequence[int] = ()) -> NetworkScoreModel:
    """The model of a folder; the other arguments are those of `load_published`. The size is by default the folder's."""
    parts = (folder / name for name in ("unet", "transformer"))
    inner = next((part for part in parts if (part / "config.json").is_file()), folder)
    config = read_config(inner / "config.json", source)
    beside = (folder / "scheduler", inner.parent / "scheduler", folder)
    scheduler = next((path for path in beside if (path / SCHEDULER).is_file()), None)
    if scheduler is None:
        raise UsageError(f"{source}: has no scheduler/{SCHEDULER}, which says what the network was trained on")
    file = next((inner / name for name in FILES if (inner / name).is_file()), None)
    require(file is not None, f"{source}: holds no weights; need {' or '.join(FILES)}")
    assert file is not None
    tensors = only_tensors(read_file(file, source), source)
    kind = config.get("_class_name")
    if kind == OLD_DIT and config.get("norm_type") == "ada_norm_zero":
        kind = CLASSES[1]
    require(kind in CLASSES, f"{source}: is of class {kind}; need {' or '.join(CLASSES)}")
    network: UNet | DiT
    if kind == CLASSES[0]:
        network = _unet(config, tensors, source, settings)
    else:
        network = _dit(config, tensors, source, settings)
    learned = read_config(scheduler / SCHEDULER, source)
    sde, rule, negative = _trained_on(learned, config, network, source)
    if negative:
        negate(network.last.parameters())
    side = size or config.get("sample_size") or 32
    sides = tuple(side) if isinstance(side, Sequence) else (side, side)
    if isinstance(network, DiT):
        network.grid(sides)
    codec = Scaling(127.5, 127.5) if isinstance(network, UNet) and network.channels_in in (1, 3) else Scaling()
    return NetworkScoreModel(network, sde, rule, (network.channels_in, *sides), codec)


def read_config(path: Path, source: str) -> dict[str, Any]:
    require(path.is_file(), f"{source}: lacks {path.name}; need a folder that diffusers saved")
    try:
        config = parse_json(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{source}: {path.name} is not JSON ({error})") from error
    require(isinstance(config, dict), f"{source}: {path.name} is not an object of fields")
    return dict(config)


def _trained_on(
    scheduler: Mapping[str, Any], config: Mapping[str, Any], network: UNet | DiT, source: str
) -> tuple[SDE, Parametrization, bool]:
    """The SDE and the parametrisation that a scheduler stands for, and whether the network emits the negative of it."""
    name = str(scheduler.get("_class_name"))
    fourier = isinstance(network, UNet) and network.noise_embedding == "fourier"
    require(
        fourier == (name == "ScoreSdeVeScheduler"),
        f"{source}: {name} with {'Fourier' if fourier else 'positional'} features; Fourier features go with "
        "ScoreSdeVeScheduler only",
    )
    if fourier:
        require(
            bool(config.get("center_input_sample")),
            f"{source}: center_input_sample is false for a VE network; only networks that centre are known",
        )
        path = VESDE(sigma_min=2 * scheduler["sigma_min"], sigma_max=2 * scheduler["sigma_max"])
        return path, NoiseParametrization(0.5, LogSigmaInput(unit=2.0)), True
    require(
        not config.get("center_input_sample"),
        f"{source}: center_input_sample is true, which is known for VE networks only",
    )
    predicted = scheduler.get("prediction_type", "epsilon")
    if name.startswith("EDM"):
        require(predicted == "epsilon", f"{source}: prediction_type={predicted!r} of {name}: need 'epsilon'")
        edm = EDMSDE(t_min=scheduler["sigma_min"], t_max=scheduler["sigma_max"])
        return edm, EDMParametrization(scheduler.get("sigma_data", 0.5)), False
    if name.startswith("FlowMatch"):
        scale = float(scheduler.get("num_train_timesteps", 1000))
        return RectifiedFlowSDE(), FlowParametrization(0.5, TimeInput(scale)), False
    require(
        "beta_schedule" in scheduler,
        f"{source}: its scheduler is a {name}; need one of betas, ScoreSdeVeScheduler, EDM or FlowMatch",
    )
    require(not scheduler.get("rescale_betas_zero_snr"), f"{source}: rescale_betas_zero_snr is not known here")
    require(
        scheduler.get("variance_type") != "learned",
        f"{source}: variance_type is 'learned'; of learned variances only 'learned_range' is known here",
    )
    chain = _chain(scheduler, source)
    kinds: dict[str, type[Parametrization]] = {
        "epsilon": NoiseParametrization,
        "sample": DenoisedParametrization,
        "v_prediction": VelocityParametrization,
    }
    require(predicted in kinds, f"{source}: prediction_type={predicted!r}: need {', '.join(kinds)}")
    return chain, kinds[predicted](0.5, TimeInput(float(chain.num_levels), -1.0)), False


def _chain(scheduler: Mapping[str, Any], source: str) -> DiscreteVPSDE:
    """The chain of a scheduler's betas."""
    given = scheduler.get("trained_betas")
    if given is not None:
        return DiscreteVPSDE(betas=given)
    start, end = (float(scheduler[name]) for name in ("beta_start", "beta_end"))
    count = int(scheduler.get("num_train_timesteps", 1000))
    schedule = scheduler["beta_schedule"]
    if schedule == "linear":
        return DiscreteVPSDE(start, end, count)
    if schedule == "scaled_linear":
        return DiscreteVPSDE(betas=torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2)
    require(schedule == "squaredcos_cap_v2", f"{source}: beta_schedule={schedule!r} is not known here")
    return DiscreteVPSDE(betas=cosine_betas(count))


def _unet(config: Mapping[str, Any], tensors: dict[str, Tensor], source: str, settings: Mapping[str, Any]) -> UNet:
    """The network of a UNet2DModel."""
    network = build(UNet, _unet_settings(config, source), settings)
    renamed = {present_name(name): value for name, value in tensors.items()}
    copy_in(network, unet_places(network), renamed, source)
    if network.noise_embedding == "fourier" or not config.get("flip_sin_to_cos", True):
        swap_halves(network.conditioning.noise)
    return network


def present_name(name: str) -> str:
    """The present name of a tensor of attention, which older files call otherwise."""
    parts = name.split(".")
    return ".".join(OLD_NAMES.get(part, part) for part in parts) if "attentions" in parts else name


def _unet_settings(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The arguments of `UNet` of a configuration."""
    known: dict[str, tuple[Any, ...]] = {  # fields that may have these values only; the first is the default
        "act_fn": ("silu", "swish"),
        "mid_block_scale_factor": (1, 1.0),
        "class_embed_type": (None,),
        "time_embedding_dim": (None, 4 * config["block_out_channels"][0]),
        "attn_norm_num_groups": (None, config.get("norm_num_groups")),
        "time_embedding_type": ("positional", "fourier"),
        "mid_block_type": ("UNetMidBlock2D",),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "downsample_padding": (1, 0),
    }
    for field, values in known.items():
        value = config.get(field, values[0])
        require(value in values, f"{source}: {field}={value!r} of UNet2DModel is not known here; need {values[0]!r}")
    require(
        config.get("resnet_time_scale_shift") != "scale_shift"
        or config.get("attn_norm_num_groups") is not None
        or not config.get("add_attention", True),
        f"{source}: with scale_shift and no attn_norm_num_groups its middle has attention without normalisation, which "
        "is not known here",
    )
    widths = list(config["block_out_channels"])
    require(
        all(width % widths[0] == 0 for width in widths),
        f"{source}: block_out_channels={widths}: need multiples of the first",
    )
    channels_in, c_out = config.get("in_channels", 3), config.get("out_channels", 3)
    require(
        c_out in (channels_in, 2 * channels_in),
        f"{source}: takes {channels_in} channels and gives {c_out}; need as many or twice",
    )
    attends, by_blocks = _kinds(config, source)
    fourier = config.get("time_embedding_type") == "fourier"
    return {
        "channels_in": channels_in,
        "channels": widths[0],
        "multipliers": tuple(width // widths[0] for width in widths),
        "num_blocks": config.get("layers_per_block", 2),
        "num_classes": config.get("num_class_embeds") or 0,
        "learned_variance": c_out == 2 * channels_in,
        "attention_levels": tuple(i for i, attention in enumerate(attends) if attention),
        "middle_attention": config.get("add_attention", True),
        "head_channels": config.get("attention_head_dim", 8) or 0,
        "noise_embedding": "fourier" if fourier else "positional",
        "frequency_shift": 0 if fourier else int(config.get("freq_shift", 0)),
        "resample": "adm" if by_blocks else "conv",
        "end_padding": config.get("downsample_padding", 1) == 0,
        "scale_shift": config.get("resnet_time_scale_shift") == "scale_shift",
        "norm_groups": config.get("norm_num_groups", 32),
        "norm_eps": config.get("norm_eps", 1e-5),
        "dropout": config.get("dropout", 0.0),
    }


def _kinds(config: Mapping[str, Any], source: str) -> tuple[list[bool], bool]:
    """Which levels have attention, and whether residual blocks halve and double.

    Raises:
        UsageError: for blocks that are not known, or levels that differ otherwise than by attention.
    """
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    for names, known in ((down, DOWN), (up, UP)):
        unknown = [name for name in names if name not in known]
        require(not unknown, f"{source}: blocks {', '.join(unknown)} are not known here; need {', '.join(known)}")
    attends = [DOWN[name][0] for name in down]
    mirrored = [UP[name][0] for name in reversed(up)]
    require(attends == mirrored, f"{source}: attention is at other levels on the way up than on the way down")
    defaults = [config.get(field, "conv") == "resnet" for field in ("downsample_type", "upsample_type")]
    used = {
        kinds[name][1] if kinds[name][1] is not None else default
        for names, kinds, default in ((down[:-1], DOWN, defaults[0]), (up[:-1], UP, defaults[1]))
        for name in names
    }
    require(len(used) <= 1, f"{source}: convolutions halve or double at some levels, and residual blocks at others")
    return attends, used == {True}


def unet_places(network: UNet) -> Iterator[Place]:
    conditioning = network.conditioning
    yield from places(network.first, "conv_in")
    if network.noise_embedding == "fourier":
        yield Place("time_proj.weight", conditioning.features.frequencies)
    yield from places(conditioning.noise, "time_embedding.linear_1")
    yield from places(conditioning.mix, "time_embedding.linear_2")
    if conditioning.label is not None:
        yield from places(conditioning.label, "class_embedding")
    for index, layer in enumerate(network.down):
        level, place = divmod(index, network.num_blocks + 1)
        yield from of_layer(layer, f"down_blocks.{level}", place, "downsamplers")
    for number, layer in enumerate(network.middle):
        if isinstance(layer, Attention):
            yield from of_attention(layer, "mid_block.attentions.0")
        else:
            yield from of_layer(layer, "mid_block", min(number, 1), "")
    for index, layer in enumerate(network.up):
        level, place = divmod(index, network.num_blocks + 2)
        yield from of_layer(layer, f"up_blocks.{level}", place, "upsamplers")
    yield from places(network.norm, "conv_norm_out")
    yield from places(network.last, "conv_out")


def of_layer(layer: nn.Module, prefix: str, place: int, resamplers: str) -> Iterator[Place]:
    if not isinstance(layer, ResBlock):
        yield from places(layer.conv if isinstance(layer, StridedConv) else layer, f"{prefix}.{resamplers}.0.conv")
        return
    names = {
        "norm_in": "norm1",
        "conv_in": "conv1",
        "modulation": "time_emb_proj",
        "norm_out": "norm2",
        "conv_out": "conv2",
        "skip": "conv_shortcut",
    }
    own = f"{prefix}.{resamplers}.0" if layer.resampling else f"{prefix}.resnets.{place}"
    for ours, theirs in names.items():
        part = getattr(layer, ours)
        yield from () if part is None else places(part, f"{own}.{theirs}")
    if layer.attention is not None:
        yield from of_attention(layer.attention, f"{prefix}.attentions.{place}")


def of_attention(layer: Attention, prefix: str) -> Iterator[Place]:
    yield from places(layer.norm, f"{prefix}.group_norm")
    linear = (
        *thirds(layer.qkv, (f"{prefix}.to_{letter}" for letter in "qkv")),
        *places(layer.out, f"{prefix}.to_out.0"),
    )
    for name, view, _ in linear:  # here a convolution of one pixel
        yield Place(name, view.flatten(1) if view.ndim > 1 else view)


def _dit(config: Mapping[str, Any], tensors: dict[str, Tensor], source: str, settings: Mapping[str, Any]) -> DiT:
    """The network of a DiTTransformer2DModel, whose blocks hold copies of one embedding of time and class."""
    require(config.get("activation_fn", "gelu-approximate") == "gelu-approximate", f"{source}: need gelu-approximate")
    channels_in = config.get("in_channels", 4)
    c_out = config.get("out_channels") or channels_in
    arguments: dict[str, Any] = {
        "channels_in": channels_in,
        "patch_size": config.get("patch_size", 2),
        "width": config.get("num_attention_heads", 16) * config.get("attention_head_dim", 72),
        "depth": config.get("num_layers", 28),
        "num_heads": config.get("num_attention_heads", 16),
        "num_classes": config.get("num_embeds_ada_norm", 1000),
        "label_dropout": 0.1,
        "learned_variance": c_out == 2 * channels_in,
        "noise_embedding": "positional",
        "frequency_shift": 1,
        "dropout": config.get("dropout", 0.0),
    }
    network = build(DiT, arguments, settings)
    shared = "norm1.emb."
    for number in range(1, network.depth):
        for name in [name for name in tensors if name.startswith(f"transformer_blocks.{number}.{shared}")]:
            first = name.replace(f"blocks.{number}.", "blocks.0.", 1)
            require(
                first in tensors and torch.equal(tensors.pop(name), tensors[first]),
                f"{source}: {name} differs from that of the first block; networks with an embedding for each block are "
                "not known here",
            )
    copy_in(network, _dit_places(network), tensors, source)
    return network


def _dit_places(network: DiT) -> Iterator[Place]:
    conditioning = network.conditioning
    yield from of_patches(network, "pos_embed.proj")
    embedder = "transformer_blocks.0.norm1.emb"
    yield from places(conditioning.noise, f"{embedder}.timestep_embedder.linear_1")
    yield from places(conditioning.mix, f"{embedder}.timestep_embedder.linear_2")
    assert conditioning.label is not None
    yield from places(conditioning.label, f"{embedder}.class_embedder.embedding_table")
    names = {"modulation": "norm1.linear", "out": "attn1.to_out.0", "inner": "ff.net.0.proj", "outer": "ff.net.2"}
    for number, block in enumerate(network.blocks):
        prefix = f"transformer_blocks.{number}"
        for ours, theirs in names.items():
            yield from places(getattr(block, ours), f"{prefix}.{theirs}")
        yield from thirds(block.qkv, (f"{prefix}.attn1.to_{letter}" for letter in "qkv"))  # type: ignore[arg-type]
    yield from places(network.modulation, "proj_out_1")
    yield from places(network.last, "proj_out_2")
