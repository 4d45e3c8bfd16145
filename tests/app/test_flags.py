"""Flags are declared once: the parser, the help of each mode and the refusal of other modes' flags follow from that."""

from __future__ import annotations

import dataclasses
import re

import pytest

from scoresde.app.cli import main
from scoresde.app.flags import MODES, Flags, Mode, SampleFlags, TrainedFlags, flag, modes_with, named
from tests.mistakes import assert_mistake

NAMES = {name: list(named(mode.flags)) for name, mode in MODES.items()}
ALL = sorted({name for names in NAMES.values() for name in names})


def test_the_modes_are_these():
    assert set(MODES) == {
        *("train", "train_classifier", "train_autoencoder", "train_text_encoder"),
        *("sample", "compare", "calibrate", "evaluate", "invert", "interpolate"),
        *("solve", "edit", "import", "export", "visualize", "average"),
    }
    for name, mode in MODES.items():
        assert callable(mode.load()), name
        assert issubclass(mode.flags, TrainedFlags) == (
            name not in ("average", "import") and not name.startswith("train")
        )


def test_every_flag_is_described():
    for mode in MODES.values():
        for field in dataclasses.fields(mode.flags):
            assert field.metadata["help"], f"{mode.flags.__name__}.{field.name}"


def test_a_flag_knows_its_modes():
    assert modes_with("what") == ["visualize"]
    assert modes_with("metric") == ["evaluate"]
    assert modes_with("labels") == ["sample", "solve", "edit", "visualize"]
    assert modes_with("device") == [mode for mode in MODES if mode not in ("average", "import")]
    assert modes_with("nothing") == []


def test_the_flags_that_were_given_differ_from_the_defaults():
    assert SampleFlags().given() == set()
    assert SampleFlags(sampler="pc", num_samples=5, labels="1").given() == {"num_samples", "labels"}


@pytest.mark.parametrize("mode", MODES)
def test_the_help_of_a_mode_lists_just_its_flags(capsys, mode):
    for ask in ("--help", "-h", "--helpfull"):
        assert main([f"--mode={mode}", ask]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"--mode {mode}: {MODES[mode].summary}\n")
        assert re.findall(r"^  --(\w+) ", out, flags=re.M) == NAMES[mode]


@pytest.mark.parametrize("mode", MODES)
def test_the_help_of_a_mode_lists_the_fields_that_it_takes(capsys, mode):
    assert main(["--help", "--mode", mode]) == 0
    fields = re.findall(r"^  --config\.([\w.]+)=", capsys.readouterr().out, flags=re.M)
    assert ("sampling.batch_size" in fields) == ("device" in NAMES[mode])
    assert ("training.lr" in fields) == ("config" in NAMES[mode])


@pytest.mark.parametrize("mode", MODES)
def test_a_flag_of_other_modes_is_refused(capsys, mode):
    for name in ALL:
        if name not in NAMES[mode]:
            owners = ", ".join(f"--mode {other}" for other in modes_with(name))
            other = MODES[mode].flags.instead.get(name)
            remedy = f"--mode {mode} has {other}" if other else f"leave it out of --mode {mode}"
            message = rf"{name}=1: belongs to {re.escape(owners)}; {re.escape(remedy)}"
            assert_mistake(capsys, [f"--mode={mode}", f"--{name}=1"], message)
            assert_mistake(capsys, [f"--{name}", "1", "--mode", mode], message)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_given_has_its_default_and_counts_are_numbers(monkeypatch, mode):
    """The function of a mode gets its flags; here in the place of each stands one that keeps them."""
    got = []
    monkeypatch.setattr(Mode, "load", lambda _: lambda flags, overrides: got.append((flags, overrides)) or 7)
    assert main([f"--mode={mode}"]) == 7
    assert got.pop() == (MODES[mode].flags(), [])
    numbers = {"seed", "num_samples", "num_steps", "step", "over_checkpoints", "draws", "cases"}
    given = {name: 12 if name in {*numbers, "guidance", "length"} else "12" for name in NAMES[mode]}
    words = [word for name in NAMES[mode] for word in (f"--{name}", "12")]
    assert main(["--mode", mode, *words, "--config.sampling.batch_size", "3"]) == 7
    flags, overrides = got.pop()
    assert {name: getattr(flags, field.name) for name, field in named(type(flags)).items()} == given
    assert overrides == ["--config.sampling.batch_size", "3"]


def test_a_mode_is_a_class_and_a_line(monkeypatch, capsys):
    """Another mode, declared as the others are, is parsed, documented and told from the others."""

    @dataclasses.dataclass(frozen=True)
    class CountFlags(Flags):
        """Of --mode count."""

        loudness: int | None = flag(None, "how loud")

    monkeypatch.setitem(MODES, "count", Mode("counts", CountFlags, "some.module:count"))
    monkeypatch.setattr(Mode, "load", lambda _: lambda flags, overrides: flags.loudness)
    assert main(["--mode=count", "--loudness=3"]) == 3
    assert main(["--mode=count", "--help"]) == 0
    assert re.search(r"^  --loudness +how loud$", capsys.readouterr().out, flags=re.M)
    assert_mistake(capsys, ["--mode=train", "--loudness=3"], "loudness=3: belongs to --mode count")
