"""`--mode import`: a run folder of published weights, which every other mode takes like a run of its own."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scoresde import checkpoint
from scoresde.app.config import as_autoencoder, load_config, override
from scoresde.app.flags import ImportFlags
from scoresde.app.run_folder import RunFolder
from scoresde.codec import Scaling
from scoresde.data.info import DataInfo
from scoresde.descriptions import AUTOENCODER
from scoresde.errors import require
from scoresde.interop import FORMATS, holds_autoencoder, load_published, load_published_autoencoder
from scoresde.models.autoencoder import Autoencoder
from scoresde.models.network import NetworkScoreModel
from scoresde.named_sdes import EDMSDE, VESDE, CosineSDE, DiscreteVPSDE, RectifiedFlowSDE, SubVPSDE
from scoresde.registry import describe
from sde_configs.build import from_data

RECIPES = {VESDE: "ve", SubVPSDE: "subvp", CosineSDE: "cosine", EDMSDE: "edm", RectifiedFlowSDE: "flow"}
AS = (*FORMATS, AUTOENCODER)  # what --as takes
IMPORTED = "imported"  # the name of data that are not at hand
LATENT_RANGE = (-4.0, 4.0)  # of what is shown


def import_weights(flags: ImportFlags, overrides: Sequence[str]) -> int:
    """Writes the run folder of published weights; returns the exit status."""
    require(flags.from_ is not None, "from: name the published weights, as in --mode import --from checkpoint_8.pth")
    assert flags.from_ is not None
    require(flags.as_ in (None, *AS), f"as={flags.as_!r}: need {', '.join(AS)}")
    name = re.sub(r"\W+", "-", Path(flags.from_.removeprefix("hf:")).stem).strip("-") or "imported"
    folder = RunFolder(Path(flags.workdir or f"runs/{name}"))
    require(
        not folder.all_checkpoints(),
        f"workdir={str(folder.path)!r}: holds a run; choose another --workdir",
    )
    given = _given(overrides)
    size = tuple(given.data.image_size) if tuple(given.data.image_size) != (0,) else ()
    require(
        len(size) <= 2 and all(side >= 1 for side in size), f"data.image_size={size}: need one positive number, or two"
    )
    size = size * 2 if len(size) == 1 else size
    settings = {key: value for key, value in given.network.items() if key != "name"}
    model: NetworkScoreModel | Autoencoder
    if flags.as_ == AUTOENCODER or (flags.as_ is None and holds_autoencoder(flags.from_)):
        _check_plain(flags, settings)
        model = load_published_autoencoder(flags.from_, size)
    else:
        model = load_published(
            flags.from_,
            flags.as_,
            settings=settings,
            sde=flags.sde,
            qkv=flags.qkv,
            schedule=flags.schedule,
            size=size,
        )
    config = _config(model) if isinstance(model, NetworkScoreModel) else _config_of_autoencoder(model)
    _write(folder, model, config)
    if isinstance(model, NetworkScoreModel):
        _announce(model, flags.from_, folder)
    else:
        _announce_autoencoder(model, flags.from_, folder)
    return 0


def _check_plain(flags: ImportFlags, settings: Mapping[str, Any]) -> None:
    """Raises `UsageError` for flags that say nothing about an autoencoder."""
    given = {"sde": flags.sde, "qkv": flags.qkv, "schedule": flags.schedule}
    given |= {f"config.network.{name}": value for name, value in settings.items()}
    for name, value in given.items():
        require(value is None, f"{name}={value!r}: says nothing about an autoencoder; leave it out")


def _write(folder: RunFolder, model: NetworkScoreModel | Autoencoder, config: ConfigDict) -> None:
    """Writes the folder of a run with one checkpoint, that of step 0."""
    folder.create()
    with folder.locked():
        plain = json.loads(config.to_json_best_effort())
        folder.write_config(plain)
        info = _info(model)
        description = {
            "models": {model.role: checkpoint.describe_model(model)},
            "data": info.to_json(),
            "config": plain,
        }
        tensors = {f"ema.{model.role}.{key}": value for key, value in model.state_dict().items()}
        checkpoint.save(folder.checkpoint_path(0), 0, description, tensors)


def _given(overrides: Sequence[str]) -> ConfigDict:
    """What the command line says of the network and of the size of images.

    Raises:
        UsageError: for any other field.
    """
    config = load_config(None, None)
    kind = (
        "DiT"
        if any(re.match(r"--config\.network\.(patch_size|width|depth|mlp_ratio)=", a) for a in overrides)
        else "UNet"
    )
    config.network = ConfigDict({"name": kind})
    before = json.loads(config.to_json_best_effort())
    override(config, overrides)
    after = json.loads(config.to_json_best_effort())
    changed = [section for section in after if after[section] != before[section] and section not in ("network", "data")]
    others = [key for key in after["data"] if after["data"][key] != before["data"][key] and key != "image_size"]
    require(
        not changed and not others,
        f"config.{(changed or ['data.' + name for name in others] or [''])[0]}: is not known before there is a run; "
        "an import takes --config.network.FIELD and --config.data.image_size",
    )
    return config


def _config(model: NetworkScoreModel) -> ConfigDict:
    """The configuration of the run: with it, training could go on from the weights."""
    if isinstance(model.sde, DiscreteVPSDE):
        config = load_config(None, "ddpm")
    else:
        config = load_config(RECIPES.get(type(model.sde), "vp"), None)
    network = describe(model.network)
    filled_in = from_data(network["name"])
    config.network = ConfigDict({key: _tuples(value) for key, value in network.items() if key not in filled_in})
    config.sde = ConfigDict({key: _tuples(value) for key, value in describe(model.sde).items()})
    rule = describe(model.parametrization)
    config.parametrization = ConfigDict(rule)
    if model.learned_variance:
        config.objective = ConfigDict({"name": "HybridObjective", "times": {"name": "DiscreteTimes"}})
    config.data.name = IMPORTED
    config.training.lr = 1e-4
    return config


def _config_of_autoencoder(model: Autoencoder) -> ConfigDict:
    """The configuration of the run of an autoencoder."""
    config = as_autoencoder(load_config(None, None))
    described = describe(model.plain())
    of_data = ("channels_in", "dims")
    config.network = ConfigDict({key: _tuples(value) for key, value in described.items() if key not in of_data})
    config.data.name = IMPORTED
    return config


def _tuples(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _info(model: NetworkScoreModel | Autoencoder) -> DataInfo:
    """What is known of the data: pictures of bytes, or latents."""
    classes = getattr(model.network, "num_classes", 0)
    pictures = isinstance(model.codec, Scaling) and model.codec != Scaling()
    low, high = (0, 255) if pictures else LATENT_RANGE
    return DataInfo(low, high, classes, (), pictures)


def _announce(model: NetworkScoreModel, given: str, folder: RunFolder) -> None:
    """Says what was found, and what can be done with it."""
    count = sum(parameter.numel() for parameter in model.parameters())
    shape = "x".join(map(str, model.shape))
    classes = getattr(model.network, "num_classes", 0)
    print(
        f"imported {given}: a {type(model.network).__name__} of {count:,} parameters under {type(model.sde).__name__}, "
        f"{type(model.parametrization).__name__}, samples of {shape}" + (f", {classes} classes" if classes else "")
    )
    if model.codec == Scaling():
        print("its samples are latents: it has no decoder here")
    print(f"sample: python main.py --mode sample --sampler auto --workdir {folder.path}")


def _announce_autoencoder(model: Autoencoder, given: str, folder: RunFolder) -> None:
    """Says what was found, and what can be done with it."""
    count = sum(parameter.numel() for parameter in model.plain().parameters())
    network = model.plain()
    print(
        f"imported {given}: a {type(network).__name__} of {count:,} parameters, from {network.channels_in} channels to "
        f"{network.latent_channels} of sizes {network.factor} times smaller"
    )
    print(
        f"learn its latents: python main.py --mode train --config.data.autoencoder={shlex.quote(str(folder.path))} "
        "--workdir NEW --config.data.path=YOURS"
    )
