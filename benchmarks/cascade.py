"""A cascade against a direct model of the same digits: 14 x 14 and an upsampler to 28 x 28, or 28 x 28 at once.

Three models are trained for as many steps each, with EDM's path, preconditioning and noise levels and one recipe of
networks. The first stage learns what `scoresde.resize` makes of the images, with which the upsampler makes its
condition. Then samples are drawn, all classes equally often, with as many evaluations of networks for the cascade (half
of them in each stage) as for the direct model. Columns:

    agreement    share that a classifier of real digits gives the class asked for
    Frechet      distance in the classifier's 64 features to the held-out real digits; `ratio`: to the direct model's
    evaluations  of a sample, of all stages
    core-s       of sampling

With DATA the path of MNIST's images (IDX, labels beside them); about 20 core-minutes with the defaults:

    python -m benchmarks.cascade --data DATA [--steps 1000] [--samples 1000] [--evaluations 40] [--noises 0.1,0.2]
    python -m benchmarks.cascade --field          exact answers on a Gaussian field (`benchmarks.cascade_field`)
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import cascade_field
from samplers import DDIM, Heun, Sampler, SDEDPMSolver, Stage, cascade, sample
from scoresde import (
    EDMSDE,
    DenoisingObjective,
    EDMParametrization,
    EDMWeighting,
    LogNormalNoiseLevels,
    NetworkScoreModel,
    Scaling,
    TrainingOptions,
    UNet,
    UpsamplingObjective,
    fit,
)
from scoresde.data import ArrayData, load
from scoresde.metrics import frechet_distance, judge, train_classifier

UNITS = Scaling(127.5, 127.5)
CLASSES = 10
BATCH = 64
SAMPLERS: dict[str, Sampler] = {"heun": Heun(), "ddim": DDIM(), "sde_dpm_solver": SDEDPMSolver()}


def trained(name: str, data: ArrayData, upsampling: UpsamplingObjective | None, num_steps: int) -> NetworkScoreModel:
    """A model of some images: a direct one, a first stage, or an upsampler."""
    objective = DenoisingObjective(LogNormalNoiseLevels(), EDMWeighting())
    channels = data.shape[0]
    torch.manual_seed(0)
    more = {} if upsampling is None else {"image_channels": channels, "keeps_image": True}
    multipliers = (1, 2, 2) if data.shape[1] > 16 else (1, 2)
    network = UNet(channels, 16, multipliers, num_classes=CLASSES, **more)
    model = NetworkScoreModel(network, EDMSDE(), EDMParametrization(data.rms()), data.shape, data.codec)
    options = TrainingOptions(num_steps=num_steps, batch_size=BATCH, lr=2e-3, ema_decay=0.995)
    start = time.process_time()
    chosen = objective if upsampling is None else replace(upsampling, objective=objective)
    assert isinstance(data.values, Tensor)
    result = fit(model, data.values, data.labels, objective=chosen, options=options, progress=False)
    parameters = sum(p.numel() for p in network.parameters())
    print(f"{name}: {parameters:,} parameters, {time.process_time() - start:.0f} core-s", flush=True)
    return result


def compare(path: str, num_steps: int, num_samples: int, evaluations: int, noises: list[float], sampler: str) -> None:
    """Trains, draws, and prints the table."""
    data, held_out = replace(load(path=path), codec=UNITS).split(0.25)
    assert held_out is not None
    upsampling = UpsamplingObjective()
    assert isinstance(data.values, Tensor)
    small = replace(data, values=upsampling.reduce(data.values.float()))
    direct = trained("direct", data, None, num_steps)
    base = trained("first stage", small, None, num_steps)
    upsampler = trained("upsampler", data, upsampling, num_steps)
    classifier = train_classifier(data)
    real, real_labels = held_out.all()
    assert isinstance(real_labels, Tensor)
    agreement, features = judge(classifier, real, real_labels)
    labels = torch.arange(num_samples) % CLASSES
    some = data.batch(slice(len(real)))
    assert isinstance(some[1], Tensor)
    floor = frechet_distance(judge(classifier, some[0], some[1]).features, features)
    print(f"\n{'':24}{'agreement':>10}{'Frechet':>9}{'ratio':>7}{'evaluations':>13}{'core-s':>8}")
    print(f"{'real (training)':24}{agreement:10.3f}{floor:9.2f}", flush=True)

    def row(name: str, x: Tensor, nfe: int, start: float, reference: float | None) -> float:
        seconds = time.process_time() - start
        agreed, own = judge(classifier, x, labels)
        distance = frechet_distance(own, features)
        ratio = 1.0 if reference is None else distance / reference
        print(f"{name:24}{agreed:10.3f}{distance:9.2f}{ratio:7.2f}{nfe:13}{seconds:8.0f}", flush=True)
        return distance

    chosen = SAMPLERS[sampler]
    per_step = 2 if sampler == "heun" else 1
    start = time.process_time()
    x, nfe = sample(direct, chosen, num_samples, num_steps=evaluations // per_step, cond=labels)
    reference = row("direct", x, nfe, start, None)
    half = evaluations // 2 // per_step
    for noise in noises:
        start = time.process_time()
        stages = [Stage(base, chosen, half), Stage(upsampler, chosen, half, upsampling, noise)]
        first, last = cascade(stages, num_samples, cond=labels)
        row(f"cascade, s = {noise:g}", last.x, first.nfe + last.nfe, start, reference)
        if noise == noises[0]:  # what the upsampler alone costs: real digits at low resolution
            start = time.process_time()
            seen = _upsampled(upsampler, upsampling, real[: len(labels)], real_labels, chosen, half, noise)
            own = judge(classifier, seen, real_labels[: len(seen)])
            distance = frechet_distance(own.features, features)
            print(
                f"{'  of real 14 x 14':24}{own.agreement:10.3f}{distance:9.2f}{distance / reference:7.2f}", flush=True
            )


def _upsampled(
    model: NetworkScoreModel,
    upsampling: UpsamplingObjective,
    real: Tensor,
    labels: Tensor,
    sampler: Sampler,
    num_steps: int,
    noise: float,
) -> Tensor:
    """What an upsampler makes of real images at low resolution."""
    low = upsampling.reduce(real)
    eps = torch.randn(low.shape, generator=torch.Generator().manual_seed(0))
    cond = upsampling.condition(low, torch.full((len(low),), noise), eps, labels[: len(low)])
    return sample(model, sampler, len(low), num_steps=num_steps, cond=cond).x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--field", action="store_true")
    parser.add_argument("--data")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--noises", default="0.1")
    parser.add_argument("--sampler", choices=SAMPLERS, default="heun")
    options = parser.parse_args()
    if options.field:
        cascade_field.main()
        return
    if options.data is None:
        parser.error("give --data, the path of MNIST's images, or --field")
    noises = [float(noise) for noise in options.noises.split(",")]
    compare(options.data, options.steps, options.samples, options.evaluations, noises, options.sampler)


if __name__ == "__main__":
    main()
