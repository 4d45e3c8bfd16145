"""`--init_from`: a new run that begins from the averaged weights of a checkpoint.

Weights mean something only with the network and the parametrisation that they were trained in, so these are the
checkpoint's. The SDE may be another one if the network means the same under it. Data, objective and optimisation are
the new run's; its optimiser is fresh, and it begins at step 0.

The header of each checkpoint of the new run holds the `Origin`, so that the run goes on if the first file is gone.
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from ml_collections import ConfigDict
from torch import nn

from scoresde import checkpoint
from scoresde.app.config import from_json, load_config, of_run
from scoresde.app.files import flat
from scoresde.app.parts import autoencoder_at
from scoresde.app.run_folder import RunFolder, checkpoint_at
from scoresde.codec import Codec, Scaling
from scoresde.data.arrays import ArrayData
from scoresde.data.info import DataInfo
from scoresde.data.scaling import suits
from scoresde.descriptions import LATENT, SCORE, check_described, describe_codec, describe_model
from scoresde.errors import UsageError, require
from scoresde.models.network import NetworkScoreModel
from scoresde.parametrization import Parametrization
from scoresde.registry import construct
from scoresde.sde import SDE
from sde_configs import default
from sde_configs.build import from_data

RECORD = "init_from"  # its name in the header of a checkpoint
LEVELS = 32  # noise levels at which two SDEs are compared
FREE = ("checkpointing", "dropout")  # fields of a network that change nothing in what its weights mean
SAME = 1e-3  # relative difference of a network's inputs and outputs that counts as none


@final
@dataclass(frozen=True)
class Origin:
    """Where a run begins.

    Attributes:
        path: what `--init_from` named.
        file: the name of the checkpoint.
        step: steps that it was trained.
        digest: its checksum.
        model: the description of its model.
        config: the configuration of its run; empty for a file of `save_model`.
        class_names: of the data that it was trained on.
    """

    path: str
    file: str
    step: int
    digest: str
    model: dict[str, Any]
    config: dict[str, Any]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        source = f"init_from={self.path!r}"
        check_described(self.model, f"{source}: models.{SCORE}")
        require(isinstance(self.config, dict), f"{source}: its configuration is damaged")
        for part in ("network", "sde", "parametrization", "codec"):
            name = self.model[part].get("name")
            require(isinstance(name, str), f"{source}: the name {name!r} of its {part} is damaged")
        sigma_data = self.model["parametrization"].get("sigma_data")
        require(isinstance(sigma_data, float), f"{source}: sigma_data={sigma_data!r} of its model is damaged")

    @classmethod
    def of(cls, given: str, folder: RunFolder) -> Origin:
        """The origin of the run in a folder, or of one that is to begin there.

        Raises:
            UsageError: for a folder that holds a run begun otherwise; for a path without a checkpoint.
        """
        own = _newest_header(folder)
        if own is None:
            file = checkpoint_at(given, "init_from")
            return cls._of_header(checkpoint.read_header(file), given, file.name)
        require(
            RECORD in own,
            f"workdir={str(folder.path)!r}: holds a run that did not begin from a checkpoint; choose another --workdir "
            f"for init_from={given!r}, or leave --init_from out to go on with that run",
        )
        try:
            origin = cls(**{**own[RECORD], "class_names": tuple(own[RECORD]["class_names"])})
        except (TypeError, KeyError) as error:
            raise UsageError(f"workdir={str(folder.path)!r}: {RECORD} in its checkpoints is damaged") from error
        origin._compare(given, folder)
        return origin

    @classmethod
    def _of_header(cls, header: dict[str, Any], path: str, file: str) -> Origin:
        """The origin that the header of a checkpoint describes."""
        source = f"init_from={path!r}"
        models = header["models"]
        require(
            SCORE in models,
            f"{source}: holds the models {', '.join(models)}; a run begins from one named {SCORE!r}",
        )
        data = header.get("data")
        names = () if data is None else DataInfo.from_json(data, source).class_names
        config = header.get("config", {})
        origin = cls(path, file, header["step"], header["digest"], models[SCORE], config, names)
        network = origin.model["network"]
        require(
            network.get("registered", True),
            f"{source}: holds weights of {network.get('name')}, a class that was not registered; train on in Python, "
            "as docs/training.md shows",
        )
        return origin

    def _compare(self, given: str, folder: RunFolder) -> None:
        """Says so if what is given is no longer the checkpoint from which the run began; the run does not need it.

        Raises:
            UsageError: if another path is given, where another checkpoint or none lies.
        """
        try:
            same = checkpoint.read_header(checkpoint_at(given, "init_from"))["digest"] == self.digest
            state = "" if same else "has changed since the run began"
        except (UsageError, OSError):
            state = "cannot be read any more"
        require(
            state == "" or os.path.abspath(given) == os.path.abspath(self.path),
            f"workdir={str(folder.path)!r}: holds a run that began from {self.path!r}, not from init_from={given!r}; "
            "choose another --workdir",
        )
        if state and os.environ.get("RANK", "0") == "0":
            print(f"init_from={given!r} {state}; it is not needed: this run has checkpoints of its own", flush=True)

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON can hold them."""
        return asdict(self) | {"class_names": list(self.class_names)}

    def base(self, sde: str | None, recipe: str | None) -> ConfigDict:
        """The configuration that the command line changes: that of the checkpoint's run, or the recipe if one is named.

        If an SDE is named, the SDE and the objective are its recipe's. Where a recipe leaves `sigma_data` to be
        measured, it is the checkpoint's, because the network was trained with it.
        """
        source = f"init_from={self.path!r}"
        described = {part: from_json(self.model[part], source, ()) for part in ("network", "sde", "parametrization")}
        if recipe is not None:
            config = load_config(sde, recipe)
            if config.parametrization.sigma_data == 0:
                config.parametrization.sigma_data = described["parametrization"].sigma_data
            return config
        if self.config:
            config = of_run(self.config, f"{source}: its configuration")
        else:  # a file of `save_model`
            config = default.get_config()
            filled_in = from_data(described["network"].name)
            config.network = ConfigDict({k: v for k, v in described["network"].items() if k not in filled_in})
            config.sde = described["sde"]
        if sde is not None:
            named = load_config(sde, None)
            config.sde = named.sde
            config.objective = named.objective
        config.parametrization = described["parametrization"]
        config.data.center = config.data.scale = ()
        return config

    def scaling(self, data: ArrayData) -> Codec:
        """The checkpoint's scaling if the data are moderate in it, otherwise their own, as for a model of latents."""
        if self.model["codec"].get("name") == LATENT:
            return data.codec
        codec = construct(self.model["codec"], Codec, f"models.{SCORE}.codec")
        if not isinstance(codec, Scaling):
            raise UsageError(
                f"init_from={self.path!r}: its codec is a {type(codec).__name__}, and a run has a Scaling; train on in "
                "Python, as docs/training.md shows"
            )
        return codec if suits(data.values, codec) else data.codec

    def check_latents(self, autoencoder: str) -> None:
        """Raises `UsageError` unless data are in the latents that the checkpoint's model knows, if it knows any.

        Args:
            autoencoder: `config.data.autoencoder`.
        """
        codec = self.model["codec"]
        was = codec.get("digest", "") if codec.get("name") == LATENT else ""
        field = "config.data.autoencoder"
        now = checkpoint.read_header(autoencoder_at(autoencoder, field))["digest"] if autoencoder else ""
        known = f"the latents of {codec.get('path')} ({was})" if was else "data"
        require(
            was == now,
            f"init_from={self.path!r}: its model learned {known}, and {field}={autoencoder!r} ({now or 'none'}); its "
            "weights need the former",
        )

    def announcement(self, model: NetworkScoreModel) -> str:
        """What the new run takes from the checkpoint."""
        described = describe_codec(model.codec)
        scaling = "and its scaling of the data" if described == self.model["codec"] else "but the data are scaled anew"
        if described["name"] == LATENT:
            scaling = "and its autoencoder"
        return f"began from {self.path}, step {self.step} ({self.digest}): its averaged weights, {scaling}"

    def load_into(self, model: NetworkScoreModel, class_names: tuple[str, ...]) -> None:
        """Gives a new model the averaged weights.

        Args:
            model: of the new run.
            class_names: of its data.

        Raises:
            UsageError: for a model of another network or parametrisation, or under an SDE where the network would mean
                something else; for a checkpoint that is damaged.
        """
        source = f"init_from={self.path!r}"
        described = describe_model(model)
        for part in ("network", "parametrization"):
            _check_same(part, self.model[part], described[part], source)
        path = Path(self.path)
        codec = described["codec"]
        trained = checkpoint.load(RunFolder(path).checkpoints / self.file if path.is_dir() else path).model(
            autoencoder=None if codec["name"] != LATENT else codec["path"]
        )
        model.network.load_state_dict(trained.network.state_dict())
        if described["sde"] == self.model["sde"]:
            if isinstance(model.sde, nn.Module) and isinstance(trained.sde, nn.Module):
                model.sde.load_state_dict(trained.sde.state_dict())
        else:
            _check_sde(model.parametrization, trained.sde, model.sde, source)
        if class_names != self.class_names and self.class_names:
            pairs = zip(self.class_names, class_names, strict=False)
            renamed = ", ".join(f"{old} is now {new}" for old, new in pairs if old != new)
            warnings.warn(f"{source}: its classes have other names here: {renamed or 'none'}", stacklevel=2)


def _newest_header(folder: RunFolder) -> dict[str, Any] | None:
    """The header of the last checkpoint of a run that can be read; None if there are no checkpoints."""
    for path in reversed(folder.all_checkpoints()):
        with contextlib.suppress(UsageError):
            return checkpoint.read_header(path)
    return None


def _check_same(part: str, old: dict[str, Any], new: dict[str, Any], source: str) -> None:
    """Raises `UsageError` for the first field in which two descriptions of a part of a model differ."""
    was = flat(old)
    now = flat(new)
    for field in sorted(was.keys() | now.keys(), key=lambda name: (name != "name", name)):
        here = was.get(field)
        there = now.get(field)
        if here == there or field in FREE:
            continue
        require(
            field != "num_classes",
            f"{source}: its network was trained with {here} classes, and the data have {there}; give data with as many"
            + (", or set --config.data.class_conditional=False" if here == 0 else ""),
        )
        require(
            field not in ("channels_in", "dim"),
            f"{source}: its network takes samples of {here} channels or columns, and the data have {there}",
        )
        raise UsageError(
            f"{source}: its {part} has {field}={here}, and config.{part}.{field}={there}; the weights need the former"
        )


def _check_sde(parametrization: Parametrization, old: SDE, new: SDE, source: str) -> None:
    """Raises `UsageError` unless a network sees and emits the same under two SDEs, at equal noise levels.

    Warns of noise levels at which it was not trained.
    """
    names = f"{type(old).__name__} to {type(new).__name__}"
    spans = [sde.span().noise_level.tolist() for sde in (old, new)]
    high, low = (min(spans[0][0], spans[1][0]), max(spans[0][1], spans[1][1]))
    require(low < high, f"{source}: from {names}: they share no noise level; keep config.sde as it was")
    noise_levels = torch.logspace(math.log10(low), math.log10(high), LEVELS, dtype=torch.float64)
    seen = []
    for sde in (old, new):
        level = sde.at_noise_level(noise_levels)
        rule = parametrization
        inputs = [level.alpha * rule.c_in(level), rule.c_noise(level)]
        outputs = [level.alpha * rule.c_skip(level), rule.c_out(level)]
        seen.append(torch.stack([*inputs, *outputs]).detach())
    require(
        torch.allclose(seen[0], seen[1], rtol=SAME, atol=SAME),
        f"{source}: from {names}: the network would see or emit something else at the same noise level, because of its "
        f"{type(parametrization).__name__} with {type(parametrization.input).__name__}; keep config.sde as it was",
    )
    if spans[1][0] > 1.01 * spans[0][0] or spans[1][1] < 0.99 * spans[0][1]:
        warnings.warn(
            f"{source}: from {names}: the noise levels are now {spans[1][1]:.3g} to {spans[1][0]:.3g}; the checkpoint "
            f"knows those from {spans[0][1]:.3g} to {spans[0][0]:.3g}, and learns the others anew",
            stacklevel=3,
        )
