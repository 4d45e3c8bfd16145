"""How good the digits of the default recipes are, judged by a classifier of real digits.

For each SDE the recipe is trained as `main.py --mode train --sde SDE` does it (a run that is there already is used),
then 1,000 samples, 100 of each class, are drawn by each sampler with its defaults, or with the number of steps after a
colon. Columns:

    confident    share with a class probability above 0.9 (real held-out digits: first row)
    agreement    share that the classifier gives the class asked for
    Frechet      distance in the classifier's 64 features to the held-out real digits; `ratio`: to that of 1,000 real
    nearest      mean RMS distance, in grey levels of [-1, 1], to the nearest training image (far below that of
                 held-out digits: copying)

About 2 core-minutes a training and 1.5 a sampler of 500 evaluations:

    python benchmarks/digits_quality.py [--sdes vp,subvp,ve] [--samplers pc,ode,auto:8] [--folder runs/quality]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from samplers import pilot, sample
from scoresde.app.config import load_config
from scoresde.app.pictures import demo_labels
from scoresde.app.run_folder import RunFolder
from scoresde.app.train import train
from scoresde.data import load
from scoresde.metrics import frechet_distance, judge, train_classifier
from sde_configs.build import AUTO, build_sampler

NUM_SAMPLES = 1000


def nearest(x: Tensor, reference: Tensor) -> float:
    """Mean over x of the RMS distance to the nearest reference image."""
    return (torch.cdist(x.flatten(1), reference.flatten(1)).min(1).values / x[0].numel() ** 0.5).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdes", default="vp,subvp,ve")
    parser.add_argument("--samplers", default="pc,ode")
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"))
    options = parser.parse_args()

    data, held_out = load("digits").split(0.25)
    assert held_out is not None
    (x_train, y_train), (x_held, y_held) = data.all(), held_out.all()
    assert y_train is not None
    assert y_held is not None
    classifier = train_classifier(data)
    confident, accuracy, held_features = judge(classifier, x_held, y_held)
    floor = frechet_distance(judge(classifier, x_train[:NUM_SAMPLES], y_train[:NUM_SAMPLES])[2], held_features)

    header = f"{'sde':8}{'sampler':18}{'confident':>10}{'agreement':>10}{'Frechet':>9}{'ratio':>7}{'nearest':>9}"
    print(f"{header}{'evaluations':>13}{'core-s':>8}")
    real = f"{confident:10.3f}{accuracy:10.3f}{floor:9.2f}{1:7.2f}{nearest(x_held, x_train):9.3f}"
    print(f"{'real':8}{'(held out)':18}{real}", flush=True)
    for sde in options.sdes.split(","):
        run, config, start = RunFolder(options.folder / sde), load_config(sde, None), time.process_time()
        train(config, run, torch.device("cpu"))
        print(f"{sde}: training took {time.process_time() - start:.0f} core-s", flush=True)
        checkpoint = run.newest_checkpoint()
        assert checkpoint is not None
        model, labels = checkpoint.model(), demo_labels(NUM_SAMPLES, 10)
        assert labels is not None
        for name in options.samplers.split(","):
            start = time.process_time()
            kind, _, steps = name.partition(":")
            num_steps = int(steps) if steps else None
            sampler = pilot(model, labels[:32]) if kind == AUTO else build_sampler(config, kind, num_steps)
            x, nfe = sample(model, sampler, NUM_SAMPLES, num_steps=num_steps, cond=labels)
            seconds = time.process_time() - start
            confident, agreement, features = judge(classifier, x, labels)
            distance = frechet_distance(features, held_features)
            numbers = f"{confident:10.3f}{agreement:10.3f}{distance:9.2f}{distance / floor:7.2f}"
            print(f"{sde:8}{name:18}{numbers}{nearest(x, x_train):9.3f}{nfe:13}{seconds:8.0f}", flush=True)


if __name__ == "__main__":
    main()
