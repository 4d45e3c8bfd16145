"""DiT and SiT by the keys of their authors (Peebles and Xie 2023; Ma et al. 2024).

Both have the same network. A DiT estimates the noise of a chain of 1000 levels, and a second output, which the variance
follows from. A SiT estimates the velocity x_0 - eps of a straight path whose time runs from noise, 0, to data, 1; its
second output was not trained and is left out. Both see latents, so samples are latents too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.errors import require
from scoresde.interop.weights import Place, build, copy_in, negate, only_tensors, places
from scoresde.models.network import NetworkScoreModel
from scoresde.named_sdes import DiscreteVPSDE, RectifiedFlowSDE
from scoresde.networks import DiT
from scoresde.networks.dit import positions
from scoresde.parametrization import FlowParametrization, NoiseParametrization, TimeInput

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # of the published widths


def convert(
    found: Mapping[str, Any],
    source: str,
    settings: Mapping[str, Any],
    sde: str | None = None,
    size: Sequence[int] = (),
) -> NetworkScoreModel:
    """The model of a file that holds `found`; the other arguments are those of `load_published`.

    The size is by default that of the file's table of positions, else 16 patches a side.
    """
    tensors = only_tensors(found, source)
    require(
        "x_embedder.proj.weight" in tensors and "final_layer.linear.weight" in tensors,
        f"{source}: not a DiT; it holds {', '.join(list(tensors)[:3])}",
    )
    require(
        sde in ("ddpm", "flow"),
        f"sde={sde!r}: {source} does not say whether it is a DiT, --sde ddpm, or a SiT, --sde flow; a wrong one gives "
        "noise",
    )
    table = tensors.pop("pos_embed", None)
    inferred = infer(tensors, source)
    if sde == "flow" and inferred["learned_variance"]:
        tensors |= _first_output(tensors, inferred["channels_in"])
        inferred["learned_variance"] = False
    network = build(DiT, inferred, settings)
    side = _check_positions(table, network.width, source)
    copy_in(network, _places(network), tensors, source)
    sizes = tuple(size) or (side * network.patch_size,) * 2
    network.grid(sizes)
    shape = (network.channels_in, *sizes)
    if sde == "flow":
        negate(network.last.parameters())
        path, rule = RectifiedFlowSDE(), FlowParametrization(1.0, TimeInput(-1.0, 1.0))
        return NetworkScoreModel(network, path, rule, shape)
    chain, noise = DiscreteVPSDE(), NoiseParametrization(1.0, TimeInput(1000.0, -1.0))
    return NetworkScoreModel(network, chain, noise, shape)


def infer(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The arguments of `DiT` that follow from names and shapes.

    Raises:
        UsageError: for a width of which the number of heads is unknown; it is then to be given.
    """
    width, channels_in, patch_size, _ = tensors["x_embedder.proj.weight"].shape
    depth = 1 + max((int(n[1]) for name in tensors if (n := re.match(r"blocks\.(\d+)\.", name))), default=-1)
    rows = len(tensors.get("y_embedder.embedding_table.weight", ()))
    c_out = tensors["final_layer.linear.weight"].shape[0] // patch_size**2
    hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0] if "blocks.0.mlp.fc1.weight" in tensors else 4 * width
    return {
        "channels_in": channels_in,
        "patch_size": patch_size,
        "width": width,
        "depth": max(1, depth),
        "num_heads": HEADS.get(width, max(1, width // 64)),
        "mlp_ratio": hidden / width,
        "num_classes": max(0, rows - 1),
        "label_dropout": 0.1 if rows else 0.0,
        "learned_variance": c_out == 2 * channels_in,
        "noise_embedding": "positional",
    }


def _first_output(tensors: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """The last layer without what gives its second output."""
    names = ("final_layer.linear.weight", "final_layer.linear.bias")
    return {name: tensors[name].unflatten(0, (-1, 2 * channels))[:, :channels].flatten(0, 1) for name in names}


def _check_positions(table: Tensor | None, width: int, source: str) -> int:
    """The patches along a side, from the table of positions, which must be of sines and cosines; 16 without one."""
    if table is None:
        return 16
    count = table.shape[-2]
    side = round(count**0.5)
    fits = side**2 == count and table.shape[-1] == width
    require(
        fits and torch.allclose(positions((side, side), width), table.reshape(count, -1).double(), atol=1e-4),
        f"{source}: its pos_embed is not a table of sines and cosines; it belongs to another architecture",
    )
    return side


def of_patches(network: DiT, prefix: str) -> Iterator[Place]:
    """The places of the map of patches, which the file holds as a convolution."""
    side = network.patch_size
    for name, parameter in network.first.named_parameters():
        shape = (network.width, network.channels_in, side, side) if name == "weight" else None
        yield Place(f"{prefix}.{name}", parameter.detach(), shape)


def _places(network: DiT) -> Iterator[Place]:
    conditioning = network.conditioning
    yield from of_patches(network, "x_embedder.proj")
    yield from places(conditioning.noise, "t_embedder.mlp.0")
    yield from places(conditioning.mix, "t_embedder.mlp.2")
    if conditioning.label is not None:
        yield from places(conditioning.label, "y_embedder.embedding_table")
    names = {
        "modulation": "adaLN_modulation.1",
        "qkv": "attn.qkv",
        "out": "attn.proj",
        "inner": "mlp.fc1",
        "outer": "mlp.fc2",
    }
    for number, block in enumerate(network.blocks):
        for ours, theirs in names.items():
            yield from places(getattr(block, ours), f"blocks.{number}.{theirs}")
    yield from places(network.modulation, "final_layer.adaLN_modulation.1")
    yield from places(network.last, "final_layer.linear")
