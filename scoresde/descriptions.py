"""Descriptions of models, as a checkpoint's header holds them, and models from descriptions.

A model is described by the names of the classes of its parts and their arguments. The weights are apart. The codec of a
latent model is an autoencoder, which is a file of its own: it is described by the path and the checksum of that file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.codec import Codec
from scoresde.errors import require
from scoresde.models.autoencoder import Autoencoder
from scoresde.models.base import NetworkModel, TrainedModel, plain_network
from scoresde.models.classifier import NoisyClassifier
from scoresde.models.latent_codec import AutoencoderCodec, Encoded
from scoresde.models.network import NetworkScoreModel
from scoresde.models.text_encoder import ContrastiveTextModel
from scoresde.parametrization import Input, Parametrization
from scoresde.registry import construct, describe, is_registered
from scoresde.sde import SDE

KINDS: dict[str, type[TrainedModel]] = {
    cls.role: cls for cls in (NetworkScoreModel, NoisyClassifier, Autoencoder, ContrastiveTextModel)
}
SCORE = NetworkScoreModel.role
CLASSIFIER = NoisyClassifier.role
AUTOENCODER = Autoencoder.role
TEXT_ENCODER = ContrastiveTextModel.role
LATENT = AutoencoderCodec.__name__


def kind_of(description: Any) -> str:
    """The role of a described model, such as "score"; files of earlier versions know only that one."""
    return str(description.get("kind", SCORE)) if isinstance(description, Mapping) else SCORE


def check_described(description: Any, path: str) -> None:
    """Raises `UsageError` for a description of a model that lacks a part; the message begins with `path`."""
    role = kind_of(description)
    require(role in KINDS, f"{path}.kind={role!r}: need {', '.join(map(repr, KINDS))}")
    parts: dict[str, type | tuple[type, ...]] = {"network": Mapping, "codec": Mapping, "shape": Sequence}
    if issubclass(KINDS[role], NetworkModel):
        parts |= {"sde": Mapping}
    if role == SCORE:
        parts |= {"parametrization": Mapping}
    if role == CLASSIFIER:
        parts |= {"input": Mapping, "num_classes": int, "sigma_data": (int, float)}
    for part, kind in parts.items():
        value = description.get(part) if isinstance(description, Mapping) else None
        require(isinstance(value, kind), f"{path}.{part}={value!r}: this description of a model is damaged")


def describe_model(model: TrainedModel) -> dict[str, Any]:
    """The description of a model, without its weights.

    Raises:
        UsageError: for a part that cannot be described, or weights that belong to no part.
    """
    network = plain_network(model.network)
    parts: dict[str, Any] = {"network": network, "codec": model.codec}
    if isinstance(model, NetworkModel):
        parts["sde"] = model.sde
    if isinstance(model, Autoencoder):
        parts["discriminator"] = model.discriminator
    known = {f"{part}.{key}" for part, of in parts.items() if isinstance(of, nn.Module) for key in of.state_dict()}
    known |= model.own_state
    extra = sorted(set(model_state(model)) - known)
    require(
        not extra,
        f"model: holds {extra[0] if extra else ''}, which is not a part of its network, SDE or codec; a file describes "
        "only these, and could not be loaded",
    )
    registered = is_registered(type(network))
    description: dict[str, Any] = {
        "network": describe(network) if registered else {"name": type(network).__name__, "registered": False},
        "shape": list(model.shape),
        "codec": describe_codec(model.codec),
    }
    if model.role != SCORE:
        description["kind"] = model.role
    if isinstance(model, NetworkModel):
        description["sde"] = describe(model.sde)
    if isinstance(model, NetworkScoreModel):
        description["parametrization"] = describe(model.parametrization)
    if isinstance(model, NoisyClassifier):
        description["input"] = describe(model.input)
        description |= {"sigma_data": model.sigma_data, "num_classes": model.num_classes}
    if isinstance(model, Autoencoder) and model.discriminator is not None:
        description["discriminator"] = describe(model.discriminator)
    return description


def describe_codec(codec: Codec) -> dict[str, Any]:
    """The description of a codec; of an autoencoder, where its file lies and its checksum.

    Raises:
        UsageError: for an autoencoder that lies in no file.
    """
    if isinstance(codec, Encoded):
        return describe_codec(codec.codec)
    if not isinstance(codec, AutoencoderCodec):
        return describe(codec)
    require(
        codec.path != "",
        "codec: its autoencoder lies in no file, and a latent model names one; save it, and make the codec by "
        "load_autoencoder(PATH)",
    )
    factor = codec.autoencoder.plain().factor
    return {"name": LATENT, "path": codec.path, "digest": codec.digest, "factor": factor}


def build_model(description: Any, path: str, source: str, network: nn.Module | None, codec: Codec) -> TrainedModel:
    """Builds a described model, with fresh weights or around a given network.

    Args:
        description: of the model, as `check_described` wants it.
        path: place of the description, for error messages.
        source: the file, for the same.
        network: the network to load the weights into; needed if its class is not registered.
        codec: of the model.
    """
    if network is None:
        name = description["network"].get("name")
        require(
            description["network"].get("registered", True),
            f"network: {source} holds the weights of {name}, a class that was not registered when it was saved; give "
            f"network={name}()",
        )
        with torch.random.fork_rng(devices=[]):
            network = construct(description["network"], nn.Module, f"{path}.network")
    shape = tuple(description["shape"])
    role = kind_of(description)
    if role == AUTOENCODER:
        described = description.get("discriminator")
        discriminator = None if described is None else construct(described, nn.Module, f"{path}.discriminator")
        return Autoencoder(network, shape, codec, discriminator)
    if role == TEXT_ENCODER:
        return ContrastiveTextModel(network, shape, codec)
    sde = construct(description["sde"], SDE, f"{path}.sde")
    if role == CLASSIFIER:
        rule = construct(description["input"], Input, f"{path}.input")
        num_classes, sigma_data = description["num_classes"], description["sigma_data"]
        return NoisyClassifier(network, sde, shape, num_classes, sigma_data, rule, codec)
    rule = construct(description["parametrization"], Parametrization, f"{path}.parametrization")
    return NetworkScoreModel(network, sde, rule, shape, codec)


def model_state(model: TrainedModel) -> dict[str, Tensor]:
    """The tensors of a model by name, without the names that `torch.compile` adds."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("network.")}
    return state | {f"network.{name}": v for name, v in plain_network(model.network).state_dict().items()}
