"""The command line: what each command writes, and one line for every mistake."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from samplers import DDIM, FittedSampler, sample
from samplers.fitted.calibrate import ITERATIONS, Calibration
from scoresde import checkpoint
from scoresde.app import calibrate as calibrate_module
from scoresde.app import sample as sample_module
from scoresde.app.cli import main
from scoresde.app.pilot_cache import calibrated_path, pilots_path
from scoresde.app.run_folder import RunFolder
from sde_configs import build
from tests.mistakes import assert_mistake

ROOT = Path(__file__).parent.parent
TOY = [
    *("--mode=train", "--config=toy", "--config.network.width=16", "--config.network.depth=1", "--device=cpu"),
    *("--config.training.batch_size=32", "--config.training.num_steps=4"),
]
SAMPLE = ["--mode=sample", "--num_samples=6", "--num_steps=5", "--device=cpu"]
SAMPLERS = tuple(build.SAMPLERS)


def write_points(name, **arrays):
    x = np.random.default_rng(0).normal(size=(40, 2))
    np.savez(name, **{"x": x, **arrays})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with three small runs (digits, moons, points without classes) and files that are wrong."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        digits = ["--config.network.channels=8", "--config.training.num_steps=1", "--device=cpu"]
        assert main(["--mode=train", "--sde=vp", *digits]) == 0
        write_points("plain.npz")
        assert main([*TOY, "--config.data.path=plain.npz", "--workdir=runs/plain"]) == 0
        assert main(TOY) == 0
        Path("empty").mkdir()
        Path("file").touch()
        Path("folder.png").mkdir()
        wrong_files()
    return folder


def wrong_files():
    whole = RunFolder(Path("runs/toy")).all_checkpoints()[-1]
    content = whole.read_bytes()
    Path("truncated.safetensors").write_bytes(content[: len(content) // 2])
    Path("noise.safetensors").write_bytes(b"\x07" * 999)
    save_file({"weight": torch.zeros(2)}, "foreign.safetensors")
    torch.save(TakesAFile(), "pickle.pt")
    loaded = checkpoint.load(whole)
    checkpoint.save(Path("empty_config.safetensors"), 1, loaded.description | {"config": {}}, loaded.tensors)
    shutil.copytree("runs/toy", "damaged")
    RunFolder(Path("damaged")).all_checkpoints()[-1].write_bytes(content[:50])
    shutil.copytree("runs/toy", "half_config")
    Path("half_config/config.json").write_text('{"seed": 0, ')
    x = np.random.default_rng(0).normal(size=(40, 2))
    write_points("nan.npz", x=np.where(np.arange(80).reshape(40, 2) == 7, np.nan, x))
    write_points("huge.npz", x=1e300 * x)
    write_points("equal.npz", x=np.ones((40, 2)))
    write_points("equal_bytes.npz", x=np.full((40, 2), 3, dtype=np.uint8))
    write_points("none.npz", x=x[:0])
    write_points("flat.npz", x=x[:, 0])
    write_points("words.npz", x=np.array(["a", "b"]))
    write_points("objects.npz", x=np.array([None, 1], dtype=object))
    write_points("images.npz", x=np.random.default_rng(0).normal(size=(9, 1, 8, 8)))
    write_points("few_labels.npz", labels=np.zeros(5, dtype=int))
    write_points("negative_labels.npz", labels=np.full(40, -1))
    write_points("float_labels.npz", labels=np.full(40, 0.5))
    write_points("word_labels.npz", labels=np.array(["a"] * 40))
    np.savez("no_x.npz", y=x)
    for suffix in ("npz", "npy"):
        Path(f"damaged_data.{suffix}").write_bytes(Path("nan.npz").read_bytes()[:90])
    Path("syntax.py").write_text("x = (")
    Path("raises.py").write_text("def get_config():\n    raise RuntimeError('two\\nlines')\n")
    Path("nothing.py").touch()
    Path("number.py").write_text("def get_config():\n    return 3\n")
    Path("syntax.json").write_text("{")
    Path("list.json").write_text("[1]")
    Path("half.json").write_text('{"seed": 1}')
    Path("bytes.json").write_bytes(b"\xff\xfe\x00")


@pytest.fixture
def work(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return runs


TRAINING_MISTAKES = {
    "sde": ("--sde=vpp", r"unknown sde 'vpp': did you mean 'vp'"),
    "flag": ("--workdirr=x", r"unknown flag '--workdirr': did you mean '--workdir'"),
    "flag without value": ("--sde", r"--sde.*--help"),
    "empty value": ("--workdir=", r"workdir=''"),
    "stray": ("vp", r"unexpected argument \['vp'\]"),
    "seed type": ("--seed=x", r"--seed=x.*--help"),
    "seed sign": ("--seed=-1", r"seed=-1: need 0 <= seed"),
    "field": ("--config.training.lrr=1", r"--config\.training\.lrr: did you mean --config\.training\.lr\?"),
    "section": ("--config.training=1", r"unknown field --config\.training"),
    "float": ("--config.training.lr=abc", r"--config\.training\.lr=abc.*--help"),
    "integer": ("--config.training.num_steps=1.5", r"--config\.training\.num_steps=1\.5.*--help"),
    "boolean": ("--config.data.class_conditional=maybe", r"--config\.data\.class_conditional=maybe.*--help"),
    "field without value": ("--config.training.lr", r"--config\.training\.lr.*--help"),
    "flag of sampling": ("--num_samples=5", r"num_samples=5: belongs to --mode sample"),
    "steps of sampling": ("--num_steps=5", r"num_steps=5.*--config\.training\.num_steps"),
    "sampler": ("--sampler=pc", r"sampler=pc: belongs to --mode sample"),
    "recipe": ("--config=toyy", r"unknown config 'toyy': did you mean 'toy'"),
    "recipe file": ("--config=gone.py", r"config='gone\.py': no such file"),
    "recipe json": ("--config=gone.json", r"config='gone\.json': no such file"),
    "syntax error": ("--config=syntax.py", r"config='syntax\.py': SyntaxError.*get_config"),
    "error in config": ("--config=raises.py", r"config='raises\.py': RuntimeError.*two.*get_config"),
    "no get_config": ("--config=nothing.py", r"config='nothing\.py'.*get_config"),
    "no configuration": ("--config=number.py", r"config='number\.py': get_config\(\) gave int"),
    "json": ("--config=syntax.json", r"config='syntax\.json': not a configuration in JSON"),
    "json list": ("--config=list.json", r"config='list\.json': not a configuration in JSON"),
    "json lacks fields": ("--config=half.json", r"config='half\.json': lacks the field"),
    "json of bytes": ("--config=bytes.json", r"config='bytes\.json': not a configuration in JSON"),
    "nonsense device": ("--device=gpu", r"device='gpu': need auto, cpu, cuda or cuda:N"),
    "nonsense index": ("--device=cuda:x", r"device='cuda:x': need auto, cpu, cuda or cuda:N"),
    "cuda that is not there": ("--device=cuda:99", r"device='cuda:99': torch sees \d+ CUDA devices.*--device cpu"),
    "data name": ("--config.data.name=moon", r"unknown data\.name 'moon': did you mean 'moons'"),
    "data file": ("--config.data.path=gone.npz", r"data\.path='gone\.npz'.*no such file"),
    "data type": ("--config.data.path=x.csv", r"data\.path='x\.csv'.*no such file"),
    "nan": ("--config.data.path=nan.npz", r"data\.path='nan\.npz'.*1 of 40 samples hold NaN.*remove or repair"),
    "too large": ("--config.data.path=huge.npz", r"data\.path='huge\.npz'.*40 of 40 samples hold NaN or infinity"),
    "equal": ("--config.data.path=equal.npz", r"data\.path='equal\.npz'.*all values are equal"),
    "equal bytes": ("--config.data.path=equal_bytes.npz", r"data\.path='equal_bytes\.npz'.*all values are equal"),
    "no samples": ("--config.data.path=none.npz", r"data\.path='none\.npz'.*shape \(0, 2\)"),
    "no dimensions": ("--config.data.path=flat.npz", r"data\.path='flat\.npz'.*shape \(40,\)"),
    "words": ("--config.data.path=words.npz", r"data\.path='words\.npz'.*need numbers"),
    "objects": ("--config.data.path=objects.npz", r"data\.path='objects\.npz'.*cannot be read"),
    "no x": ("--config.data.path=no_x.npz", r"data\.path='no_x\.npz'.*need an array named 'x'"),
    "images": ("--config.data.path=images.npz", r"network\.name='MLP': needs vectors.*--config\.network\.name=UNet"),
    "few labels": ("--config.data.path=few_labels.npz", r"labels of shape \(5,\).*need 40 integers"),
    "negative labels": ("--config.data.path=negative_labels.npz", r"labels: the least is -1"),
    "float labels": ("--config.data.path=float_labels.npz", r"'labels' is of type float64; need integers"),
    "word labels": ("--config.data.path=word_labels.npz", r"'labels' is of type .*; need (integers|numbers)"),
    "damaged npz": ("--config.data.path=damaged_data.npz", r"data\.path='damaged_data\.npz': cannot be read"),
    "damaged npy": ("--config.data.path=damaged_data.npy", r"data\.path='damaged_data\.npy': cannot be read"),
    "network": ("--config.network.name=MPL", r"config\.network\.name 'MPL': did you mean 'MLP'"),
    "network for images": ("--config.network.name=UNet", r"network\.name='UNet': needs images"),
    "width": ("--config.network.width=0", r"width=0 of MLP: need at least 1"),
    "depth": ("--config.network.depth=-1", r"depth=-1 of MLP: need at least 1"),
    "sde class": ("--config.sde.name=VP", r"config\.sde\.name 'VP': did you mean 'VPSDE'"),
    "sde field": ("--config.sde.beta_min=-1", r"beta_min=-1\.0, beta_max=20\.0: need"),
    "weighting": ("--config.objective.weighting.name=x", r"config\.objective\.weighting\.name 'x'"),
    "wandb": ("--config.logging.wandb=yes", r"config\.logging\.wandb='yes': need 'disabled', 'offline' or 'online'"),
    "held out": ("--config.data.held_out=1", r"data\.held_out=1\.0: need 0 <= held_out < 1"),
    "workdir is a file": ("--workdir=file", r"workdir='file': cannot be written.*--workdir"),
    "workdir in a file": ("--workdir=file/x", r"workdir='file/x': cannot be written.*--workdir"),
    "config.json is damaged": ("--workdir=half_config", r"workdir='half_config': its config\.json is damaged"),
    **{
        f"{field}={value}": (f"--config.{field}={value}", rf"{re.escape(field)}={value}\S*: (need|must)")
        for field, value in (
            *(("training.num_steps", 0), ("training.batch_size", 0), ("training.batch_size", -4), ("training.lr", 0)),
            *(("logging.every", 0), ("logging.checkpoint_every", 0), ("logging.keep", 0), ("logging.keep", -1)),
            *(("training.weight_decay", -1), ("training.lr_final", 2), ("training.grad_clip", -1)),
        )
    },
}
SAMPLING_MISTAKES = {
    "sampler": ("--sampler=pcc", r"unknown sampler 'pcc': did you mean 'pc'"),
    "sde": ("--sde=vpp", r"unknown sde 'vpp'"),
    "another sde": ("--sde=ve", r"sde='ve': this model was trained under VPSDE"),
    "num_samples": ("--num_samples=0", r"num_samples=0: need at least 1"),
    "num_samples type": ("--num_samples=many", r"--num_samples=many.*--help"),
    "num_steps": ("--num_steps=0", r"num_steps=0: need at least 1"),
    "seed": ("--seed=-1", r"seed=-1: need 0 <= seed"),
    "batch size": ("--config.sampling.batch_size=0", r"sampling\.batch_size=0: need at least 1"),
    "field": ("--config.sampling.pcc.snr=1", r"--config\.sampling\.pcc\.snr: did you mean --config\.sampling\.pc\.snr"),
    "field of training": ("--config.training.lr=5", r"config\.training\.lr=5\.0.*only --config\.sampling"),
    "snr": ("--config.sampling.pc.snr=2", r"snr=2\.0: need 0 < snr < 1"),
    "label too large": ("--labels=0,2", r"labels='0,2': \[2\] is no class; this model knows 0 to 1"),
    "label below 0": ("--labels=-1", r"labels='-1': \[-1\] is no class"),
    "label no number": ("--labels=zero", r"labels='zero': need whole numbers.*--labels=3,1,4"),
    "label missing": ("--labels=1,,0", r"labels='1,,0': need whole numbers"),
    "stray": ("pc", r"unexpected argument \['pc'\]"),
    "config": ("--config=toy", r"config='toy': a checkpoint holds its own"),
    "device": ("--device=cuda:99", r"device='cuda:99'.*--device cpu"),
    "output in a file": ("--output=file/x.png", r"output='file/x\.png': cannot be written.*--output"),
    "output is a folder": ("--output=folder.png", r"output='folder\.png': is a folder.*--output"),
    "output of another type": ("--output=x.jpg", r"output='x\.jpg': need the name of a \.png"),
    "nothing there": ("--workdir=gone", r"workdir='gone': nothing is trained there yet.*--mode train --sde vp"),
    "only damaged there": ("--workdir=damaged", r"workdir='damaged': nothing is trained there yet"),
    "checkpoint and workdir": (
        "--checkpoint=x.safetensors",
        r"checkpoint='x\.safetensors', workdir='runs/toy': give one",
    ),
}
CHECKPOINT_MISTAKES = {
    "missing": ("gone.safetensors", r"checkpoint='gone\.safetensors': no such file"),
    "folder": ("runs/toy", r"checkpoint='runs/toy': no such file"),
    "truncated": ("truncated.safetensors", r"checkpoint='truncated\.safetensors': damaged"),
    "noise": ("noise.safetensors", r"checkpoint='noise\.safetensors': damaged"),
    "foreign": ("foreign.safetensors", r"checkpoint='foreign\.safetensors': not a checkpoint of this library"),
    "pickle": ("pickle.pt", r"checkpoint='pickle\.pt': damaged or not a safetensors file"),
    "empty config": ("empty_config.safetensors", r"config: lacks the field"),
}


class TakesAFile:
    """A pickle of it makes a file as it is read."""

    def __reduce__(self):
        return open, ("made_by_a_pickle", "w")


def cases(mistakes):
    return pytest.mark.parametrize(("argument", "message"), mistakes.values(), ids=mistakes.keys())


@cases({"mode": ("--mode=trian", r"unknown mode 'trian': did you mean 'train'"), "none": ("--sde=vp", r"give --mode")})
def test_a_mode_that_is_wrong_or_missing_is_named(capsys, argument, message):
    assert_mistake(capsys, [argument], message)


@cases(TRAINING_MISTAKES)
def test_mistakes_of_training_are_one_line(work, capsys, argument, message):
    workdir = [] if "--workdir" in argument else ["--workdir=mistakes"]
    assert_mistake(capsys, [*TOY, *workdir, argument], message)


@cases(SAMPLING_MISTAKES)
def test_mistakes_of_sampling_are_one_line(work, capsys, argument, message):
    assert_mistake(capsys, [*SAMPLE, "--workdir=runs/toy", argument], message)


@cases(CHECKPOINT_MISTAKES)
def test_checkpoints_that_cannot_be_used_are_one_line(work, capsys, argument, message):
    assert_mistake(capsys, [*SAMPLE, f"--checkpoint={argument}"], message)
    assert not Path("made_by_a_pickle").exists()


def test_labels_for_a_model_without_classes_are_one_line(work, capsys):
    assert_mistake(capsys, [*SAMPLE, "--workdir=runs/plain", "--labels=1"], r"labels='1'.*without classes; leave")


def test_where_nothing_is_trained_the_way_to_train_is_said(work, monkeypatch, capsys):
    monkeypatch.chdir("empty")
    assert_mistake(capsys, SAMPLE, r"nothing is trained yet under 'runs'; train first: python main\.py --mode train")
    assert_mistake(capsys, [*SAMPLE, "--sde=ve"], r"workdir='runs/ve': nothing is trained there yet")


def test_cuda_where_there_is_none_is_one_line(work, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for mode in (TOY, [*SAMPLE, "--workdir=runs/toy"]):
        assert_mistake(capsys, [*mode, "--device=cuda"], r"device='cuda': torch sees 0 CUDA devices.*--device cpu")


@cases(
    {
        "override": ("--config.training.lr=0.5", r"holds a run with config\.training\.lr=0\.001, not 0\.5"),
        "seed": ("--seed=3", r"holds a run with config\.seed=0, not 3"),
        "sde": ("--sde=subvp", r"holds a run with config\.sde\.name=VPSDE, not SubVPSDE|config\.sde\."),
    }
)
def test_a_workdir_that_holds_another_run_is_named(work, capsys, argument, message):
    assert_mistake(capsys, [*TOY, "--workdir=runs/toy", argument], message)


def test_more_steps_are_no_conflict_and_go_on(work, tmp_path, capsys):
    shutil.copytree("runs/toy", tmp_path / "run")
    arguments = [*TOY, f"--workdir={tmp_path / 'run'}", "--config.training.num_steps=6", "--config.logging.every=1"]
    assert main(arguments) == 0
    assert "from step 4" in capsys.readouterr().out
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 5, 6]
    assert RunFolder(tmp_path / "run").newest_checkpoint().step == 6


def test_flags_beat_overrides_beat_the_file(work, tmp_path):
    config = json.loads(Path("runs/toy/config.json").read_text())
    config["training"] |= {"lr": 0.25, "warmup_steps": 7}
    config["seed"] = 1
    (tmp_path / "own.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(
        "from sde_configs import toy\n\n\ndef get_config():\n    config = toy.get_config()\n"
        "    config.training.update(lr=0.25, warmup_steps=7, num_steps=4, batch_size=32)\n"
        "    config.seed = 1\n    return config\n"
    )
    for name in ("own.json", "own.py"):
        workdir = tmp_path / name.replace(".", "-")
        arguments = ["--config.training.lr", "0.125", "--config.seed=2", "--seed=3", f"--workdir={workdir}"]
        assert main(["--mode=train", f"--config={tmp_path / name}", *arguments, "--device=cpu"]) == 0
        used = json.loads((workdir / "config.json").read_text())
        assert (used["training"]["lr"], used["training"]["warmup_steps"], used["seed"]) == (0.125, 7, 3)


def test_an_sde_and_a_recipe_have_a_folder_of_their_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*TOY, "--sde=ve", "--config.training.num_steps=1"]) == 0
    assert json.loads(Path("runs/toy-ve/config.json").read_text())["sde"]["name"] == "VESDE"
    capsys.readouterr()
    assert main(SAMPLE) == 0
    assert "sampling from runs/toy-ve, step 1" in capsys.readouterr().out


def test_sampling_takes_the_newest_run_and_says_which(work, capsys):
    for name in ("vp", "toy"):
        path = RunFolder(Path(f"runs/{name}")).all_checkpoints()[-1]
        os.utime(path)
        assert main([*SAMPLE, f"--output={name}-newest.png"]) == 0
        assert f"sampling from runs/{name}, step" in capsys.readouterr().out


def test_sampling_by_sde_takes_its_folder(work, capsys):
    assert main([*SAMPLE, "--sde=vp"]) == 0
    assert "sampling from runs/vp, step 1" in capsys.readouterr().out


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("run", ["toy", "vp"])
def test_every_sampler_writes_a_picture_and_numbers(work, tmp_path, capsys, run, sampler):
    output = tmp_path / "made" / "picture.png"
    arguments = [*SAMPLE, f"--workdir=runs/{run}", f"--sampler={sampler}", f"--output={output}"]
    assert main(arguments) == 0
    assert f"picture: {output}\nnumbers: {output.with_suffix('.npz')}\n" in capsys.readouterr().out
    with np.load(output.with_suffix(".npz")) as arrays:
        assert arrays["samples"].shape == ((6, 2) if run == "toy" else (6, 1, 8, 8))
        assert np.isfinite(arrays["samples"]).all()
        assert arrays["labels"].tolist() == ([0, 1] * 3 if run == "toy" else list(range(6)))
        assert arrays["seeds"].tolist() == [[0, k] for k in range(6)]
    with Image.open(output) as picture:
        assert picture.format == "PNG"
    assert sorted(p.name for p in output.parent.iterdir()) == ["picture.npz", "picture.png"]


def test_training_and_sampling_run_on_the_device(device, tmp_path, capsys):
    place = [f"--workdir={tmp_path / 'run'}", f"--device={device}"]
    assert main([*TOY, *place]) == 0
    assert f", {device}, in" in capsys.readouterr().out
    for sampler in SAMPLERS:
        assert main([*SAMPLE, *place, f"--sampler={sampler}"]) == 0


def samples_of(output, *arguments):
    assert main([*SAMPLE, "--workdir=runs/toy", f"--output={output}", *arguments]) == 0
    return output.with_suffix(".npz").read_bytes(), np.load(output.with_suffix(".npz"))["samples"]


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != "ode"])
def test_a_seed_is_the_samples_whatever_the_batch_size(work, tmp_path, sampler):
    first, samples = samples_of(tmp_path / "a.png", f"--sampler={sampler}", "--seed=5")
    again, _ = samples_of(tmp_path / "b.png", f"--sampler={sampler}", "--seed=5")
    assert first == again
    _, batched = samples_of(tmp_path / "c.png", f"--sampler={sampler}", "--seed=5", "--config.sampling.batch_size=4")
    np.testing.assert_allclose(batched, samples, rtol=1e-5, atol=1e-6)  # matrix products round by batch size
    _, other = samples_of(tmp_path / "d.png", f"--sampler={sampler}", "--seed=6")
    assert np.abs(other - samples).max() > 0.01


def test_more_samples_begin_with_the_same_ones(work, tmp_path):
    _, few = samples_of(tmp_path / "a.png", "--sampler=ddim", "--labels=1")
    _, many = samples_of(tmp_path / "b.png", "--sampler=ddim", "--labels=1", "--num_samples=9")
    np.testing.assert_allclose(many[:6], few, rtol=1e-5, atol=1e-6)


def test_sampling_that_is_killed_goes_on_where_it_stopped(work, tmp_path, monkeypatch, capsys):
    many = ["--mode=sample", "--sde=vp", "--sampler=ancestral", "--num_steps=4", "--device=cpu", "--num_samples=23"]
    many.append("--config.sampling.batch_size=5")
    assert main([*many, f"--output={tmp_path / 'whole.png'}"]) == 0
    drawn = []

    def counted(*arguments, first_index, **options):
        if len(drawn) == 3:
            drawn.append(None)
            raise KeyboardInterrupt
        drawn.append(first_index)
        return sample(*arguments, first_index=first_index, **options)

    monkeypatch.setattr(sample_module, "draw", counted)
    again = [*many, f"--output={tmp_path / 'again.png'}"]
    assert main(again) == 130
    assert not (tmp_path / "again.npz").exists()
    other = [argument.replace("ancestral", "ddim") for argument in again]
    assert main(other) == 0  # another command begins anew, and leaves the parts alone
    before = len(drawn)
    capsys.readouterr()
    assert main(again) == 0
    assert "going on: 3 of 5 parts are there" in capsys.readouterr().out
    assert drawn[:3] == [0, 5, 10]
    assert drawn[before:] == [15, 20]
    assert not list(tmp_path.glob(".*.parts"))
    whole, continued = (np.load(tmp_path / f"{name}.npz") for name in ("whole", "again"))
    for key in ("samples", "labels", "seeds"):
        assert np.array_equal(whole[key], continued[key])


def test_labels_are_repeated_to_the_number_of_samples(work, tmp_path):
    samples_of(tmp_path / "a.png", "--labels=1,0,0")
    assert np.load(tmp_path / "a.npz")["labels"].tolist() == [1, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(("sampler", "evaluations"), [("pc", 9), ("ddim", 5), ("ode", 9)])
def test_the_number_of_steps_is_honoured(work, tmp_path, capsys, sampler, evaluations):
    """Five steps, the last of them to clean data: pc and Heun evaluate twice in each of the first four."""
    samples_of(tmp_path / "a.png", f"--sampler={sampler}", "--config.sampling.batch_size=4")
    count = int(re.search(r"6 samples by \w+, (\d+) network evaluations each", capsys.readouterr().out)[1])
    assert count == evaluations  # of a sample, whatever the number of batches


def test_the_snr_is_chosen_once_a_checkpoint(work, tmp_path, capsys):
    pilots = pilots_path(RunFolder(Path("runs/toy")).all_checkpoints()[-1])
    pilots.unlink(missing_ok=True)

    def said(*arguments):
        samples_of(tmp_path / "a.png", *arguments)
        return capsys.readouterr().out

    first, second = said(), said()
    assert "choosing snr" in first
    assert "choosing snr" not in second
    chosen = re.search(r"snr (0\.\d+) \(by a pilot run; --config\.sampling\.pc\.snr", second)[0]
    assert chosen in first
    assert "choosing snr" in said("--num_steps=6")  # on another grid
    assert "a pilot run" not in said("--config.sampling.pc.snr=0.2")
    for damage in ("{", '{"digest": "another", "found": {}}', pilots.read_text().replace("0.", "7")):
        pilots.write_text(damage)
        assert "choosing snr" in said()
    assert "choosing snr" not in said()


def test_auto_fits_its_tables_once_a_checkpoint(work, tmp_path, capsys):
    def drawn(*arguments):
        data, samples = samples_of(tmp_path / "a.png", "--sampler=auto", *arguments)
        return data, samples, capsys.readouterr()

    first, samples, said = drawn()
    assert "pilot" in said.err
    assert "6 samples by auto, 5 network evaluations each" in said.out
    assert np.isfinite(samples).all()
    again, _, said = drawn()
    assert again == first
    assert "pilot" not in said.err
    assert "10 network evaluations" in drawn("--num_steps=10")[2].out
    assert main([*SAMPLE, "--workdir=runs/toy", "--sampler=auto", "--num_steps=3"]) == 2
    assert "num_steps=3: fitted are 4 to 50" in capsys.readouterr().err


def test_compare_prints_writes_and_recommends(work, tmp_path, capsys):
    output = tmp_path / "compare.png"
    compare = ["--mode=compare", "--num_samples=10", "--device=cpu"]
    assert main([*compare, "--workdir=runs/toy", f"--output={output}"]) == 0
    said = capsys.readouterr()
    assert "recommended: --sampler" in said.out
    assert "truth" in said.err
    assert output.exists()
    found = json.loads(output.with_suffix(".json").read_text())
    assert found["evaluations"] == [5, 6, 8, 10, 15, 20, 35, 50]
    assert {"auto", "trigonometric", "unipc", "heun"} <= found["errors"].keys()
    assert found["errors"]["heun"][1] is None  # takes an odd number of evaluations
    assert found["errors"]["ddim"][0] > found["errors"]["ddim"][-1] > 0
    for wrong, shown in (("--sampler=pc", "sampler=pc: compare runs many"), ("--num_samples=3", "need at least 10")):
        assert main([*compare, "--workdir=runs/toy", wrong]) == 2
        assert shown in capsys.readouterr().err


@pytest.fixture
def calibrated(work, capsys, monkeypatch):
    """The toy run with another table of 5 evaluations: this one is trained too little for a calibration to gain."""

    def other(model, sampler, num_steps, truth, *, tell, **_):
        fit = sampler.fits[num_steps]
        tell(ITERATIONS, 0.1)
        return Calibration(FittedSampler({num_steps: replace(fit, weights=1.1 * fit.weights)}), 0.2, 0.1)

    monkeypatch.setattr(calibrate_module, "calibrated_table", other)
    path = calibrated_path(RunFolder(Path("runs/toy")).all_checkpoints()[-1])
    path.unlink(missing_ok=True)
    assert main([*CALIBRATE, "--num_samples=200", "--num_steps=5"]) == 0
    said = capsys.readouterr()
    assert "truth: the flow from 200 noises" in said.out
    assert re.search(r"5 evaluations: error \S+ -> \S+ on noises held out, \d+ s; kept in .*calibrated.json", said.out)
    assert f"calibrate 5 {ITERATIONS}/{ITERATIONS}" in said.err
    yield path
    path.unlink(missing_ok=True)


CALIBRATE = ["--mode=calibrate", "--workdir=runs/toy", "--device=cpu"]


def test_auto_takes_calibrated_tables_and_says_so(calibrated, tmp_path, capsys):
    def drawn(*arguments):
        samples = samples_of(tmp_path / "a.png", "--sampler=auto", *arguments)[1]
        return samples, capsys.readouterr().out

    (taken, said), (left, quiet) = drawn(), drawn("--calibrated=off")
    assert "the table of 5 evaluations is calibrated (--calibrated=off" in said
    assert "is calibrated" not in quiet
    assert 0 < np.abs(taken - left).max() < 1
    assert "is calibrated" not in drawn("--num_steps=6")[1]
    assert "is calibrated" not in drawn("--config.sampling.threshold=static")[1]  # samples another model
    assert main([*CALIBRATE, "--num_samples=100", "--num_steps=4"]) == 0
    assert json.loads(calibrated.read_text())["tables"].keys() == {"4", "5"}  # one does not replace the other
    capsys.readouterr()
    assert main(["--mode=compare", "--num_samples=10", "--workdir=runs/toy", f"--output={tmp_path / 'c.png'}"]) == 0
    assert "auto: calibrated at 4, 5 (--calibrated=off" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "shown"),
    [
        (lambda text: "{", "cannot be read"),
        (lambda text: "[]", "holds no tables"),
        (lambda text: text.replace('"digest": "', '"digest": "0'), "was calibrated for another model"),
        (lambda text: text.replace('"5":', '"6":'), "no fitted tables: lengths do not fit"),
        (lambda text: text.replace('"sd":', '"se":'), "no fitted tables: 'sd'"),
    ],
    ids=["json", "list", "model", "number", "field"],
)
def test_calibrated_tables_of_another_model_or_number_are_named(calibrated, capsys, damage, shown):
    calibrated.write_text(damage(calibrated.read_text()))
    auto = [*SAMPLE, "--workdir=runs/toy", "--sampler=auto"]
    assert main(auto) == 2
    said = capsys.readouterr().err
    assert shown in said
    assert "remove it, or run --mode calibrate, or give --calibrated=off" in said
    assert main([*auto, "--calibrated=off"]) == 0
    assert main([*CALIBRATE, "--num_samples=100", "--num_steps=5"]) == 0  # writes it anew
    assert main(auto) == 0


def test_what_calibration_cannot_do_is_named(work, capsys, monkeypatch):
    for wrong, shown in (
        ("--num_samples=63", "num_samples=63: calibration learns from so many noises, and needs at least 64"),
        ("--num_steps=51", "num_steps=51: need 4 to 50"),
        ("--sampler=pc", "sampler='pc': calibration is for --sampler auto"),
        ("--labels=1", "labels=1: does nothing in calibration"),
    ):
        assert main([*CALIBRATE, wrong]) == 2
        assert shown in capsys.readouterr().err
    assert main([*SAMPLE, "--workdir=runs/toy", "--sampler=auto", "--calibrated=no"]) == 2
    assert "calibrated='no': need on or off" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        assert main([*CALIBRATE, "--num_steps=5"]) == 2
        assert re.search(r"kept in runs/toy/checkpoints, which cannot be written to", capsys.readouterr().err)
    monkeypatch.setattr(calibrate_module, "GOOD", 1e-9)
    assert main([*CALIBRATE, "--num_samples=64", "--num_steps=5"]) == 2
    assert re.search(r"its probability flow did not converge; ends after 68 and 136 .* apart", capsys.readouterr().err)


def test_a_calibration_that_gains_nothing_leaves_the_table(work, capsys, monkeypatch):
    def kept(model, sampler, *_, **__):
        return Calibration(sampler, 0.1, 0.1)

    monkeypatch.setattr(calibrate_module, "calibrated_table", kept)
    assert main([*CALIBRATE, "--num_samples=64", "--num_steps=5"]) == 0
    assert "nothing better was found, the table stays" in capsys.readouterr().out
    assert not calibrated_path(RunFolder(Path("runs/toy")).all_checkpoints()[-1]).exists()


def test_thresholds_keep_the_samples_within_the_datas_range(work, tmp_path):
    for kind in ("static", "dynamic"):
        chosen = [f"--config.sampling.threshold={kind}", f"--output={tmp_path / 'a.png'}"]
        assert main([*SAMPLE, "--sde=vp", *chosen]) == 0
        samples = np.load(tmp_path / "a.npz")["samples"]
        assert 0 <= samples.min() <= samples.max() <= 16
    assert main([*SAMPLE, "--config.sampling.threshold=hard"]) == 2


def test_the_default_of_ode_is_adaptive(work, tmp_path, capsys):
    arguments = ["--mode=sample", "--num_samples=4", "--workdir=runs/toy", "--sampler=ode", "--device=cpu"]
    counts = []
    for tolerance in ("1e-2", "1e-5"):
        fields = [f"--config.sampling.ode.{name}={tolerance}" for name in ("rtol", "atol")]
        assert main([*arguments, *fields, f"--output={tmp_path / 'a.png'}"]) == 0
        counts.append(int(re.search(r"(\d+) network evaluations", capsys.readouterr().out)[1]))
    assert counts[0] < counts[1]


def test_a_checkpoint_can_be_named_and_its_run_gets_the_picture(work, tmp_path):
    shutil.copytree("runs/toy", tmp_path / "run")
    path = RunFolder(tmp_path / "run").all_checkpoints()[-1]
    assert main([*SAMPLE, f"--checkpoint={path}", "--sampler=ddim", "--seed=2"]) == 0
    made = {p.name for p in (tmp_path / "run" / "samples").iterdir()}
    assert {"ddim-seed2.png", "ddim-seed2.npz"} <= made
    assert np.load(tmp_path / "run" / "samples" / "ddim-seed2.npz")["seeds"][0].tolist() == [2, 0]


def test_samples_are_in_raw_units(work, tmp_path):
    """Digits are 0..16; the model sees (x - 8) / 8."""
    assert main([*SAMPLE, "--sde=vp", "--sampler=ddim", f"--output={tmp_path / 'a.png'}"]) == 0
    newest = RunFolder(Path("runs/vp")).newest_checkpoint()
    description = newest.description["data"]
    assert {k: description[k] for k in ("center", "scale", "low", "high", "num_classes", "quantized")} == {
        "center": 8.0,
        "scale": 8.0,
        "low": 0.0,
        "high": 16.0,
        "num_classes": 10,
        "quantized": True,
    }
    file = np.load(tmp_path / "a.npz")
    x, _ = sample(newest.model(), DDIM(), len(file["labels"]), num_steps=5, cond=file["labels"])
    np.testing.assert_allclose(file["samples"], 8 * x + 8, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["--mode", "train", "--help"]])
def test_help_shows_flags_recipes_and_fields(capsys, arguments):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for expected in ("--num_samples", "toy", "--config.training.lr=0.002", "largest learning rate", "sampling.unipc"):
        assert expected in out


def run_main(folder, *arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False, **options
    )


def test_the_commands_of_the_readme(tmp_path):
    small = ["--config.network.channels=8", "--config.training.num_steps=4"]
    trained = run_main(tmp_path, "--mode", "train", "--sde", "vp", *small)
    assert trained.returncode == 0, trained.stderr
    sampled = run_main(tmp_path, "--mode", "sample", "--sampler", "pc")
    assert sampled.returncode == 0, sampled.stderr
    assert "sampling from runs/vp, step 4" in sampled.stdout
    picture = tmp_path / re.search(r"picture: (.*)", sampled.stdout)[1]
    assert picture == tmp_path / "runs" / "vp" / "samples" / "pc-seed0.png"
    with Image.open(picture) as image:  # 10 x 10 digits of 8 x 8, gaps of one pixel, six times
        assert image.size == (6 * (10 * 9 + 1), 6 * (10 * 9 + 1))
    assert np.load(picture.with_suffix(".npz"))["labels"].tolist() == list(range(10)) * 10


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    result = run_main(tmp_path, "--mode", "sample")
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"error: [^\n]+train first[^\n]+\n", result.stderr)


def test_wandb_is_not_imported_unless_it_is_asked_for(tmp_path):
    code = (
        "import sys\nfrom scoresde.app.cli import main\n"
        f"assert main({[*TOY, '--workdir=run']!r}) == 0\nassert 'wandb' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, timeout=120)


@pytest.mark.skipif(os.name == "nt", reason="signals of a terminal")
def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--mode=train", "--config=toy", "--config.network.width=32", "--device=cpu"]
    arguments += ["--config.training.batch_size=64", "--config.training.num_steps=1200", "--config.logging.every=7"]
    command = [sys.executable, str(ROOT / "main.py"), *arguments, "--workdir=stopped"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        metrics, deadline = Path("stopped/metrics.jsonl"), time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    stopped = int(re.search(r"stopped at step (\d+), saved in stopped; the same command goes on", out)[1])
    assert 0 < stopped < 1200
    assert "Traceback" not in err

    assert main([*arguments, "--workdir=stopped"]) == 0
    assert main([*arguments, "--workdir=whole"]) == 0
    assert metrics.read_bytes() == Path("whole/metrics.jsonl").read_bytes()
    ends = [RunFolder(Path(name)).newest_checkpoint() for name in ("stopped", "whole")]
    assert ends[0].step == ends[1].step == 1200
    assert ends[0].tensors.keys() == ends[1].tensors.keys()
    for name, value in ends[0].tensors.items():
        assert torch.equal(value, ends[1].tensors[name]), name
