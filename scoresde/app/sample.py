"""`--mode sample`: from a checkpoint to a picture and an array."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor

from samplers import AnnealedLangevin, FittedSampler, PredictorCorrector, Sampler, TableSampler, choose_snr
from samplers import sample as draw
from scoresde.app.device import choose_threads
from scoresde.app.fitted_tables import fitted_tables
from scoresde.app.pictures import demo_labels, save_numbers, save_picture
from scoresde.app.pilot_cache import PilotCache
from scoresde.app.progress import Progress
from scoresde.app.run_folder import make_folder
from scoresde.app.shards import SampleShards
from scoresde.checkpoint import Checkpoint
from scoresde.data import Scaling
from scoresde.errors import UsageError, require
from scoresde.score_model import ScoreModel
from scoresde.training import join_world
from sde_configs import build


def sample(
    checkpoint: Checkpoint,
    config: ConfigDict,
    sampler_name: str,
    output: Path,
    *,
    num_samples: int,
    num_steps: int | None,
    labels: str | None,
    seed: int,
    device: torch.device,
    calibrated: bool = True,
) -> int:
    """Draws samples from a checkpoint, and writes `output` (PNG) and an .npz beside it; returns the exit status.

    Batches are kept on disk as they are drawn: the same command goes on after a kill, and no sample is lost or doubled.
    """
    batch_size = config.sampling.batch_size
    _check(num_samples, num_steps, batch_size, output)
    data = checkpoint.description["data"]
    sampler = None if sampler_name == build.AUTO else build.build_sampler(config, sampler_name, num_steps)
    cond = parse_labels(labels, num_samples, data["num_classes"])
    world, device = join_world(device)
    model = build.build_sampling_model(
        config, checkpoint.model().to(device), scaling_of(data), data["low"], data["high"]
    )
    leader = world.leader
    if sampler is None:
        sampler = _auto(model, checkpoint, config, num_steps, leader, calibrated)
    grid = sampler.default_grid(model.sde, sampler.default_num_steps if num_steps is None else num_steps)
    if isinstance(sampler, PredictorCorrector | AnnealedLangevin) and config.sampling[sampler_name].snr == 0:
        sampler = _with_piloted_snr(sampler, sampler_name, model, grid, checkpoint, config, leader)
    size = min(batch_size, -(-num_samples // world.size))
    firsts = range(0, num_samples, size)
    described = _described(checkpoint, config, sampler, grid, cond)
    parts = SampleShards(output, described | {"seed": seed, "num_samples": num_samples, "size": size})
    mine = [first for first in firsts[world.rank :: world.size] if not parts.has(first)]
    if leader and len(mine) < len(firsts[world.rank :: world.size]):
        print(f"going on: {sum(map(parts.has, firsts))} of {len(firsts)} parts are there", flush=True)
    choose_threads(size * math.prod(model.shape))
    graphed = config.sampling.cuda_graph
    evaluations = sampler.num_evaluations(model.sde, grid) or 100
    with Progress("sample", evaluations * max(1, len(mine)), unit="evaluation", shown=leader) as progress:
        for first in mine:
            count = min(size, num_samples - first)
            x, nfe = draw(
                model,
                sampler,
                count,
                grid=grid,
                cond=None if cond is None else cond[first : first + count],
                seed=seed,
                first_index=first,
                batch_size=size,
                callback=None if graphed else lambda *_: progress.update(min(progress.count + 1, progress.total)),
                cuda_graph=graphed,
            )
            if graphed:
                progress.update(min(progress.count + evaluations, progress.total))
            parts.write(first, x, nfe)
    world.wait(device)
    if leader:
        x, nfe = parts.join(firsts)
        raw = scaling_of(data).to_raw(x)
        save_picture(output, raw, cond, data["low"], data["high"], data["num_classes"])
        save_numbers(output.with_suffix(".npz"), raw, cond, seed)
        parts.remove()
        print(f"{num_samples} samples by {sampler_name}, {nfe} network evaluations each")
        print(f"picture: {output}\nnumbers: {output.with_suffix('.npz')}")
    return 0


def _check(num_samples: int, num_steps: int | None, batch_size: int, output: Path) -> None:
    """That the numbers are possible and the output can be written."""
    require(num_samples >= 1, f"num_samples={num_samples}: need at least 1")
    require(num_steps is None or num_steps >= 1, f"num_steps={num_steps}: need at least 1")
    require(batch_size >= 1, f"config.sampling.batch_size={batch_size}: need at least 1")
    make_folder(output.parent, "output", output)
    for path in (output, output.with_suffix(".npz")):
        require(not path.is_dir(), f"output={str(path)!r}: is a folder; choose another with --output")


def _described(
    checkpoint: Checkpoint, config: ConfigDict, sampler: Sampler, grid: Tensor, cond: Tensor | None
) -> dict[str, Any]:
    """What the samples depend on beside their noise, as JSON can hold it."""
    return {
        "config": checkpoint.description["config"],
        "digest": checkpoint.description["digest"],
        "step": checkpoint.step,
        "threshold": config.sampling.threshold,
        "quantile": config.sampling.quantile,
        "sampler": str(sampler),
        "grid": grid.tolist(),
        "labels": None if cond is None else cond.tolist(),
    }


def _auto(
    model: ScoreModel, checkpoint: Checkpoint, config: ConfigDict, num_steps: int | None, leader: bool, calibrated: bool
) -> FittedSampler:
    """The fitted tables of a model; says so where the one that is asked for is calibrated."""
    sampler, counts = fitted_tables(model, checkpoint, config, leader, calibrated)
    count = sampler.default_num_steps if num_steps is None else num_steps
    if leader and count in counts:
        print(f"the table of {count} evaluations is calibrated (--calibrated=off takes the pilot's)", flush=True)
    return sampler


def _with_piloted_snr(
    sampler: PredictorCorrector | AnnealedLangevin,
    name: str,
    model: ScoreModel,
    grid: Tensor,
    checkpoint: Checkpoint,
    config: ConfigDict,
    leader: bool,
) -> TableSampler:
    """The sampler with the snr that a pilot run finds best, kept beside the checkpoint."""
    settings = {"sampler": str(sampler), "grid": grid.tolist(), "threshold": config.sampling.threshold}
    labels = demo_labels(16, checkpoint.description["data"]["num_classes"])

    def search() -> float:
        if leader:
            print("choosing snr by a pilot run ...", flush=True)
        return choose_snr(model, lambda snr: replace(sampler, snr=snr), grid, labels)

    def valid(found: Any) -> bool:
        return isinstance(found, float) and 0 < found < 1

    snr = PilotCache(checkpoint).find("snr", settings, search, valid, write=leader)
    if leader:
        print(f"snr {snr} (by a pilot run; --config.sampling.{name}.snr=VALUE sets it)", flush=True)
    return replace(sampler, snr=snr)


def scaling_of(data: Mapping[str, Any]) -> Scaling:
    """The scaling that a checkpoint describes."""
    center, scale = (tuple(value) if isinstance(value, list) else value for value in (data["center"], data["scale"]))
    return Scaling(center, scale)


def parse_labels(text: str | None, num_samples: int, num_classes: int) -> Tensor | None:
    """Labels of the samples: "3" or "3,1,4" repeated to the number of samples; by default all classes in turn."""
    if text is None:
        return demo_labels(num_samples, num_classes)
    require(num_classes > 0, f"labels={text!r}: this model was trained without classes; leave --labels out")
    try:
        given = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"labels={text!r}: need whole numbers between commas, as in --labels=3,1,4") from error
    bad = [label for label in given if not 0 <= label < num_classes]
    require(not bad, f"labels={text!r}: {bad[:1]} is no class; this model knows 0 to {num_classes - 1}")
    return torch.tensor(given).repeat(-(-num_samples // len(given)))[:num_samples]
