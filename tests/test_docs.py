"""What the documents say is what the code does: their Python runs, their table of samplers is read from the classes."""

from __future__ import annotations

import inspect
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch

import scoresde
from benchmarks import orders
from samplers import TableSampler, grids
from scoresde import VPSDE, ExactScoreModel
from scoresde.app import import_weights
from scoresde.app.cli import main
from scoresde.app.config import as_autoencoder, as_text_encoder, load_config, override, override_sampling
from scoresde.app.flags import Mode
from scoresde.data import nine_modes
from scoresde.registry import construct
from sde_configs import default
from sde_configs.build import SAMPLERS, build_sampler

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "NOTES.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=lambda p: p.name)
def test_python_of_the_documents_runs(page):
    torch.manual_seed(0)
    scope: dict[str, object] = {"__name__": "document"}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M):
        exec(compile(block, page.name, "exec"), scope)
    if page.name == "README.md":  # its samples lie on the circle that it trains on
        radius = scope["samples"].norm(dim=1)
        assert abs(radius.mean() - 1) < 0.05
        assert radius.std() < 0.12


def commands_of(page):
    """The commands in the blocks of a page, as lists of their arguments."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text().replace("\\\n", " "), re.S | re.M)
    lines = [line for language, block in blocks if language in ("", "bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("python main.py ")]


COMMANDS = {f"{page.stem}: {' '.join(command)}": command for page in PAGES for command in commands_of(page)}
OF_KINDS = {"train_autoencoder": as_autoencoder, "train_text_encoder": as_text_encoder}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_commands_of_the_documents_are_understood(monkeypatch, capsys, command):
    """Their modes take their flags, and their configurations have their fields; nothing is run."""
    seen = []
    monkeypatch.setattr(Mode, "load", lambda mode: lambda flags, rest: seen.append((flags, rest)) or 0)
    assert main(command) == 0, capsys.readouterr().err
    if "--help" in command:
        return
    ((flags, rest),) = seen
    mode = re.search(r"--mode[ =](\w+)", " ".join(command))[1]
    if mode == "import":
        import_weights._given(rest)
    elif mode.startswith("train"):
        own = (flags.config or "").endswith((".py", ".json"))  # a user's file
        config = load_config(getattr(flags, "sde", None), None if own else flags.config)
        override(OF_KINDS.get(mode, lambda known: known)(config), rest)
    elif mode == "visualize":
        override(load_config(flags.sde, flags.config), rest)
    else:
        override_sampling(load_config(None, None), rest)


def table_rows(first_column):
    """The rows of a table of docs/samplers.md by their first cell."""
    text = (ROOT / "docs" / "samplers.md").read_text().replace("`", "")
    body = re.search(rf"^\| {first_column} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.M).group(1)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_the_table_of_samplers_names_all_of_them():
    assert {name.split()[0] for name in table_rows("--sampler")} == SAMPLERS.keys()


@pytest.mark.parametrize("row", table_rows("SDE").items(), ids=lambda row: row[0])
def test_the_table_of_sdes_is_true(row):
    name, (cls, *numbers) = row
    sde = getattr(scoresde, cls)()
    assert construct(load_config(name, None).sde, scoresde.SDE, "config.sde") == sde
    ends = torch.tensor([sde.t_end, sde.t_max], dtype=torch.float64)
    truth = [value for pair in zip(ends.tolist(), sde.noise_level(ends).tolist(), strict=True) for value in pair]
    assert [float(number) for number in numbers] == pytest.approx(truth, rel=5e-3)  # three digits are shown


@pytest.mark.parametrize("row", table_rows("--sampler").items(), ids=lambda row: row[0])
def test_the_table_of_samplers_is_true(row):
    name, (cls, _, order, noise, grid, steps, evaluations) = row
    sampler = build_sampler(default.get_config(), name.split()[0], 20 if "N" in name else None)
    assert cls == ("Heun" if name == "ode --num_steps N" else SAMPLERS[name].__name__)
    assert (int(order), noise) == (sampler.order, sampler.noise)
    if not isinstance(sampler, TableSampler):
        return  # it takes its own steps
    model = ExactScoreModel(nine_modes(), VPSDE())
    named = getattr(grids, grid)
    scale = {"sigma_data": model.sigma_data} if "sigma_data" in inspect.signature(named).parameters else {}
    assert torch.equal(sampler.grid(model), named(model.sde, int(steps), **scale))
    assert int(steps) == sampler.default_num_steps
    assert int(evaluations) == sampler.num_evaluations(model, sampler.grid(model))


def test_the_page_of_the_configuration_is_up_to_date():
    script = runpy.run_path(str(ROOT / "scripts" / "configuration.py"))
    assert script["PAGE"].read_text() == script["page"](), "run python scripts/configuration.py"


def test_the_table_of_orders_is_what_is_measured():
    written = orders.PAGE.read_text().split(orders.BEGIN)[1].split(orders.END)[0].splitlines()
    again = orders.table().splitlines()
    assert len(written) == len(again)
    for old, new in zip(written, again, strict=True):
        cells = list(zip(old.split("|"), new.split("|"), strict=True))
        assert all(a == b for a, b in cells[:5]), f"{old}: run python -m benchmarks.orders"
        for a, b in cells[5:]:
            assert a.strip() == b.strip() or abs(float(a) - float(b)) < 0.03, f"{old}: run python -m benchmarks.orders"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_named_files_exist(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:docs|tests|scripts|benchmarks|sde_configs|scoresde|samplers)/[\w./]+\.\w+)`", text)
    tests = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert all(f"def {test}(" in tests for test in re.findall(r"`(test_\w+)`", text))
    missing = [p for p in links if not (page.parent / p).exists()] + [p for p in named if not (ROOT / p).exists()]
    assert not missing
