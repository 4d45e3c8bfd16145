"""What the variance of an ancestral step is worth on the digits, at few steps.

A U-Net without classes and with a second output is trained by the hybrid objective (a run that is there already is
used). Rows are the variances of `Ancestral`: the two fixed ones, that of a pilot run on the model's own samples, the
same measured on the training images, and the learned one. Columns, for each number of steps of the default grid:

    bits        `ddpm_bound` of the held-out images along the grid, in bits per dimension, with the error of its mean
                over draws of the noise; differences between rows are sharper, as all see the same draws
    Frechet     distance of 1,000 samples to the held-out images in a classifier's 64 features, mean of 4 sets and its
                error; the first line has that of 1,000 training images

About 6 core-minutes to train and 15 to measure:

    python -m benchmarks.learned_variance [--steps 10,25,50] [--training 8000] [--folder runs/learned_variance]
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.digits_quality import NUM_SAMPLES, Judge, appoint
from samplers import Ancestral, measure_variance, pilot_variance, sample
from scoresde import NetworkScoreModel, ddpm_bound
from scoresde.app.config import load_config
from scoresde.app.run_folder import RunFolder
from scoresde.app.train import ScoreKind
from scoresde.app.training_run import train_in
from scoresde.codec import Scaling
from scoresde.data import load
from scoresde.metrics import frechet_distance

DRAWS = 20  # of the noise of each image, for the bound
SETS = 4  # of samples, for the distance


def trained(folder: Path, num_steps: int) -> NetworkScoreModel:
    """The model of the run that is there, or is trained now."""
    config = load_config("vp", None)
    config.data.class_conditional = False
    config.network.learned_variance = True
    config.objective.name = "HybridObjective"
    config.training.num_steps = num_steps
    run = RunFolder(folder)
    start = time.process_time()
    train_in(run, config, torch.device("cpu"), ScoreKind())
    print(f"training took {(time.process_time() - start) / 60:.1f} core-minutes", flush=True)
    checkpoint = run.newest_checkpoint()
    assert checkpoint is not None
    return checkpoint.model()


def bits(model: NetworkScoreModel, raw: Tensor, variance: Any, num_steps: int) -> Tensor:
    """Bits per dimension of the images, mean over them, `(DRAWS,)`."""
    codec = model.codec
    assert isinstance(codec, Scaling)
    one = torch.ones(model.shape, dtype=torch.float64)
    width = codec.encode_change(one)
    low, high = (codec.encode(end * one, torch.float64) for end in (0, 16))
    grid = Ancestral().grid(model, num_steps)
    values = []
    for draw in range(DRAWS):
        generator = torch.Generator().manual_seed(draw)
        bound = ddpm_bound(
            model,
            codec.encode(raw),
            grid,
            bin_width=width,
            low=low,
            high=high,
            variance=variance,
            generator=generator,
        )
        values.append(-bound.bound.mean() / (one.numel() * math.log(2)))
    return torch.stack(values)


def distances(model: NetworkScoreModel, variance: Any, num_steps: int, judge: Judge) -> Tensor:
    """Frechet distances of the sets of samples, `(SETS,)`."""
    sampler = Ancestral(variance)
    values = []
    for seed in range(SETS):
        x = sample(model, sampler, NUM_SAMPLES, num_steps=num_steps, seed=10 + seed).x
        with torch.no_grad():
            features = judge.classifier.features(x)
        values.append(frechet_distance(features, judge.held_out))
    return torch.tensor(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="10,25,50")
    parser.add_argument("--training", type=int, default=8000)
    parser.add_argument("--folder", type=Path, default=Path("runs/learned_variance"))
    options = parser.parse_args()
    model = trained(options.folder, options.training)
    judge, _ = appoint()
    train, held_out = load("digits").split(0.25)
    assert held_out is not None
    own = pilot_variance(model)
    one = pilot_variance(model, intervals=1)
    of_data = measure_variance(model, train.all()[0])
    variances = {
        "posterior": "posterior",
        "beta": "beta",
        "one number": one,
        "pilot": own,
        "of the data": of_data,
        "learned": "learned",
    }
    print(f"training images: Frechet {judge.floor:.2f}")
    print(f"{'steps':>5}  {'variance':12}{'bits':>8}{'error':>8}{'Frechet':>9}{'error':>7}")
    for num_steps in map(int, options.steps.split(",")):
        for name, variance in variances.items():
            found = bits(model, held_out.values, variance, num_steps)
            far = distances(model, variance, num_steps, judge)
            print(
                f"{num_steps:5}  {name:12}{found.mean():8.4f}{found.std() / DRAWS**0.5:8.4f}"
                f"{far.mean():9.2f}{far.std() / SETS**0.5:7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
