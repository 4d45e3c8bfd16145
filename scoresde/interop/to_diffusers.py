"""Models of this library as pipeline folders of Hugging Face diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scoresde._files import write_bytes, write_text
from scoresde.errors import UsageError, require
from scoresde.interop.hf_diffusers import FILES, SCHEDULER, unet_places
from scoresde.interop.weights import copy_out
from scoresde.models.base import plain_network
from scoresde.models.latent_codec import AutoencoderCodec
from scoresde.models.network import NetworkScoreModel
from scoresde.named_sdes import EDMSDE, DiscreteVPSDE, RectifiedFlowSDE
from scoresde.networks import UNet
from scoresde.parametrization import (
    DenoisedParametrization,
    EDMParametrization,
    FlowParametrization,
    NoiseParametrization,
    TimeInput,
    UnitVarianceInput,
    VelocityParametrization,
)

VERSION = "0.30.0"  # of the format
PREDICTIONS: dict[type, str] = {
    NoiseParametrization: "epsilon",
    DenoisedParametrization: "sample",
    VelocityParametrization: "v_prediction",
}


def to_diffusers(model: NetworkScoreModel, folder: Path | str) -> None:
    """Writes a pipeline folder: `unet/`, `scheduler/` and `model_index.json`.

    It is a UNet2DModel with the scheduler of a DDPM chain, of EDM or of rectified flow. `DDPMPipeline` draws from a
    chain without classes; the others need a loop of their scheduler's. It gives images of values from 0 to 1 for
    samples from -1 to 1.

    Raises:
        UsageError: for a model of latents; for a network, SDE or parametrisation that diffusers does not have.
    """
    from safetensors.torch import save

    network = plain_network(model.network)
    require(
        not isinstance(model.codec, AutoencoderCodec),
        "to='diffusers': this model makes latents, and the pipeline that is written would show them as images; take "
        "onnx or torch_export, whose samplers decode them",
    )
    require(
        isinstance(network, UNet),
        f"to='diffusers': the network is a {type(network).__name__}; only a UNet is written; take onnx or torch_export",
    )
    assert isinstance(network, UNet)
    config = _unet_config(network, model.shape)
    scheduler = _scheduler(model)
    place = Path(folder)
    for part in ("unet", "scheduler"):
        (place / part).mkdir(parents=True, exist_ok=True)
    tensors = {name: value.float().contiguous().cpu() for name, value in copy_out(unet_places(network)).items()}
    write_bytes(place / "unet" / FILES[0], save(tensors, {"format": "pt"}))
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    written = {"unet/config.json": config, f"scheduler/{SCHEDULER}": scheduler, "model_index.json": index}
    for name, value in written.items():
        write_text(place / name, json.dumps(value, indent=2) + "\n")


def _check_settings(network: UNet) -> None:
    """Raises `UsageError` for a setting that a UNet2DModel does not have."""
    only: dict[str, tuple[Any, ...]] = {
        "dims": (2,),
        "noise_embedding": ("positional",),
        "resample": ("conv", "adm"),
        "fir": ((),),
        "rescale": (False,),
        "attention_up": ("every",),
        "input_pyramid": ("none",),
        "output_pyramid": ("none",),
        "context_channels": (0,),
        "vector_channels": (0,),
        "image_channels": (0,),
        "num_heads": (0,),
        "embedding_channels": (0, network.channels),
        "group_channels": (1,),
    }
    for field, values in only.items():
        value = getattr(network, field)
        require(
            value in values,
            f"to='diffusers': network.{field}={value!r}: UNet2DModel has {values[0]!r} only; take onnx or torch_export",
        )
    widths = [network.channels * multiplier for multiplier in network.multipliers]
    groups = network.norm_groups
    require(
        groups > 0 and all(width % groups == 0 for width in widths),
        f"to='diffusers': network.norm_groups={groups}: UNet2DModel needs a number that divides {widths}",
    )
    attends = [level in network.attention_levels for level in range(len(widths))]
    attended = [width for width, attention in zip(widths, attends, strict=True) if attention]
    attended += widths[-1:] if network.middle_attention else []
    require(
        network.head_channels == 0 or all(width % network.head_channels == 0 for width in attended),
        f"to='diffusers': network.head_channels={network.head_channels}: UNet2DModel needs a number that divides "
        f"{attended}, the channels with attention",
    )
    require(
        network.resample == "conv" or all(attends) or not any(attends),
        "to='diffusers': network.resample='adm' with attention at some levels only: UNet2DModel has it at all or none",
    )


def _unet_config(network: UNet, shape: tuple[int, ...]) -> dict[str, Any]:
    """The configuration of a UNet2DModel.

    Raises:
        UsageError: for a setting that it does not have.
    """
    _check_settings(network)
    widths = [network.channels * multiplier for multiplier in network.multipliers]
    attends = [level in network.attention_levels for level in range(len(widths))]
    groups = network.norm_groups
    by_blocks = network.resample == "adm"
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if by_blocks else ("DownBlock2D", "UpBlock2D")
    kind = "resnet" if by_blocks else "conv"
    classes = network.conditioning.num_labels
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        "sample_size": shape[1] if shape[1] == shape[2] else list(shape[1:]),
        "in_channels": network.channels_in,
        "out_channels": network.channels_in * (2 if network.learned_variance else 1),
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": network.frequency_shift,
        "flip_sin_to_cos": True,
        "down_block_types": ["AttnDownBlock2D" if attention else plain[0] for attention in attends],
        "up_block_types": ["AttnUpBlock2D" if attention else plain[1] for attention in reversed(attends)],
        "block_out_channels": widths,
        "layers_per_block": network.num_blocks,
        "downsample_padding": 0 if network.end_padding else 1,
        "downsample_type": kind,
        "upsample_type": kind,
        "dropout": network.dropout,
        "act_fn": "silu",
        "attention_head_dim": network.head_channels or None,
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups,
        "norm_eps": network.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        "add_attention": network.middle_attention,
        "num_class_embeds": classes or None,
    }


def _scheduler(model: NetworkScoreModel) -> dict[str, Any]:
    """The configuration of the scheduler of a model's SDE and parametrisation.

    Raises:
        UsageError: if diffusers has none.
    """
    sde = model.sde
    rule = model.parametrization
    common = {"_diffusers_version": VERSION}
    if isinstance(sde, EDMSDE) and isinstance(rule, EDMParametrization) and rule.input == UnitVarianceInput():
        sigmas = {"sigma_min": sde.t_min, "sigma_max": sde.t_max, "sigma_data": rule.sigma_data}
        return common | {"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon"} | sigmas
    if isinstance(sde, RectifiedFlowSDE) and isinstance(rule, FlowParametrization) and rule.input == TimeInput(1000.0):
        return common | {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
    if isinstance(sde, DiscreteVPSDE) and type(rule) in PREDICTIONS and rule.input == TimeInput(sde.num_levels, -1.0):
        betas = {"trained_betas": list(sde.betas)} if sde.betas else {}
        return (
            common
            | {
                "_class_name": "DDPMScheduler",
                "num_train_timesteps": sde.num_levels,
                "beta_start": sde.beta_start,
                "beta_end": sde.beta_end,
                "beta_schedule": "linear",
                "prediction_type": PREDICTIONS[type(rule)],
                "variance_type": "learned_range" if model.learned_variance else "fixed_small",
                "clip_sample": False,
            }
            | betas
        )
    raise UsageError(
        f"to='diffusers': it has no scheduler for {type(sde).__name__} with {type(rule).__name__} and "
        f"{type(rule.input).__name__}; take onnx or torch_export"
    )
