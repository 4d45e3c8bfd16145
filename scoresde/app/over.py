"""`--mode evaluate --over_steps 5,10,20` and `--over_checkpoints 6`: distances as a curve."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from scoresde import plots
from scoresde.app import distances
from scoresde.app.device import choose_threads
from scoresde.app.distances import Drawing, build_network, measure, possible_metrics, suited_features
from scoresde.app.files import check_free
from scoresde.app.flags import EvaluateFlags
from scoresde.app.measures import Measure, write_json
from scoresde.app.real_data import Real, levels_of, real_data
from scoresde.app.trained import Trained
from scoresde.app.user_data import asked_data, own_data
from scoresde.errors import UsageError, require
from scoresde.training.parallel import join_world, leave_world
from sde_configs import build

DRAWN = 1000  # samples, if no number is given


class Place(NamedTuple):
    """A place on the horizontal axis: its number, the model, and the number of steps of the sampler."""

    number: int
    trained: Trained
    num_steps: int | None


def over(flags: EvaluateFlags, overrides: Sequence[str], trained: Trained, output: Path, names: Sequence[str]) -> int:
    """Draws a curve of distances, and writes their numbers as JSON.

    Args:
        flags: of the command.
        overrides: fields of the configuration.
        trained: the model.
        output: the file of the numbers; the picture lies beside it.
        names: of the distances.
    """
    picture = output.with_suffix(".png")
    check_free(picture)
    world, device = join_world(trained.device)
    trained = trained.on(device)
    data, source = asked_data(trained, flags.input)
    train = own_data(trained)[0]
    real: Real = real_data(trained, flags, data, source, train)
    features = suited_features(flags.features, real.data, train)
    count = DRAWN if flags.num_samples is None else flags.num_samples
    counts = {"num_samples": count, "reference": len(real.data)}
    possible_metrics(names, features, data.shape, counts, flags.reference, strict=True)
    places = list(_places(flags, overrides, trained))
    choose_threads(trained.batch_size(graphs=1) * math.prod(trained.model.shape))  # as without a curve: same classifier
    network = build_network(features, real.data, train, levels_of(trained.data), device)
    sampler = flags.sampler or build.AUTO
    curve: dict[int, list[Measure]] = {}
    axis = "steps" if flags.over_steps is not None else "step of training"
    for number, model, num_steps in places:
        drawing = Drawing(model, network, trained.folder, sampler, count, world)
        drawn = drawing.draw(num_steps)
        sets = drawing.sets(real, distances.COPYING in names)
        if world.leader:
            curve[number] = measure(drawn.features, sets, names)
            shown = ", ".join(f"{each.name} {each.estimate.value:.4g}" for each in curve[number])
            print(f"{axis} {number} ({drawn.record['evaluations']} evaluations): {shown}", flush=True)
            record: dict[str, Any] = {
                "samples": count,
                "sampler": sampler,
                "real": real.name,
                "features": network.tag,
                "seed": trained.seed,
                "axis": axis,
                "curve": {key: {each.name: each.to_json() for each in rows} for key, rows in curve.items()},
            }
            write_json(output, record)
            drawn.files.remove()
    if world.leader:
        lines: dict[str, list[plots.Interval]] = {}
        for rows in curve.values():
            for name, found, _ in rows:
                lines.setdefault(name, []).append(plots.Interval(found.value, found.low, found.high))
        floors = {name: floor for rows in curve.values() for name, _, floor in rows}
        title = f"{count} samples by {sampler}; features {network.tag}"
        plots.save(plots.measures_over(list(curve), lines, floors, axis, title), picture)
        print(f"picture: {picture}\nnumbers: {output}")
    leave_world()
    return 0


def _places(flags: EvaluateFlags, overrides: Sequence[str], trained: Trained) -> Iterator[Place]:
    """What is on the horizontal axis.

    Raises:
        UsageError: for numbers of steps that are none, or a run without checkpoints.
    """
    require(
        flags.over_steps is None or flags.over_checkpoints is None,
        f"over_steps={flags.over_steps!r}, over_checkpoints={flags.over_checkpoints}: give one of the two",
    )
    if flags.over_steps is not None:
        try:
            numbers = [int(part) for part in flags.over_steps.split(",")]
        except ValueError:
            numbers = [0]
        require(
            min(numbers) >= 1, f"over_steps={flags.over_steps!r}: need numbers of steps between commas, as in 5,10,20"
        )
        for number in sorted(set(numbers)):
            yield Place(number, trained, number)
        return
    asked = flags.over_checkpoints
    assert asked is not None
    require(asked >= 1, f"over_checkpoints={asked}: need at least 1")
    run = trained.run
    if run is None or flags.checkpoint is not None:
        raise UsageError(f"over_checkpoints={asked}: needs the run, not one checkpoint; give --workdir")
    files = run.all_checkpoints()
    count = min(asked, len(files))
    chosen = [files[round(k * (len(files) - 1) / max(1, count - 1))] for k in range(count)] if count > 1 else files[-1:]
    for file in chosen:
        model = Trained.of(replace(flags, workdir=None, sde=None, checkpoint=str(file)), overrides).on(trained.device)
        yield Place(model.checkpoint.step, model, flags.num_steps if flags.sampler else None)
