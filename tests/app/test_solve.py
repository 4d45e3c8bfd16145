"""`--mode solve` and `--mode edit`, as a user runs them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.app.cli import main
from scoresde.app.methods import METHODS, Solver
from scoresde.app.tasks import TASKS
from scoresde.plots import posterior_curves
from tests.mistakes import assert_mistake

SOLVE = ["--mode=solve", "--sde=vp", "--device=cpu", "--num_samples=2", "--draws=4", "--num_steps=3", "--cases=0"]
FEW = ["--config.sampling.method.particles=8", "--config.sampling.method.repeats=2"]


def solve(output, *arguments):
    """The arrays that a command wrote."""
    assert main([*SOLVE, *FEW, f"--output={output}", *arguments]) == 0
    with np.load(output.with_suffix(".npz")) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("colorize", "own")])
def test_every_task_of_grey_images_is_solved(work, tmp_path, task, capsys):
    arrays = solve(tmp_path / "a.png", f"--task={task}")
    assert arrays["samples"].shape == (2, 4, 1, 8, 8)
    assert arrays["mean"].shape == arrays["deviation"].shape == arrays["truth"].shape == (2, 1, 8, 8)
    assert np.isfinite(arrays["samples"]).all()
    said = capsys.readouterr().out
    assert re.search(r"residual: \S+ \(root mean square\); the noise has 0.05", said)
    assert "PSNR" in said


@pytest.mark.parametrize("method", METHODS)
def test_every_method_fills_in_what_is_hidden(work, tmp_path, method):
    arrays = solve(tmp_path / "a.png", "--task=inpaint", f"--method={method}")
    assert arrays["measurement"].shape == (2, 19)
    assert np.isfinite(arrays["samples"]).all()


def test_calibration_is_said_and_kept(work, tmp_path, capsys):
    asked = [*SOLVE[:-1], "--cases=3", "--task=superres", f"--output={tmp_path / 'a.png'}"]
    assert main(asked) == 0
    first = capsys.readouterr()
    line = next(line for line in first.out.splitlines() if line.startswith("calibration:"))
    assert re.search(
        r"90 % intervals hold \d+ \(\d+\) % of the truths, 90 % regions \d+ \(\d+\) %, in 3 held-out", line
    )
    assert main(asked) == 0
    again = capsys.readouterr()
    assert line in again.out
    assert "calibrate" not in again.err


def test_auto_chooses_the_method_with_the_smallest_energy_score(work, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("scoresde.app.calibration.PILOT_CASES", 2)
    solve(tmp_path / "a.png", "--task=jpeg", "--method=auto")
    said = re.search(r"method (\w+) \(smallest energy score in a pilot run: (.*)\)", capsys.readouterr().out)
    names = [part.split()[0] for part in said[2].split(", ")]
    scores = [float(part.split()[1]) for part in said[2].split(", ")]
    assert names[0] == said[1]
    assert scores == sorted(scores)
    assert set(names) == {"mmps", "dps", "gibbs"}  # the methods that take an operator that is not linear


def test_the_draws_do_not_depend_on_how_many_measurements_there_are(work, tmp_path):
    two = solve(tmp_path / "a.png", "--task=inpaint")["samples"]
    one = solve(tmp_path / "b.png", "--task=inpaint", "--num_samples=1")["samples"]
    np.testing.assert_allclose(one[0], two[0], atol=1e-4)


def test_what_is_drawn_is_kept_until_it_is_written(work, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    def again(*_):
        raise AssertionError("drawn again")

    asked = [*SOLVE, "--task=mri", f"--output={tmp_path / 'a.png'}"]
    with monkeypatch.context() as patch:
        patch.setattr("scoresde.app.solve.save_posteriors", full)
        assert main(asked) == 2
    with monkeypatch.context() as patch:
        patch.setattr(Solver, "draw", again)
        assert main(asked) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.npz"}


def test_measurements_of_ones_own_are_solved(work, tmp_path):
    np.save(tmp_path / "small.npy", np.random.default_rng(0).integers(0, 17, (2, 1, 4, 4)).astype(np.float32))
    arrays = solve(tmp_path / "a.png", "--task=superres", f"--measured={tmp_path / 'small.npy'}", "--labels=3")
    assert "truth" not in arrays
    matrix = np.random.default_rng(0).normal(size=(5, 64))
    np.save(tmp_path / "matrix.npy", matrix)
    np.save(tmp_path / "y.npy", np.ones((2, 5)))
    own = ["--task=own", f"--operator={tmp_path / 'matrix.npy'}", f"--measured={tmp_path / 'y.npy'}", "--labels=3"]
    assert solve(tmp_path / "b.png", *own)["measurement"].shape == (2, 5)


@pytest.mark.parametrize("mode", ["solve", "edit"])
def test_a_picture_is_brought_to_the_size_and_the_range_of_the_model(work, tmp_path, mode):
    small = np.repeat(np.linspace(0, 16, 8).round()[None], 8, 0)
    large = Image.fromarray((small * 255 / 16).round().astype(np.uint8)).resize((32, 32), Image.Resampling.BILINEAR)
    large.convert("RGB").save(tmp_path / "one.png")
    output = tmp_path / "out.png"
    task = ["--task=inpaint", "--cases=0"] if mode == "solve" else ["--num_steps=3"]
    asked = [f"--mode={mode}", "--sde=vp", "--device=cpu", f"--input={tmp_path / 'one.png'}", "--labels=3"]
    assert main([*asked, *task, f"--output={output}"]) == 0
    seen = np.load(output.with_suffix(".npz"))["truth" if mode == "solve" else "samples"]
    np.testing.assert_allclose(seen[0, 0], small, atol=1)


def test_a_measured_picture_is_brought_to_the_range_of_the_model(work, tmp_path):
    levels = np.repeat(np.array([[0, 85, 170, 255]], np.uint8), 4, 0)
    Image.fromarray(levels).save(tmp_path / "small.png")
    asked = ["--task=superres", f"--measured={tmp_path / 'small.png'}", "--labels=3"]
    arrays = solve(tmp_path / "a.png", *asked)
    np.testing.assert_allclose(arrays["measurement"][0, 0], levels / 127.5 - 1, atol=1e-6)


def test_vectors_are_drawn_entry_by_entry_and_have_no_blur(work, tmp_path, capsys, monkeypatch):
    np.save("waves.npy", np.random.default_rng(0).normal(size=(60, 1)) * np.sin(np.arange(1, 13)))
    train = ["--mode=train", "--config=toy", "--device=cpu", "--config.data.path=waves.npy", "--workdir=runs/waves"]
    small = ["--config.training.num_steps=4", "--config.network.width=16", "--config.network.depth=1"]
    assert main([*train, *small]) == 0
    shown = []

    def seen(*given):
        shown.append(given)
        return posterior_curves(*given)

    monkeypatch.setattr("scoresde.app.posterior_picture.plots.posterior_curves", seen)
    asked = ["--mode=solve", "--workdir=runs/waves", "--device=cpu", "--cases=0", f"--output={tmp_path / 'a.png'}"]
    assert main([*asked, "--task=inpaint", "--num_steps=3"]) == 0
    samples, truth, measured = shown[0]
    assert (samples.shape, truth.shape) == ((4, 16, 12), (4, 12))
    assert (measured.isnan().sum(1) == 8).all()  # 30 % of 12 are seen
    assert ((measured - truth).abs().nan_to_num() < 1).all()
    assert_mistake(capsys, [*asked, "--task=deblur"], r"which take --task inpaint, --task cs, --task own")


def test_points_of_a_known_distribution_are_compared_with_the_exact_posterior(work, tmp_path, capsys):
    train = ["--mode=train", "--config=toy", "--device=cpu", "--config.data.name=modes", "--workdir=runs/modes"]
    small = ["--config.training.num_steps=4", "--config.network.width=16", "--config.network.depth=1"]
    assert main([*train, *small]) == 0
    asked = ["--mode=solve", "--workdir=runs/modes", "--task=inpaint", "--device=cpu", "--cases=0", "--num_samples=2"]
    asked += ["--draws=200"]
    assert main([*asked, "--config.sampling.task.share=0.5", f"--output={tmp_path / 'a.png'}"]) == 0
    found = re.search(
        r"exact posterior: sliced W2 distance \S+, (\S+) of that of exact samples", capsys.readouterr().out
    )
    assert float(found[1]) > 1  # four steps of training


def test_edits_move_further_the_more_noise_there_is(work, tmp_path, capsys):
    asked = ["--mode=edit", "--sde=vp", "--device=cpu", "--num_steps=5", f"--output={tmp_path / 'e.png'}"]
    assert main([*asked, "--noise_levels=0.1,3", "--draws=2"]) == 0
    small, large = map(float, re.findall(r"RMS change (\S+) in", capsys.readouterr().out))
    assert small < large
    with np.load(tmp_path / "e.npz") as arrays:
        assert arrays["edits"].shape == (2, 8, 1, 8, 8)
        assert torch.tensor(arrays["noise_levels"]).tolist() == pytest.approx([0.1, 3])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "task: give --task inpaint"),
        (["--task=inpant"], "unknown task 'inpant'"),
        (["--task=inpaint", "--method=mmsp"], "unknown method 'mmsp'"),
        (["--task=colorize"], "has no channels to make grey"),
        (["--task=jpeg", "--method=ddrm"], "needs a linear measurement, and JPEG(1x8x8 to 1x8x8) is not"),
        (["--task=phase", "--method=pigdm"], "take --method mmps, --method dps, --method gibbs"),
        (["--task=inpaint", "--config.sampling.task.noise=0"], "MMPS needs some"),
        (["--task=inpaint", "--config.sampling.task.share=1.5"], "share=1.5"),
        (["--task=superres", "--config.sampling.task.factor=3"], "must divide every dimension"),
        (["--task=inpaint", "--method=ddrm", "--sampler=heun"], "has its own; leave --sampler out"),
        (["--task=inpaint", "--sampler=auto"], "sampler='auto': is fitted to a run by --mode sample"),
        (["--task=own"], "--operator FILE.npy"),
        (["--task=inpaint", "--draws=1"], "draws=1"),
        (["--task=superres", "--measured=wide.npy", "--labels=3"], "multiply them by 0.0627"),
        (["--task=superres", "--measured=whole.npy", "--labels=3"], "superres measures (1, 4, 4)"),
        (["--task=cs", "--measured=whole.npy", "--labels=3"], "measures floats of shape (19,)"),
        (["--task=superres", "--measured=small.npy"], "labels: this model was trained with classes"),
        (["--task=inpaint", "--operator=all.npy"], "hides nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_named(work, arguments, said, capsys):
    ramp = np.linspace(0, 1, 64, dtype=np.float32)
    np.save("wide.npy", 255 * ramp[::4].reshape(1, 1, 4, 4) / ramp[60])
    np.save("whole.npy", 16 * ramp.reshape(1, 1, 8, 8))
    np.save("small.npy", 16 * ramp[::4].reshape(1, 1, 4, 4))
    np.save("all.npy", np.ones((8, 8)))
    assert_mistake(capsys, [*SOLVE, *arguments], re.escape(said))
