"""Mistakes of a user who trains: each is answered in one line that names what is wrong, and the remedy."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.mistakes import assert_mistake
from tests.runs import TOY


def write_points(name, **arrays):
    x = np.random.default_rng(0).normal(size=(40, 2))
    np.savez(name, **{"x": x, **arrays})


def write_wrong_data():
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
    write_points("one_hot_labels.npz", labels=np.eye(2, dtype=int)[np.zeros(40, dtype=int)])
    write_points("negative_labels.npz", labels=np.full(40, -1))
    write_points("float_labels.npz", labels=np.full(40, 0.5))
    write_points("word_labels.npz", labels=np.array(["a"] * 40))
    np.savez("no_x.npz", y=x)
    for suffix in ("npz", "npy"):
        Path(f"damaged_data.{suffix}").write_bytes(Path("nan.npz").read_bytes()[:90])


def write_wrong_configs():
    Path("syntax.py").write_text("x = (")
    Path("raises.py").write_text("def get_config():\n    raise RuntimeError('two\\nlines')\n")
    Path("nothing.py").touch()
    Path("number.py").write_text("def get_config():\n    return 3\n")
    Path("syntax.json").write_text("{")
    Path("list.json").write_text("[1]")
    Path("half.json").write_text('{"seed": 1}')
    Path("bytes.json").write_bytes(b"\xff\xfe\x00")


@pytest.fixture(scope="module")
def wrong(runs):
    """The trained runs beside files that are wrong."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs)
        Path("file").touch()
        shutil.copytree("runs/toy", "half_config")
        Path("half_config/config.json").write_text('{"seed": 0, ')
        write_wrong_data()
        write_wrong_configs()
    return runs


MISTAKES = {
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
    "steps of sampling": (
        "--num_steps=5",
        r"num_steps=5: belongs to --mode sample.*; --mode train has --config\.training\.num_steps",
    ),
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
    "few labels": (
        "--config.data.path=few_labels.npz",
        r"'labels' is of type int64 and shape \(5,\); need 40 integers, one a sample",
    ),
    "one-hot labels": (
        "--config.data.path=one_hot_labels.npz",
        r"'labels' is of type int64 and shape \(40, 2\); need 40 integers",
    ),
    "negative labels": (
        "--config.data.path=negative_labels.npz",
        r"labels: the smallest is -1; count from 0",
    ),
    "float labels": (
        "--config.data.path=float_labels.npz",
        r"'labels' is of type float64 and shape \(40,\); need 40 integers",
    ),
    "word labels": ("--config.data.path=word_labels.npz", r"'labels' is of type .*; need (integers|numbers)"),
    "damaged npz": ("--config.data.path=damaged_data.npz", r"data\.path='damaged_data\.npz': cannot be read"),
    "damaged npy": ("--config.data.path=damaged_data.npy", r"data\.path='damaged_data\.npy': cannot be read"),
    "network": ("--config.network.name=MPL", r"config\.network\.name 'MPL': did you mean 'MLP'"),
    "another network's field": ("--config.network.name=UNet", r"unknown field --config\.network\.width"),
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


@pytest.mark.parametrize(("argument", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_of_training_are_one_line(wrong, monkeypatch, capsys, argument, message):
    monkeypatch.chdir(wrong)
    workdir = [] if "--workdir" in argument else ["--workdir=mistakes"]
    assert_mistake(capsys, [*TOY, *workdir, argument], message)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.training.lr=0.5", r"holds a run with config\.training\.lr=0\.001, not 0\.5"),
        ("--seed=3", r"holds a run with config\.seed=0, not 3"),
        ("--sde=subvp", r"holds a run with config\.sde\.name=VPSDE, not SubVPSDE|config\.sde\."),
    ],
)
def test_a_workdir_that_holds_another_run_is_named(work, capsys, argument, message):
    assert_mistake(capsys, [*TOY, "--workdir=runs/toy", argument], message)
