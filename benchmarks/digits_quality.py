"""How good the digits of the default recipes are, judged by a classifier of real digits.

For each SDE the recipe is trained as `main.py --mode train --sde SDE` does it (a run that is there already is used),
then 1,000 samples, 100 of each class, are drawn by each sampler with its defaults, or with the number of steps after a
colon. Columns:

    agreement    share that the classifier gives the class asked for (real held-out digits: first row)
    Frechet      distance in the classifier's 64 features to the held-out real digits; `ratio`: to that of 1,000 real
    nearest      mean RMS distance, in grey levels of [-1, 1], to the nearest training image (far below that of
                 held-out digits: copying)

About 2 core-minutes a training and 1.5 a sampler of 500 evaluations:

    python -m benchmarks.digits_quality [--sdes vp,subvp,ve] [--samplers pc,ode,auto:8] [--folder runs/quality]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from samplers import Sampler, fit_sampler, sample
from scoresde import NetworkScoreModel
from scoresde.app.config import load_config
from scoresde.app.run_folder import RunFolder
from scoresde.app.train import ScoreKind
from scoresde.app.training_run import train_in
from scoresde.data import load
from scoresde.metrics import frechet_distance, judge, train_classifier
from scoresde.metrics.classifier import Classifier
from sde_configs.build import AUTO, build_sampler

NUM_SAMPLES = 1000
LABELS = torch.arange(NUM_SAMPLES) % 10
PILOT_SAMPLES = 32


class Judge(NamedTuple):
    """A classifier, and the real digits that samples are compared with.

    Attributes:
        classifier: of the training images.
        train: training images.
        held_out: features of the held-out images.
        labels: of the held-out images.
        floor: Frechet distance of as many training images to them.
    """

    classifier: Classifier
    train: Tensor
    held_out: Tensor
    labels: Tensor
    floor: float

    def row(self, x: Tensor, labels: Tensor) -> str:
        """Agreement, distance, ratio and nearest of some images."""
        agreement, features = judge(self.classifier, x, labels)
        distance = frechet_distance(features, self.held_out)
        return f"{agreement:10.3f}{distance:9.2f}{distance / self.floor:7.2f}{nearest(x, self.train):9.3f}"


def nearest(x: Tensor, reference: Tensor) -> float:
    """Mean over x of the RMS distance to the nearest reference image."""
    return (torch.cdist(x.flatten(1), reference.flatten(1)).min(1).values / x[0].numel() ** 0.5).mean().item()


def appoint() -> tuple[Judge, str]:
    """The judge, and the row of the real digits that were held out."""
    data, held_out = load("digits").split(0.25)
    assert held_out is not None
    (x_train, y_train) = data.all()
    (x_held, y_held) = held_out.all()
    assert isinstance(y_train, Tensor)
    assert isinstance(y_held, Tensor)
    classifier = train_classifier(data)
    agreement, features = judge(classifier, x_held, y_held)
    floor = frechet_distance(judge(classifier, x_train[:NUM_SAMPLES], y_train[:NUM_SAMPLES]).features, features)
    row = f"{agreement:10.3f}{floor:9.2f}{1:7.2f}{nearest(x_held, x_train):9.3f}"
    return Judge(classifier, x_train, features, y_held, floor), row


def trained(sde: str, folder: Path) -> NetworkScoreModel:
    """The model of a run that is there, or is trained now."""
    run = RunFolder(folder / sde)
    start = time.process_time()
    train_in(run, load_config(sde, None), torch.device("cpu"), ScoreKind())
    print(f"{sde}: training took {time.process_time() - start:.0f} core-s", flush=True)
    checkpoint = run.newest_checkpoint()
    assert checkpoint is not None
    return checkpoint.model()


def measure(model: NetworkScoreModel, sde: str, name: str, judge_of_digits: Judge) -> str:
    """The row of a sampler: NAME, or NAME:STEPS."""
    start = time.process_time()
    kind, _, steps = name.partition(":")
    num_steps = int(steps) if steps else None
    if kind == AUTO:
        sampler: Sampler = fit_sampler(model, LABELS[:PILOT_SAMPLES])
    else:
        sampler = build_sampler(load_config(sde, None), kind, num_steps)
    x, nfe = sample(model, sampler, NUM_SAMPLES, num_steps=num_steps, cond=LABELS)
    seconds = time.process_time() - start
    return f"{judge_of_digits.row(x, LABELS)}{nfe:13}{seconds:8.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdes", default="vp,subvp,ve")
    parser.add_argument("--samplers", default="pc,ode")
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"))
    options = parser.parse_args()
    judge_of_digits, real = appoint()
    header = f"{'sde':8}{'sampler':18}{'agreement':>10}{'Frechet':>9}{'ratio':>7}{'nearest':>9}"
    print(f"{header}{'evaluations':>13}{'core-s':>8}")
    print(f"{'real':8}{'(held out)':18}{real}", flush=True)
    for sde in options.sdes.split(","):
        model = trained(sde, options.folder)
        for name in options.samplers.split(","):
            print(f"{sde:8}{name:18}{measure(model, sde, name, judge_of_digits)}", flush=True)


if __name__ == "__main__":
    main()
