"""Writes docs/configuration.md: every field of the configuration, and every class that a field can name.

python scripts/configuration.py
"""

from __future__ import annotations

import inspect
from pathlib import Path

from scoresde.app.config import documented_fields, recipes
from scoresde.networks import ClassifierNetwork, Network
from scoresde.objective import Objective, TrainingTimes, Weighting
from scoresde.parametrization import Input, Parametrization
from scoresde.registry import classes
from scoresde.sde import SDE

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"

HEAD = """# The configuration

Written by `python scripts/configuration.py` from `sde_configs/default.py` and the classes themselves.

A recipe is chosen by `--sde` or `--config` ({recipes}), or is a file of your own: `--config FILE.json` as a run's
`config.json`, or `--config FILE.py` with `get_config()`, which is run. Any field is changed on the command line, as in
`--config.training.lr=1e-3`; tuples as in `--config.network.multipliers="(1, 2, 4)"`. The command line beats the recipe.
A run keeps all fields in `config.json`; of a trained model only those of `sampling` can be changed.

## Fields

| field | default | meaning |
|---|---|---|
"""

KINDS = {
    "network": Network,
    "network (of --mode train_classifier)": ClassifierNetwork,
    "sde": SDE,
    "parametrization": Parametrization,
    "parametrization.input": Input,
    "objective": Objective,
    "objective.times": TrainingTimes,
    "objective.weighting": Weighting,
}
FILLED_IN = {"channels_in", "dim", "dims", "num_classes"}  # by the data


def page() -> str:
    """The whole page."""
    text = HEAD.format(recipes=", ".join(recipes()))
    for name, value, comment in documented_fields():
        text += f"| `{name}` | `{value!r}` | {comment.replace('|', 'or')} |\n"
    for section, kind in KINDS.items():
        field, _, mode = section.partition(" ")
        text += f"\n## Classes for `{field}.name`{mode and ' ' + mode}, with the fields that stand beside it\n\n"
        text += "| class | fields |\n|---|---|\n"
        for name, cls in classes(kind).items():
            if not cls.__module__.startswith("scoresde."):
                continue  # registered by a user's program
            text += f"| `{name}` | {', '.join(fields(cls)) or 'none'} |\n"
    return text


def fields(cls: type) -> list[str]:
    """The arguments of a class as the configuration gives them; those that are objects have a table of their own."""
    parameters = inspect.signature(cls).parameters.values()
    return [
        f"`{p.name}={p.default!r}`" if isinstance(p.default, bool | int | float | str | tuple | None) else f"`{p.name}`"
        for p in parameters
        if p.name not in FILLED_IN
    ]


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"written: {PAGE}")
