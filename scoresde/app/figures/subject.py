"""What a picture is of: a model, its data, and the truth if it is known."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, final

import torch
from ml_collections import ConfigDict
from torch import Tensor

from scoresde import condition
from scoresde._batches import LARGE, batches
from scoresde.app.conversion import read_data
from scoresde.app.guiding import Guiding
from scoresde.app.progress import Progress
from scoresde.app.trained import Trained
from scoresde.app.user_data import own_data
from scoresde.codec import Scaling
from scoresde.condition import Condition
from scoresde.data import ArrayData, labelled_mixture, nine_modes
from scoresde.data.info import DataInfo
from scoresde.errors import UsageError, require
from scoresde.models.exact import ExactLabelledModel, ExactScoreModel
from scoresde.models.latent_codec import in_parts, raw_shape
from scoresde.models.network import NetworkScoreModel
from scoresde.registry import construct
from scoresde.score_model import ScoreModel
from scoresde.sde import SDE, Level
from scoresde.targets import EmpiricalDistribution, GaussianMixture, Target
from scoresde.training import Trainer
from sde_configs import build

TRAINED_IN_SECONDS = {"num_steps": 1000, "batch_size": 256, "lr": 5e-3}  # what is trained on the way to a picture
SPREAD_OF = 1000  # samples that principal directions are taken from, fewer if they are large
FEWEST = 64  # of them


class FigureOptions(NamedTuple):
    """What a picture can be asked for; None if the picture is to take its own default."""

    num_samples: int | None
    num_steps: int | None
    sampler: str | None
    seed: int
    guidance: float | None
    prompt: str | None = None


@final
@dataclass(frozen=True)
class Subject:
    """What a picture is of: a model, and what is known of it.

    Attributes:
        model: what is looked at.
        learned: whether it was trained; otherwise it is the exact one.
        config: of the run.
        data: training and held-out samples; None for a picture of the SDE alone, which needs none.
        info: of the data.
        label: the class that is looked at, or None.
        trained: where the model comes from, or None.
        guiding: how the model is guided, or None.
    """

    model: ScoreModel
    learned: bool
    config: ConfigDict
    data: tuple[ArrayData, ArrayData | None] | None
    info: DataInfo
    label: int | None = None
    trained: Trained | None = None
    guiding: Guiding | None = None

    @property
    def train(self) -> ArrayData:
        """The training samples."""
        assert self.data is not None
        return self.data[0]

    @property
    def held_out(self) -> ArrayData | None:
        """The held-out samples, if there are any."""
        assert self.data is not None
        return self.data[1]

    @cached_property
    def truth(self) -> Target:
        """The distribution that is to be learned, or that of the training samples."""
        return _truth(self.config, self.train, self.label)

    @property
    def sde(self) -> SDE:
        """The SDE under which times are meant."""
        return self.model.sde

    @property
    def num_classes(self) -> int:
        """Classes that the data have, 0 for none."""
        return self.info.num_classes

    @property
    def exact(self) -> ExactScoreModel:
        """The score of the truth, on the model's device."""
        return ExactScoreModel(self.truth.to(self.model.device, self.model.dtype), self.sde)

    @property
    def exact_labelled(self) -> ExactLabelledModel | None:
        """The score of the mixture that the data are drawn from, with its classes; None if they are other data."""
        if self.config.data.name != "blobs" or self.config.data.path or self.train.codec != Scaling():
            return None
        return ExactLabelledModel(*labelled_mixture(), self.sde).to(self.model.device, self.model.dtype)

    @property
    def closed_form(self) -> bool:
        """Whether the truth has a density of its own, and is not a set of points."""
        return isinstance(self.truth, GaussianMixture)

    @property
    def name(self) -> str:
        """What the model is called in a picture."""
        of_class = "" if self.label is None else f", class {self.label}"
        return ("learned" if self.learned else self.truth_name) + (of_class if self.learned else "")

    @property
    def truth_name(self) -> str:
        """What the exact score is called."""
        return "exact" if self.closed_form else "exact, of the points"

    def batch_size(self, graphs: int = 0) -> int:
        """Samples at a time; see `Trained.batch_size`."""
        return build.build_batch_size(self.config, self.model.shape, self.model.device, graphs)

    @property
    def captioned(self) -> bool:
        """Whether the model was trained with captions; it is then looked at without one."""
        return self.trained is not None and self.trained.captioned

    def labels(self, count: int) -> Condition:
        """Conditions for samples: the class that is looked at, otherwise all in turn; None for a model without.

        Those of a model of captions are that there is none.
        """
        if self.trained is not None and self.captioned:
            return condition.to(self.trained.without_caption(count), self.model.device)
        if not (self.learned and self.num_classes):
            return None
        chosen = torch.arange(count) % self.num_classes if self.label is None else torch.full((count,), self.label)
        return chosen.to(self.model.device)

    def of_one_class(self) -> Subject:
        """The same, of class 0 if the model takes classes and none was asked for."""
        if self.label is not None or not (self.learned and self.num_classes):
            return self
        print(f"class 0 of {self.num_classes}; --labels chooses another", flush=True)
        return self.of_class(0)

    def of_class(self, label: int) -> Subject:
        """The same, of one class: the truth is then of its samples alone."""
        one = replace(self, label=label, data=(_of_class(self.train, label), self.held_out))
        return one if self.learned else replace(one, model=one.exact)

    def shown(self, x: Tensor) -> Tensor:
        """Samples `(*, *shape)` in the model's units as values from 0 to 1."""
        codec = self.train.codec
        shape = self.model.shape
        more = x.shape[: x.ndim - len(shape)]
        flat = x.to(self.model.device).float().reshape(-1, *shape)
        return self.info.to_unit(in_parts(codec.decode, flat, raw_shape(codec, shape))).unflatten(0, more)

    @torch.no_grad()  # a path may have weights
    def levels(self, noise_levels: Tensor) -> Level:
        """The levels with these sigma / alpha, as far as they lie within the SDE's range, float64."""
        return self.sde.at_noise_level(noise_levels.double())


def subject_of_run(trained: Trained, labels: str | None, with_data: bool) -> Subject:
    """A trained model, and the data that it was trained on if the picture needs them."""
    data = None
    if with_data:
        train, held_out = own_data(trained)
        takes_cond = trained.data.num_classes or trained.captioned
        data = (train if takes_cond else replace(train, cond=None), held_out)
    subject = Subject(trained.model, True, trained.config, data, trained.data, None, trained, trained.guiding)
    label = _label(labels, trained.data)
    return subject if label is None else subject.of_class(label)


def subject_of_data(config: ConfigDict, labels: str | None, learn: bool, device: torch.device) -> Subject:
    """The exact score of a data set under an SDE, or what a small network learns of it in seconds."""
    train, held_out = read_data(config)
    info = DataInfo.of(train, held_out)
    label = _label(labels, info)  # a mistake is named before anything is trained
    sde = construct(config.sde, SDE, "config.sde")
    exact = ExactScoreModel(_truth(config, train).to(device), sde)
    subject = Subject(exact, False, config, (train, held_out), info)
    if learn and config.training.num_steps:
        trainer = trainer_of(subject, device)
        with Progress("train", trainer.options.num_steps) as progress:
            while trainer.step_number < trainer.options.num_steps:
                trainer.step()
                progress.advance()
        subject = replace(subject, model=averaged(trainer), learned=True)
    return subject if label is None else subject.of_class(label)


def averaged(trainer: Trainer) -> NetworkScoreModel:
    """A copy of a model in training, with averaged weights."""
    with trainer.average.applied(trainer.model):
        return copy.deepcopy(trainer.model).eval().requires_grad_(False)


def trainer_of(subject: Subject, device: torch.device) -> Trainer:
    """Training as the configuration says."""
    config = subject.config
    model = build.build_model(config, subject.train).to(device)
    return Trainer(model, subject.train, build.build_objective(config), build.build_options(config), config.seed)


def _truth(config: ConfigDict, train: ArrayData, label: int | None = None) -> Target:
    if config.data.name == "modes" and not config.data.path and label is None and isinstance(train.codec, Scaling):
        return nine_modes()
    return EmpiricalDistribution(train.all()[0])


def _label(labels: str | None, info: DataInfo) -> int | None:
    """The class that is asked for."""
    if labels is None:
        return None
    require(info.num_classes > 0, f"labels={labels!r}: there are no classes; leave --labels out")
    try:
        label = info.class_number(labels)
    except UsageError as error:
        raise UsageError(f"labels={labels!r}: a picture is of one class; {error}") from error
    require(
        0 <= label < info.num_classes,
        f"labels={labels!r}: a picture is of one class, 0 to {info.num_classes - 1}, as in --labels=3",
    )
    return label


def _of_class(data: ArrayData, label: int) -> ArrayData:
    labels = data.labels
    if labels is None or not bool((labels == label).any()):
        raise UsageError(f"labels={label}: there are no training samples of this class; choose another")
    return data.select(torch.nonzero(labels == label).flatten())


@final
class Plane:
    """The plane in which data of any size are shown: itself, or the principal directions of the data about their mean.

    Attributes:
        flat: whether the data are points in the plane (or on a line) themselves.
        extent: the distance of the outermost data from the middle.
    """

    def __init__(self, data: ArrayData) -> None:
        count = max(FEWEST, min(SPREAD_OF, LARGE // math.prod(data.shape)))
        samples = data.batch(slice(count))[0]
        x = samples.flatten(1)
        dim = x.shape[1]
        mean = x.mean(0)
        self.shape = tuple(samples.shape[1:])
        self.flat = dim <= 2
        if self.flat:
            self.origin = torch.zeros(dim)
            self.directions = torch.eye(dim)
            self.middle = (x.amax(0) + x.amin(0)) / 2
        else:
            vectors = torch.linalg.svd(x - mean, full_matrices=False).Vh[:2]
            vectors = torch.cat([vectors, torch.zeros(2 - len(vectors), dim)])  # of one sample there is one direction
            self.origin = mean
            self.directions = vectors
            self.middle = torch.zeros(2)
        extent = (self.coordinates(x, torch.ones(())) - self.middle).abs().amax(1).quantile(0.995).item()
        self.extent = extent or 1.0

    @property
    def names(self) -> tuple[str, str]:
        """Labels of the axes."""
        names = ("$x_1$", "$x_2$") if self.flat else ("1st direction", "2nd direction")
        return (f"{names[0]} (data units)", f"{names[1]} (data units)")

    def coordinates(self, x: Tensor, alpha: Tensor) -> Tensor:
        """Points `(N, *shape)` at signal scales `()` or `(N,)`, as they are seen: `(N, 2)`."""
        x = x.detach().cpu().flatten(1).float()
        return (x - alpha.reshape(-1, 1).cpu().float() * self.origin) @ self.directions.T

    def grid(self, count: int, level: Level) -> Tensor:
        """`(count, count, 2)` about the data at a level, or `(count, 1)` on a line."""
        half = 1.3 * math.sqrt(level.alpha.item() ** 2 * self.extent**2 + level.sigma.item() ** 2)
        axes = [level.alpha.item() * m + torch.linspace(-half, half, count) for m in self.middle.tolist()]
        return torch.stack(torch.meshgrid(*axes, indexing="xy"), -1) if len(axes) == 2 else axes[0][:, None]

    def points(self, grid: Tensor, alpha: Tensor) -> Tensor:
        """The points of a grid `(..., 2)` as data `(N, *shape)`."""
        flat = grid.flatten(0, -2) @ self.directions + alpha.item() * self.origin
        return flat.reshape(-1, *self.shape)

    def vectors(self, field: Tensor) -> Tensor:
        """Vectors `(N, *shape)` along the plane, `(N, 2)`."""
        return field.detach().cpu().flatten(1).float() @ self.directions.T


@torch.no_grad()
def in_chunks(
    function: Callable[[Tensor, Condition], Tensor], x: Tensor, batch_size: int, cond: Condition = None
) -> Tensor:
    """A function of points and conditions, evaluated for some of them at a time."""
    parts = [function(x[part], condition.take(cond, part)).cpu() for part in batches(len(x), batch_size)]
    return torch.cat(parts)
