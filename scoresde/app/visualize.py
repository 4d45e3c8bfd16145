"""`--mode visualize`: pictures of a trained model, or of the exact scores of known data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scoresde import plots
from scoresde.app.figures import denoising, density, langevin, schedule, score_field, training, trajectories
from scoresde.app.figures.subject import Options, Subject
from scoresde.app.run_folder import make_folder
from scoresde.errors import require, unknown_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Look(NamedTuple):
    """A picture that can be asked for.

    Attributes:
        draw: makes the figure.
        frames: makes those of an animation, or None where nothing moves.
        flags: which of num_samples, num_steps, sampler and labels it takes.
        learn: whether without a run a small network is trained on the way.
        data: what it is of without a run.
        newest: whether without any name it is of the newest run.
    """

    draw: Callable[[Subject, Options], Figure]
    frames: Callable[[Subject, Options], Any] | None
    flags: tuple[str, ...]
    learn: bool = False
    data: str = "modes"
    newest: bool = True


LOOKS = {
    "score_field": Look(score_field.draw, score_field.frames, ("labels",), learn=True),
    "trajectories": Look(trajectories.draw, None, ("num_samples", "num_steps", "labels")),
    "density": Look(density.draw, None, ("num_steps", "labels"), learn=True),
    "schedule": Look(schedule.draw, None, ("num_steps", "sampler"), newest=False),
    "denoising": Look(
        denoising.draw, denoising.frames, ("num_samples", "num_steps", "sampler", "labels"), data="digits"
    ),
    "langevin": Look(langevin.draw, langevin.frames, ("num_samples", "num_steps"), newest=False),
    "training": Look(training.draw, training.frames, ()),
}
FLAGS = ("num_samples", "num_steps", "sampler", "labels")


def look_of(what: str | None, output: str | None) -> Look:
    """The picture of a name, after a look at what is to be written.

    Raises:
        UsageError: for a name that is unknown or missing, or a kind of file that the picture cannot have.
    """
    require(what is not None, f"what: give --what {', --what '.join(LOOKS)}")
    assert what is not None
    if what not in LOOKS:
        raise unknown_name("what", what, LOOKS)
    kinds = (".png", ".svg", *([".gif"] if LOOKS[what].frames else []))
    if output is not None:
        suffix = Path(output).suffix
        require(
            suffix in ("", *kinds),
            f"output={output!r}: the picture {what} is written as {', '.join(kinds[:-1])} or {kinds[-1]}",
        )
        path = Path(output)
        make_folder(path.parent, "output", path)
        require(not path.is_dir(), f"output={output!r}: is a folder; choose another with --output")
    return LOOKS[what]


def visualize(look: Look, subject: Subject, options: Options, output: Path) -> int:
    """Draws and writes a picture; returns the exit status."""
    make_folder(output.parent, "output", output)
    if output.suffix == ".gif":
        assert look.frames is not None
        plots.save_animation(look.frames(subject, options), output)
    else:
        plots.save(look.draw(subject, options), output)
    print(f"picture: {output}")
    return 0
