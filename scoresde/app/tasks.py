"""What `--mode solve` measures: operators by the names of tasks, and measurements from files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from scoresde.app.flags import SolveFlags
from scoresde.app.trained import Trained
from scoresde.app.user_data import read_samples
from scoresde.codec import Codec
from scoresde.condition import Condition
from scoresde.data.options import reading
from scoresde.errors import UsageError, require, unknown_name
from scoresde.models.latent_codec import AutoencoderCodec, in_parts, without_latents
from scoresde.operators import (
    JPEG,
    BlockAverage,
    Blur,
    Decoded,
    FourierMagnitude,
    FourierSubsampling,
    GaussianNoise,
    Grey,
    Mask,
    MatrixOperator,
    MeasurementNoise,
    Operator,
    PoissonNoise,
    gaussian_kernel,
    motion_kernel,
    random_projection,
)


@final
@dataclass(frozen=True)
class Task:
    """What is measured, with what noise, of the data of a trained model.

    Data are in the units of `codec`. Those of a model of latents are what they are decoded to.

    Attributes:
        operator: of data, on the host.
        noise: of the measurement.
        trained: the model.
    """

    operator: Operator
    noise: MeasurementNoise
    trained: Trained

    @property
    def codec(self) -> Codec:
        """Of the data: the model's, or that of its autoencoder."""
        return without_latents(self.trained.network_model.codec)

    @property
    def of_samples(self) -> Operator:
        """What is measured, as a function of the model's samples."""
        model = self.trained.network_model
        if not isinstance(model.codec, AutoencoderCodec):
            return self.operator
        return Decoded(self.operator, model.codec.decode_scaled, model.shape)

    def data_of(self, x: Tensor) -> Tensor:
        """The data of the model's samples `(N, draws, *shape)`, on the host."""
        codec = self.trained.network_model.codec
        if not isinstance(codec, AutoencoderCodec):
            return x.cpu()
        flat = x.flatten(0, 1).to(self.trained.device)
        return in_parts(codec.decode_scaled, flat, self.operator.shape).unflatten(0, x.shape[:2])

    def decode(self, data: Tensor) -> Tensor:
        """Raw data of data `(N, *shape)`, or of several of each, `(N, draws, *shape)`."""
        more = data.ndim - len(self.operator.shape)
        return self.codec.decode(data.flatten(0, more - 1)).unflatten(0, data.shape[:more])


@final
@dataclass(frozen=True)
class Problems:
    """What is to be found.

    Attributes:
        y: measurements `(N, *measured_shape)`, on the host.
        cond: of the model, one entry a measurement.
        truth: `(N, *shape)` the data that were measured, if they are known.
        source: what is said of it.
    """

    y: Tensor
    cond: Condition
    truth: Tensor | None
    source: str


Shape = tuple[int, ...]
Build = Callable[[Shape, ConfigDict, Tensor | None, Trained], Operator]

OWN = "own"
ANY = ("inpaint", "cs", OWN)  # which take vectors too
LOOKS = ("inpaint", "outpaint", "colorize", "superres", "deblur", "motion", "jpeg")  # whose measurements are images


def _inpaint(shape: Shape, numbers: ConfigDict, given: Tensor | None, trained: Trained) -> Operator:
    if given is not None:
        return Mask(given > 0.5 * given.max(), shape)
    if numbers.box:
        return _box(shape, numbers.box, inside=False)
    return Mask.random(shape, numbers.share, trained.seed, dims=max(1, len(shape) - 1))


def _outpaint(shape: Shape, numbers: ConfigDict, given: Tensor | None, trained: Trained) -> Operator:
    space = shape[1:]
    middle = (*(n // 4 for n in space), *(n - n // 4 for n in space))
    return _box(shape, numbers.box or middle, inside=True)


def _box(shape: Shape, ends: tuple[int, ...], inside: bool) -> Operator:
    dims = len(shape) - 1
    require(
        len(ends) == 2 * dims > 0,
        f"config.sampling.task.box={tuple(ends)}: need {2 * dims} numbers, first those of the lower corner",
    )
    return Mask.box(shape, tuple(ends[:dims]), tuple(ends[dims:]), inside)


def _superres(shape: Shape, numbers: ConfigDict, given: Tensor | None, trained: Trained) -> Operator:
    return BlockAverage(shape, numbers.factor)


def _deblur(shape: Shape, numbers: ConfigDict, given: Tensor | None, trained: Trained) -> Operator:
    dims = len(shape) - 1
    largest = (min(shape[1:], default=1) - 1) // 2
    kernel = gaussian_kernel(numbers.blur, dims, min(largest, 3 * max(1, round(numbers.blur))))
    return Blur(shape, kernel if given is None else given / given.sum(), "reflect" if dims <= 2 else "circular")


def _motion(shape: Shape, numbers: ConfigDict, given: Tensor | None, trained: Trained) -> Operator:
    direction = None if len(shape) == 3 else (1.0,) * (len(shape) - 1)
    return Blur(shape, motion_kernel(numbers.length, numbers.angle, direction), "circular")


def _cs(shape: Shape, numbers: ConfigDict, given: Tensor | None, trained: Trained) -> Operator:
    count = max(1, round(numbers.share * torch.Size(shape).numel()))
    return random_projection(shape, count, trained.seed)


def _mri(shape: Shape, numbers: ConfigDict, given: Tensor | None, trained: Trained) -> Operator:
    return FourierSubsampling.lines(shape, numbers.acceleration, seed=trained.seed)


def _jpeg(shape: Shape, numbers: ConfigDict, given: Tensor | None, trained: Trained) -> Operator:
    ends = torch.stack([torch.full(shape, end) for end in (trained.data.low, trained.data.high)])
    codec = without_latents(trained.network_model.codec)
    low, high = (part.mean().item() for part in codec.encode(ends))
    return JPEG(shape, numbers.quality, low, high)


def _own(shape: Shape, numbers: ConfigDict, given: Tensor | None, trained: Trained) -> Operator:
    if given is None:
        raise UsageError("give the matrix, (measured values, entries of a sample), with --operator FILE.npy")
    return MatrixOperator(given, shape)


TASKS: dict[str, Build] = {
    "inpaint": _inpaint,
    "outpaint": _outpaint,
    "colorize": lambda shape, numbers, given, trained: Grey(shape),
    "superres": _superres,
    "deblur": _deblur,
    "motion": _motion,
    "cs": _cs,
    "mri": _mri,
    "phase": lambda shape, numbers, given, trained: FourierMagnitude(shape, numbers.oversampling),
    "jpeg": _jpeg,
    OWN: _own,
}


def build_task(trained: Trained, flags: SolveFlags) -> Task:
    """The task that the flags and `config.sampling.task` ask for.

    Raises:
        UsageError: for an unknown task, or one that does not suit the data.
    """
    if flags.task is None:
        raise UsageError(f"task: give --task {', --task '.join(TASKS)}")
    if flags.task not in TASKS:
        raise unknown_name("task", flags.task, TASKS)
    shape = trained.raw_shape
    require(
        flags.task in ANY or len(shape) >= 2,
        f"task={flags.task!r}: needs images or series with channels; the data are vectors of shape {shape}, which take "
        f"--task {', --task '.join(ANY)}",
    )
    takes_file = ("inpaint", "deblur", OWN)
    require(
        flags.operator is None or flags.task in takes_file,
        f"operator={flags.operator!r}: goes with --task {', --task '.join(takes_file)}",
    )
    numbers = trained.config.sampling.task
    given = None if flags.operator is None else _read_numbers(flags.operator, "operator")
    if given is not None and flags.task != OWN and given.ndim == 3 and len(given) in (1, 3):
        given = given.mean(0)  # a picture with channels
    try:
        operator = TASKS[flags.task](shape, numbers, given, trained)
    except UsageError as error:
        argument = f"operator={flags.operator!r}" if flags.operator is not None else f"task={flags.task!r}"
        raise UsageError(f"{argument}: {error}") from error
    require(numbers.gain >= 0, f"config.sampling.task.gain={numbers.gain}: need a positive number, or 0 for none")
    if numbers.gain:
        low = without_latents(trained.network_model.codec).encode(torch.full((1, *shape), trained.data.low))
        return Task(operator, PoissonNoise(numbers.gain, max(0.0, -low.min().item())), trained)
    try:
        return Task(operator, GaussianNoise(numbers.noise), trained)
    except UsageError as error:
        raise UsageError(f"config.sampling.task.noise: {error}") from error


def task_key(flags: SolveFlags, trained: Trained) -> dict[str, Any]:
    """All that a task depends on, as JSON can hold it."""
    given = None if flags.operator is None else _read_numbers(flags.operator, "operator").tolist()
    return {"task": flags.task, "numbers": trained.config.sampling.task.to_dict(), "operator": given}


def _read_numbers(path: str, argument: str) -> Tensor:
    """A .npy or .npz of one array, or a picture, as float64.

    Raises:
        UsageError: for a file that cannot be read.
    """
    source = f"{argument}={path!r}"
    file = Path(path).expanduser()
    with reading(source, "numbers"):
        if file.suffix in (".npy", ".npz"):
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.ndarray):
                require(len(loaded.files) == 1, f"{source}: holds {', '.join(loaded.files)}; need a single array")
                loaded = loaded[loaded.files[0]]
            found = torch.as_tensor(np.asarray(loaded)).double()
        else:
            from PIL import Image

            with Image.open(file) as picture:
                found = torch.from_numpy(np.asarray(picture.convert("L"))).double()
    require(bool(found.isfinite().all()), f"{source}: holds NaN or infinity")
    return found


def read_measured(task: Task, flags: SolveFlags) -> Tensor:
    """The measurements `(N, *measured_shape)` of a file, in units of the data.

    Raises:
        UsageError: for measurements of another shape or range.
    """
    assert flags.measured is not None
    operator, trained = task.operator, task.trained
    source = f"measured={flags.measured!r}"
    if flags.task not in LOOKS:
        found = _read_numbers(flags.measured, "measured").float()
        y = found[None] if found.shape == operator.measured_shape else found
        operator.check_measured(y, source)
        return y
    given: dict[str, Any] = {"class_conditional": False}
    if flags.task in ("superres", "colorize"):
        given |= {"image_size": (0,)}
    if flags.task == "colorize":
        given |= {"channels": 1}
    data = read_samples(trained, flags.measured, source, given)
    expected = operator.shape if isinstance(operator, Mask) else operator.measured_shape
    require(
        data.shape == expected,
        f"{source}: holds samples of shape {data.shape}; {flags.task} measures {expected}",
    )
    info = trained.data
    low, high = data.ends()
    margin = info.high - info.low  # noise may go beyond the range
    factor = info.high / high if high > 0 else 1.0
    require(
        info.low - margin <= low and high <= info.high + margin,
        f"{source}: holds values from {low:g} to {high:g}; the model was trained on {info.low:g} to {info.high:g}; "
        f"multiply them by {factor:.3g}, or bring them to that range in another way",
    )
    seen = replace(data, codec=task.codec).all()[0]
    return operator(seen) if isinstance(operator, Mask) else seen
