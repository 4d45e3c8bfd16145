"""Networks of score_sde_pytorch: NCSN++, DDPM++ and DDPM, trained in continuous time (Song et al. 2021, their code).

A `.pth` file holds `model`, whose tensors are named by the number of a module, `all_modules.N`, and `ema`, whose
averaged tensors have no names: they are in the order of the parameters that were trained. The frozen frequencies of
Fourier features are not among these. Settings are not in the file. They follow from the kinds and shapes of the
modules, with two exceptions: whether features are filtered, which is taken to be so if the network has a pyramid, and
whether VP or sub-VP was trained.

The VE networks see images in [0, 1], and bring them to [-1, 1] themselves. Here the model's units are [-1, 1], so its
sigma is twice theirs: sigma runs from 0.02 to 100 where theirs runs from 0.01 to 50, and the label is log(sigma / 2).
They emit the score times sigma, -eps; the sign goes into the weights of the last layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from scoresde.codec import Scaling
from scoresde.errors import UsageError, require
from scoresde.interop.weights import Place, build, copy_in, negate, only_tensors, places, swap_halves
from scoresde.models.network import NetworkScoreModel
from scoresde.named_sdes import VESDE, VPSDE, SubVPSDE
from scoresde.networks import UNet
from scoresde.networks.embedding import Features
from scoresde.networks.layers import Attention, ResBlock, StridedConv, UpConv
from scoresde.networks.unet import Painter
from scoresde.parametrization import LogSigmaInput, NoiseParametrization, TimeInput
from scoresde.sde import SDE

PREFIX = "all_modules."


def named_tensors(found: Mapping[str, Any], source: str) -> tuple[dict[str, Tensor], Tensor]:
    """The averaged weights by name, and the noise levels `sigmas` of the file.

    Raises:
        UsageError: for a file of another kind.
    """
    model = found.get("model")
    require(
        isinstance(model, Mapping) and any(PREFIX in str(name) for name in model),
        f"{source}: not a checkpoint of score_sde_pytorch; it holds {', '.join(list(found)[:3])}",
    )
    assert isinstance(model, Mapping)
    tensors = only_tensors({str(name).removeprefix("module."): value for name, value in model.items()}, source)
    require("sigmas" in tensors, f"{source}: lacks sigmas, the noise levels, which score_sde_pytorch keeps")
    sigmas = tensors.pop("sigmas")
    ema = found.get("ema")
    shadow = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    require(isinstance(shadow, Sequence), f"{source}: lacks ema.shadow_params, the averaged weights")
    assert isinstance(shadow, Sequence)
    trained = [name for name in tensors if name != f"{PREFIX}0.W"]
    require(
        len(trained) == len(shadow),
        f"{source}: has {len(shadow)} averaged tensors for {len(trained)} trained ones; it is damaged",
    )
    for name, value in zip(trained, shadow, strict=True):
        require(
            isinstance(value, Tensor) and value.shape == tensors[name].shape,
            f"{source}: the averaged {name} does not have its shape, {tuple(tensors[name].shape)}; it is damaged",
        )
        tensors[name] = value
    return tensors, sigmas


def convert(
    found: Mapping[str, Any],
    source: str,
    settings: Mapping[str, Any],
    sde: str | None = None,
    size: Sequence[int] = (),
) -> NetworkScoreModel:
    """The model of a file that holds `found`; the other arguments are those of `load_published`.

    The size is by default such that attention is at 16 x 16, as in all published networks, else 32 x 32.
    """
    tensors, sigmas = named_tensors(found, source)
    modules = _modules(tensors)
    inferred = infer(modules, source)
    fourier = inferred["noise_embedding"] == "fourier"
    known = ("ve",) if fourier else ("vp", "subvp")
    sde = known[0] if sde is None else sde
    require(
        sde in known,
        f"sde={sde!r}: {source} has {'Fourier' if fourier else 'positional'} labels, of {' or '.join(known)}",
    )
    network = build(UNet, inferred, settings)
    fill(network, tensors, source, negative=fourier)
    path: SDE
    if fourier:
        path = VESDE(sigma_min=2 * float(sigmas.min()), sigma_max=2 * float(sigmas.max()))
        rule = NoiseParametrization(0.5, LogSigmaInput(unit=2.0))
    else:
        path = SubVPSDE() if sde == "subvp" else VPSDE()
        rule = NoiseParametrization(0.5, TimeInput(999.0))
    side = 16 * 2 ** network.attention_levels[0] if network.attention_levels else 32
    shape = (network.channels_in, *(size or (side, side)))
    return NetworkScoreModel(network, path, rule, shape, Scaling(127.5, 127.5))


def _modules(tensors: Mapping[str, Tensor]) -> list[dict[str, tuple[int, ...]]]:
    """The names and shapes of each module's tensors, in order."""
    found: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        number, _, rest = name.removeprefix(PREFIX).partition(".")
        found.setdefault(int(number) if number.isdigit() else -1, {})[rest] = tuple(tensor.shape)
    return [found[number] for number in sorted(found)]


def _kind(module: Mapping[str, tuple[int, ...]]) -> str:
    """A letter for the kind of a module.

    F Fourier features, L linear, V convolution, N normalisation, R residual block, r one that halves or doubles, A
    attention, C a convolution of one pixel that joins a pyramid, S a convolution that halves or doubles.
    """
    if "weight" in module:
        return {1: "N", 2: "L", 4: "V"}.get(len(module["weight"]), "?")
    if "Conv_1.weight" in module:
        c_out, c_in, *_ = module["Conv_0.weight"]
        return "r" if c_in == c_out and "Conv_2.weight" in module else "R"
    if "Conv_0.weight" in module:
        return "C" if module["Conv_0.weight"][-1] == 1 else "S"
    return "S" if "Conv2d_0.weight" in module else "A" if "NIN_3.W" in module else "F" if "W" in module else "?"


def infer(modules: Sequence[Mapping[str, tuple[int, ...]]], source: str) -> dict[str, Any]:
    """The arguments of `UNet` that follow from the kinds and shapes of modules.

    Raises:
        UsageError: for modules of another architecture.
    """
    kinds = "".join(_kind(module) for module in modules)
    start = re.match(r"F?LLV(?=(?:RA?)+[rS])", kinds)
    foreign = UsageError(f"{source}: not a network of score_sde_pytorch that is known here")
    if start is None:
        raise foreign
    channels, channels_in, *_ = modules[start.end() - 1]["weight"]
    first_level = re.compile(r"(?:RA?)+").match(kinds, start.end())
    assert first_level is not None
    num_blocks = first_level[0].count("R")
    level = re.compile(rf"((?:RA?){{{num_blocks}}})([rS])([CS]?)")
    levels = []  # the number of the first module, the blocks and the pyramid of each
    place = start.end()
    while found := level.match(kinds, place):
        levels.append((place, found[1], found[3]))
        place = found.end()
    deepest = re.compile(rf"((?:RA?){{{num_blocks}}})RAR((?:R.*)NV)").fullmatch(kinds, place)
    if deepest is None:
        raise foreign
    levels.append((place, deepest[1], ""))
    biggan = "r" in kinds
    shortcut = next((m for m in modules if {"Conv_2.weight", "NIN_0.W"} & m.keys() and "Conv_1.weight" in m), {})
    ddpm = "NIN_0.W" in shortcut
    joins = [modules[place - 1] for place, *_ in levels[1:]]
    pyramid = {"C": "skip", "S": "residual", "": "none"}[levels[0][2]]
    painted = _output_pyramid(deepest[2], "r" if biggan else "S")
    doubled = pyramid == "skip" and modules[levels[1][0]]["Conv_0.weight"][1] == 2 * joins[0]["Conv_0.weight"][0]
    return {
        "channels_in": channels_in,
        "channels": channels,
        "multipliers": tuple(modules[place]["Conv_0.weight"][0] // channels for place, *_ in levels),
        "num_blocks": num_blocks,
        "attention_levels": tuple(i for i, (_, blocks, _) in enumerate(levels) if "A" in blocks),
        "attention_up": "last",
        "head_channels": 0,
        "noise_embedding": "fourier" if kinds[0] == "F" else "positional",
        "frequency_shift": 0 if kinds[0] == "F" else 1,
        "resample": "biggan" if biggan else "conv",
        "fir": (1.0, 3.0, 3.0, 1.0) if pyramid != "none" or painted != "none" else (),
        "end_padding": True,
        "scale_shift": False,
        "rescale": not ddpm,
        "norm_groups": 32,
        "group_channels": 1 if ddpm else 4,
        "norm_eps": 1e-6,
        "dropout": 0.1,
        "input_pyramid": pyramid,
        "output_pyramid": painted,
        "pyramid_combine": "cat" if doubled else "sum",
        "xavier": True,
    }


def _output_pyramid(way_up: str, doubling: str) -> str:
    """The kind of the output's pyramid, from the kinds of the modules on the way up."""
    if way_up.count("N") == 1:
        return "none"
    return "residual" if ("S" in way_up if doubling == "r" else "SS" in way_up) else "skip"


def fill(network: UNet, tensors: Mapping[str, Tensor], source: str, negative: bool) -> None:
    """Fills a network from the tensors of one of score_sde_pytorch.

    Args:
        network: of the same architecture.
        tensors: by their names there.
        source: what to call the file in error messages.
        negative: whether the network emitted the negative of what it emits here.
    """
    copy_in(network, _places(network, tensors), tensors, source)
    swap_halves(network.conditioning.noise)  # theirs has sines before cosines
    if negative:
        negate(network.output_parameters())


def _places(network: UNet, tensors: Mapping[str, Tensor]) -> Iterator[Place]:
    for number, layer in enumerate(_in_order(network)):
        prefix = f"{PREFIX}{number}"
        if isinstance(layer, ResBlock):
            yield from _of_block(layer, prefix, tensors)
        elif isinstance(layer, Attention):
            yield from places(layer.norm, f"{prefix}.GroupNorm_0")
            own = dict(layer.qkv.named_parameters())
            for i, part in enumerate(own["weight"].detach().chunk(3)):
                yield Place(f"{prefix}.NIN_{i}.W", part[:, :, 0, 0].T)
            for i, part in enumerate(own["bias"].detach().chunk(3)):
                yield Place(f"{prefix}.NIN_{i}.b", part)
            yield from _pixelwise(layer.out, f"{prefix}.NIN_3")
        elif isinstance(layer, Features):
            yield Place(f"{prefix}.W", layer.frequencies)
        elif isinstance(layer, StridedConv | UpConv):
            yield from places(layer.conv, f"{prefix}.{'Conv2d_0' if layer.style.fir else 'Conv_0'}")
        else:
            yield from places(layer, prefix if f"{prefix}.weight" in tensors else f"{prefix}.Conv_0")


def _of_block(block: ResBlock, prefix: str, tensors: Mapping[str, Tensor]) -> Iterator[Place]:
    names = {
        "norm_in": "GroupNorm_0",
        "conv_in": "Conv_0",
        "modulation": "Dense_0",
        "norm_out": "GroupNorm_1",
        "conv_out": "Conv_1",
    }
    for ours, theirs in names.items():
        yield from places(getattr(block, ours), f"{prefix}.{theirs}")
    if f"{prefix}.NIN_0.W" in tensors:
        yield from _pixelwise(block.skip, f"{prefix}.NIN_0")
    else:
        yield from places(block.skip, f"{prefix}.Conv_2")


def _pixelwise(layer: nn.Module, prefix: str) -> Iterator[Place]:
    """The places of a linear map of each pixel, whose matrix is stored with inputs first."""
    own = dict(layer.named_parameters())
    yield Place(f"{prefix}.W", own["weight"].detach()[:, :, 0, 0].T)
    yield Place(f"{prefix}.b", own["bias"].detach())


def _in_order(network: UNet) -> Iterator[nn.Module]:
    """The modules of a network in the order in which score_sde_pytorch numbers them."""
    if network.noise_embedding == "fourier":
        yield network.conditioning.features
    yield from (network.conditioning.noise, network.conditioning.mix, network.first)
    for index, layer in enumerate(network.down):
        yield from _with_attention(layer)
        level, place = divmod(index + 1, network.num_blocks + 1)
        if place == 0 and network.input_pyramid != "none":
            yield network.pyramid_down[level - 1]
    yield from network.middle
    for index, layer in enumerate(network.up):
        yield from _with_attention(layer)
        level, place = divmod(index, network.num_blocks + 2)
        if place == network.num_blocks and network.output_pyramid != "none":
            painter = network.pyramid_up[level]
            yield from (painter.norm, painter.conv) if isinstance(painter, Painter) else (painter,)
    if network.output_pyramid != "skip":
        yield from (network.norm, network.last)


def _with_attention(layer: nn.Module) -> Iterator[nn.Module]:
    yield layer
    if isinstance(layer, ResBlock) and layer.attention is not None:
        yield layer.attention
