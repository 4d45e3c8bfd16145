"""Guidance from the command line: what is drawn, what it costs, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from scoresde.app.cli import main
from scoresde.app.piloted import LOWEST
from scoresde.app.run_folder import RunFolder
from tests.runs import SMALL_MLP, TINY

LABELLED = [
    *(*TINY, *SMALL_MLP, "--config.data.path=labelled.npz", "--config.training.num_steps=60"),
    *("--config.training.lr=0.01", "--config.training.warmup_steps=1", "--config.logging.checkpoint_every=30"),
]
DRAW = ["--mode=sample", "--device=cpu", "--num_samples=40", "--labels=1", "--sampler=ddim", "--num_steps=8"]


@pytest.fixture(scope="module", autouse=True)
def files(runs):
    """Two classes of points, a run with dropped labels, and one without."""
    generator = np.random.default_rng(0)
    labels = np.arange(400) % 2
    x = generator.normal(size=(400, 2)) * 0.3 + np.where(labels, 1.0, -1.0)[:, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs)
        np.savez("labelled.npz", x=x, labels=labels)
        dropped = [*LABELLED, "--workdir=runs/dropped", "--config.network.label_dropout=0.2"]
        assert main(dropped) == 0
        assert main([*LABELLED, "--workdir=runs/whole_labels"]) == 0
        assert main([*LABELLED, "--workdir=runs/no_labels", "--config.data.class_conditional=False"]) == 0
        classifier = ["--mode=train_classifier", *LABELLED[1:], "--workdir=runs/classifier"]
        assert main(classifier) == 0


def drawn(output, *arguments, workdir="runs/dropped"):
    """The samples of a command, and its numbers' bytes."""
    assert main([*DRAW, f"--workdir={workdir}", f"--output={output}", *arguments]) == 0
    with np.load(output.with_suffix(".npz")) as arrays:
        return arrays["samples"]


def test_guidance_moves_samples_away_from_the_other_class_and_counts_its_evaluations(work, tmp_path, capsys):
    plain = drawn(tmp_path / "a.png")
    assert "8 network evaluations each" in capsys.readouterr().out
    off = drawn(tmp_path / "b.png", "--guidance=1")
    assert np.array_equal(plain, off)
    assert "8 network evaluations each" in capsys.readouterr().out
    guided = drawn(tmp_path / "c.png", "--guidance=4")
    assert "16 network evaluations each" in capsys.readouterr().out
    assert guided.mean() > plain.mean() + 0.1
    inside = drawn(tmp_path / "d.png", "--guidance=4", "--guidance_interval=0.5,3")
    evaluations = int(capsys.readouterr().out.split(" by ddim, ")[1].split()[0])
    assert 8 < evaluations < 16
    assert plain.mean() < inside.mean() < guided.mean()


def test_the_rules_of_the_configuration_are_applied(work, tmp_path):
    plain = drawn(tmp_path / "a.png", "--guidance=4")
    fields = ("rescale=0.7", "eta=0.2", "radius=0.1", "momentum=-0.5")
    others = [drawn(tmp_path / "b.png", "--guidance=4", f"--config.sampling.guidance.{field}") for field in fields]
    assert all(np.abs(each - plain).max() > 0.01 for each in others)


def test_an_earlier_checkpoint_guides_a_model_without_dropped_labels(work, tmp_path, capsys):
    earlier = RunFolder(work / "runs/whole_labels").all_checkpoints()[0]
    run = {"workdir": "runs/whole_labels"}
    plain = drawn(tmp_path / "a.png", **run)
    guided = drawn(tmp_path / "b.png", "--guidance=2", f"--guide_with={earlier}", **run)
    assert "16 network evaluations each" in capsys.readouterr().out
    itself = drawn(tmp_path / "c.png", "--guidance=2", "--guide_with=runs/whole_labels", **run)
    assert np.abs(guided - plain).max() > 0.01
    assert np.allclose(itself, plain, atol=1e-5)


def test_a_classifier_guides_a_model_that_knows_no_classes(work, tmp_path, capsys):
    run, by = {"workdir": "runs/no_labels"}, "--guide_with=runs/classifier"
    off = drawn(tmp_path / "a.png", "--guidance=0", by, **run)
    assert "8 network evaluations each" in capsys.readouterr().out
    for label, sign in ((0, -1), (1, 1)):
        guided = drawn(tmp_path / "b.png", "--guidance=2", by, f"--labels={label}", **run)
        assert sign * (guided.mean() - off.mean()) > 0.2
        assert "8 network evaluations each" in capsys.readouterr().out


@pytest.mark.parametrize("sampler", ["auto", "pc"])
def test_what_is_fitted_to_a_guided_model_is_kept_apart(work, tmp_path, capsys, sampler):
    how = [f"--sampler={sampler}", "--num_steps=5" if sampler == "auto" else "--num_steps=20"]
    drawn(tmp_path / "a.png", *how)
    capsys.readouterr()
    drawn(tmp_path / "b.png", *how, "--guidance=3")
    guided = drawn(tmp_path / "b.png", *how, "--guidance=3")
    assert np.array_equal(guided, drawn(tmp_path / "c.png", *how, "--guidance=3"))
    pilots = sorted((work / "runs/dropped/checkpoints").glob("*.pilots.json"))[-1].read_text()
    kinds = [name.split()[0] for name in json.loads(pilots)["found"]]
    assert kinds.count("tables") == 2 if sampler == "auto" else {"snr", "corrections"} <= set(kinds)


def test_corrections_of_a_guided_model_are_chosen_once_a_checkpoint(work, tmp_path, capsys):
    checkpoint = RunFolder(Path("runs/dropped")).newest_checkpoint()
    checkpoint.path.with_suffix(".pilots.json").unlink(missing_ok=True)

    def said(*arguments):
        drawn(tmp_path / "a.png", "--sampler=pc", "--guidance=2", "--num_steps=12", *arguments)
        return capsys.readouterr().out

    first, second = said(), said()
    assert "choosing the corrections" in first
    assert "choosing" not in second
    chosen = re.search(r"\d+ corrections a step", first)[0]
    assert chosen in second
    assert "choosing the corrections" in said("--guidance=3")
    assert "3 corrections a step" in said("--config.sampling.pc.corrector_steps=3")
    kept = json.loads(checkpoint.path.with_suffix(".pilots.json").read_text())["found"]
    lowest = {value["lowest"] for name, value in kept.items() if name.startswith("corrections")}
    assert lowest == {LOWEST * checkpoint.model().sigma_data}  # a network's score is worst near the data
    assert "choosing" not in said("--config.sampling.pc.snr=0.2")


def test_a_default_name_tells_the_weight(work):
    assert main([*DRAW, "--workdir=runs/dropped", "--guidance=2.5"]) == 0
    assert (work / "runs/dropped/samples/ddim-w2.5-seed0.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--guidance=-1"], "scale=-1.0: need a number that is not negative"),
        (["--guidance=nan"], "scale=nan"),
        (["--guidance_interval=1,2"], "guidance_interval='1,2': needs a weight, as in --guidance=2"),
        (["--guide_with=runs/dropped"], "guide_with='runs/dropped': needs a weight"),
        (["--guidance=2", "--guidance_interval=1"], "guidance_interval='1': need two noise levels"),
        (["--guidance=2", "--guidance_interval=2,1"], "interval=(2, 1)"),
        (["--guidance=2", "--guidance_interval=1e6,1e7"], "outside the noise levels"),
        (["--guidance=2", "--guide_with=nothing"], "guide_with='nothing': no such file or folder"),
        (["--guidance=2", "--guide_with=runs/vp"], "guide_with="),
        (["--config.sampling.guidance.rescale=0.7"], "needs a weight, as in --guidance=2"),
        (
            ["--guidance=2", "--config.sampling.guidance.rescale=0.7", "--config.sampling.guidance.eta=0"],
            "config.sampling.guidance.rescale=0.7: goes with eta=1",
        ),
        (
            ["--guidance=2", "--config.sampling.guidance.momentum=-0.5", "--sampler=heun", "--num_steps=6"],
            "guidance with momentum needs one evaluation a step",
        ),
        (["--guidance=2", "--guide_with=runs/classifier", "--config.sampling.guidance.eta=0"], "not by a classifier"),
        (["--guidance=2", "--guide_with=runs/classifier", "--labels=7"], "labels='7'"),
        (["--guidance=2", "--workdir=runs/whole_labels"], "label_dropout=0.1; or take Autoguidance"),
        (["--guidance=2", "--workdir=runs/toy", "--labels=0"], "labels"),
        (
            ["--guidance=2", "--sampler=pc", "--config.sampling.pc.corrector_first=True"],
            "with --guidance a pilot run chooses the corrections; give --config.sampling.pc.snr=VALUE too",
        ),
    ],
)
def test_mistakes_are_named_in_one_line(work, tmp_path, capsys, arguments, message):
    run = [] if any("workdir" in each for each in arguments) else ["--workdir=runs/dropped"]
    assert main([*DRAW, *run, f"--output={tmp_path / 'x.png'}", *arguments]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert message in shown[-1]
    assert sum(line.startswith("error:") for line in shown) == 1
