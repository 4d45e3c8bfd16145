"""`--mode sample --cascade`: a model of small samples, and upsamplers that enlarge them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from torch import Tensor

from samplers.base import Samples
from samplers.cascades import check_meets, check_noise, low_condition, stage_seed
from samplers.sampling import joined
from scoresde import condition
from scoresde._batches import batches
from scoresde.app.config import is_upsampler
from scoresde.app.drawing import Plan, check_flags, choose_sampler, draw, read_prompts
from scoresde.app.files import output_path
from scoresde.app.flags import SampleFlags
from scoresde.app.parts import examples_of
from scoresde.app.pictures import labels_array, save_numbers, save_stages, seeds_array
from scoresde.app.shards import SampleShards
from scoresde.app.trained import Trained
from scoresde.condition import Condition
from scoresde.errors import require
from scoresde.registry import describe
from scoresde.training.parallel import World, join_world, leave_world
from scoresde.upsampling import UpsamplingObjective
from sde_configs import build

PILOT_SAMPLES = 64  # of the stage before, which pilot runs of an upsampler begin from


@final
@dataclass(frozen=True)
class Link:
    """A stage of a command's cascade.

    Attributes:
        name: what the command calls it.
        trained: the checkpoint.
        upsampling: what an upsampler was trained by; None for the first stage.
    """

    name: str
    trained: Trained
    upsampling: UpsamplingObjective | None

    @property
    def noise(self) -> float:
        """s, on what an upsampler is given."""
        value: float = self.trained.config.sampling.low_noise
        return value

    def on(self, device: Any, seed: int) -> Link:
        """The same on a device, with the seed of its own noise."""
        return replace(self, trained=replace(self.trained.on(device), seed=seed))


def sample_cascade(flags: SampleFlags, overrides: Sequence[str]) -> int:
    """Draws from a cascade, stage after stage; writes a picture and an .npz; returns the exit status.

    As without a cascade, batches of all stages are kept on disk, and the same command goes on after a kill.
    """
    links = _load(flags, overrides)
    last = links[-1].trained
    seed = links[0].trained.seed
    output = output_path(
        flags.output, last.folder / f"cascade-{flags.sampler}{last.guiding.label}-seed{seed}.png", ".npz"
    )
    conds = _conditions(links, flags)
    labels = next((cond for cond in conds if isinstance(cond, Tensor)), None)
    world, device = join_world(last.device)
    drawn: list[Samples] = []
    raw: list[Tensor] = []
    kept: list[SampleShards] = []
    with contextlib.ExitStack() as held:
        settings: dict[str, Any] = {}
        for k, link in enumerate(links):
            link = link.on(device, stage_seed(seed, k))
            link, plan, settings = _plan(link, flags, raw[-1] if raw else None, conds[k], settings, world)
            shards = SampleShards(output, settings)
            if world.leader:
                held.enter_context(shards.locked())
            draw(link.trained, plan, shards, world)
            world.wait(device)
            drawn.append(joined([shards.read(part.start) for part in batches(plan.num_samples, plan.batch_size)]))
            raw.append(link.trained.decode(drawn[-1].x))
            kept.append(shards)
        if world.leader:
            _write(output, links, raw, labels, seed)
            for shards in kept:
                shards.remove()
            evaluations = " + ".join(str(part.nfe) for part in drawn)
            print(f"{flags.num_samples} samples by {flags.sampler}, {evaluations} network evaluations each")
            print(f"picture: {output}\nnumbers: {output.with_suffix('.npz')}")
    leave_world()
    return 0


def _load(flags: SampleFlags, overrides: Sequence[str]) -> list[Link]:
    """The stages that the flags name.

    Raises:
        UsageError: for stages that do not meet.
    """
    given = f"cascade={flags.cascade!r}"
    names = [name.strip() for name in (flags.cascade or "").split(",")]
    for other in ("workdir", "checkpoint", "sde", "pipeline", "autoencoder"):
        require(getattr(flags, other) is None, f"{given}: names all models; leave --{other} out")
    require(
        len(names) >= 2 and all(names), f"{given}: need runs or checkpoints between commas, as in runs/small,runs/large"
    )
    links = []
    for k, name in enumerate(names):
        place = {"workdir": name} if Path(name).is_dir() else {"checkpoint": name}
        trained = Trained.of(replace(flags, **place), overrides, in_cascade=True)  # type: ignore[arg-type]
        check_flags(flags, trained)
        upsampler = is_upsampler(trained.config)
        require(k > 0 or not upsampler, f"{given}: {name} is an upsampler; begin with a model of small samples")
        require(
            k == 0 or upsampler,
            f"{given}: {name} is no upsampler; train one, as in --mode train --config upsampler --workdir runs/large",
        )
        objective = build.build_objective(trained.config) if upsampler else None
        links.append(Link(name, trained, objective if isinstance(objective, UpsamplingObjective) else None))
    for before, link in itertools.pairwise(links):
        assert link.upsampling is not None
        check_noise(link.upsampling, link.noise, "config.sampling.low_noise")
        models = before.trained.network_model, link.trained.network_model
        check_meets(*models, link.upsampling, (before.name, f"{given}: {link.name}"))
    return links


def _conditions(links: Sequence[Link], flags: SampleFlags) -> list[Condition]:
    """What each stage is given beside images: the same captions, or the same classes, if it takes them."""
    given = f"cascade={flags.cascade!r}"
    labelled = [link for link in links if link.trained.data.num_classes]
    for link in labelled[1:]:
        counts = labelled[0].trained.data.num_classes, link.trained.data.num_classes
        require(
            counts[0] == counts[1],
            f"{given}: {labelled[0].name} has {counts[0]} classes, and {link.name} has {counts[1]}",
        )
    captioned = [link.trained for link in links if link.trained.captioned]
    texts = read_prompts(flags.prompt, flags.labels)
    require(not texts or bool(captioned), f"{given}: no stage was trained with captions; leave --prompt out")
    if captioned and not texts:
        texts = examples_of(captioned[0].checkpoint)
    labels = labelled[0].trained.conditions(flags.num_samples, flags.labels) if labelled else None
    require(
        bool(labelled) or flags.labels is None,
        f"labels={flags.labels!r}: no stage was trained with classes; leave --labels out",
    )
    conds: list[Condition] = []
    for link in links:
        trained = link.trained
        own = trained.of_texts(texts, flags.num_samples) if trained.captioned else None
        conds.append(labels if link in labelled else own)
        trained.model.check_cond(condition.to(condition.take(conds[-1], slice(1)), trained.device))
    return conds


def _plan(
    link: Link, flags: SampleFlags, raw: Tensor | None, given: Condition, before: dict[str, Any], world: World
) -> tuple[Link, Plan, dict[str, Any]]:
    """How a stage is drawn, and all that its samples depend on.

    Args:
        link: the stage.
        flags: of the command.
        raw: samples of the stage before.
        given: what the stage is given beside images.
        before: all that the samples of the stage before depend on.
        world: the processes.
    """
    trained = link.trained
    size = min(trained.batch_size(), -(-flags.num_samples // world.size))
    cond = given
    own: dict[str, Any] = {"seed": trained.seed}
    if link.upsampling is not None and raw is not None:
        parts = [
            low_condition(
                trained.network_model,
                link.upsampling,
                raw[part],
                link.noise,
                trained.seed,
                condition.take(given, part),
                part.start,
            )
            for part in batches(flags.num_samples, size)
        ]
        cond = condition.join([condition.to(part, "cpu") for part in parts])
        assert isinstance(cond, dict)
        low = {name: cond[name] for name in ("image", "image_noise")}
        trained = replace(trained, low=condition.take(low, slice(PILOT_SAMPLES)))
        own |= {"before": before, "upsampling": describe(link.upsampling), "noise": link.noise}
    sampler, grid = choose_sampler(trained, flags.sampler, flags.num_steps, world.leader)
    plan = Plan(sampler, grid, cond, flags.num_samples, size)
    settings = trained.sampling_key() | replace(plan, cond=given).as_json() | own
    return replace(link, trained=trained), plan, settings


def _write(output: Path, links: Sequence[Link], raw: Sequence[Tensor], labels: Tensor | None, seed: int) -> None:
    """Writes the picture and the numbers: `samples` are those of the last stage, `stage0` ... those before."""
    save_stages(output, [(part, link.trained.data) for part, link in zip(raw, links, strict=True)], labels)
    earlier = {f"stage{k}": part for k, part in enumerate(raw[:-1])}
    count = len(raw[-1])
    save_numbers(
        output.with_suffix(".npz"),
        samples=raw[-1],
        labels=labels_array(labels, count),
        seeds=seeds_array(seed, count),
        **earlier,
    )
