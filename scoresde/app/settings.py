"""The configuration of a command: recipe, then overrides, every mistake named."""

from __future__ import annotations

import importlib.util
import inspect
import json
import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import sde_configs
from scoresde.app.run_folder import flat
from scoresde.errors import UsageError, require, unknown_name
from sde_configs import default

SDES = ("vp", "subvp", "ve", "cosine", "edm", "flow", "ddpm")


def recipes() -> list[str]:
    """Names of the built-in recipes."""
    return sorted(m.name for m in pkgutil.iter_modules(sde_configs.__path__) if m.name not in ("build", "default"))


def load_config(sde: str | None, name: str | None) -> ConfigDict:
    """The recipe `name` (a built-in name, a Python file with get_config, or a JSON file), under the SDE `sde`.

    With both, everything is `name`'s except what belongs to the SDE: config.sde, .parametrization and .objective.
    """
    if sde is not None and sde not in SDES:
        raise unknown_name("sde", sde, SDES)
    config = _read(name or sde or "vp")
    if name and sde:
        of_sde = _read(sde)
        for section in ("sde", "parametrization", "objective"):
            config[section] = of_sde[section]
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
            return from_json(json.loads(path.read_text()))
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
            raise UsageError(f"config={name!r}: not a configuration in JSON ({error})") from error
    spec = importlib.util.spec_from_file_location("user_config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    require(hasattr(module, "get_config"), f"config={name!r}: must define get_config(), as sde_configs/default.py does")
    return module.get_config()


def from_json(values: dict[str, Any]) -> ConfigDict:
    """A configuration of plain values; lists become tuples, as the defaults have them."""

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return ConfigDict(tuples(values))


def override(config: ConfigDict, arguments: list[str], known_flags: Iterable[str]) -> None:
    """Applies --config.FIELD=VALUE arguments in place.

    Raises:
        UsageError: for anything else among the arguments, an unknown field, or a value of the wrong type.
    """
    fields = flat(config.to_dict())
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        name = argument[2:].partition("=")[0]
        if not name.startswith("config."):
            raise unknown_name("flag", f"--{name}", [f"--{flag}" for flag in (*known_flags, "config.FIELD")])
        if name.removeprefix("config.") not in fields:
            raise _unknown_field(name, fields)
    values = flags.FlagValues()
    argv = ["main.py", *arguments]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        stray = values(argv)[1:]
    except (flags.Error, TypeError, ValueError) as error:
        raise UsageError(str(error).strip().splitlines()[0]) from error
    require(not stray, f"unexpected argument {stray[:1]}: flags begin with --, as in --mode train")


def _unknown_field(name: str, fields: dict[str, Any]) -> UsageError:
    import difflib

    near = difflib.get_close_matches(name, [f"config.{field}" for field in fields], n=1, cutoff=0.5)
    hint = f"did you mean --{near[0]}? " if near else ""
    return UsageError(f"unknown field --{name}: {hint}--help lists all")


def describe_fields() -> str:
    """All fields of the default configuration with their values and the comments behind them."""
    comments = dict(re.findall(r"^    config\.([\w.]+) = .*?  # (.*)$", inspect.getsource(default), flags=re.M))
    lines = []
    for field, value in flat(default.get_config().to_dict()).items():
        comment = comments.get(field) or comments.get(field.rpartition(".")[0], "")
        lines.append(f"  --config.{field}={value!r}".ljust(52) + f"  {comment}")
    return "\n".join(lines)
