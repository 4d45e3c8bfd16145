"""`--mode evaluate --input FOLDER --reference FOLDER`: two sets of samples compared without a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from scoresde.app import distances
from scoresde.app.config import load_config, override
from scoresde.app.device import choose_device
from scoresde.app.distances import Sets, build_network, measure, possible_metrics, suited_features
from scoresde.app.feature_files import features_of_data
from scoresde.app.files import output_path
from scoresde.app.flags import EvaluateFlags
from scoresde.app.measures import Table
from scoresde.app.real_data import levels_of, read_samples
from scoresde.data.info import DataInfo
from scoresde.errors import UsageError, require, unknown_name
from scoresde.metrics.compare import METRICS
from scoresde.training.parallel import join_world, leave_world

TAKEN = {"metric", "input", "reference", "features", "num_samples", "output", "device"}


def evaluate_files(flags: EvaluateFlags, overrides: Sequence[str]) -> int:
    """Prints measures of one set of samples beside another, and writes them as JSON."""
    for name in sorted(flags.given() - TAKEN):
        raise UsageError(
            f"{name}={getattr(flags, name)!r}: belongs to a model, and --input with --reference compares samples "
            "without one; leave it out"
        )
    for argument in overrides:
        require(
            argument.startswith("--config.data."),
            f"{argument.partition('=')[0]}: belongs to a model; here only fields of --config.data can be given",
        )
    assert flags.input is not None
    assert flags.reference is not None
    config = load_config(None, None)
    override(config, overrides)
    samples, real = (read_samples(getattr(flags, name), name, config) for name in ("input", "reference"))
    require(
        samples.shape == real.shape,
        f"input={flags.input!r}: holds samples of shape {samples.shape}, and reference={flags.reference!r} of "
        f"{real.shape}; bring them to one shape with --config.data.image_size and --config.data.channels",
    )
    if flags.num_samples is not None:
        samples, real = (each.select(torch.arange(min(flags.num_samples, len(each)))) for each in (samples, real))
    image = len(real.shape) == 3
    usual = distances.OF_IMAGES if image else distances.OF_VECTORS
    metrics = list(usual) if flags.metric == "all" else flags.metric.split(",")
    for name in metrics:
        if name not in METRICS:
            raise unknown_name("metric of two sets", name, ["all", *METRICS])
    features = suited_features(flags.features or ("efficientnet" if image else None), real, real)
    counts = {"input": len(samples), "reference": len(real)}
    kept, left = possible_metrics(metrics, features, real.shape, counts, strict=flags.metric != "all")
    for reason in left:
        print(f"left out: {reason}")
    require(
        "classwise" not in kept or samples.class_names == real.class_names,
        f"metric='classwise': the classes are {samples.class_names} and {real.class_names}; need the same names",
    )
    output = output_path(flags.output, Path("evaluate.json"))
    world, device = join_world(choose_device(flags.device))
    samples = dataclasses.replace(samples, codec=real.codec)
    network = build_network(features, real, real, levels_of(DataInfo.of(real)), device)
    where = network, output.parent
    sets = [
        features_of_data(data, *where, f"{len(data)} samples of {path}", world, device)
        for data, path in ((samples, flags.input), (real, flags.reference))
    ]
    record = {"samples": len(samples), "source": flags.input, "reference": flags.reference, "real": len(real)}
    table = Table(record | {"features": network.tag, "shape": list(real.shape)}, output if world.leader else None)
    if world.leader:
        for metric in kept:
            table.add(measures=measure(sets[0], Sets(sets[1]), [metric]))
        print(f"{len(samples)} samples ({flags.input}) beside {len(real)} ({flags.reference}); features {network.tag}")
        table.show()
        print(f"numbers: {output}")
    leave_world()
    return 0
