"""`--mode evaluate`: how good a trained model is, as a table and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ml_collections import ConfigDict
from torch import Tensor

from samplers import Exact, Probes, log_prob, sample
from scoresde.app.device import choose_threads
from scoresde.app.fitted_tables import fitted_tables
from scoresde.app.pictures import demo_labels
from scoresde.app.progress import Progress
from scoresde.app.run_folder import make_folder, write_text
from scoresde.app.sample import scaling_of
from scoresde.app.user_data import asked_data, labels_of, own_data
from scoresde.bounds import elbo
from scoresde.checkpoint import Checkpoint
from scoresde.data import ArrayData
from scoresde.errors import require, unknown_name
from scoresde.metrics import (
    DEQUANTIZATIONS,
    Dequantization,
    bits_per_dim,
    dequantize,
    frechet_distance,
    judge,
    sliced_wasserstein,
    train_classifier,
    train_dequantization,
)
from scoresde.metrics.classifier import FEATURES
from scoresde.score_model import ScoreModel
from scoresde.targets import Gaussian
from sde_configs import build

METRICS = ("nll", "bits", "elbo", "frechet", "sw2")
EVALUATIONS = 64
DRAWN = 1000  # samples that are drawn for the distances
EXACT_UP_TO, FULL_COVARIANCE_UP_TO = 32, 1024  # entries of a sample
BATCH = 250
VARIATIONAL = "variational"  # dequantisation, learned for the model that is looked at
TRAINING_STEPS = 500  # of it


class Row(NamedTuple):
    """A line of the table: a number, and its standard error where it has one."""

    name: str
    value: float
    error: float = math.nan


def chosen(text: str, data: ArrayData) -> list[str]:
    """The metrics of a flag: all that the data allow, or those between commas.

    Raises:
        UsageError: for one that is unknown, or that the data do not allow.
    """
    quantized, labelled = not data.values.is_floating_point(), data.labels is not None
    image = len(data.shape) == 3
    suits = {"nll": True, "bits": quantized, "elbo": True, "frechet": image and labelled, "sw2": not image}
    if text == "all":
        return [name for name in METRICS if suits[name]]
    reasons = {
        "bits": "the data are no whole numbers, whose probabilities alone can be counted in bits; take nll",
        "frechet": "it compares features of a classifier of labelled images, and the data are none; take nll or sw2",
        "sw2": "it is for vectors, and the data are images; take frechet",
    }
    names = text.split(",")
    for name in names:
        if name not in METRICS:
            raise unknown_name("metric", name, ["all", *METRICS])
        require(suits[name], f"metric={name!r}: {reasons.get(name)}")
    return names


def evaluate(
    checkpoint: Checkpoint,
    config: ConfigDict,
    output: Path,
    *,
    metric: str,
    path: str | None,
    num_samples: int | None,
    num_steps: int | None,
    sampler_name: str,
    dequantization: str,
    seed: int,
    device: torch.device,
) -> int:
    """Prints a table of metrics of the held-out samples, or of a file, and writes it as JSON."""
    require(num_samples is None or num_samples >= 2, f"num_samples={num_samples}: need at least 2")
    if dequantization not in (*DEQUANTIZATIONS, VARIATIONAL):
        raise unknown_name("dequantization", dequantization, [*DEQUANTIZATIONS, VARIATIONAL])
    make_folder(output.parent, "output", output)
    described = checkpoint.description["data"]
    data, source = asked_data(checkpoint, config, path)
    metrics = chosen(metric, data)
    model = build.build_sampling_model(
        config, checkpoint.model().to(device), scaling_of(described), described["low"], described["high"]
    )
    choose_threads(BATCH * math.prod(model.shape))
    record: dict[str, Any] = {"samples": len(data) if num_samples is None else min(num_samples, len(data))}
    record |= {"source": source, "step": checkpoint.step, "seed": seed, "shape": list(data.shape)}
    rows: list[Row] = []
    if {"nll", "bits", "elbo"} & set(metrics):
        count = EVALUATIONS if num_steps is None else num_steps
        rows += _likelihood(
            model, checkpoint, config, data, record["samples"], metrics, count, dequantization, seed, record
        )
    if {"frechet", "sw2"} & set(metrics):
        drawn = DRAWN if num_samples is None else num_samples
        rows += _distances(model, checkpoint, config, data, metrics, drawn, sampler_name, num_steps, seed, record)
    print(f"{record['samples']} samples ({source}), step {checkpoint.step}")
    for line in notes(record):
        print(line)
    print(f"{'':44}{'value':>12}{'standard error':>16}")
    for row in rows:
        error = "" if math.isnan(row.error) else f"{row.error:.2g}"
        print(f"{row.name:44}{row.value:>12.5g}{error:>16}")
    record["results"] = {row.name: {"value": row.value, "standard error": row.error} for row in rows}
    write_text(output, json.dumps(record, indent=1).replace("NaN", "null"))
    print(f"numbers: {output}")
    return 0


def notes(record: dict[str, Any]) -> list[str]:
    """What the numbers are of, in words."""
    lines = []
    if "flow" in record:
        flow = record["flow"]
        lines.append(f"flow: {flow['evaluations']} evaluations, divergence {flow['divergence']}, {flow['prior']}")
    if "quantization" in record:
        bits = record["quantization"]
        lines.append(
            f"bits: {bits['levels']} levels from {bits['low']:g} to {bits['high']:g}, {bits['dequantization']} "
            f"dequantisation, offset {bits['offset']}; an upper bound on the bits of the whole numbers"
        )
    if "conditional" in record:
        lines.append("densities are those given the class of each sample")
    return lines


def _likelihood(
    model: ScoreModel,
    checkpoint: Checkpoint,
    config: ConfigDict,
    data: ArrayData,
    count: int,
    metrics: Sequence[str],
    num_evaluations: int,
    dequantization: str,
    seed: int,
    record: dict[str, Any],
) -> list[Row]:
    """Log density, its bound, and both as bits where the data are whole numbers."""
    described, dim = checkpoint.description["data"], math.prod(data.shape)
    x, cond = data.batch(torch.arange(count))[0], labels_of(data, checkpoint)
    cond = None if cond is None else cond[:count]
    generator, log_q = torch.Generator().manual_seed(seed), torch.zeros(count, dtype=torch.float64)
    if not data.values.is_floating_point():
        low, high = described["low"], described["high"]
        x, log_q = dequantize(x, data.scaling, _how(dequantization, checkpoint, config, seed), generator)
        record["quantization"] = {"levels": int(high - low) + 1, "low": low, "high": high, "offset": -0.5}
        record["quantization"] |= {"dequantization": dequantization, "levels a model unit": described["scale"]}
    if cond is not None:
        record["conditional"] = True
    device = model.like().device
    x, cond = x.to(device), None if cond is None else cond.to(device)
    prior, divergence = training_gaussian(own_data(checkpoint, config)[0]), Exact() if dim <= EXACT_UP_TO else Probes()
    rows: list[Row] = []

    def add(name: str, nats: Tensor, error: Tensor, in_nats: bool, in_bits: bool) -> None:
        if in_nats:
            rows.append(_mean(f"{name}, nats", nats))
            rows.append(_mean(f"{name}, nats per dimension", nats / dim))
        if in_bits:
            rows.append(_mean(f"{name}, bits per dimension", bits_per_dim(nats, log_q, dim)))
        drawn = error.square().mean().sqrt().item() / dim / count**0.5
        record.setdefault("standard error by probes and noise, nats per dimension", {})[name] = drawn

    if {"nll", "bits"} & set(metrics):
        record["flow"] = {"evaluations": num_evaluations, "prior": "prior of the training data's mean and covariance"}
        record["flow"]["divergence"] = "exact" if dim <= EXACT_UP_TO else "by a fresh probe a step"
        with Progress("likelihood", -(-count // BATCH) * num_evaluations, unit="evaluation") as progress:
            found = log_prob(
                model,
                x,
                cond,
                num_evaluations=num_evaluations,
                divergence=divergence,
                prior=prior,
                sd=described["std"],
                seed=seed,
                batch_size=BATCH,
                tell=progress.advance,
            )
        density = found.log_prob.cpu()
        add("log density", density, found.standard_error.cpu(), "nll" in metrics, "bits" in metrics)
        below = found.truncation.mean().item() / dim
        record["flow"]["part of noise below t_min, nats per dimension"] = below
    if "elbo" in metrics:
        with Progress("bound", -(-count // BATCH), unit="part") as progress:
            bounds, errors = [], []
            draws = torch.Generator(device).manual_seed(seed)
            for first in range(0, count, BATCH):
                part = slice(first, first + BATCH)
                given = None if cond is None else cond[part]
                bound = elbo(
                    model, x[part], given, num_evaluations=max(3, num_evaluations), prior=prior, generator=draws
                )
                bounds.append(bound.bound.cpu())
                errors.append(bound.standard_error.cpu())
                progress.advance()
        add("ELBO", torch.cat(bounds), torch.cat(errors), True, not data.values.is_floating_point())
    return rows


def _how(dequantization: str, checkpoint: Checkpoint, config: ConfigDict, seed: int) -> Dequantization:
    """The dequantisation of a name; the variational one is learned now, from the training data."""
    if dequantization != VARIATIONAL:
        return DEQUANTIZATIONS[dequantization]
    with Progress("dequantisation", TRAINING_STEPS) as progress:
        train = own_data(checkpoint, config)[0]
        return train_dequantization(checkpoint.model(), train, TRAINING_STEPS, seed, progress.advance)


def _mean(name: str, values: Tensor) -> Row:
    """The mean over samples, with its standard error; the noise of probes is a part of it."""
    values = values.double()
    return Row(name, values.mean().item(), values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan)


def training_gaussian(train: ArrayData) -> Gaussian:
    """The Gaussian of the training data's mean and covariance (variances alone, of large samples), float64."""
    x = train.batch(torch.arange(len(train)))[0].double()
    if math.prod(train.shape) > FULL_COVARIANCE_UP_TO or len(x) < 2:
        return Gaussian(x.mean(0), x.var(0, correction=0))
    return Gaussian(x.mean(0), torch.cov(x.flatten(1).T, correction=0).reshape(2 * (math.prod(train.shape),)))


def _distances(
    model: ScoreModel,
    checkpoint: Checkpoint,
    config: ConfigDict,
    data: ArrayData,
    metrics: Sequence[str],
    drawn: int,
    sampler_name: str,
    num_steps: int | None,
    seed: int,
    record: dict[str, Any],
) -> list[Row]:
    """Distances of samples that are drawn now to the data, beside those of as many training samples."""
    if "frechet" in metrics:
        for name, number in (("num_samples", drawn), ("input", len(data))):
            require(
                number > FEATURES,
                f"{name}: {number} samples; a Frechet distance in {FEATURES} features needs more than {FEATURES}",
            )
    labels = demo_labels(drawn, checkpoint.description["data"]["num_classes"])
    if sampler_name == build.AUTO:
        sampler: Any = fitted_tables(model, checkpoint, config, True, True)[0]
    else:
        sampler = build.build_sampler(config, sampler_name, num_steps)
    record["drawn"] = {"samples": drawn, "sampler": sampler_name}
    grid = sampler.default_grid(model.sde, sampler.default_num_steps if num_steps is None else num_steps)
    evaluations = sampler.num_evaluations(model.sde, grid) or 100
    with Progress("sample", -(-drawn // BATCH) * evaluations, unit="evaluation") as progress:

        def advance(*_: Any) -> None:
            progress.update(min(progress.count + 1, progress.total))

        x, nfe = sample(model, sampler, drawn, grid=grid, cond=labels, seed=seed, batch_size=BATCH, callback=advance)
    record["drawn"]["evaluations"] = nfe
    x, real = x.cpu(), data.all()[0]
    train = own_data(checkpoint, config)[0]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:drawn]
    others, other_labels = train.batch(order)
    if "sw2" in metrics:
        return [
            Row("sliced Wasserstein-2 distance", sliced_wasserstein(x, real)),
            Row("  of training samples", sliced_wasserstein(others, real)),
        ]
    print("training a classifier of the training data ...", flush=True)
    classifier = train_classifier(train)
    of_real, of_drawn = judge(classifier, real, data.labels), judge(classifier, x, labels)
    rows = [Row(f"Frechet distance ({FEATURES} features)", frechet_distance(of_drawn.features, of_real.features))]
    if len(others) > FEATURES:
        of_train = judge(classifier, others, other_labels)
        rows.append(Row("  of training samples", frechet_distance(of_train.features, of_real.features)))
    if labels is not None:
        rows.append(Row("label agreement", of_drawn.agreement))
        rows.append(Row("  of the real samples", of_real.agreement))
    return rows
