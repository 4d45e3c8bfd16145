"""`--mode evaluate`: how good a trained model is, as a table and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from typing import Any

import torch

from samplers import Sampler, sample
from scoresde._files import MARK, write_text
from scoresde.app.densities import BELOW, STEPS, VARIATIONAL, Evaluation, Row, densities, discrete_bound
from scoresde.app.device import choose_threads
from scoresde.app.files import output_path
from scoresde.app.fitted_tables import best_tables
from scoresde.app.flags import EvaluateFlags
from scoresde.app.piloted import piloted_sampler
from scoresde.app.progress import Progress
from scoresde.app.trained import Trained
from scoresde.app.user_data import asked_data, own_data
from scoresde.data.arrays import ArrayData
from scoresde.errors import UsageError, require, unknown_name
from scoresde.metrics import DEQUANTIZATIONS, frechet_distance, judge, sliced_wasserstein, train_classifier
from scoresde.metrics.classifier import FEATURES
from sde_configs import build

METRICS = ("nll", "bits", "elbo", "vlb", "frechet", "sw2")
EVALUATIONS = 64
DRAWN = 1000  # samples that are drawn for the distances
UNKNOWN_EVALUATIONS = 100  # what the progress bar takes for an adaptive sampler's


def chosen(text: str, data: ArrayData) -> list[str]:
    """The metrics of a flag: all that the data allow, or those between commas.

    Raises:
        UsageError: for one that is unknown, or that the data do not allow.
    """
    quantized = not data.values.is_floating_point()
    labelled = data.labels is not None
    image = len(data.shape) == 3
    no_bits = "the data are not whole numbers, and only probabilities have bits; take nll"
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


def too_few(drawn: int, given: int) -> str:
    """Why there is no Frechet distance between so many samples; empty if there is one."""
    for name, number in {"num_samples": drawn, "input": given}.items():
        if number <= FEATURES:
            return f"{name}: {number} samples; a Frechet distance in {FEATURES} features needs more than {FEATURES}"
    return ""


def training_data(trained: Trained, needed: bool) -> tuple[ArrayData | None, str]:
    """The training data; if they cannot be had and are not needed, None and the reason."""
    try:
        return own_data(trained)[0], ""
    except UsageError as error:
        if needed:
            raise
        return None, str(error)


def left_out(flags: EvaluateFlags, metrics: list[str], data: ArrayData, missing: str) -> list[str]:
    """Removes the metrics that cannot be computed, and says what is left out and why.

    Args:
        flags: of the command.
        metrics: those to compute; some may be removed.
        data: what is evaluated.
        missing: why the training data cannot be had, or empty.

    Raises:
        UsageError: for one of them that was asked for by name.
    """
    of_data = f"needs the training data; {missing}"
    dense = bool({"nll", "bits", "elbo"} & set(metrics))
    learned = dense and flags.dequantization == VARIATIONAL and not data.values.is_floating_point()
    require(not (missing and learned), f"dequantization={flags.dequantization!r}: {of_data}")
    few = too_few(_drawn(flags), len(data))
    reason = (of_data if missing else few) if "frechet" in metrics else ""
    require(not reason or flags.metric == "all", f"metric='frechet': {reason}")
    if reason:
        metrics.remove("frechet")
    if not missing:
        return [few] if reason else []
    parts = {
        "the Frechet distance": bool(reason),
        "the distance of training samples": "sw2" in metrics,
        "the mean and covariance of the prior": dense,
    }
    return [f"{', '.join(name for name, lost in parts.items() if lost)}: {of_data}"] if any(parts.values()) else []


def evaluate(flags: EvaluateFlags, overrides: Sequence[str]) -> int:
    """Prints a table of metrics of the held-out samples, or of a file, and writes it as JSON."""
    trained = Trained.of(flags, overrides)
    require(flags.num_samples is None or flags.num_samples >= 2, f"num_samples={flags.num_samples}: need at least 2")
    known = [*DEQUANTIZATIONS, VARIATIONAL]
    if flags.dequantization not in known:
        raise unknown_name("dequantization", flags.dequantization, known)
    if flags.sampler not in (None, build.AUTO):
        build.build_sampler(trained.config, flags.sampler, flags.num_steps)  # a mistake is named before anything else
    output = output_path(flags.output, trained.folder / "evaluate.json")
    data, source = asked_data(trained, flags.input)
    train, missing = training_data(trained, needed=flags.input is None)
    metrics = chosen(flags.metric, data)
    left = left_out(flags, metrics, data, missing)
    choose_threads(trained.batch_size(graphs=1) * math.prod(trained.model.shape))
    count = len(data) if flags.num_samples is None else min(flags.num_samples, len(data))
    evaluation = Evaluation(trained, train, data, count)
    if left:
        evaluation.record["left out"] = "; ".join(left)
    evaluation.record.update(
        samples=count, source=source, step=trained.checkpoint.step, seed=trained.seed, shape=list(data.shape)
    )
    rows: list[Row] = []

    def finished(more: list[Row]) -> None:  # what is known is not lost if what follows fails
        rows.extend(more)
        results = {row.name: {"value": row.value, "standard error": row.error} for row in rows}
        record = {"comment": MARK} | evaluation.record | {"results": results}
        write_text(output, json.dumps(record, indent=1).replace("NaN", "null"))

    if {"nll", "bits", "elbo"} & set(metrics):
        evaluations = EVALUATIONS if flags.num_steps is None else flags.num_steps
        finished(densities(evaluation, metrics, evaluations, flags.dequantization))
    if "vlb" in metrics:
        finished(discrete_bound(evaluation))
    if {"frechet", "sw2"} & set(metrics):
        finished(_distances(evaluation, metrics, flags))
    _report(evaluation, rows)
    print(f"numbers: {output}")
    return 0


def _report(evaluation: Evaluation, rows: Sequence[Row]) -> None:
    """Prints what was evaluated, and the table."""
    record = evaluation.record
    print(f"{record['samples']} samples ({record['source']}), step {record['step']}")
    for line in notes(record):
        print(line)
    print(f"{'':44}{'value':>12}{'standard error':>16}")
    for row in rows:
        error = "" if math.isnan(row.error) else f"{row.error:.2g}"
        print(f"{row.name:44}{row.value:>12.5g}{error:>16}")


def notes(record: dict[str, Any]) -> list[str]:
    """What the numbers are of, in words."""
    lines = []
    if "flow" in record:
        flow = record["flow"]
        lines.append(f"flow: {flow['evaluations']} evaluations, divergence {flow['divergence']}, {flow['prior']}")
        lines.append(
            f"not in the standard error: an error of the steps of at most about {flow[STEPS]:.1g} nats per dimension; "
            f"{flow[BELOW]:.1g} come from noise below the smallest level"
        )
    if "units of nats" in record:
        lines.append(f"nats: of densities in {record['units of nats']} units")
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
    if "left out" in record:
        lines.append(f"left out: {record['left out']}")
    return lines


def _sampler(trained: Trained, flags: EvaluateFlags) -> tuple[str, Sampler, torch.Tensor]:
    """The sampler that distances are taken of, with its name and grid.

    If none is named, the number of steps is that of the densities.
    """
    name = flags.sampler or build.AUTO
    num_steps = flags.num_steps if flags.sampler else None
    if name == build.AUTO:
        fitted = best_tables(trained)[0]
        return name, fitted, fitted.grid(trained.model, num_steps)
    return name, *piloted_sampler(trained, name, num_steps)


def _drawn(flags: EvaluateFlags) -> int:
    """How many samples distances are taken of."""
    return DRAWN if flags.num_samples is None else flags.num_samples


def _distances(evaluation: Evaluation, metrics: Collection[str], flags: EvaluateFlags) -> list[Row]:
    """Distances of samples that are drawn now to the data, beside those of as many training samples, if there are."""
    trained = evaluation.trained
    train = evaluation.train
    data = evaluation.data
    drawn = _drawn(flags)
    cond = trained.conditions(drawn)
    name, sampler, grid = _sampler(trained, flags)
    levels = sampler.evaluated(trained.model, grid)
    evaluations = UNKNOWN_EVALUATIONS if levels is None else len(levels)
    size = trained.batch_size()
    with Progress("sample", -(-drawn // size) * evaluations, unit="evaluations") as progress:

        def advance(*_: Any) -> None:
            progress.update(min(progress.count + 1, progress.total))

        x, nfe = sample(
            trained.model, sampler, drawn, grid=grid, cond=cond, seed=trained.seed, batch_size=size, callback=advance
        )
    evaluation.record["drawn"] = {"samples": drawn, "sampler": name, "evaluations": nfe}
    x = x.cpu()
    real = data.all()[0]
    if train is None:
        return [Row("sliced Wasserstein-2 distance", sliced_wasserstein(x, real))]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(trained.seed))[:drawn]
    others = train.select(order)
    if "sw2" in metrics:
        return [
            Row("sliced Wasserstein-2 distance", sliced_wasserstein(x, real)),
            Row("  of training samples", sliced_wasserstein(others.all()[0], real)),
        ]
    print("training a classifier of the training data ...", flush=True)
    classifier = train_classifier(train)
    of_real = judge(classifier, real, data.labels)
    of_drawn = judge(classifier, x, cond if isinstance(cond, torch.Tensor) else None)
    rows = [Row(f"Frechet distance ({FEATURES} features)", frechet_distance(of_drawn.features, of_real.features))]
    if len(others) > FEATURES:
        of_train = judge(classifier, others.all()[0], others.labels)
        rows.append(Row("  of training samples", frechet_distance(of_train.features, of_real.features)))
    if cond is not None:
        rows.append(Row("label agreement", of_drawn.agreement))
        rows.append(Row("  of the real samples", of_real.agreement))
    return rows
