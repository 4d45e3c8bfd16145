"""U-Nets of guided-diffusion: ADM and its relatives (Dhariwal and Nichol 2021, their code).

A `.pt` file holds the averaged weights of the network alone. Most settings follow from the shapes. Three do not, and
have to be told: the order of queries, keys and values in attention ("new" for the 64 x 64 networks, "legacy" for all
others), the number of heads if it is fixed, and the schedule of the betas.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from scoresde.codec import Scaling
from scoresde.errors import UsageError, require
from scoresde.interop.weights import Place, build, copy_in, only_tensors, places
from scoresde.models.network import NetworkScoreModel
from scoresde.named_sdes import DiscreteVPSDE, cosine_betas
from scoresde.networks import UNet
from scoresde.networks.layers import Attention, ResBlock
from scoresde.parametrization import NoiseParametrization, TimeInput

NUM_LEVELS = 1000
LAYOUTS = ("new", "legacy")
SCHEDULES = ("linear", "cosine")
OUT = "out.2"  # the last layer
BLOCK = re.compile(r"input_blocks\.(\d+)\.0\.in_layers\.2\.weight")
DOUBLING = re.compile(r"output_blocks\.(\d+)\.[12]\.(?:in_layers\.2|conv)\.weight")


def convert(
    found: Mapping[str, Any],
    source: str,
    settings: Mapping[str, Any],
    qkv: str | None = None,
    schedule: str | None = None,
    size: Sequence[int] = (),
) -> NetworkScoreModel:
    """The model of a file that holds `found`; the other arguments are those of `load_published`.

    The size is by default such that the coarsest level is 8 x 8, as in all published networks.
    """
    tensors = only_tensors(found, source)
    require(
        "input_blocks.0.0.weight" in tensors and "time_embed.0.weight" in tensors,
        f"{source}: not a U-Net of guided-diffusion; it holds {', '.join(list(tensors)[:3])}",
    )
    for name, value, known, hint in (
        ("qkv", qkv, LAYOUTS, "'new' for the 64 x 64 networks, 'legacy' for the others"),
        ("schedule", schedule, SCHEDULES, "'cosine' for the 64 x 64 networks, 'linear' for the others"),
    ):
        require(
            value in known,
            f"{name}={value!r}: {source} does not say which, and a wrong one gives noise; need {hint} of "
            "guided-diffusion",
        )
    assert schedule is not None
    network = build(UNet, infer(tensors, source), settings)
    copy_in(network, _places(network, qkv == "legacy"), tensors, source)
    sde = DiscreteVPSDE(betas=cosine_betas()) if schedule == "cosine" else DiscreteVPSDE()
    rule = NoiseParametrization(0.5, TimeInput(float(NUM_LEVELS), -1.0))
    side = 8 * 2 ** (len(network.multipliers) - 1)
    shape = (network.channels_in, *(size or (side, side)))
    return NetworkScoreModel(network, sde, rule, shape, Scaling(127.5, 127.5))


def infer(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The arguments of `UNet` that follow from names and shapes.

    Raises:
        UsageError: for tensors of another architecture.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    channels, channels_in, *kernel = shapes["input_blocks.0.0.weight"]
    foreign = UsageError(f"{source}: not a U-Net of guided-diffusion that is known here")
    doubling = [int(found[1]) for name in shapes if (found := DOUBLING.fullmatch(name))]
    blocks = {int(found[1]) for name in shapes if (found := BLOCK.fullmatch(name))}
    if not doubling or f"{OUT}.weight" not in shapes:
        raise foreign
    num_blocks = min(doubling)  # the coarsest level has one block more on the way up
    firsts = range(1, max(blocks) + 1, num_blocks + 1)
    if not blocks.issuperset(firsts):
        raise foreign
    widths = [shapes[f"input_blocks.{number}.0.in_layers.2.weight"][0] for number in firsts]
    c_out = shapes[f"{OUT}.weight"][0]
    require(
        channels_in != 6,
        f"{source}: takes 6 channels, so it is an upsampler, which sees a small image beside the noise; it is not "
        "known here",
    )
    if c_out not in (channels_in, 2 * channels_in):
        raise UsageError(f"{source}: its network takes {channels_in} channels and gives {c_out}; need as many or twice")
    return {
        "channels_in": channels_in,
        "channels": channels,
        "multipliers": tuple(width // channels for width in widths),
        "num_blocks": num_blocks,
        "num_classes": shapes.get("label_emb.weight", (0,))[0],
        "learned_variance": c_out == 2 * channels_in,
        "dims": len(kernel),
        "attention_levels": tuple(
            i for i, number in enumerate(firsts) if f"input_blocks.{number}.1.qkv.weight" in shapes
        ),
        "head_channels": 64,
        "noise_embedding": "positional",
        "embedding_channels": shapes["time_embed.0.weight"][1],
        "resample": "conv" if f"input_blocks.{num_blocks + 1}.0.op.weight" in shapes else "adm",
        "scale_shift": shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * widths[0],
        "norm_groups": 32,
    }


def _places(network: UNet, legacy: bool) -> Iterator[Place]:
    """The places of the tensors.

    Args:
        network: of the same architecture.
        legacy: whether the rows of queries, keys and values are stored by heads first.
    """
    conditioning = network.conditioning
    yield from places(conditioning.noise, "time_embed.0")
    yield from places(conditioning.mix, "time_embed.2")
    if conditioning.label is not None:
        yield from places(conditioning.label, "label_emb")
    yield from places(network.first, "input_blocks.0.0")
    for number, layer in enumerate(network.down, start=1):
        yield from _of_part(layer, f"input_blocks.{number}", 0, legacy)
    for number, layer in enumerate(network.middle):
        yield from _of_part(layer, "middle_block", number, legacy)
    number = -1
    place = 1  # behind a residual block and its attention
    for layer in network.up:
        if isinstance(layer, ResBlock) and not layer.resampling:
            number += 1
            yield from _of_part(layer, f"output_blocks.{number}", 0, legacy)
            place = 1 if layer.attention is None else 2
        else:
            yield from _of_part(layer, f"output_blocks.{number}", place, legacy)
    yield from places(network.norm, "out.0")
    yield from places(network.last, OUT)


def _of_part(layer: nn.Module, prefix: str, place: int, legacy: bool) -> Iterator[Place]:
    if isinstance(layer, ResBlock):
        names = {
            "norm_in": "in_layers.0",
            "conv_in": "in_layers.2",
            "modulation": "emb_layers.1",
            "norm_out": "out_layers.0",
            "conv_out": "out_layers.3",
            "skip": "skip_connection",
        }
        for ours, theirs in names.items():
            yield from places(getattr(layer, ours), f"{prefix}.{place}.{theirs}")
        if layer.attention is not None:
            yield from _of_part(layer.attention, prefix, place + 1, legacy)
    elif isinstance(layer, Attention):
        yield from places(layer.norm, f"{prefix}.{place}.norm")
        yield from places(layer.out, f"{prefix}.{place}.proj_out")
        for name, parameter in layer.qkv.named_parameters():
            view = parameter.detach()
            if legacy:
                view = view.unflatten(0, (3, layer.heads, -1)).transpose(0, 1)
            yield Place(f"{prefix}.{place}.qkv.{name}", view, tuple(parameter.shape))
    else:
        yield from places(layer, f"{prefix}.{place}.{'op' if prefix.startswith('input') else 'conv'}")
