"""What drawing costs in latents and in pixels, at equal quality.

python -m benchmarks.latent_cost AUTOENCODER [--num_steps 3000] [--num_samples 2000]

AUTOENCODER is a run of `--mode train_autoencoder --config digits_text`. Two U-Nets learn the same images of digits by
class, of 24 x 24 pixels, for as many steps: one in pixels and one in the latents. Both draw by Heun's method with
several numbers of steps. The quality is the Frechet distance of features of a classifier of the real images, to the
held-out ones; training images give the floor. Times are medians of three batches on as many threads as torch takes,
with decoding. The last lines say what the latent model costs for the smallest number of evaluations at which it is as
good as the pixel model at its best, within `SAME`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from samplers import Heun, sample
from scoresde import VPSDE, EDMParametrization, NetworkScoreModel, TrainingOptions, UNet
from scoresde.app.parts import captions, open_autoencoder
from scoresde.codec import Scaling
from scoresde.data.arrays import ArrayData
from scoresde.data.captioned_digits import digits_text
from scoresde.data.latents import encoded
from scoresde.data.wording import parse
from scoresde.metrics import frechet_distance, train_classifier
from scoresde.metrics.classifier import Classifier
from scoresde.objective import DenoisingObjective
from scoresde.training import Trainer

STEPS = (3, 5, 9, 18)
BATCH = 250  # samples at a time
SAME = 1.1  # ratio of distances that count as equal
PIXELS = Scaling(127.5, 127.5)


class Point(NamedTuple):
    """How good samples of a number of evaluations are, and seconds for a thousand."""

    evaluations: int
    distance: float
    seconds: float


def by_class(data: ArrayData) -> ArrayData:
    """The images with the class that their captions name."""
    labels = torch.tensor([parse(text).digit for text in captions(data)])
    return ArrayData(data.values, labels, PIXELS)


def train(data: ArrayData, network: UNet, num_steps: int) -> NetworkScoreModel:
    """A model with averaged weights."""
    shape = data.codec.encoded_shape(data.shape)
    model = NetworkScoreModel(network, VPSDE(), EDMParametrization(sigma_data=data.rms()), shape, data.codec)
    trainer = Trainer(model, data, DenoisingObjective(), TrainingOptions(num_steps=num_steps))
    start = time.monotonic()
    for step in range(num_steps):
        trainer.step()
        if (step + 1) % 500 == 0:
            print(f"  step {step + 1}, loss {trainer.pop_metrics()['loss']:.4f}", flush=True)
    size = sum(p.numel() for p in network.parameters())
    print(f"  {size:,} parameters, {num_steps} steps in {time.monotonic() - start:.0f} s", flush=True)
    trainer.average.applied(model).__enter__()  # for good
    return model.eval().requires_grad_(False)


def draw(model: NetworkScoreModel, num_steps: int, count: int) -> tuple[Tensor, int, float]:
    """Images, evaluations, and seconds for a thousand images."""
    parts = []
    times = []
    for first in range(0, count, BATCH):
        labels = torch.arange(first, first + BATCH) % 10
        start = time.perf_counter()
        x, nfe = sample(model, Heun(), BATCH, num_steps=num_steps, cond=labels, first_index=first, batch_size=BATCH)
        with torch.no_grad():
            parts.append(model.codec.decode(x))
        times.append(time.perf_counter() - start)
    return torch.cat(parts).clamp(0, 255).round(), nfe, median(times[:3]) * 1000 / BATCH


@torch.no_grad()
def features(classifier: Classifier, raw: Tensor) -> Tensor:
    """Features of images in raw units."""
    return torch.cat([classifier.features(PIXELS.encode(part)) for part in raw.split(500)])


def curve(name: str, model: NetworkScoreModel, classifier: Classifier, real: Tensor, count: int) -> list[Point]:
    """Quality and time over numbers of steps."""
    found = []
    for steps in STEPS:
        images, nfe, seconds = draw(model, steps, count)
        found.append(Point(nfe, frechet_distance(features(classifier, images), real), seconds))
        print(f"{name:8}{nfe:>12}{found[-1].distance:>12.3f}{seconds:>16.2f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("autoencoder")
    parser.add_argument("--num_steps", type=int, default=3000)
    parser.add_argument("--num_samples", type=int, default=2000)
    arguments = parser.parse_args()
    data, held_out = (by_class(part) for part in digits_text().split(0.25) if part is not None)
    codec = open_autoencoder(arguments.autoencoder)
    latent = encoded(replace(data, codec=codec), codec, torch.device("cpu"))
    torch.manual_seed(0)
    print(f"latents: {data.shape} to {codec.encoded_shape(data.shape)}, {Path(arguments.autoencoder).name}")
    models = {
        "pixels": train(data, UNet(1, channels=16, multipliers=(1, 2, 4), num_classes=10), arguments.num_steps),
        "latents": train(
            latent, UNet(latent.codec.encoded_shape(latent.shape)[0], channels=48, num_classes=10), arguments.num_steps
        ),
    }
    classifier = train_classifier(data, num_steps=2000)
    real = features(classifier, held_out.values[:])
    floor = frechet_distance(features(classifier, data.values[: arguments.num_samples]), real)
    back = torch.cat([codec.decode(codec.encode(part)).detach() for part in held_out.values[:].split(500)])
    print(f"floor (training images): {floor:.3f}; held-out images, encoded and decoded: ", end="")
    print(f"{frechet_distance(features(classifier, back.clamp(0, 255).round()), real):.3f}")
    print(f"{'':8}{'evaluations':>12}{'distance':>12}{'s a thousand':>16}")
    curves = {name: curve(name, model, classifier, real, arguments.num_samples) for name, model in models.items()}
    best = min(curves["pixels"], key=lambda point: point.distance)
    enough = next(point for point in curves["pixels"] if point.distance <= SAME * best.distance)
    print(f"pixels: {enough.evaluations} evaluations suffice, {enough.seconds:.2f} s")
    equal = [point for point in curves["latents"] if point.distance <= SAME * best.distance]
    if equal:
        ratio = equal[0].seconds / enough.seconds
        print(f"latents: {equal[0].evaluations} evaluations suffice, {equal[0].seconds:.2f} s: ratio {ratio:.2f}")
    else:
        print("latents: not as good at any number of evaluations")


if __name__ == "__main__":
    main()
