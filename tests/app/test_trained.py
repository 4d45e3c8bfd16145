"""What every mode but train starts from: which checkpoint is taken, what belongs to it, and what is kept for it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scoresde import MLP, VPSDE, NetworkScoreModel, NoiseParametrization, UsageError, checkpoint, save_model
from scoresde.app.cli import main
from scoresde.app.flags import MODES, SampleFlags, TrainedFlags
from scoresde.app.run_folder import RunFolder
from scoresde.app.trained import Trained
from scoresde.models import ThresholdedModel
from tests.checkpoints import rewrite
from tests.mistakes import assert_mistake
from tests.runs import SAMPLE, TakesAFile, newest


@pytest.fixture(scope="module", autouse=True)
def wrong(runs):
    """Checkpoints that cannot be used, beside the trained runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs)
        Path("empty").mkdir()
        whole = newest("toy")
        content = whole.read_bytes()
        Path("truncated.safetensors").write_bytes(content[: len(content) // 2])
        Path("noise.safetensors").write_bytes(b"\x07" * 999)
        save_file({"weight": torch.zeros(2)}, "foreign.safetensors")
        torch.save(TakesAFile(), "pickle.pt")
        loaded = checkpoint.load(whole)
        checkpoint.save(Path("empty_config.safetensors"), 1, loaded.description | {"config": {}}, loaded.tensors)
        checkpoint.save(Path("empty_data.safetensors"), 1, loaded.description | {"data": {}}, loaded.tensors)
        earlier = {"format": checkpoint.EARLIER_FORMAT, "step": 1, "model": {}, "data": {}, "config": {}}
        rewrite(Path("earlier.safetensors"), earlier, loaded.tensors)
        model = NetworkScoreModel(MLP(2, width=8, depth=1), VPSDE(), NoiseParametrization(), (2,))
        save_model(model, "python.safetensors")
        shutil.copytree("runs/toy", "damaged")
        RunFolder(Path("damaged")).all_checkpoints()[-1].write_bytes(content[:50])
    return runs


def trained(run="toy", *overrides, **flags):
    """A trained model of the runs here."""
    return Trained.of(TrainedFlags(device="cpu", workdir=f"runs/{run}", **flags), overrides)


def test_the_newest_run_is_taken_and_named(work, capsys):
    for run in ("vp", "toy"):
        os.utime(newest(run))
        assert Trained.of(TrainedFlags(device="cpu"), ()).run.path == Path("runs") / run
        assert f"using runs/{run}, step" in capsys.readouterr().out


def test_an_sde_stands_for_its_folder(work, capsys):
    found = Trained.of(TrainedFlags(device="cpu", sde="vp"), ())
    assert found.checkpoint.path == newest("vp")
    assert found.folder == Path("runs/vp/samples")
    assert "using runs/vp, step 2" in capsys.readouterr().out


def test_a_checkpoint_of_a_run_that_is_named_has_its_folder(work, tmp_path, capsys):
    shutil.copytree("runs/toy", tmp_path / "run")
    path = RunFolder(tmp_path / "run").all_checkpoints()[-1]
    found = Trained.of(TrainedFlags(device="cpu", checkpoint=str(path)), ())
    assert (found.run.path, found.folder) == (tmp_path / "run", tmp_path / "run" / "samples")
    assert capsys.readouterr().out == ""
    assert main([*SAMPLE, f"--checkpoint={path}", "--sampler=ddim", "--seed=2"]) == 0
    made = {p.name for p in (tmp_path / "run" / "samples").iterdir()}
    assert {"ddim-seed2.png", "ddim-seed2.npz"} <= made
    assert np.load(tmp_path / "run" / "samples" / "ddim-seed2.npz")["seeds"][0].tolist() == [2, 0]


def test_a_checkpoint_is_of_a_run_only_if_a_run_lies_around_it(work, tmp_path, monkeypatch):
    """A folder of that name alone is none; nor does it matter from where the file is named."""
    shutil.copytree("runs/toy", tmp_path / "run")
    inside = RunFolder(tmp_path / "run").all_checkpoints()[-1]
    kept = tmp_path / "kept" / "checkpoints"
    kept.mkdir(parents=True)
    shutil.copy(inside, kept / "model.safetensors")

    def folder_of(place, name):
        monkeypatch.chdir(place)
        return Trained.of(TrainedFlags(device="cpu", checkpoint=str(name)), ()).folder.resolve()

    own = tmp_path / "run" / "samples"
    assert folder_of(inside.parent, inside.name) == own
    assert folder_of(tmp_path / "run", Path("checkpoints") / inside.name) == own
    assert folder_of(tmp_path / "run" / "samples", Path("../checkpoints") / inside.name) == own
    (inside.parent / "deeper").mkdir()
    assert folder_of(inside.parent / "deeper", Path("..") / inside.name) == own
    for place in (kept, kept.parent, tmp_path):
        assert folder_of(place, (kept / "model.safetensors").relative_to(place)) == kept / "samples"


SHORT = {
    "sample": ["--num_samples=4", "--num_steps=5"],
    "compare": ["--num_samples=10"],
    "calibrate": ["--num_samples=64", "--num_steps=5"],
    "evaluate": ["--num_samples=9", "--num_steps=6"],
    "invert": ["--num_samples=5", "--num_steps=6"],
    "interpolate": ["--num_samples=2", "--num_steps=6"],
    "visualize": ["--what=trajectories", "--num_steps=6", "--num_samples=3"],
    "solve": ["--task=inpaint", "--num_steps=3", "--num_samples=2", "--draws=2", "--cases=2"],
    "edit": ["--num_steps=3", "--num_samples=2"],
    "export": ["--to=torch_export"],
}


@pytest.mark.usefixtures("fits")
@pytest.mark.parametrize("mode", SHORT)
def test_a_checkpoint_in_no_run_works_in_every_mode(work, tmp_path, monkeypatch, mode):
    """The results lie beside the file; the data are those that the program brings along."""
    shutil.copy(newest("toy"), tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    for constant, value in (("COUNTS", (5, 6)), ("REFERENCE", 32)):
        monkeypatch.setattr(f"scoresde.app.compare.{constant}", value)
    monkeypatch.setattr("scoresde.app.figures.trajectories.LINES", {"VP": VPSDE()})
    assert main([f"--mode={mode}", "--checkpoint=model.safetensors", "--device=cpu", *SHORT[mode]]) == 0
    written = [path for path in Path("samples").rglob("*") if path.is_file()]
    assert written or mode in ("calibrate", "export")
    assert {path.name for path in tmp_path.iterdir()} <= {
        *("model.safetensors", "samples", "model.pilots.json", "model.calibrated.json"),
        *(("exported",) if mode == "export" else ()),
    }


def test_the_modes_that_use_a_trained_model_are_these():
    assert set(SHORT) == {name for name, mode in MODES.items() if issubclass(mode.flags, TrainedFlags)}


@pytest.mark.usefixtures("fits")
@pytest.mark.parametrize("mode", ["sample", "compare", "calibrate", "invert", "interpolate"])
def test_where_a_file_is_given_the_data_of_the_run_are_not_needed(work, tmp_path, monkeypatch, capsys, mode):
    shutil.copy(newest("points"), tmp_path / "model.safetensors")
    np.savez(tmp_path / "asked.npz", x=np.random.default_rng(1).normal(size=(30, 2)))
    monkeypatch.chdir(tmp_path)  # where there is no points.npz
    for constant, value in (("COUNTS", (5, 6)), ("REFERENCE", 32)):
        monkeypatch.setattr(f"scoresde.app.compare.{constant}", value)
    given = ["--input=asked.npz"] if mode in ("invert", "interpolate") else []
    assert main([f"--mode={mode}", "--checkpoint=model.safetensors", "--device=cpu", *SHORT[mode], *given]) == 0
    for mode_of_data in ("evaluate", "invert", "visualize"):
        arguments = [f"--mode={mode_of_data}", "--checkpoint=model.safetensors", "--device=cpu"]
        arguments += ["--what=trajectories"] if mode_of_data == "visualize" else []
        assert_mistake(capsys, arguments, r"data\.path='points\.npz'.*no such file")


CHECKPOINT_MISTAKES = {
    "missing": ("gone.safetensors", r"checkpoint='gone\.safetensors': no such file"),
    "folder": ("runs/toy", r"checkpoint='runs/toy': no such file"),
    "truncated": ("truncated.safetensors", r"checkpoint='truncated\.safetensors': damaged"),
    "noise": ("noise.safetensors", r"checkpoint='noise\.safetensors': damaged"),
    "foreign": ("foreign.safetensors", r"checkpoint='foreign\.safetensors': not a checkpoint of this library"),
    "pickle": ("pickle.pt", r"checkpoint='pickle\.pt': damaged or not a safetensors file"),
    "empty config": ("empty_config.safetensors", r"config: lacks the field"),
    "empty data": ("empty_data.safetensors", r"checkpoint='empty_data\.safetensors': data\.low=None in its header"),
    "earlier format": (
        "earlier.safetensors",
        r"checkpoint='earlier\.safetensors': was written by scoresde 0\.1.*train it again.*--workdir, or use scoresde",
    ),
    "from Python": ("python.safetensors", r"was saved from Python.*scoresde\.load_model\('python\.safetensors'\)"),
}


@pytest.mark.parametrize(("name", "message"), CHECKPOINT_MISTAKES.values(), ids=CHECKPOINT_MISTAKES.keys())
def test_checkpoints_that_cannot_be_used_are_one_line_in_every_mode(work, capsys, name, message):
    for mode in SHORT:
        what = ["--what=trajectories"] if mode == "visualize" else []
        assert_mistake(capsys, [f"--mode={mode}", *what, f"--checkpoint={name}", "--device=cpu"], message)
    assert not Path("made_by_a_pickle").exists()


MISTAKES = {
    "sde": ("--sde=vpp", r"unknown sde 'vpp'"),
    "another sde": ("--sde=ve", r"sde='ve': this model was trained under VPSDE"),
    "seed": ("--seed=-1", r"seed=-1: need 0 <= seed"),
    "large seed": ("--seed=18446744073709551616", r"seed=18446744073709551616: need 0 <= seed < 2\*\*64"),
    "field of training": ("--config.training.lr=5", r"config\.training\.lr=5\.0.*only --config\.sampling"),
    "field": ("--config.sampling.pcc.snr=1", r"--config\.sampling\.pcc\.snr: did you mean --config\.sampling\.pc\.snr"),
    "stray": ("pc", r"unexpected argument \['pc'\]"),
    "device": ("--device=cuda:99", r"device='cuda:99'.*--device cpu"),
    "nothing there": ("--workdir=gone", r"workdir='gone': nothing is trained there yet.*--mode train --sde vp"),
    "only damaged there": ("--workdir=damaged", r"workdir='damaged': nothing is trained there yet"),
    "checkpoint and workdir": (
        "--checkpoint=x.safetensors",
        r"checkpoint='x\.safetensors', workdir='runs/toy': give one",
    ),
}


@pytest.mark.parametrize(("argument", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_one_line_in_every_mode(work, capsys, argument, message):
    for mode in set(SHORT) - {"visualize"}:  # whose --sde means something else
        assert_mistake(capsys, [f"--mode={mode}", "--workdir=runs/toy", "--device=cpu", argument], message)


def test_where_nothing_is_trained_the_way_to_train_is_said(work, monkeypatch, capsys):
    monkeypatch.chdir("empty")
    assert_mistake(capsys, SAMPLE, r"nothing is trained yet under 'runs'; train first: python main\.py --mode train")
    assert_mistake(capsys, [*SAMPLE, "--sde=ve"], r"workdir='runs/ve': nothing is trained there yet")


def test_the_model_is_thresholded_and_the_trained_one_is_not(work):
    plain = trained()
    assert plain.model is plain.network_model
    bounded = trained("toy", "--config.sampling.threshold=static")
    assert isinstance(bounded.model, ThresholdedModel)
    assert isinstance(bounded.network_model, NetworkScoreModel)


def test_the_key_tells_every_model_that_is_sampled_from_from_the_others(work):
    dynamic = ["--config.sampling.threshold=dynamic"]
    keys = [
        trained().sampling_key(),
        trained("toy", "--config.sampling.threshold=static").sampling_key(),
        trained("toy", *dynamic).sampling_key(),
        trained("toy", *dynamic, "--config.sampling.quantile=0.9").sampling_key(),
        trained("points").sampling_key(),
    ]
    assert all(one != other for k, one in enumerate(keys) for other in keys[:k])
    for same in (
        trained(seed=7),
        trained("toy", "--config.sampling.batch_size=3"),
        trained("toy", "--config.sampling.quantile=0.9"),  # of which nothing is used without a dynamic threshold
    ):
        assert same.sampling_key() == keys[0]


def test_more_training_is_another_key(work, tmp_path):
    loaded = checkpoint.load(newest("toy"))
    tensors = {name: value + (1e-6 if name.endswith("first.weight") else 0) for name, value in loaded.tensors.items()}
    checkpoint.save(tmp_path / "other.safetensors", loaded.step, loaded.description, tensors)
    other = Trained.of(TrainedFlags(device="cpu", checkpoint=str(tmp_path / "other.safetensors")), ())
    assert other.sampling_key() != trained().sampling_key()


def test_conditions_are_all_classes_in_turn_or_those_that_are_named(work):
    assert trained().conditions(5).tolist() == [0, 1, 0, 1, 0]
    assert trained("vp").conditions(12).tolist() == [*range(10), 0, 1]
    assert trained().conditions(6, "1,0,0").tolist() == [1, 0, 0, 1, 0, 0]
    assert trained().conditions(2, "1,0,0").tolist() == [1, 0]
    assert trained("points").conditions(5) is None
    for run, labels, message in (
        ("points", "1", r"labels='1': .*without classes; leave --labels out"),
        ("toy", "0,2", r"labels='0,2': labels from 0 to 2; need labels 0\.\.1"),
        ("toy", "-1", r"labels='-1': labels from -1 to -1; need labels 0\.\.1"),
        ("toy", "1,,0", r"labels='1,,0': class '': need a whole number below 2; give classes between commas"),
        ("toy", "9" * 30, r"labels='9+': larger than any class number"),
        ("toy", "zero", r"labels='zero': class 'zero': need a whole number below 2"),
        ("toy", "", r"labels='': class '': need a whole number below 2"),
    ):
        with pytest.raises(UsageError, match=message):
            trained(run).conditions(3, labels)


def test_samples_are_decoded_to_raw_units(work):
    """Digits are 0..16; the model sees (x - 8) / 8."""
    found = trained("vp")
    info = found.data
    assert (info.low, info.high, info.num_classes, info.quantized) == (0, 16, 10, True)
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    torch.testing.assert_close(found.decode(x), 8 * x + 8)


def test_the_seed_is_the_flag_s_or_the_configuration_s(work):
    assert trained().seed == 0
    assert trained(seed=5).seed == 5
    assert trained("toy", "--config.seed=3").seed == 3
    assert trained("toy", "--config.seed=3", seed=5).seed == 5


def test_the_same_on_another_device_is_loaded_there(work):
    here = Trained.of(SampleFlags(device="cpu", workdir="runs/toy"), ())
    assert here.model is here.network_model
    there = here.on(torch.device("meta"))
    assert there.device.type == "meta"
    assert there.checkpoint is here.checkpoint
    assert there.network_model.device.type == "meta"
