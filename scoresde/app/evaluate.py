"""`--mode evaluate`: how good a trained model is, as a table and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scoresde.app import distances
from scoresde.app.densities import BELOW, STEPS, VARIATIONAL, Evaluation, densities, discrete_bound
from scoresde.app.device import choose_threads
from scoresde.app.distances import Drawing, build_network, measure, possible_metrics, suited_features
from scoresde.app.evaluate_files import evaluate_files
from scoresde.app.files import output_path
from scoresde.app.flags import EvaluateFlags
from scoresde.app.measures import Table
from scoresde.app.over import DRAWN, over
from scoresde.app.real_data import HELD_OUT, TRAIN, Real, levels_of, real_data
from scoresde.app.trained import Trained
from scoresde.app.user_data import asked_data, own_data
from scoresde.data.arrays import ArrayData
from scoresde.errors import UsageError, require, unknown_name
from scoresde.metrics import DEQUANTIZATIONS
from scoresde.models.latent_codec import AutoencoderCodec
from scoresde.training.parallel import World, join_world, leave_world
from sde_configs import build

DENSITIES = ("nll", "bits", "elbo", "vlb")
METRICS = (*DENSITIES, *distances.METRICS)
EVALUATIONS = 64


def chosen(text: str, data: ArrayData) -> list[str]:
    """The metrics of a flag: the usual ones of such data, or those between commas.

    Raises:
        UsageError: for one that is unknown, or that the data do not allow.
    """
    quantized = not data.values.is_floating_point()
    image = len(data.shape) == 3
    latent = isinstance(data.codec, AutoencoderCodec)
    if text == "all":
        dense = [name for name in DENSITIES if quantized or name in ("nll", "elbo")]
        if isinstance(data.codec, AutoencoderCodec):
            dense = [name for name in dense if name != "vlb" and data.codec.has_density]
        agreement = [distances.AGREEMENT] if image and data.labels is not None else []
        return [*dense, *(distances.OF_IMAGES if image else distances.OF_VECTORS), *agreement]
    names = text.split(",")
    for name in names:
        if name not in METRICS:
            raise unknown_name("metric", name, ["all", *METRICS])
        require(
            quantized or name not in ("bits", "vlb"),
            f"metric={name!r}: the data are not whole numbers, and only probabilities have bits; take nll",
        )
        require(
            name != "vlb" or not latent,
            "metric='vlb': bounds whole numbers by the last step of DDPM's chain, and this model's ends in latents; "
            "take elbo, which goes through the decoder",
        )
    return names


def training_data(trained: Trained, needed: bool) -> tuple[ArrayData | None, str]:
    """The training data; if they cannot be had and are not needed, None and the reason."""
    try:
        return own_data(trained)[0], ""
    except UsageError as error:
        if needed:
            raise
        return None, str(error)


def evaluate(flags: EvaluateFlags, overrides: Sequence[str]) -> int:
    """Prints a table of metrics of the held-out samples, or of a file, and writes it as JSON."""
    require(flags.num_samples is None or flags.num_samples >= 2, f"num_samples={flags.num_samples}: need at least 2")
    if flags.input is not None and flags.reference not in (None, HELD_OUT, TRAIN):
        return evaluate_files(flags, overrides)
    trained = Trained.of(flags, overrides)
    known = [*DEQUANTIZATIONS, VARIATIONAL]
    if flags.dequantization not in known:
        raise unknown_name("dequantization", flags.dequantization, known)
    if flags.sampler not in (None, build.AUTO):
        build.build_sampler(trained.config, flags.sampler, flags.num_steps)  # a mistake is named before anything else
    output = output_path(flags.output, trained.folder / "evaluate.json")
    if flags.over_steps is not None or flags.over_checkpoints is not None:
        return _curve(flags, overrides, trained, output)
    data, source = asked_data(trained, flags.input)
    train, missing = training_data(trained, needed=flags.input is None)
    world, device = join_world(trained.device)
    trained = trained.on(device)
    metrics = chosen(flags.metric, data)
    require(
        flags.dequantization == "uniform" or not isinstance(data.codec, AutoencoderCodec),
        f"dequantization={flags.dequantization!r}: the bound of a model of latents is of whole numbers as they are; "
        "leave it out",
    )
    dense = _densities(flags, metrics, data, missing, world)
    prior = bool(missing) and bool({"nll", "bits", "elbo"} & set(dense))
    left = [f"the mean and covariance of the prior: needs the training data; {missing}"] if prior else []
    if isinstance(data.codec, AutoencoderCodec) and not data.codec.has_density and not dense:
        left.append("densities: the latents of this autoencoder are points, which have none")
    real = real_data(trained, flags, data, source, train)
    far, features = _possible(flags, [name for name in metrics if name not in DENSITIES], real, train, left)
    choose_threads(trained.batch_size(graphs=1) * math.prod(trained.model.shape))
    count = len(data) if flags.num_samples is None else min(flags.num_samples, len(data))
    evaluation = Evaluation(trained, train, data, count)
    evaluation.record.update(
        samples=count, source=source, step=trained.checkpoint.step, seed=trained.seed, shape=list(data.shape)
    )
    if left:
        evaluation.record["left out"] = "; ".join(left)
    table = Table(evaluation.record, output if world.leader else None)
    if {"nll", "bits", "elbo"} & set(dense):
        evaluations = EVALUATIONS if flags.num_steps is None else flags.num_steps
        table.add(densities(evaluation, dense, evaluations, flags.dequantization))
    if "vlb" in dense:
        table.add(discrete_bound(evaluation))
    if far:
        network = build_network(features, real.data, train, levels_of(trained.data), device)
        drawing = Drawing(trained, network, trained.folder, flags.sampler or build.AUTO, _drawn(flags), world)
        _distances(drawing, real, far, flags.num_steps if flags.sampler else None, table)
    if world.leader:
        print("\n".join([f"{count} samples ({source}), step {trained.checkpoint.step}", *notes(evaluation.record)]))
        table.show()
        print(f"numbers: {output}")
    leave_world()
    return 0


def _densities(flags: EvaluateFlags, metrics: Sequence[str], data: ArrayData, missing: str, world: World) -> list[str]:
    """The densities among the metrics; none of the usual ones if several processes share the drawing of samples.

    Raises:
        UsageError: for densities that were asked for and cannot be computed.
    """
    dense = [name for name in metrics if name in DENSITIES]
    require(
        world.size == 1 or not dense or flags.metric == "all",
        f"metric={flags.metric!r}: densities are computed by one process; several share the drawing of samples alone",
    )
    dense = dense if world.size == 1 else []
    learned = bool(dense) and flags.dequantization == VARIATIONAL and not data.values.is_floating_point()
    require(
        not (missing and learned),
        f"dequantization={flags.dequantization!r}: needs the training data; {missing}",
    )
    return dense


def _curve(flags: EvaluateFlags, overrides: Sequence[str], trained: Trained, output: Path) -> int:
    """Distances over steps or checkpoints."""
    names = flags.metric.split(",")
    if flags.metric == "all":
        names = ["kid"] if len(trained.raw_shape) == 3 else list(distances.OF_VECTORS)
    for name in names:
        if name not in distances.METRICS:
            raise unknown_name("metric of a curve", name, ["all", *distances.METRICS])
    return over(flags, overrides, trained, output, names)


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
    if "features" in record:
        lines.append(f"distances: {record['compared']}; features {record['features']}")
    if "left out" in record:
        lines.append(f"left out: {record['left out']}")
    return lines


def _drawn(flags: EvaluateFlags) -> int:
    """How many samples distances are taken of."""
    return DRAWN if flags.num_samples is None else flags.num_samples


def _possible(
    flags: EvaluateFlags, metrics: Sequence[str], real: Real, train: ArrayData | None, left: list[str]
) -> tuple[list[str], str]:
    """The distances that can be taken, and the name of their features; says what is left out of the usual ones.

    Raises:
        UsageError: for one that was asked for by name and cannot be taken.
    """
    if not metrics:
        return [], ""
    try:
        features = suited_features(flags.features, real.data, train)
    except UsageError as error:
        if flags.metric != "all":
            raise UsageError(f"metric={','.join(metrics)!r}: {error}") from error
        left.append(f"distances: {error}")
        return [], ""
    require(distances.COPYING not in metrics or train is not None, "metric='copying': needs the training data")
    counts = {"num_samples": _drawn(flags), "reference" if flags.reference else "input": len(real.data)}
    kept, reasons = possible_metrics(
        metrics, features, real.data.shape, counts, flags.reference, strict=flags.metric != "all"
    )
    left += reasons
    return kept, features


def _distances(drawing: Drawing, real: Real, metrics: Sequence[str], num_steps: int | None, table: Table) -> None:
    """Distances of samples that are drawn now to real ones, beside those of as many training samples."""
    drawn = drawing.draw(num_steps)
    sets = drawing.sets(real, distances.COPYING in metrics)
    record = table.record
    record["drawn"] = drawn.record
    record["features"] = drawing.network.tag
    how = f"{drawing.num_samples} samples by {drawing.sampler}, {drawn.record['evaluations']} evaluations each"
    floor = "" if sets.floor is None else f"; floor: {sets.floor.source} with the same"
    record["compared"] = f"{how}, with {real.name}{floor}"
    if drawing.world.leader:
        for metric in metrics:
            table.add(measures=measure(drawn.features, sets, [metric]))
        drawn.files.remove()
