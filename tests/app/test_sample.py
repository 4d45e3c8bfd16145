"""Sampling: what is written, and that a seed is the samples whatever else is asked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from samplers import DDIM, Ancestral, cuda_graph, pilot_variance, sample
from scoresde.app import drawing
from scoresde.app.cli import main
from scoresde.app.pilot_cache import pilots_path
from scoresde.app.run_folder import RunFolder
from scoresde.checkpoint import load
from sde_configs import build
from tests.mistakes import assert_mistake
from tests.runs import DIGITS, SAMPLE, TOY, drawn, newest

SAMPLERS = tuple(build.SAMPLERS)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_writes_a_picture_and_numbers(work, tmp_path, capsys, sampler):
    for run, shape, labels in (("toy", (6, 2), [0, 1] * 3), ("vp", (6, 1, 8, 8), list(range(6)))):
        output = tmp_path / run / "picture.png"
        assert main([*SAMPLE, f"--workdir=runs/{run}", f"--sampler={sampler}", f"--output={output}"]) == 0
        assert f"picture: {output}\nnumbers: {output.with_suffix('.npz')}\n" in capsys.readouterr().out
        with np.load(output.with_suffix(".npz")) as arrays:
            assert arrays["samples"].shape == shape, run
            assert np.isfinite(arrays["samples"]).all(), run
            assert arrays["labels"].tolist() == labels, run
            assert arrays["seeds"].tolist() == [[0, k] for k in range(6)], run
        with Image.open(output) as picture:
            assert picture.format == "PNG"
        assert sorted(p.name for p in output.parent.iterdir()) == ["picture.npz", "picture.png"], run


def test_training_and_sampling_run_on_the_device(device, tmp_path, capsys):
    place = [f"--workdir={tmp_path / 'run'}", f"--device={device}"]
    assert main([*TOY, *place]) == 0
    assert f", {device}, in" in capsys.readouterr().out
    for sampler in SAMPLERS:
        assert main([*SAMPLE, *place, f"--sampler={sampler}"]) == 0


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s not in ("ode", "norm_pc")])
def test_a_seed_is_the_samples_whatever_the_batch_size(work, tmp_path, sampler):
    """Not of norm_pc, whose Langevin steps are sized by the norms of a batch, nor of the adaptive flow."""
    first, samples = drawn(tmp_path / "a.png", f"--sampler={sampler}", "--seed=5")
    again, _ = drawn(tmp_path / "b.png", f"--sampler={sampler}", "--seed=5")
    assert first == again
    _, batched = drawn(tmp_path / "c.png", f"--sampler={sampler}", "--seed=5", "--config.sampling.batch_size=4")
    np.testing.assert_allclose(batched, samples, rtol=1e-5, atol=1e-6)  # matrix products round by batch size
    _, other = drawn(tmp_path / "d.png", f"--sampler={sampler}", "--seed=6")
    assert np.abs(other - samples).max() > 0.01


def test_norm_pc_takes_its_steps_by_the_norms_of_a_batch(work, tmp_path):
    first, samples = drawn(tmp_path / "a.png", "--sampler=norm_pc", "--seed=5")
    again, _ = drawn(tmp_path / "b.png", "--sampler=norm_pc", "--seed=5")
    assert first == again
    _, batched = drawn(tmp_path / "c.png", "--sampler=norm_pc", "--seed=5", "--config.sampling.batch_size=4")
    assert np.abs(batched - samples).max() > 1e-4
    _, louder = drawn(tmp_path / "d.png", "--sampler=norm_pc", "--seed=5", "--config.sampling.norm_pc.snr=0.3")
    assert np.abs(louder - samples).max() > 1e-3


def test_more_samples_begin_with_the_same_ones(work, tmp_path):
    _, few = drawn(tmp_path / "a.png", "--sampler=ddim", "--labels=1")
    _, many = drawn(tmp_path / "b.png", "--sampler=ddim", "--labels=1", "--num_samples=9")
    np.testing.assert_allclose(many[:6], few, rtol=1e-5, atol=1e-6)


def test_labels_are_repeated_to_the_number_of_samples(work, tmp_path):
    drawn(tmp_path / "a.png", "--labels=1,0,0")
    assert np.load(tmp_path / "a.npz")["labels"].tolist() == [1, 0, 0, 1, 0, 0]


def test_samples_of_a_model_without_classes_have_no_label(work, tmp_path):
    drawn(tmp_path / "a.png", "--workdir=runs/points", "--sampler=ddim")
    assert np.load(tmp_path / "a.npz")["labels"].tolist() == [-1] * 6


@pytest.mark.parametrize(("sampler", "evaluations"), [("pc", 9), ("ddim", 5), ("ode", 9)])
def test_the_number_of_steps_is_honoured(work, tmp_path, capsys, sampler, evaluations):
    """Five steps, the last of them to clean data: pc and Heun evaluate twice in each of the first four."""
    drawn(tmp_path / "a.png", f"--sampler={sampler}", "--config.sampling.batch_size=4")
    count = int(re.search(r"6 samples by \w+, (\d+) network evaluations each", capsys.readouterr().out)[1])
    assert count == evaluations  # of a sample, whatever the number of batches


def test_the_default_of_ode_is_adaptive(work, tmp_path, capsys):
    arguments = ["--mode=sample", "--num_samples=4", "--workdir=runs/toy", "--sampler=ode", "--device=cpu"]
    counts = []
    for tolerance in ("1e-2", "1e-5"):
        fields = [f"--config.sampling.ode.{name}={tolerance}" for name in ("rtol", "atol")]
        assert main([*arguments, *fields, f"--output={tmp_path / 'a.png'}"]) == 0
        counts.append(int(re.search(r"(\d+) network evaluations", capsys.readouterr().out)[1]))
    assert counts[0] < counts[1]


def test_thresholds_keep_the_samples_within_the_datas_range(work, tmp_path):
    for kind in ("static", "dynamic"):
        chosen = [f"--config.sampling.threshold={kind}", f"--output={tmp_path / 'a.png'}"]
        assert main([*SAMPLE, "--sde=vp", *chosen]) == 0
        samples = np.load(tmp_path / "a.npz")["samples"]
        assert 0 <= samples.min() <= samples.max() <= 16
    assert main([*SAMPLE, "--config.sampling.threshold=hard"]) == 2


def test_samples_are_in_raw_units(work, tmp_path):
    """Digits are 0..16; the model sees (x - 8) / 8."""
    assert main([*SAMPLE, "--sde=vp", "--sampler=ddim", f"--output={tmp_path / 'a.png'}"]) == 0
    model = RunFolder(Path("runs/vp")).newest_checkpoint().model()
    assert (model.codec.center, model.codec.scale) == (8.0, 8.0)
    file = np.load(tmp_path / "a.npz")
    x, _ = sample(model, DDIM(), len(file["labels"]), num_steps=5, cond=torch.from_numpy(file["labels"]))
    np.testing.assert_allclose(file["samples"], 8 * x + 8, rtol=1e-4, atol=1e-3)


def test_tables_are_computed_once_for_all_batches(work, tmp_path, monkeypatch):
    counted = []
    table = DDIM.table

    def noted(self, *arguments):
        counted.append(1)
        return table(self, *arguments)

    monkeypatch.setattr(DDIM, "table", noted)
    drawn(tmp_path / "a.png", "--sampler=ddim", "--config.sampling.batch_size=2")
    first = len(counted)
    drawn(tmp_path / "b.png", "--sampler=ddim")
    assert first == len(counted) - first


def test_a_graph_is_recorded_once_for_all_batches_of_a_size(work, tmp_path, monkeypatch):
    """Here the loop itself stands in for its recording, which needs a GPU."""
    recorded = []

    class Recorded:
        def __init__(self, loop, x_T, noise, cond):
            recorded.append(len(x_T))
            self.loop = loop

        def __call__(self, x_T, noise, cond):
            return self.loop(x_T, noise, cond)

    plain, _ = drawn(tmp_path / "a.png", "--sampler=ddim", "--config.sampling.batch_size=2", "--num_samples=7")
    monkeypatch.setattr(cuda_graph, "_Graph", Recorded)
    graphed = ["--config.sampling.cuda_graph=True", "--config.sampling.batch_size=2", "--num_samples=7"]
    assert drawn(tmp_path / "a.png", "--sampler=ddim", *graphed)[0] == plain
    assert recorded == [2, 1]


def test_the_snr_is_chosen_once_a_checkpoint(work, tmp_path, capsys):
    pilots = pilots_path(newest("toy"))
    pilots.unlink(missing_ok=True)

    def said(*arguments):
        drawn(tmp_path / "a.png", *arguments)
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


def test_an_snr_is_chosen_anew_for_another_threshold_or_quantile(work, tmp_path, capsys):
    pilots_path(newest("toy")).unlink(missing_ok=True)

    def chooses(*arguments):
        drawn(tmp_path / "a.png", *arguments)
        return "choosing snr" in capsys.readouterr().out

    dynamic = "--config.sampling.threshold=dynamic"
    for arguments in (
        [],
        ["--config.sampling.threshold=static"],
        [dynamic],
        [dynamic, "--config.sampling.quantile=0.9"],
    ):
        assert chooses(*arguments), arguments
        assert not chooses(*arguments), arguments


def test_the_variance_of_a_pilot_run_is_measured_once_a_checkpoint(work, tmp_path, capsys):
    """For all grids; its samples are those of the library, and not those of a fixed variance."""
    pilots_path(newest("toy")).unlink(missing_ok=True)
    piloted = ["--sampler=ancestral", "--config.sampling.ancestral.variance=pilot"]

    def said(*arguments):
        _, x = drawn(tmp_path / "a.png", *arguments)
        return "measuring the variance" in capsys.readouterr().out, x

    (measured, first), (again, second), (other, _) = said(*piloted), said(*piloted), said(*piloted, "--num_steps=9")
    assert (measured, again, other) == (True, False, False)
    assert np.array_equal(first, second)
    assert np.abs(first - said("--sampler=ancestral")[1]).max() > 1e-3
    loaded = load(newest("toy"))
    model = loaded.model()
    variance = pilot_variance(model, torch.arange(2))
    expected = sample(model, Ancestral(variance), 6, num_steps=5, cond=torch.arange(6) % 2).x
    np.testing.assert_allclose(first, model.codec.decode(expected).numpy(), rtol=1e-4, atol=1e-5)
    pilots = pilots_path(newest("toy"))
    kept = json.loads(pilots.read_text())
    for damage in ({"log_snr": [1.0, 0.0], "share": [[0.5, 0.5]] * 2, "edges": [0.0]}, {"log_snr": [0.0]}, [], 3.0):
        kept["found"] = dict.fromkeys(kept["found"], damage)
        pilots.write_text(json.dumps(kept))
        assert said(*piloted)[0]


def test_a_learned_variance_is_trained_sampled_and_evaluated(tmp_path, capsys, monkeypatch):
    """From the command line alone, and for a model that has none the mistake is named."""
    monkeypatch.chdir(tmp_path)
    learned = ["--config.network.learned_variance=True", "--config.objective.name=HybridObjective"]
    assert main([*DIGITS, *learned, "--workdir=runs/learned", "--config.training.dequantize=False"]) == 0
    outputs = {}
    for kind in ("learned", "posterior"):
        flags = ["--workdir=runs/learned", "--sampler=ancestral", f"--config.sampling.ancestral.variance={kind}"]
        assert main([*SAMPLE, *flags, f"--output={kind}.png"]) == 0
        with np.load(f"{kind}.npz") as arrays:
            outputs[kind] = arrays["samples"]
    assert np.abs(outputs["learned"] - outputs["posterior"]).max() > 1e-3
    assert main(["--mode=evaluate", "--workdir=runs/learned", "--metric=vlb", "--num_samples=4", "--device=cpu"]) == 0
    assert "steps of learned variance" in capsys.readouterr().out
    assert main([*DIGITS, "--workdir=runs/plain"]) == 0
    flags = ["--workdir=runs/plain", "--sampler=ancestral", "--config.sampling.ancestral.variance=learned"]
    assert main([*SAMPLE, *flags]) == 2
    assert "variance='learned': this model has learned none" in capsys.readouterr().err
    assert main([*DIGITS, learned[0], "--workdir=runs/half"]) == 2
    assert "take HybridObjective" in capsys.readouterr().err


MISTAKES = {
    "variance": ("--sampler=ancestral --config.sampling.ancestral.variance=best", r"variance='best': need .*'pilot'"),
    "sampler": ("--sampler=pcc", r"unknown sampler 'pcc': did you mean 'pc'"),
    "num_samples": ("--num_samples=0", r"num_samples=0: need at least 1"),
    "num_samples type": ("--num_samples=many", r"--num_samples=many.*--help"),
    "num_steps": ("--num_steps=0", r"num_steps=0: need at least 1"),
    "batch size": ("--config.sampling.batch_size=-1", r"sampling\.batch_size=-1: need at least 1, or 0"),
    "snr": ("--config.sampling.pc.snr=2", r"snr=2\.0: need 0 < snr < 1"),
    "label": ("--labels=0,2", r"labels='0,2': labels from 0 to 2; need labels 0\.\.1"),
    "labels without classes": ("--workdir=runs/points --labels=1", r"labels='1'.*without classes; leave --labels out"),
    "graph": ("--config.sampling.cuda_graph=True", r"cuda_graph=True: .*(cpu|path noise)"),
    "config": (
        "--config=toy",
        r"config=toy: belongs to --mode train, --mode train_classifier, --mode train_autoencoder, "
        r"--mode train_text_encoder, --mode visualize; "
        "leave it out of --mode sample",
    ),
    "output in a file": ("--output=file/x.png", r"output='file/x\.png': cannot be written.*--output"),
    "output is a folder": ("--output=folder.png", r"output='folder\.png': is a folder.*--output"),
    "numbers are a folder": ("--output=numbers.png", r"output='numbers\.npz': is a folder.*--output"),
    "output of another type": ("--output=x.jpg", r"output='x\.jpg': need the name of a \.png"),
}


@pytest.mark.parametrize(("argument", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_of_sampling_are_one_line(work, monkeypatch, capsys, argument, message):
    """They are named before anything is drawn."""
    Path("file").touch()
    Path("folder.png").mkdir(exist_ok=True)
    Path("numbers.npz").mkdir(exist_ok=True)
    if "graph" not in argument:  # which the sampler itself refuses
        monkeypatch.setattr(drawing, "prepare", None)
    assert_mistake(capsys, [*SAMPLE, "--workdir=runs/toy", *argument.split()], message)


def test_cuda_where_there_is_none_is_one_line(work, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for mode in (TOY, [*SAMPLE, "--workdir=runs/toy"]):
        assert_mistake(capsys, [*mode, "--device=cuda"], r"device='cuda': torch sees 0 CUDA devices.*--device cpu")
