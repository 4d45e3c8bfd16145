"""Writes docs/gallery.md and its pictures, each by the command that stands beside it.

    python scripts/gallery.py

Everything is made anew in a folder that is removed: minutes on two cores.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from scoresde.app.cli import main

PAGE = Path(__file__).parent.parent / "docs" / "gallery.md"
PICTURES = PAGE.parent / "images" / "gallery"
MAX_BYTES = 150_000

HEAD = """# Gallery

Written by `make gallery`, each picture by the command above it; the embedded data suffice, and what is trained on the
way takes seconds. `python main.py --mode visualize --what NAME` is also `python scripts/NAME.py`. `--output` takes
.png, .svg and, of pictures that move, .gif. Without `--sde`, `--config`, `--workdir` and `--checkpoint` a picture is of
the newest run, where there is one; `--workdir runs/vp` or `--checkpoint FILE` names one.
[latent-and-text.md](latent-and-text.md) has the pictures of autoencoders and of attention to words.
"""
TRAIN = "--mode train --sde vp --config.training.num_steps=300 --workdir runs/digits"


class Entry(NamedTuple):
    """A picture: its heading, what it shows, its file, and the arguments and the mode of its command."""

    title: str
    text: str
    file: str
    arguments: str
    mode: str = "visualize"


ENTRIES = (
    Entry(
        "Score field",
        "Arrows along the score, longer where it is larger (logarithmically, on one scale in a column), over the log "
        "density at four noise levels: what a small network learned of a mixture of nine modes, the exact score, and "
        "their difference, with its root mean square as a share of the exact score's.",
        "score_field.png",
        "--what score_field --sde vp",
    ),
    Entry("", "The same from noise to data.", "score_field.gif", "--what score_field --sde vp"),
    Entry(
        "Trajectories",
        "Above, from circle to dot: states over sqrt(alpha^2 + sigma^2) on their way to noise and back, by the exact "
        "score. Noise makes the forward and the reverse SDE rough; the probability flow is smooth; a corrector moves a "
        "state within a noise level. Below: the density of x_t on a line, and its flow, which keeps quantiles.",
        "trajectories.png",
        "--what trajectories --sde vp",
    ),
    Entry(
        "Density",
        "The log density of a learned score by its probability flow, beside the exact one. Between the modes, where "
        "there are no data, the network has learned little; at most modes the difference is tenths of a nat.",
        "density.png",
        "--what density --sde vp",
    ),
    Entry(
        "Schedules, grids and tables",
        "The paths of all SDEs, where each grid puts its steps, and the table of numbers that a solver is.",
        "schedule.png",
        "--what schedule --sde vp --sampler unipc --num_steps 8",
    ),
    Entry(
        "Denoising",
        "The exact score of 1,348 digits: it can do no more than copy them, and the nearest training samples are at "
        "distance 0. A model that generalises is below.",
        "denoising.png",
        "--what denoising --sde vp",
    ),
    Entry("", "From noise to data.", "denoising.gif", "--what denoising --sde vp"),
    Entry(
        "Langevin dynamics",
        "Three modes with weights 0.7, 0.2 and 0.1. Far from the other modes the score knows nothing of the weights, "
        "and plain Langevin dynamics keeps the shares of its start in the basins: off by 0.36 in total variation, as "
        "theory says. Annealing from large noise, where the modes overlap, brings the weights down with it.",
        "langevin.png",
        "--what langevin --sde ve",
    ),
    Entry("", "The same through the steps.", "langevin.gif", "--what langevin --sde ve"),
    Entry(
        "Training",
        "Loss, gradient norm, and the error of the denoiser at each noise level. Of all data of a covariance a "
        "Gaussian is the hardest to denoise: a model above its curve is worse than one matrix.",
        "training.png",
        "--what training --sde vp",
    ),
    Entry("", "Samples through training.", "training.gif", "--what training --sde vp"),
    Entry(
        "Guidance",
        "Samples of a class under more and more guidance, over the distribution that guidance is said to draw from. "
        "The reverse SDE and the flow leave it; Langevin steps at each noise level, and weighted particles, stay near. "
        "Below, by noise level: the difference that guidance multiplies, and what a noisy sample tells of its class.",
        "guidance.png",
        "--what guidance --sde vp",
    ),
    Entry(
        "Of a run",
        f"First `python main.py {TRAIN}`, half a minute of training on digits. Its score along two principal "
        "directions of the data:",
        "run_score_field.png",
        "--what score_field --workdir runs/digits",
    ),
    Entry(
        "", "Denoising, samples by class, neighbours:", "run_denoising.png", "--what denoising --workdir runs/digits"
    ),
    Entry("", "The course of its training:", "run_training.png", "--what training --workdir runs/digits"),
    Entry(
        "Inverse problems",
        "Held-out digits of which 30 % of the pixels are seen, with noise: what the same run makes of them. The mean "
        "is the best guess of each pixel, the deviation says where it is not known, and each sample is a digit that "
        "fits what was seen.",
        "solve_inpaint.png",
        "--task inpaint --workdir runs/digits",
        "solve",
    ),
    Entry(
        "",
        "The same from averages of 2x2 blocks.",
        "solve_superres.png",
        "--task superres --workdir runs/digits",
        "solve",
    ),
    Entry(
        "Editing",
        "Above digits, below what is made of them from noise levels 0.5, 2 and 8: the more noise, the less is kept. "
        "All are asked to become threes.",
        "edit.png",
        "--workdir runs/digits --num_samples 8 --labels 3 --noise_levels 0.5,2,8",
        "edit",
    ),
)


def page() -> str:
    """The whole page."""
    text = HEAD
    for entry in ENTRIES:
        text += f"\n## {entry.title}\n" if entry.title else ""
        command = f"python main.py --mode {entry.mode} {entry.arguments} --output {entry.file}"
        text += f"\n{entry.text}\n\n```\n{command}\n```\n\n![{entry.text}](images/gallery/{entry.file})\n"
    return text


def draw() -> None:
    """Runs all commands; prints the seconds and the size of each picture."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        assert main(TRAIN.split()) == 0
        for entry in ENTRIES:
            start = time.monotonic()
            assert main([f"--mode={entry.mode}", *entry.arguments.split(), f"--output={entry.file}"]) == 0, entry.file
            file = Path(shutil.copy(entry.file, PICTURES))
            size = file.stat().st_size
            print(f"{entry.file}: {time.monotonic() - start:.1f} s, {size / 1000:.0f} kB", file=sys.stderr)
            assert size <= MAX_BYTES, f"{entry.file} is larger than {MAX_BYTES} bytes"


if __name__ == "__main__":
    draw()
    PAGE.write_text(page())
    print(f"written: {PAGE}")
