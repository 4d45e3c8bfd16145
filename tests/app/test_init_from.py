"""`--init_from`: where a new run begins, what of a checkpoint it keeps, and that it then needs it no more."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from scoresde import MLP, VPSDE, EDMParametrization, NetworkScoreModel, Scaling, checkpoint, save_model
from scoresde.app import init_from
from scoresde.app.cli import main
from scoresde.app.run_folder import RunFolder
from scoresde.training import Trainer
from tests.mistakes import assert_mistake
from tests.runs import (
    LOGGED,
    SMALL_MLP,
    Killed,
    assert_same_run,
    contents,
    final_tensors,
    killed_at,
    logged_steps,
    records,
    train_logged,
)

SHORT = ["--config.training.num_steps=9", "--config.training.lr=0.01", "--config.logging.keep=9"]


class Foreign(nn.Module):
    """A network that is not registered."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(2, 2)

    def forward(self, x, c_noise, cond=None):
        return self.last(x)


def tune(source, folder, *arguments):
    """Begins, or continues, a run in a folder from a checkpoint; its exit status."""
    return main(["--mode=train", f"--init_from={source}", f"--workdir={folder}", *SHORT, *arguments])


def tune_until(monkeypatch, step, *arguments):
    """`tune`, killed before it takes the step after `step`."""
    with killed_at(monkeypatch, step):
        tune(*arguments)


def first_tensors(folder):
    """What the checkpoint of step 0 holds."""
    return checkpoint.load(RunFolder(folder).checkpoint_path(0)).tensors


@pytest.fixture(scope="module")
def tuned(whole, tmp_path_factory):
    """A run that began from the logged one, and that nothing interrupted; only read."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    assert tune(whole, folder) == 0
    return folder


def test_a_run_begins_at_the_loss_that_its_origin_ended_with(whole, tuned):
    ended = records(RunFolder(whole))
    begun = records(RunFolder(tuned))
    assert begun[0] == {"step": 0, "held_out_loss": ended[-1]["held_out_loss"]}
    assert begun[0]["held_out_loss"] < ended[2]["held_out_loss"]  # that of step 7: a new network's is larger still
    assert logged_steps(RunFolder(tuned)) == [0, 3, 6, 7, 9]
    assert begun[1]["lr"] == pytest.approx(0.01 * 3 / 100)  # a warm-up of its own


def test_it_begins_with_the_averages_and_a_fresh_optimiser(whole, tuned):
    source = final_tensors(whole)
    begun = first_tensors(tuned)
    averages = {name: value for name, value in source.items() if name.startswith("ema.")}
    assert any(not torch.equal(value, source[name.replace("ema", "weights", 1)]) for name, value in averages.items())
    for name, value in averages.items():
        assert torch.equal(begun[name], value)
        assert torch.equal(begun[name.replace("ema", "weights", 1)], value)
    assert not any(name.startswith("optimizer.") for name in begun)


def test_its_checkpoints_say_where_it_began(whole, tuned):
    source = RunFolder(whole).newest_checkpoint()
    for path in RunFolder(tuned).all_checkpoints():
        origin = checkpoint.load(path).description["init_from"]
        assert (origin["path"], origin["file"], origin["step"]) == (str(whole), source.path.name, 20)
        assert origin["digest"] == source.digest


def test_it_has_the_settings_of_its_origin_but_those_that_are_given(whole, tuned):
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (whole, tuned))
    assert new["training"] == old["training"] | {"num_steps": 9, "lr": 0.01}
    assert new["network"] == old["network"]
    assert new["logging"]["every"] == 3
    assert new["parametrization"]["sigma_data"] > 0


@pytest.mark.parametrize("step", [0, 4, 8])
@pytest.mark.parametrize("meanwhile", ["kept", "gone", "other"])
def test_a_run_that_was_killed_goes_on_without_its_origin(whole, tuned, tmp_path, monkeypatch, capsys, step, meanwhile):
    source = tmp_path / "source"
    shutil.copytree(whole, source)
    tune_until(monkeypatch, step, source, tmp_path / "run")
    said = {"kept": None, "gone": "cannot be read any more", "other": "has changed since the run began"}[meanwhile]
    if meanwhile == "gone":
        shutil.rmtree(source)
    elif meanwhile == "other":
        assert train_logged(source, "--config.training.num_steps=22") == 0
    capsys.readouterr()
    assert tune(source, tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert (f"init_from={str(source)!r} {said}; it is not needed" in out) == (said is not None)
    assert_same_run(tmp_path / "run", tuned)


def test_a_run_killed_before_it_wrote_anything_begins_again(whole, tuned, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            tune(whole, tmp_path)
    assert tune(whole, tmp_path) == 0
    assert_same_run(tmp_path, tuned)


def test_a_file_that_moved_is_the_same_origin(whole, tmp_path):
    file = RunFolder(whole).all_checkpoints()[0]
    moved = tmp_path / "moved.safetensors"
    shutil.copy(file, moved)
    assert tune(file, tmp_path / "run") == 0
    assert checkpoint.load(RunFolder(tmp_path / "run").checkpoint_path(9)).description["init_from"]["step"] == 14
    assert tune(moved, tmp_path / "run", "--config.training.num_steps=10") == 0


def test_a_run_that_learns_nothing_keeps_its_beginning_as_the_best(whole, tmp_path, monkeypatch):
    losses = iter([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(Trainer, "held_out_loss", lambda *_: next(losses))
    assert tune(whole, tmp_path, "--config.logging.keep=1", "--config.logging.checkpoint_every=3") == 0
    assert [int(path.stem[5:]) for path in RunFolder(tmp_path).all_checkpoints()] == [0, 9]


def test_a_run_that_diverges_at_once_goes_back_to_its_beginning(whole, tmp_path, monkeypatch, capsys):
    bad = {"left": 3}
    clip = Trainer._clip

    def broken(trainer):
        norm = clip(trainer)
        bad["left"] -= 1
        return norm * (torch.nan if bad["left"] >= 0 else 1.0)

    monkeypatch.setattr(Trainer, "_clip", broken)
    arguments = ["--config.training.max_bad_steps=3", "--config.training.on_divergence=rollback"]
    assert tune(whole, tmp_path, *arguments) == 0
    assert "back at step 0 with 0.5 of the learning rate" in capsys.readouterr().out
    assert logged_steps(RunFolder(tmp_path)) == [0, 3, 6, 7, 9]


def write_points(path, unit=1.0, offset=0.0, labels=None, columns=2):
    x = unit * np.random.default_rng(5).normal(size=(200, columns)) + offset
    np.savez(path, x=x, **({} if labels is None else {"labels": labels}))
    return f"--config.data.path={path}"


HALF = np.arange(200) % 2


@pytest.mark.parametrize(("unit", "offset", "kept"), [(0.5, 0.2, True), (1.3, -0.4, True), (700.0, 50.0, False)])
def test_data_keep_the_units_of_the_weights_if_they_suit_them(whole, tmp_path, capsys, unit, offset, kept):
    """Moons have deviations of 0.9 and 0.5."""
    data = write_points(tmp_path / "x.npz", unit, offset, HALF)
    assert tune(whole, tmp_path / "run", data) == 0
    out = capsys.readouterr().out
    assert ("and its scaling of the data" in out) == kept
    assert ("but the data are scaled anew" in out) != kept
    old, new = (RunFolder(folder).newest_checkpoint().model() for folder in (whole, tmp_path / "run"))
    assert (new.codec == old.codec) == kept
    assert new.parametrization == old.parametrization
    encoded = new.codec.encode(torch.from_numpy(np.load(tmp_path / "x.npz")["x"]))
    assert encoded.mean(0).abs().max() < 1
    assert ((encoded.std(0) > 0.2) & (encoded.std(0) < 2)).all()
    assert main(["--mode=evaluate", "--metric=nll", f"--workdir={tmp_path / 'run'}", "--num_samples=5"]) == 0


def test_a_scaling_that_is_given_is_taken(whole, tmp_path):
    scaling = ["--config.data.center=(1.0,)", "--config.data.scale=(3.0,)"]
    assert tune(whole, tmp_path, *scaling) == 0
    assert RunFolder(tmp_path).newest_checkpoint().model().codec == Scaling(1.0, 3.0)


@pytest.mark.parametrize("sde", ["ve", "cosine", "edm"])
def test_the_network_means_the_same_under_another_sde(whole, tmp_path, sde):
    assert tune(whole, tmp_path, f"--sde={sde}") == 0
    old = RunFolder(whole).newest_checkpoint().model()
    new = checkpoint.load(RunFolder(tmp_path).checkpoint_path(0)).model()
    assert type(new.sde) is not type(old.sde)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(3))
    cond = torch.tensor([0, 1, 1, 0, 1])
    expected = old.under(new.sde).denoise(x, 0.4, cond)
    torch.testing.assert_close(new.denoise(x, 0.4, cond), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("default")
def test_noise_levels_that_the_weights_do_not_know_are_named(whole, tmp_path, capsys):
    assert tune(whole, tmp_path, "--sde=ve", "--config.sde.sigma_max=900.0") == 0
    assert "VPSDE to VESDE: the noise levels are now 0.01 to 900; the checkpoint knows" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*noise levels are now")
def test_a_learned_schedule_goes_along(tmp_path):
    steps = ["--config.training.num_steps=3", "--config.training.lr=0.1", "--config.training.dequantize=False"]
    assert main(["--mode=train", "--sde=vdm", *SMALL_MLP, f"--workdir={tmp_path / 'old'}", *steps]) == 0
    assert tune(tmp_path / "old", tmp_path / "new") == 0
    source = final_tensors(tmp_path / "old")
    schedule = [name for name in source if name.startswith("ema.score.sde.")]
    assert schedule
    for name in schedule:
        assert torch.equal(first_tensors(tmp_path / "new")[name], source[name])
    assert tune(tmp_path / "old", tmp_path / "fixed", "--sde=vp", "--config.training.dequantize=False") == 0


def test_a_saved_model_is_an_origin(tmp_path):
    network = MLP(dim=2, width=24, depth=2)
    model = NetworkScoreModel(network, VPSDE(beta_max=15.0), EDMParametrization(0.7), (2,), Scaling(4.0, 2.0))
    save_model(model, tmp_path / "model.safetensors")
    data = write_points(tmp_path / "x.npz", unit=3.0, offset=3.0)
    assert tune(tmp_path / "model.safetensors", tmp_path / "run", data) == 0
    trained = RunFolder(tmp_path / "run").newest_checkpoint().model()
    assert (trained.sde, trained.parametrization, trained.codec) == (model.sde, model.parametrization, model.codec)
    assert torch.equal(first_tensors(tmp_path / "run")["weights.score.network.first.weight"], network.first.weight)


@pytest.fixture(scope="module")
def origins(whole, tmp_path_factory):
    """A working directory with checkpoints from which runs cannot begin."""
    folder = tmp_path_factory.mktemp("origins")
    shutil.copytree(whole, folder / "good")
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("hello")
    (folder / "cut.safetensors").write_bytes(RunFolder(whole).all_checkpoints()[-1].read_bytes()[:-9])
    damaged = bytearray(RunFolder(whole).all_checkpoints()[-1].read_bytes())
    damaged[-2000] ^= 1
    (folder / "damaged.safetensors").write_bytes(damaged)
    model = NetworkScoreModel(Foreign(), VPSDE(), EDMParametrization(0.7), (2,))
    save_model(model, folder / "foreign.safetensors")
    checkpoint.save_models({"other": model}, folder / "other.safetensors")
    write_points(folder / "three.npz", labels=np.arange(200) % 3)
    write_points(folder / "plain.npz")
    write_points(folder / "wide.npz", columns=5, labels=HALF)
    return folder


MISTAKES = {
    "missing": ("--init_from=gone", r"init_from='gone': no such file or folder"),
    "empty folder": ("--init_from=empty", r"init_from='empty': a folder without checkpoints; give that of a run"),
    "no checkpoint": ("--init_from=text.txt", r"'text\.txt': damaged or not a safetensors file"),
    "cut": ("--init_from=cut.safetensors", r"'cut\.safetensors': damaged or not a safetensors file"),
    "damaged": ("--init_from=damaged.safetensors", r"damaged\.safetensors': damaged, its checksum does not fit"),
    "foreign": (
        "--init_from=foreign.safetensors",
        r"weights of Foreign, a class that was not registered.*Python",
    ),
    "other name": ("--init_from=other.safetensors", r"holds the models other; a run begins from one named 'score'"),
    "width": (
        "--config.network.width=24",
        r"its network has width=16, and config\.network\.width=24; the",
    ),
    "recipe": ("--config=toy", r"its network has depth=1, and config\.network\.depth=3"),
    "network": (
        "--config=vp",
        r"its network has name=MLP, and config\.network\.name=UNet; the weights",
    ),
    "output": (
        "--config.parametrization.name=VelocityParametrization",
        r"its parametrization has name=EDMParametrization, and config\.parametrization\.name=VelocityParametrization",
    ),
    "sigma_data": ("--config.parametrization.sigma_data=3.0", r"config\.parametrization\.sigma_data=3\.0; the weights"),
    "classes": ("--config.data.path=three.npz", r"its network was trained with 2 classes, and the data have 3; give"),
    "no classes": (
        "--config.data.path=plain.npz",
        r"its network was trained with 2 classes, and the data have 0; give",
    ),
    "columns": ("--config.data.path=wide.npz", r"its network takes samples of 2 channels or columns, .* have 5"),
    "own folder": ("--workdir=good", r"holds a run that did not begin from a checkpoint; choose another --workdir"),
    "field": ("--config.training.lrr=1", r"training\.lrr"),
}


@pytest.mark.parametrize(("argument", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_one_line(origins, monkeypatch, capsys, argument, message):
    monkeypatch.chdir(origins)
    before = contents(origins / "good")
    given = [f for f in ("--init_from=good", "--workdir=new") if not argument.startswith(f.split("=")[0])]
    assert_mistake(capsys, ["--mode=train", *given, argument], message)
    assert contents(origins / "good") == before


def test_a_folder_of_the_new_run_must_be_named(whole, capsys):
    assert_mistake(capsys, ["--mode=train", f"--init_from={whole}"], r"name the new run's folder with --workdir")


def test_a_run_that_began_elsewhere_is_not_continued(whole, tuned, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "other")
    assert train_logged(tmp_path / "other", "--config.training.num_steps=21") == 0
    message = rf"holds a run that began from {str(whole)!r}, not from init_from='[^']*other'; choose another --workdir"
    assert_mistake(capsys, ["--mode=train", f"--init_from={tmp_path / 'other'}", f"--workdir={tuned}"], message)


def test_a_run_does_not_forget_where_it_began(tuned, capsys):
    same = [f"--config={tuned / 'config.json'}", f"--workdir={tuned}", "--config.training.num_steps=12"]
    assert_mistake(capsys, ["--mode=train", *same], r"its run began from a checkpoint; .* with --init_from")


def test_weights_that_see_the_time_stay_under_their_sde(tmp_path, capsys):
    time_input = tmp_path / "recipe.py"
    time_input.write_text(
        "from sde_configs import toy\n\n\ndef get_config():\n    config = toy.get_config()\n"
        "    config.parametrization.input = {'name': 'TimeInput', 'scale': 999.0, 'offset': 0.0}\n    return config\n"
    )
    assert main([*LOGGED[:1], *LOGGED[2:], f"--config={time_input}", f"--workdir={tmp_path / 'old'}"]) == 0
    new = [f"--init_from={tmp_path / 'old'}", f"--workdir={tmp_path / 'new'}"]
    for change in ("--sde=ve", "--config.sde.beta_max=10.0"):
        message = r"see or emit something else .* TimeInput; keep config\.sde"
        assert_mistake(capsys, ["--mode=train", *new, change], message)
    assert tune(tmp_path / "old", tmp_path / "new") == 0


@pytest.mark.filterwarnings("default")
def test_classes_of_other_names_are_named(tmp_path, capsys):
    old, new = (write_points(tmp_path / f"{first}.npz", labels=first + HALF) for first in (10, 20))
    assert train_logged(tmp_path / "old", old) == 0
    assert tune(tmp_path / "old", tmp_path / "new", new) == 0
    assert "its classes have other names here: 10 is now 20, 11 is now 21" in capsys.readouterr().err


DAMAGES = [None, 3, [], {}, {"name": {}}, {"name": "MLP", "a.b": 1}, {"name": "VPSDE", "": {}}]
PARTS = [("models", "score", part) for part in ("network", "sde", "parametrization", "codec")]


PLACES = [*PARTS, ("models", "score"), ("config",), ("config", "training"), ("config", "data")]


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_a_description_that_was_tampered_with_is_a_mistake(whole, tmp_path, capsys, place):
    loaded = RunFolder(whole).newest_checkpoint()
    for damage in DAMAGES:
        description = json.loads(json.dumps(loaded.description))
        inner = description
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = damage
        checkpoint.save(tmp_path / "m.safetensors", 4, description, loaded.tensors)
        arguments = [f"--init_from={tmp_path / 'm.safetensors'}", f"--workdir={tmp_path / 'run'}"]
        if place[0] == "config" and damage == {}:
            continue  # all of it has its defaults
        assert_mistake(capsys, ["--mode=train", *arguments], r"init_from=|checkpoint=|models\.score|config\.|data\.")


def test_damaged_files_are_mistakes(whole, tmp_path, capsys):
    content = RunFolder(whole).newest_checkpoint().path.read_bytes()
    generator = np.random.default_rng(11)
    header = int.from_bytes(content[:8], "little") + 8
    for k in range(40):
        damaged = bytearray(content)
        for place in generator.integers(0, header if k % 2 else len(content), 3):
            damaged[place] ^= int(generator.integers(1, 256))
        (tmp_path / "m.safetensors").write_bytes(damaged)
        arguments = [f"--init_from={tmp_path / 'm.safetensors'}", f"--workdir={tmp_path / 'run'}"]
        assert_mistake(capsys, ["--mode=train", *arguments], r"init_from=|checkpoint=|models\.score|config\.|data\.")


def test_a_header_that_was_tampered_with_is_a_mistake(tuned, tmp_path, capsys):
    folder = tmp_path / "run"
    for value in (3, {"path": "x"}, {"class_names": 3}):
        shutil.copytree(tuned, folder)
        for path in RunFolder(folder).all_checkpoints():
            loaded = checkpoint.load(path)
            description = loaded.description | {init_from.RECORD: value}
            checkpoint.save(path, loaded.step, description, loaded.tensors)
        message = r"init_from in its checkpoints is damaged"
        assert_mistake(capsys, ["--mode=train", "--init_from=x", f"--workdir={folder}"], message)
        shutil.rmtree(folder)


def test_images_may_have_another_size(work, tmp_path):
    images = np.random.default_rng(3).integers(0, 17, size=(60, 1, 12, 16)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", x=images, labels=np.arange(60) % 10)
    assert tune("runs/vp", tmp_path / "run", f"--config.data.path={tmp_path / 'images.npz'}") == 0
    old, new = (RunFolder(folder).newest_checkpoint().model() for folder in (Path("runs/vp"), tmp_path / "run"))
    assert (old.shape, new.shape) == ((1, 8, 8), (1, 12, 16))
    assert new.codec == old.codec
    assert main(["--mode=sample", f"--workdir={tmp_path / 'run'}", "--num_samples=3", "--num_steps=5"]) == 0
