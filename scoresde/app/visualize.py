"""`--mode visualize`: pictures of a trained model, or of the exact scores of known data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scoresde import plots
from scoresde.app.config import load_config, override
from scoresde.app.device import choose_device, choose_threads
from scoresde.app.figures import (
    attention,
    denoising,
    density,
    guidance,
    langevin,
    latents,
    schedule,
    score_field,
    training,
    trajectories,
)
from scoresde.app.figures.latents import AutoencoderSubject, autoencoder_subject
from scoresde.app.figures.subject import TRAINED_IN_SECONDS, FigureOptions, Subject, subject_of_data, subject_of_run
from scoresde.app.files import output_path
from scoresde.app.flags import VisualizeFlags
from scoresde.app.guiding import Guiding
from scoresde.app.run_folder import score_runs
from scoresde.app.trained import Trained
from scoresde.errors import UsageError, require, unknown_name
from sde_configs.build import AUTO

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FigureSpec(NamedTuple):
    """A picture that can be asked for.

    Attributes:
        draw: makes the figure.
        frames: makes those of an animation, or None if nothing moves.
        flags: which of `OPTIONAL` it takes.
        learn: whether without a run a small network is trained on the way.
        data: what it is of without a run.
        of_sde: whether it is of the SDE alone: then it needs no data of a run, and without any name it is of no run.
        guides: whether it is of guidance, and has weights of its own.
        of_run: whether it is of a run in any case, and needs no data.
        of_autoencoder: whether it is of an `AutoencoderSubject`, that of a run.
    """

    draw: Callable[[Any, FigureOptions], Figure]
    frames: Callable[[Any, FigureOptions], Any] | None
    flags: tuple[str, ...]
    learn: bool = False
    data: str = "modes"
    of_sde: bool = False
    guides: bool = False
    of_run: bool = False
    of_autoencoder: bool = False


FIGURES = {
    "score_field": FigureSpec(score_field.draw, score_field.frames, ("labels",), learn=True),
    "trajectories": FigureSpec(trajectories.draw, None, ("num_samples", "num_steps", "labels")),
    "density": FigureSpec(density.draw, None, ("num_steps", "labels"), learn=True),
    "schedule": FigureSpec(schedule.draw, None, ("num_steps", "sampler"), of_sde=True),
    "denoising": FigureSpec(
        denoising.draw, denoising.frames, ("num_samples", "num_steps", "sampler", "labels"), data="digits"
    ),
    "langevin": FigureSpec(langevin.draw, langevin.frames, ("num_samples", "num_steps"), of_sde=True),
    "training": FigureSpec(training.draw, training.frames, ()),
    "guidance": FigureSpec(
        guidance.draw, None, ("num_samples", "num_steps", "sampler", "labels"), data="blobs", guides=True
    ),
    "latents": FigureSpec(latents.draw, None, ("num_samples",), of_autoencoder=True),
    "attention": FigureSpec(attention.draw, None, ("num_steps", "sampler", "prompt"), of_run=True),
}
OPTIONAL = ("num_samples", "num_steps", "sampler", "labels", "prompt")
OF_GUIDANCE = ("guidance", "guidance_interval", "guide_with")


def visualize(flags: VisualizeFlags, overrides: Sequence[str]) -> int:
    """Draws and writes a picture; returns the exit status."""
    name, figure = _figure(flags)
    kinds = (".png", ".svg", *([".gif"] if figure.frames else []))
    if flags.output is not None:  # a mistake is named before anything else
        output_path(flags.output, Path(f"{name}.png"), kinds=kinds)
    for flag in OPTIONAL + OF_GUIDANCE:
        value = getattr(flags, flag)
        takes = flag in figure.flags if flag in OPTIONAL else not (figure.of_sde or figure.of_autoencoder)
        require(
            value is None or takes,
            f"{flag}={value}: does nothing in the picture {name}; leave it out",
        )
    require(
        flags.sampler != AUTO,
        f"sampler={AUTO!r}: is fitted to a run by --mode sample; a picture takes another, such as heun",
    )
    subject, folder = _subject(flags, overrides, figure)
    output = output_path(flags.output, folder / f"{name}.png", kinds=kinds)
    seed = subject.config.seed if flags.seed is None else flags.seed
    options = FigureOptions(flags.num_samples, flags.num_steps, flags.sampler, seed, flags.guidance, flags.prompt)
    if output.suffix == ".gif" and figure.frames is not None:
        plots.save_animation(figure.frames(subject, options), output)
    else:
        plots.save(figure.draw(subject, options), output)
    print(f"picture: {output}")
    return 0


def _figure(flags: VisualizeFlags) -> tuple[str, FigureSpec]:
    """The picture that is asked for; raises `UsageError` for a name that is unknown or missing."""
    name = flags.what
    if name is None:
        raise UsageError(f"what: give --what {', --what '.join(FIGURES)}")
    if name not in FIGURES:
        raise unknown_name("what", name, FIGURES)
    return name, FIGURES[name]


def _subject(
    flags: VisualizeFlags, overrides: Sequence[str], figure: FigureSpec
) -> tuple[Subject | AutoencoderSubject, Path]:
    """What a picture is of, and the folder where it goes.

    A run that is named, or the newest if nothing is; otherwise what --sde and --config say, without a run.
    """
    if figure.of_autoencoder:
        return autoencoder_subject(flags, overrides)
    device = choose_device(flags.device)
    if figure.guides and flags.guidance is None:
        flags = replace(flags, guidance=2.0)  # one of the picture's own weights, by which the model is checked
    given = flags.sde or flags.config or any(a.startswith("--config.") for a in overrides)
    newest = not (figure.of_sde or given) and bool(score_runs(Path("runs")))
    if flags.checkpoint or flags.workdir or flags.pipeline or newest or figure.of_run:
        require(
            flags.config is None,
            f"config={flags.config!r}: a checkpoint holds its own; --config.sampling.FIELD=VALUE changes a field",
        )
        trained = Trained.of(flags, overrides)
        return subject_of_run(trained, flags.labels, with_data=not (figure.of_sde or figure.of_run)), trained.folder
    for name in OF_GUIDANCE:
        value = getattr(flags, name)
        require(
            value is None or (figure.guides and name != "guide_with"),
            f"{name}={value}: needs a trained model; name its run with --workdir",
        )
    config = load_config(flags.sde, flags.config or "toy")
    if flags.config is None:
        config.data.name = figure.data
        config.network.width = 96
    config.training.update(TRAINED_IN_SECONDS)
    config.objective = load_config("edm", None).objective  # small noise levels are learned in fewer steps
    override(config, overrides)
    if flags.seed is not None:
        config.seed = flags.seed
    choose_threads(0)
    subject = subject_of_data(config, flags.labels, figure.learn, device)
    if figure.guides:
        subject = replace(subject, guiding=Guiding.of(flags, config))
    print(
        f"of {config.data.path or config.data.name} under {config.sde.name}, with no run (--workdir names one)",
        flush=True,
    )
    return subject, Path()
