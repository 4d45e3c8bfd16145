"""Digits of the class that is asked for, from a model without classes and a classifier of noisy digits.

Train both first, about 2 core-minutes and 1:

    python main.py --mode train --sde vp --config.data.class_conditional=False --workdir runs/unconditional
    python main.py --mode train_classifier --sde vp
    python -m benchmarks.classifier_guidance [--model runs/unconditional] [--classifier runs/vp-classifier]

A row is a sampler and a scale: 1,000 samples, 100 of each class. Columns as in `benchmarks.digits_quality`; the judge
is its classifier of clean digits, which has seen no noise and has no part in the guidance.
"""

from __future__ import annotations

import argparse
import time

from benchmarks.digits_quality import LABELS, NUM_SAMPLES, appoint
from samplers import sample
from scoresde import ClassifierGuidance, load_classifier, load_model
from scoresde.app.run_folder import checkpoint_at
from sde_configs import default
from sde_configs.build import build_sampler


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/unconditional")
    parser.add_argument("--classifier", default="runs/vp-classifier")
    parser.add_argument("--samplers", default="heun:32,sde_dpm_solver:32,pc:100")
    parser.add_argument("--scales", default="0,2,4,8,16")
    parser.add_argument("--interval", default="", help="noise levels with guidance, as in 0.1,10")
    arguments = parser.parse_args()
    model = load_model(checkpoint_at(arguments.model, "model"))
    classifier = load_classifier(checkpoint_at(arguments.classifier, "classifier"))
    low, _, high = arguments.interval.partition(",")
    interval = (float(low), float(high)) if low else None
    judge, real = appoint()
    print(f"{'':24}{'scale':>6}{'agreement':>10}{'Frechet':>9}{'ratio':>7}{'nearest':>9}{'seconds':>9}")
    print(f"{'real, held out':30}{real}")
    for name in arguments.samplers.split(","):
        kind, _, steps = name.partition(":")
        num_steps = int(steps) if steps else None
        sampler = build_sampler(default.get_config(), kind, num_steps)
        for scale in map(float, arguments.scales.split(",")):
            guided = ClassifierGuidance(model, classifier, scale, interval=interval)
            start = time.perf_counter()
            x, _ = sample(guided, sampler, NUM_SAMPLES, num_steps=num_steps, cond=LABELS)
            seconds = time.perf_counter() - start
            print(f"{name:24}{scale:>6g}{judge.row(x, LABELS)}{seconds:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
