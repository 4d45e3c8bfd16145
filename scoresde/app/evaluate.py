"""`--mode evaluate`: how good a trained model is, as a table and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

from samplers import sample
from scoresde.app.densities import BATCH, VARIATIONAL, Asked, Row, densities, discrete_bound
from scoresde.app.device import choose_threads
from scoresde.app.fitted_tables import fitted_tables
from scoresde.app.pictures import demo_labels
from scoresde.app.progress import Progress
from scoresde.app.run_folder import make_folder, write_text
from scoresde.app.sample import scaling_of
from scoresde.app.user_data import data_of, held_out_data, own_data
from scoresde.checkpoint import Checkpoint
from scoresde.data import ArrayData
from scoresde.errors import require, unknown_name
from scoresde.metrics import (
    DEQUANTIZATIONS,
    frechet_distance,
    judge,
    sliced_wasserstein,
    train_classifier,
)
from scoresde.metrics.classifier import FEATURES
from sde_configs import build

METRICS = ("nll", "bits", "elbo", "vlb", "frechet", "sw2")
EVALUATIONS = 64
DRAWN = 1000  # samples that are drawn for the distances


def chosen(text: str, data: ArrayData) -> list[str]:
    """The metrics of a flag: all that the data allow, or those between commas.

    Raises:
        UsageError: for one that is unknown, or that the data do not allow.
    """
    quantized, labelled = not data.values.is_floating_point(), data.labels is not None
    image, no_bits = (
        len(data.shape) == 3,
        "the data are no whole numbers, whose probabilities alone have bits; take nll",
    )
    suits = {"nll": True, "bits": quantized, "elbo": True, "vlb": quantized}
    suits |= {"frechet": image and labelled, "sw2": not image}
    if text == "all":
        return [name for name in METRICS if suits[name]]
    reasons = {
        "bits": no_bits,
        "vlb": no_bits,
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
    sampler_name: str | None,
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
    train, held_out = own_data(checkpoint, config)
    data = held_out_data(held_out) if path is None else data_of(path, checkpoint, config)
    source = "held out" if path is None else path
    metrics = chosen(metric, data)
    model = build.build_sampling_model(
        config, checkpoint.model().to(device), scaling_of(described), described["low"], described["high"]
    )
    choose_threads(BATCH * math.prod(model.shape))
    record: dict[str, Any] = {"samples": len(data) if num_samples is None else min(num_samples, len(data))}
    record |= {"source": source, "step": checkpoint.step, "seed": seed, "shape": list(data.shape)}
    asked, rows = Asked(model, checkpoint, config, train, data, record["samples"], seed, record), list[Row]()
    if {"nll", "bits", "elbo"} & set(metrics):
        count = EVALUATIONS if num_steps is None else num_steps
        rows += densities(asked, metrics, count, dequantization)
    if "vlb" in metrics:
        rows += discrete_bound(asked)
    if {"frechet", "sw2"} & set(metrics):
        drawn = DRAWN if num_samples is None else num_samples
        rows += _distances(asked, metrics, drawn, sampler_name, num_steps)
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
    if "discrete bound" in record:
        chain = record["discrete bound"]
        lines.append(
            f"discrete bound: {chain['steps']} steps of {chain['variance']} variance, {chain['terms']} drawn a sample"
        )
    if "quantization" in record:
        bits = record["quantization"]
        lines.append(
            f"bits: {bits['levels']} levels from {bits['low']:g} to {bits['high']:g}, {bits['dequantization']} "
            f"dequantisation, offset {bits['offset']}; an upper bound on the bits of the whole numbers"
        )
    if "conditional" in record:
        lines.append("densities are those given the class of each sample")
    return lines


def _distances(
    asked: Asked, metrics: Sequence[str], drawn: int, sampler_name: str | None, num_steps: int | None
) -> list[Row]:
    """Distances of samples that are drawn now to the data, beside those of as many training samples."""
    model, checkpoint, config, train, data, _, seed, record = asked
    if "frechet" in metrics:
        for name, number in (("num_samples", drawn), ("input", len(data))):
            require(
                number > FEATURES,
                f"{name}: {number} samples; a Frechet distance in {FEATURES} features needs more than {FEATURES}",
            )
    labels = demo_labels(drawn, checkpoint.description["data"]["num_classes"])
    if sampler_name is None:  # then the number of steps is that of the densities
        sampler_name, num_steps = build.AUTO, None
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
