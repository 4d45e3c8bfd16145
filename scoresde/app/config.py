"""The configuration of a command: recipe, then overrides, every mistake named."""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import re
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import sde_configs
from scoresde._json import parse_json
from scoresde.app.files import PLACE, flat
from scoresde.autoencoding import AutoencodingObjective
from scoresde.contrastive import ContrastiveObjective
from scoresde.errors import UsageError, flag_error, require, unknown_name
from scoresde.networks import ClassifierNetwork, ConvAutoencoder, TextTransformer
from scoresde.networks.autoencoder import AutoencoderNetwork
from scoresde.registry import classes
from scoresde.upsampling import UpsamplingObjective
from sde_configs import default
from sde_configs.build import SAMPLERS, from_data

KL_WEIGHT = 0.3  # of autoencoders: latents that a small generator learns


def recipes() -> list[str]:
    """Names of the built-in recipes."""
    return sorted(m.name for m in pkgutil.iter_modules(sde_configs.__path__) if m.name not in ("build", "default"))


def sdes() -> list[str]:
    """Names for `--sde`: the recipes that leave data and network as the default has them, upsamplers apart."""
    common = default.get_config()
    read = {name: _read(name) for name in recipes()}
    return [
        name
        for name, config in read.items()
        if all(config[part] == common[part] for part in ("data", "network")) and "objective" not in config.objective
    ]


def load_config(sde: str | None, name: str | None, of_part: bool = False) -> ConfigDict:
    """The recipe `name` (a built-in name, a Python file with get_config, or a JSON file), under the SDE `sde`.

    With both, everything is `name`'s except what belongs to the SDE: config.sde, .parametrization and .objective, of an
    upsampler's the objective inside it.

    Args:
        sde, name: as above; the default recipe if neither is given.
        of_part: whether the configuration may be that of an autoencoder or a text encoder, which has no SDE.
    """
    if sde is not None and sde not in sdes():
        raise unknown_name("sde", sde, sdes())
    config = _read(name or sde or "vp")
    mode = _of_part(config)
    require(
        of_part or mode == "",
        f"config={name!r}: is that of --mode {mode}, whose network is a {config.network.name}; give the configuration "
        "of a score model",
    )
    if name and sde:
        of_sde = _read(sde)
        for section in ("sde", "parametrization"):
            config[section] = of_sde[section]
        if "objective" in config.objective:
            config.objective.objective = of_sde.objective
        else:
            config.objective = of_sde.objective
    return config


def _name_of(config: ConfigDict, section: str) -> Any:
    """The class that a section names; None for a damaged one."""
    described = config.get(section)
    return described.get("name") if isinstance(described, ConfigDict) else None


def _of_part(config: ConfigDict) -> str:
    """The mode that trains what a configuration describes, if it is a part of a model without an SDE; otherwise ""."""
    name = _name_of(config, "network")
    if name in classes(AutoencoderNetwork):
        return "train_autoencoder"
    return "train_text_encoder" if name == TextTransformer.__name__ else ""


def _without_sde(config: ConfigDict) -> None:
    """Takes away what a part of a model does not have."""
    for section in ("sde", "parametrization"):
        if section in config:
            del config[section]


def is_upsampler(config: ConfigDict) -> bool:
    """Whether a configuration is that of an upsampler (`scoresde.upsampling`)."""
    return _name_of(config, "objective") == UpsamplingObjective.__name__


def as_classifier(config: ConfigDict) -> ConfigDict:
    """The configuration of a classifier that sees what the score model of a configuration sees.

    Its network is the half of the score model's that looks, its objective has the same times, and its optimiser is that
    of Dhariwal and Nichol 2021. A configuration that names another network is a classifier's already.
    """
    half = {"UNet": "UNetClassifier", "MLP": "MLPClassifier"}.get(config.network.name)
    if half is None:
        return config
    taken = inspect.signature(classes(ClassifierNetwork)[half]).parameters
    network = {k: v for k, v in config.network.items() if k in taken}  # labels and variances are the score model's
    times = config.objective.get("times", ConfigDict({"name": "UniformTimes"}))
    config.network = ConfigDict({"name": half, **network})
    config.objective = ConfigDict({"name": "ClassificationObjective", "times": times})
    config.data.class_conditional = True
    config.training.lr = 3e-4
    config.training.weight_decay = 0.05
    return config


def as_autoencoder(config: ConfigDict) -> ConfigDict:
    """The configuration of an autoencoder of the data of a configuration, for latent models.

    A configuration that names an autoencoder's network is an autoencoder's already.
    """
    _without_sde(config)
    config.data.autoencoder = config.data.text_encoder = ""
    if config.network.name in classes(AutoencoderNetwork):
        return config
    taken = {name: p.default for name, p in inspect.signature(ConvAutoencoder).parameters.items()}
    names = ("channels", "multipliers", "num_blocks", "latent_channels", "kind")
    config.network = ConfigDict({"name": ConvAutoencoder.__name__, **{name: taken[name] for name in names}})
    loss = AutoencodingObjective(kl_weight=KL_WEIGHT)
    config.objective = ConfigDict(
        {"name": type(loss).__name__, **{f.name: getattr(loss, f.name) for f in fields(loss)}}
    )
    config.training.num_steps = 1000
    config.training.lr = 1e-3
    return config


def as_text_encoder(config: ConfigDict) -> ConfigDict:
    """The configuration of an encoder of the captions of the data of a configuration.

    A configuration that names a text encoder's network is a text encoder's already.
    """
    _without_sde(config)
    config.data.autoencoder = config.data.text_encoder = ""
    if config.network.name == TextTransformer.__name__:
        return config
    taken = {name: p.default for name, p in inspect.signature(TextTransformer).parameters.items()}
    names = ("width", "depth", "num_heads", "max_length", "dropout")
    config.network = ConfigDict({"name": TextTransformer.__name__, **{name: taken[name] for name in names}})
    config.objective = ConfigDict({"name": ContrastiveObjective.__name__})
    config.network.dropout = 0.1
    config.training.num_steps = 1200
    config.training.batch_size = 128  # each sample is sought among these
    config.training.lr = 1e-3
    return config


def _read(name: str) -> ConfigDict:
    if name in recipes():
        return importlib.import_module(f"sde_configs.{name}").get_config()
    path = Path(name)
    if path.suffix not in (".py", ".json"):
        raise unknown_name("config", name, [*recipes(), "FILE.py", "FILE.json"])
    require(path.is_file(), f"config={name!r}: no such file; built-in are {', '.join(recipes())}")
    if path.suffix == ".json":
        try:
            return from_json(parse_json(path.read_bytes()), f"config={name!r}")
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"config={name!r}: not a configuration in JSON ({error})") from error
    spec = importlib.util.spec_from_file_location("user_config", path)
    remedy = "it must define get_config(), as sde_configs/default.py does"
    if spec is None or spec.loader is None:
        raise UsageError(f"config={name!r}: not a Python file; {remedy}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # whatever the user's file raises
        reason = str(error).splitlines()[:1]
        raise UsageError(f"config={name!r}: {type(error).__name__} {reason}; {remedy}") from error
    require(isinstance(config, ConfigDict), f"config={name!r}: get_config() gave {type(config).__name__}; {remedy}")
    _check_fields(config, f"config={name!r}")
    return config


def of_checkpoint(values: Any, has_sde: bool = True) -> ConfigDict:
    """The configuration of a trained model, of which sampling must know its part; the rest may be older than this.

    How samples are drawn is no part of the model: settings that an older version did not have get their defaults.

    Args:
        values: the parsed JSON.
        has_sde: whether the model is one under an SDE.
    """
    if isinstance(values, dict) and isinstance(values.get("sampling"), dict):
        values = values | {"sampling": default.get_config().sampling.to_dict() | values["sampling"]}
    known = ("seed", "sampling.", *(["sde.name"] if has_sde else []))
    return from_json(values, "checkpoint's config", known)


def of_run(values: dict[str, Any], source: str) -> ConfigDict:
    """The configuration of a run, to train with; settings that an older version did not have get their defaults."""
    whole = dict(values)
    for section in ("data", "training", "logging", "sampling"):
        if isinstance(values.get(section), dict):
            whole[section] = default.get_config()[section].to_dict() | values[section]
    return from_json(whole, source)


def from_json(values: Any, source: str, checked: tuple[str, ...] = ("",)) -> ConfigDict:
    """A configuration of plain values; lists become tuples, as the defaults have them.

    Args:
        values: the parsed JSON.
        source: where it comes from, for errors.
        checked: how the fields begin that must be as `default` has them.
    """
    require(isinstance(values, dict), f"{source}: not a configuration in JSON; need an object of fields")

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(value) if isinstance(value, list) else value

    try:
        config = ConfigDict(tuples(values))
    except (ValueError, TypeError) as error:  # of names with dots, or that are no words
        raise UsageError(f"{source}: {error}") from error
    _check_fields(config, source, checked)
    return config


def _check_fields(config: ConfigDict, source: str, checked: tuple[str, ...] = ("",)) -> None:
    """Raises `UsageError` for a field that is missing, unknown or of another type than the default's.

    The fields of the network, SDE, parametrisation and objective are those of the class that is named there, and a
    field of a sampler that is missing has its class's default. Only the denoising objective needs times and weighting.
    """
    fields = {k: v for k, v in flat(config.to_dict()).items() if k.startswith(checked)}
    known = {k: v for k, v in flat(default.get_config().to_dict()).items() if k.startswith(checked)}
    free = ("network.", "sde.", "parametrization.", "objective.")
    denoising = fields.get("objective.name") == "DenoisingObjective"
    if _of_part(config):
        known = {k: v for k, v in known.items() if not k.startswith(("sde.", "parametrization."))}
    for field, value in known.items():
        of_class = field.startswith(free) and not field.endswith((".name", ".sigma_data"))
        of_sampler = field.startswith("sampling.") and field.count(".") == 2
        of_objective = not denoising and field.startswith("objective.") and field != "objective.name"
        if of_class or ((of_sampler or of_objective) and field not in fields):
            continue
        require(field in fields, f"{source}: lacks the field {field}; start from sde_configs/default.py")
        kind = (int, float) if isinstance(value, float) else type(value)
        fits = isinstance(fields[field], kind) and isinstance(fields[field], bool) == isinstance(value, bool)
        require(fits, f"{source}: {field}={fields[field]!r}; need a value like {value!r}")
    whole = flat(default.get_config().to_dict(), empty=True)
    parents = {name.rpartition(".")[0] for name in known} | {name for name, value in whole.items() if value == {}}
    sections = whole.keys() | parents
    for field, value in flat(config.to_dict(), empty=True).items():
        if field in parents and field.startswith(checked):
            require(value == {}, f"{source}: {field}={value!r}; need a section of fields")
        if field not in sections and field.startswith(checked) and not field.startswith(free):
            raise unknown_name(f"field in {source}:", field, known)


def override_sampling(config: ConfigDict, arguments: Sequence[str]) -> None:
    """Applies overrides to the configuration of a trained model.

    What concerns sampling can change, and where the data lie and how they are held.
    """
    before = flat(config.to_dict())
    override(config, arguments)
    for field, value in flat(config.to_dict()).items():
        require(
            value == before[field] or field in ("seed", *PLACE) or field.startswith("sampling."),
            f"config.{field}={value}: the model is trained with {before[field]}; "
            "only --config.sampling.FIELD=VALUE has an effect here",
        )


def override(config: ConfigDict, arguments: Sequence[str]) -> None:
    """Applies --config.FIELD=VALUE arguments in place.

    Raises:
        UsageError: for anything else among the arguments, an unknown field, or a value of the wrong type.
    """
    _take_fields_of_classes(config, arguments)
    fields = flat(config.to_dict())
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        name = argument[2:].partition("=")[0]
        if name.removeprefix("config.") not in fields:
            raise _unknown_field(name, fields, config)
    values = flags.FlagValues()
    argv = ["main.py", *arguments]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        stray = values(argv)[1:]
    except (flags.Error, TypeError, ValueError) as error:
        raise flag_error(error) from error
    require(not stray, f"unexpected argument {stray[:1]}: flags begin with --, as in --mode train")


def _take_fields_of_classes(config: ConfigDict, arguments: Sequence[str]) -> None:
    """Gives sections that describe an object the fields that arguments name and its class has, with their defaults.

    If an argument names another class, only the fields that it has too are kept.
    """
    known = classes(object)
    pattern = re.compile(r"--config\.(network|sde|parametrization)\.(\w+)(?:=(.*))?")
    given = [found.groups() for argument in arguments if (found := pattern.fullmatch(argument))]
    given = [(section, field, value) for section, field, value in given if section in config]
    for section, field, value in given:
        if field == "name" and value in known:
            taken = inspect.signature(known[value]).parameters
            config[section] = ConfigDict({k: v for k, v in config[section].items() if k in taken} | {"name": value})
    for section, field, _ in given:
        own = config[section]
        names = [value for of, part, value in given if (of, part) == (section, "name")]
        possible = _fields_of_class(names[-1] if names else own.get("name", ""))
        if field in possible and field not in own:
            own[field] = possible[field]


def _fields_of_class(name: str) -> dict[str, Any]:
    """The arguments of a registered class that a configuration can give, with their defaults."""
    cls = classes(object).get(name)
    parameters = inspect.signature(cls).parameters if cls is not None else {}
    return {
        field: parameter.default
        for field, parameter in parameters.items()
        if isinstance(parameter.default, bool | int | float | str | tuple) and field not in from_data(name)
    }


def _unknown_field(name: str, fields: dict[str, Any], config: ConfigDict) -> UsageError:
    import difflib

    section, _, field = name.removeprefix("config.").rpartition(".")
    if section == "network":
        cls = config.network.get("name", "")
        if cls in classes(object) and field in from_data(cls):
            return UsageError(f"unknown field --{name}: it follows from the data; leave it out")
        own = _fields_of_class(cls)
        near = difflib.get_close_matches(field, own, n=1, cutoff=0.6)
        if own:
            hint = f"did you mean --config.network.{near[0]}?" if near else f"a {cls} has {', '.join(own)}"
            return UsageError(f"unknown field --{name}: {hint}")
    near = difflib.get_close_matches(name, [f"config.{field}" for field in fields], n=1, cutoff=0.5)
    hint = f"did you mean --{near[0]}? " if near else ""
    return UsageError(f"unknown field --{name}: {hint}--help lists all")


def documented_fields() -> list[tuple[str, Any, str]]:
    """All fields of the default configuration: name, value, and what it means.

    The meaning is the comment behind the field, or what the class of a sampler says of its attribute.
    """
    meanings = {
        f"sampling.{name}.{attribute}": text
        for name, cls in SAMPLERS.items()
        for attribute, text in attribute_docs(cls).items()
    }
    meanings |= dict(re.findall(r"^    config\.([\w.]+) = .*?  # (.*)$", inspect.getsource(default), flags=re.M))
    fields = flat(default.get_config().to_dict())
    return [
        (name, value, meanings.get(name) or meanings.get(name.rpartition(".")[0], "")) for name, value in fields.items()
    ]


def attribute_docs(cls: type) -> dict[str, str]:
    """What the docstring of a class says of each attribute, in one line each, without the full stop."""
    section = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")[2]
    entries = re.findall(r"^    (\w+): ((?:.+)(?:\n        .+)*)", section, flags=re.M)
    return {name: re.sub(r"\s+", " ", text).rstrip(".") for name, text in entries}


def describe_fields(prefix: str = "") -> str:
    """The fields as `--help` shows them, ready to be typed: those whose names begin with a prefix."""
    return "\n".join(
        f"  --config.{name}={shlex.quote(str(value))}".ljust(52) + f"  {text}"
        for name, value, text in documented_fields()
        if name.startswith(prefix)
    )
