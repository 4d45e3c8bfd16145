"""Digits of a model that is guided by itself: away from what it says without labels, or from an earlier checkpoint.

The recipe of `--sde vp` is trained first, with a tenth of the labels hidden, for 3,000 steps (5 core-minutes; a run
that is there already is used). 24 checkpoints are kept. A row is a sampler and a guidance. Columns:

    w, noise levels  of the guidance; w = 1 is the model alone
    evaluations      network evaluations of a sample
    agreement        share that a classifier of clean digits gives the class asked for
    Frechet          distance of all samples to the held-out digits, in the classifier's features
    change           of that distance against the last row without guidance, with its standard error: the mean over sets
                     of 1,000 samples, 100 of each class, which have the same noise in all rows
    within, between  variance of the features within the classes, and of the means of the classes, as multiples of those
                     of the held-out digits

About 15 core-seconds a row and set:

    python -m benchmarks.digits_guidance [--tables flow,sde,earlier] [--sets 4] [--folder runs/digits-guidance]
        [--training_steps 3000] [--label_dropout 0.1]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.digits_quality import LABELS, NUM_SAMPLES, Judge, appoint
from samplers import sample
from scoresde import APG, Autoguidance, ClassifierFreeGuidance, ScoreModel, load_model
from scoresde.app.config import load_config
from scoresde.app.run_folder import RunFolder
from scoresde.app.train import ScoreKind
from scoresde.app.training_run import train_in
from scoresde.metrics import frechet_distance, judge
from sde_configs.build import build_sampler

CHECKPOINTS = 24
WEIGHTS = {8: (1.25,), 4: (1.25, 1.5), 2: (1.5, 2.0)}  # by 1 / the share of the training, of earlier checkpoints
LATE = (0.2, 0.6)  # noise levels at which most samples are decided between the classes
LATER = (0.1, 0.6)


class Row(NamedTuple):
    """A guided model and its sampler.

    Attributes:
        sampler: NAME:STEPS.
        guidance: its name, "none" for a row that others are compared with.
        weight: w and the noise levels, in words.
        model: the guided model.
    """

    sampler: str
    guidance: str
    weight: str
    model: ScoreModel


class Draws(NamedTuple):
    """What a row draws.

    Attributes:
        nfe: network evaluations of a sample.
        agreement: of all sets.
        features: `(sets, NUM_SAMPLES, F)`.
        distances: of each set, `(sets,)`.
    """

    nfe: int
    agreement: float
    features: Tensor
    distances: Tensor


def trained(folder: Path, steps: int, label_dropout: float) -> RunFolder:
    """The run that is there, or is trained now."""
    config = load_config("vp", None)
    config.network.label_dropout = label_dropout
    config.training.num_steps = steps
    config.logging.checkpoint_every = steps // CHECKPOINTS
    config.logging.keep = CHECKPOINTS
    run = RunFolder(folder)
    train_in(run, config, torch.device("cpu"), ScoreKind())
    return run


def lowered_first(late: float, early: float) -> Callable[[Tensor], Tensor]:
    """One weight where the classes part, and another where they have parted."""
    low, high = LATE

    def weight(r: Tensor) -> Tensor:
        return torch.where((r > low) & (r <= high), late, torch.where((r > 1) & (r <= 3), early, 1.0))

    return weight


def on_the_flow(model: ScoreModel) -> Iterator[Row]:
    """Classifier-free guidance of a deterministic sampler."""
    sampler = "dpm_solver:16"
    yield Row(sampler, "none", "1", model)
    for interval in (LATE, LATER):
        for weight in (1.5, 2.0, 2.5, 3.0):
            guided = ClassifierFreeGuidance(model, weight, interval)
            yield Row(sampler, "classifier-free", f"{weight:g} in {interval}", guided)
    yield Row(sampler, "classifier-free", "1.3", ClassifierFreeGuidance(model, 1.3))


def on_the_sde(model: ScoreModel) -> Iterator[Row]:
    """Classifier-free guidance of a stochastic sampler."""
    sampler = "sde_dpm_solver:16"
    yield Row(sampler, "none", "1", model)
    for weight in (1.5, 2.0):
        yield Row(sampler, "classifier-free", f"{weight:g} in {LATE}", ClassifierFreeGuidance(model, weight, LATE))
    for late, early in ((2.0, 0.7), (3.0, 0.7), (3.0, 0.5)):
        lowered = ClassifierFreeGuidance(model, lowered_first(late, early))
        yield Row(sampler, "classifier-free", f"{late:g} in {LATE}, {early:g} in (1, 3)", lowered)
    yield Row(sampler, "with APG(eta=0)", f"2 in {LATE}", ClassifierFreeGuidance(model, 2.0, LATE, APG(0.0)))
    yield Row(sampler, "classifier-free", "1.3", ClassifierFreeGuidance(model, 1.3))


def from_earlier(model: ScoreModel, run: RunFolder, steps: int) -> Iterator[Row]:
    """Autoguidance by checkpoints of the run, compared with the model alone at as many evaluations."""
    yield Row("dpm_solver:24", "none", "1", model)
    for part, weights in WEIGHTS.items():
        earlier = load_model(run.checkpoint_path(steps // part))
        for weight in weights:
            guided = Autoguidance(model, earlier, weight)
            yield Row("dpm_solver:12", f"checkpoint of 1/{part}", f"{weight:g}", guided)


def draw(row: Row, appointed: Judge, num_sets: int) -> Draws:
    """Draws and judges the sets of a row. Their noise is not that of seed 0, by which the settings were chosen."""
    name, _, steps = row.sampler.partition(":")
    sampler = build_sampler(load_config("vp", None), name, int(steps))
    agreements = []
    features = []
    for seed in range(1, num_sets + 1):
        x, nfe = sample(row.model, sampler, NUM_SAMPLES, num_steps=int(steps), cond=LABELS, seed=seed)
        judged = judge(appointed.classifier, x, LABELS)
        agreements.append(judged.agreement)
        features.append(judged.features)
    distances = torch.tensor([frechet_distance(each, appointed.held_out) for each in features])
    return Draws(nfe, sum(agreements) / num_sets, torch.stack(features), distances)


def variances(features: Tensor, labels: Tensor) -> Tensor:
    """Variance within the classes, and of their means: summed over features `(N, F)`."""
    classes = [features[labels == label] for label in labels.unique()]
    within = torch.stack([each.var(0).sum() for each in classes]).mean()
    return torch.stack([within, torch.stack([each.mean(0) for each in classes]).var(0).sum()])


def report(row: Row, draws: Draws, alone: Draws, appointed: Judge) -> str:
    """A line of a table."""
    features = draws.features.flatten(0, 1)
    distance = frechet_distance(features, appointed.held_out)
    change = draws.distances - alone.distances
    error = change.std() / len(change) ** 0.5
    compared = "" if alone is draws else f"{change.mean():.2f} ({error:.2f})"
    repeated = LABELS.repeat(len(draws.features))
    within, between = variances(features, repeated) / variances(appointed.held_out, appointed.labels)
    numbers = f"{draws.nfe:11}{draws.agreement:11.4f}{distance:9.2f}{compared:>14}{within:9.3f}{between:9.3f}"
    return f"{row.sampler:19}{row.guidance:23}{row.weight:28}{numbers}"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default="flow,sde,earlier")
    parser.add_argument("--sets", type=int, default=4, help="of 1,000 samples; at least 2")
    parser.add_argument("--folder", type=Path, default=Path("runs/digits-guidance"))
    parser.add_argument("--training_steps", type=int, default=3000, help=f"a multiple of {CHECKPOINTS}")
    parser.add_argument("--label_dropout", type=float, default=0.1)
    options = parser.parse_args()
    steps = options.training_steps
    run = trained(options.folder, steps, options.label_dropout)
    model = load_model(run.checkpoint_path(steps))
    appointed, _ = appoint()
    tables = {"flow": on_the_flow(model), "sde": on_the_sde(model), "earlier": from_earlier(model, run, steps)}
    for table in options.tables.split(","):
        header = f"{'sampler':19}{'guidance':23}{'w, noise levels':28}{'evaluations':>11}{'agreement':>11}"
        print(f"{header}{'Frechet':>9}{'change':>14}{'within':>9}{'between':>9}")
        for row in tables[table]:
            draws = draw(row, appointed, options.sets)
            if row.guidance == "none":
                alone = draws
            print(report(row, draws, alone, appointed), flush=True)


if __name__ == "__main__":
    main()
