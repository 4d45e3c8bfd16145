"""Digits from captions: how long the parts take to train, and how well prompts are obeyed that are worded anew.

python -m benchmarks.digits_text FOLDER [--num_samples 1000] [--sampler heun --num_steps 18] [--guidance 1,2,4]

Trains the parts of `--config digits_text` by the commands of the recipe, in FOLDER, and draws a digit for each of many
prompts: of random grades, each told with the probability with which captions tell it, in the wordings that no caption
has. It prints the share of the digits that a classifier reads as was asked for, and for each attribute the correlation
of the requested grade with what is measured, by weight of guidance. The last line is what held-out real images reach
with their own captions. The classifier is trained on the real images.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoresde.app.cli import main as command
from scoresde.app.parts import captions
from scoresde.codec import Scaling
from scoresde.data.arrays import ArrayData
from scoresde.data.captioned_digits import digits_text
from scoresde.data.captioning import SAID
from scoresde.data.wording import ATTRIBUTES, HELD_OUT, Description, caption, parse
from scoresde.metrics import train_classifier
from scoresde.metrics.classifier import Classifier
from scoresde.metrics.prompts import obedience

PARTS = ("train_autoencoder", "train_text_encoder", "train")
PIXELS = Scaling(127.5, 127.5)


def prompts(count: int, seed: int = 2) -> list[str]:
    """Texts that ask for random digits, in held-out wordings."""
    draws = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        thickness, slant, size = draws.integers(-2, 3, 3).tolist()
        position = tuple(draws.integers(-1, 2, 2).tolist())
        described = Description(int(draws.integers(10)), thickness, slant, size, position)
        hidden = [name for name, hides in zip(ATTRIBUTES, draws.random(len(ATTRIBUTES)) >= SAID, strict=True) if hides]
        found.append(caption(described.without(hidden), int(draws.choice(HELD_OUT))))
    return found


def judged(classifier: Classifier, images: Tensor, texts: list[str]) -> dict[str, float]:
    """How well images obey texts."""
    with torch.no_grad():
        seen = classifier(PIXELS.encode(images)).argmax(1)
    return asdict(obedience(images.float() / 255, [parse(text) for text in texts], seen))


def classifier_of(data: ArrayData) -> Classifier:
    """A classifier of real digits, whose labels are read from their captions."""
    labels = torch.tensor([parse(text).digit for text in captions(data)])
    return train_classifier(ArrayData(data.values, labels, PIXELS), num_steps=2000)


def shown(name: str, found: dict[str, float]) -> str:
    """A line of the table."""
    return f"{name:24}" + "".join(f"{value:>11.3f}" for value in found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--sampler", default="heun")
    parser.add_argument("--num_steps", type=int, default=18)
    parser.add_argument("--guidance", default="1,2,4")
    arguments, fields = parser.parse_known_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.folder)
    for mode in PARTS:
        start = time.monotonic()
        assert command([f"--mode={mode}", "--config=digits_text", "--device=cpu", *fields]) == 0
        print(f"{mode}: {time.monotonic() - start:.0f} s", flush=True)
    train, held_out = digits_text().split(0.1)
    assert held_out is not None
    classifier = classifier_of(train)
    texts = prompts(arguments.num_samples)
    Path("prompts.txt").write_text("\n".join(texts))
    print(f"{'':24}{'agreement':>11}{'thickness':>11}{'slant':>11}{'size':>11}{'x':>11}{'y':>11}")
    for weight in arguments.guidance.split(","):
        output = f"obedience-{weight}.png"
        steps = [f"--sampler={arguments.sampler}", f"--num_steps={arguments.num_steps}", f"--guidance={weight}"]
        sample = ["--mode=sample", "--workdir=runs/digits_text", "--prompt=prompts.txt", "--device=cpu", *steps]
        assert command([*sample, f"--num_samples={len(texts)}", f"--output={output}"]) == 0
        with np.load(Path(output).with_suffix(".npz")) as arrays:
            images = torch.from_numpy(arrays["samples"])
        print(shown(f"guidance {weight}", judged(classifier, images, texts)), flush=True)
    print(shown("real, their own captions", judged(classifier, held_out.values[:], captions(held_out))))


if __name__ == "__main__":
    main()
