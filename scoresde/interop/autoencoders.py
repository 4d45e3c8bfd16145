"""Published autoencoders: AutoencoderKL and AutoencoderTiny of diffusers, and the TAESD family by its own files.

A folder of diffusers is a model's own, or a pipeline's with the model in `vae/`. The files of TAESD are an encoder's
and a decoder's, side by side in a folder; the numbers of their layers say all about the architecture.

What a diffusion model of diffusers sees is (z - shift_factor) scaling_factor, or with statistics of each channel
(z - latents_mean) scaling_factor / latents_std; shift and scale are kept as `latent_mean` and `latent_std`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.codec import Scaling
from scoresde.errors import UsageError, require
from scoresde.interop.hf_diffusers import FILES, of_attention, of_layer, present_name, read_config
from scoresde.interop.weights import (
    HUB,
    Place,
    as_damaged,
    build,
    copy_in,
    downloaded,
    only_tensors,
    places,
    read_file,
)
from scoresde.models.autoencoder import Autoencoder
from scoresde.networks import AutoencoderNetwork, ConvAutoencoder
from scoresde.networks.conv_autoencoder import Enlarger, Reducer
from scoresde.networks.layers import Attention
from scoresde.networks.tiny_autoencoder import TinyAutoencoder

KL, TINY = "AutoencoderKL", "AutoencoderTiny"
BYTES = Scaling(127.5, 127.5)
FROM_ZERO = Scaling(0.0, 255.0)
SIDE = 256  # of images, where no file says it
SUFFIXES = (".safetensors", ".pth")


def load_published_autoencoder(path: Path | str, size: Sequence[int] = ()) -> Autoencoder:
    """An autoencoder with published weights, for images in bytes. No code in a file is run.

    Args:
        path: a folder of diffusers, a folder with the encoder's and the decoder's file of one of the TAESD family, or
            "hf:NAME" for a folder of Hugging Face's hub, which is then downloaded.
        size: (height, width) of the images; by default what the folder says, or 256. Other sizes are encoded too.

    Raises:
        UsageError: for a folder of another format or architecture.

    Example:
        autoencoder = load_published_autoencoder("taef2")
        save_model(autoencoder, "autoencoder.safetensors")  # for latent models
    """
    source = f"from={str(path)!r}"
    require(
        len(size) in (0, 2) and all(side >= 1 for side in size),
        f"size={tuple(size)}: need (height, width), as in (256, 256)",
    )
    folder = _folder(path, source)
    require(folder.is_dir(), f"{source}: no such folder; need one of diffusers, or of TAESD's two files")
    with as_damaged(source):
        parts = (folder / "vae", folder)
        inner = next((part for part in parts if (part / "config.json").is_file()), None)
        model = _of_two_files(folder, source, size) if inner is None else _of_diffusers(inner, source, size)
    return model.eval().requires_grad_(False)


def holds_autoencoder(path: Path | str) -> bool:
    """Whether a folder, or "hf:NAME", holds an autoencoder and no diffusion model; a pipeline's has both.

    Raises:
        UsageError: for a configuration that cannot be read, or a name that the hub does not have.
    """
    source = f"from={str(path)!r}"
    folder = _folder(path, source)
    if not folder.is_dir() or any((folder / name / "config.json").is_file() for name in ("unet", "transformer")):
        return False
    if (folder / "vae" / "config.json").is_file():
        return True
    if (folder / "config.json").is_file():
        with as_damaged(source):
            return read_config(folder / "config.json", source).get("_class_name") in (KL, TINY)
    names = [file.name for file in folder.iterdir() if file.suffix in SUFFIXES]
    return all(any(half in name for name in names) for half in ("encoder", "decoder"))


def _folder(path: Path | str, source: str) -> Path:
    """A folder on this machine; that of a name on the hub is downloaded."""
    name = str(path)
    return downloaded(name.removeprefix(HUB), source) if name.startswith(HUB) else Path(path).expanduser()


def _model(network: AutoencoderNetwork, size: Sequence[int], codec: Scaling) -> Autoencoder:
    return Autoencoder(network, (network.channels_in, *size), codec if network.channels_in in (1, 3) else Scaling())


def _of_diffusers(folder: Path, source: str, size: Sequence[int]) -> Autoencoder:
    """The model of a folder with a configuration."""
    config = read_config(folder / "config.json", source)
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        raise UsageError(f"{source}: holds no weights; need {' or '.join(FILES)}")
    tensors = only_tensors(read_file(file, source), source)
    kind = config.get("_class_name")
    require(kind in (KL, TINY), f"{source}: is of class {kind}; need {KL} or {TINY}")
    network = _kl(config, tensors, source) if kind == KL else _tiny(config, tensors, source)
    side = config.get("sample_size") or SIDE
    model = _model(network, size or (side, side), BYTES if kind == KL else FROM_ZERO)
    mean, std = _scale_of_latents(config, network.latent_channels, source)
    model.latent_mean.copy_(mean)
    model.latent_std.copy_(std)
    return model


def _scale_of_latents(config: Mapping[str, Any], channels: int, source: str) -> tuple[Tensor, Tensor]:
    """What is subtracted from latents, and what they are divided by, for each channel."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    shift, factor = config.get("shift_factor") or 0.0, config.get("scaling_factor", 1.0)
    require(
        (mean is None) == (std is None) and (mean is None or shift == 0),
        f"{source}: of latents_mean, latents_std and shift_factor, need the first two together, or none of them",
    )
    means, deviations = (
        torch.as_tensor(value, dtype=torch.float64).expand(channels)
        for value in ((shift, 1.0) if mean is None else (mean, std))
    )
    return means, deviations / factor


def _refuse_others(config: Mapping[str, Any], known: Mapping[str, Sequence[Any]], kind: str, source: str) -> None:
    """Raises `UsageError` for a field with a value that is not known here; the first value is the default."""
    for field, values in known.items():
        value = config.get(field, values[0])
        require(
            value in values,
            f"{source}: {field}={value!r} of {kind} is not known here; need {' or '.join(map(repr, values))}",
        )


def _kl(config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str) -> AutoencoderNetwork:
    """The network of an AutoencoderKL."""
    network = build(ConvAutoencoder, _kl_settings(config, source), {})
    copy_in(network, kl_places(network), {present_name(name): value for name, value in tensors.items()}, source)
    return network


def _kl_settings(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The arguments of `ConvAutoencoder` of a configuration."""
    widths = list(config["block_out_channels"])
    channels_in = config.get("in_channels", 3)
    convs = config.get("use_quant_conv", True)
    known: dict[str, Sequence[Any]] = {
        "act_fn": ("silu", "swish"),
        "out_channels": (3 if "out_channels" not in config else channels_in,),
        "use_post_quant_conv": (True, False) if "use_post_quant_conv" not in config else (convs,),
    }
    _refuse_others(config, known, KL, source)
    for field, name in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        others = sorted(set(config.get(field, ())) - {name})
        require(not others, f"{source}: blocks {', '.join(others)} of {KL} are not known here; need {name}")
    require(
        all(width % widths[0] == 0 for width in widths),
        f"{source}: block_out_channels={widths}: need multiples of the first",
    )
    return {
        "channels_in": channels_in,
        "channels": widths[0],
        "multipliers": tuple(width // widths[0] for width in widths),
        "num_blocks": config.get("layers_per_block", 1),
        "latent_channels": config.get("latent_channels", 4),
        "middle_attention": config.get("mid_block_add_attention", True),
        "latent_convs": convs,
        "norm_groups": config.get("norm_num_groups", 32),
    }


def kl_places(network: ConvAutoencoder) -> Iterator[Place]:
    """The places of an AutoencoderKL."""
    assert network.encoder is not None
    for index, layer in enumerate(network.encoder.down):
        level, place = divmod(index, network.num_blocks + 1)
        yield from of_layer(layer, f"encoder.down_blocks.{level}", place, "downsamplers")
    for index, layer in enumerate(network.decoder.up):
        level, place = divmod(index, network.num_blocks + 2)
        yield from of_layer(layer, f"decoder.up_blocks.{level}", place, "upsamplers")
    half: Reducer | Enlarger
    for name, half in (("encoder", network.encoder), ("decoder", network.decoder)):
        yield from places(half.first, f"{name}.conv_in")
        for number, layer in enumerate(half.middle):
            if isinstance(layer, Attention):
                yield from of_attention(layer, f"{name}.mid_block.attentions.0")
            else:
                yield from of_layer(layer, f"{name}.mid_block", min(number, 1), "")
        yield from places(half.norm, f"{name}.conv_norm_out")
        yield from places(half.last, f"{name}.conv_out")
    yield from places(network.behind, "quant_conv")
    yield from places(network.before, "post_quant_conv")


def _tiny(config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str) -> AutoencoderNetwork:
    """The network of an AutoencoderTiny."""
    network = build(TinyAutoencoder, _tiny_settings(config, source), {})
    copy_in(network, tiny_places(network, "encoder.layers.", "decoder.layers.", first=0), tensors, source)
    return network


def _tiny_settings(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The arguments of `TinyAutoencoder` of a configuration."""
    levels = tuple(config["encoder_block_out_channels"])
    known: dict[str, Sequence[Any]] = {
        "act_fn": ("relu",),
        "upsample_fn": ("nearest",),
        "upsampling_scaling_factor": (2,),
        "out_channels": (config.get("in_channels", 3),),
    }
    _refuse_others(config, known, TINY, source)
    widths = {*levels, *config["decoder_block_out_channels"]}
    require(len(widths) == 1, f"{source}: encoder_block_out_channels={levels}: need one width at all levels")
    return {
        "channels_in": config.get("in_channels", 3),
        "channels": levels[0],
        "latent_channels": config.get("latent_channels", 4),
        "encoder_blocks": tuple(config["num_encoder_blocks"]),
        "decoder_blocks": tuple(config["num_decoder_blocks"]),
    }


def tiny_places(network: TinyAutoencoder, encoder: str, decoder: str, first: int) -> Iterator[Place]:
    """The places of a small autoencoder behind prefixes; `first` is the number of the decoder's first convolution."""
    for name, parameter in network.encoder.named_parameters():
        yield Place(f"{encoder}{name}", parameter.detach())
    for name, parameter in network.decoder.named_parameters():
        number, rest = name.split(".", 1)
        yield Place(f"{decoder}{int(number) - 1 + first}.{rest}", parameter.detach())


def _of_two_files(folder: Path, source: str, size: Sequence[int]) -> Autoencoder:
    """The model of a folder with an encoder's and a decoder's file."""
    halves = {}
    for half in ("encoder", "decoder"):
        files = sorted(file for file in folder.iterdir() if half in file.name and file.suffix in SUFFIXES)
        require(
            len(files) == 1,
            f"{source}: has no config.json of diffusers and {len(files)} files named *{half}*{' or '.join(SUFFIXES)}; "
            "need one",
        )
        halves[half] = only_tensors(read_file(files[0], source), source)
    inferred = infer(halves["encoder"], halves["decoder"], source)
    network = build(TinyAutoencoder, inferred, {})
    tensors = {f"{half}.{name}": value for half, named in halves.items() for name, value in named.items()}
    copy_in(network, tiny_places(network, "encoder.", "decoder.", first=1), tensors, source)
    return _model(network, size or (SIDE, SIDE), FROM_ZERO)


def infer(encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The arguments of `TinyAutoencoder` that follow from names and shapes of the two files.

    A block's names hold `conv`; between the levels stand convolutions without a bias.
    """
    first, last = encoder["0.weight"], encoder[f"{max(map(_number, encoder))}.weight"]
    require(first.ndim == 4, f"{source}: its first layer is no convolution; need an autoencoder like TAESD")
    return {
        "channels_in": first.shape[1],
        "channels": first.shape[0],
        "latent_channels": last.shape[0],
        "encoder_blocks": _blocks_of_levels(encoder),
        "decoder_blocks": _blocks_of_levels(decoder),
        "pooled": any(".pool." in name for name in encoder),
    }


def _number(name: str) -> int:
    found = re.match(r"(\d+)\.", name)
    return int(found[1]) if found else -1


def _blocks_of_levels(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """How many blocks stand before, between and after the convolutions without a bias."""
    counts = [0]
    for number in sorted({_number(name) for name in tensors}):
        if f"{number}.conv.0.weight" in tensors:
            counts[-1] += 1
        elif f"{number}.weight" in tensors and f"{number}.bias" not in tensors:
            counts.append(0)
    return tuple(counts)
