"""The guidance that flags and the configuration ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from ml_collections import ConfigDict

from scoresde import checkpoint as checkpoint_file
from scoresde import condition
from scoresde.app.flags import TrainedFlags
from scoresde.app.run_folder import checkpoint_at
from scoresde.checkpoint import Checkpoint
from scoresde.codec import same_scaling
from scoresde.condition import Condition
from scoresde.data.info import DataInfo
from scoresde.descriptions import CLASSIFIER, LATENT
from scoresde.errors import UsageError, require
from scoresde.guidance import (
    APG,
    Autoguidance,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Linear,
    Rescale,
    Rule,
)
from scoresde.models.network import NetworkScoreModel
from scoresde.score_model import ScoreModel


@final
@dataclass(frozen=True)
class Guiding:
    """How a trained model is guided.

    Attributes:
        scale: the weight w, 1 is off; of a classifier gamma, 0 is off.
        interval: noise levels with guidance, or None for all.
        rule: how estimates are combined.
        other: a checkpoint: of a classifier to guide by, or of a model to guide away from; None for the model without
            its condition.
    """

    scale: float
    interval: tuple[float, float] | None
    rule: Rule
    other: Checkpoint | None

    @classmethod
    def of(cls, flags: TrainedFlags, config: ConfigDict) -> Guiding:
        """What flags and `config.sampling.guidance` ask for.

        Raises:
            UsageError: for flags that make no guidance.
        """
        scale = flags.guidance
        for name, value in {"guidance_interval": flags.guidance_interval, "guide_with": flags.guide_with}.items():
            require(value is None or scale is not None, f"{name}={value!r}: needs a weight, as in --guidance=2")
        rule = _rule(config)
        require(
            scale is not None or isinstance(rule, Linear),
            f"config.sampling.guidance={rule}: needs a weight, as in --guidance=2",
        )
        if scale is None:
            return cls(1.0, None, rule, None)
        given = flags.guide_with
        other = None if given is None else checkpoint_file.load(checkpoint_at(given, "guide_with"))
        guiding = cls(scale, _interval(flags.guidance_interval), rule, other)
        require(
            not guiding.by_classifier or isinstance(rule, Linear),
            f"config.sampling.guidance={rule}: is for guidance away from a reference, not by a classifier",
        )
        return guiding

    @property
    def off(self) -> float:
        """The scale that leaves the model as it is."""
        return 0.0 if self.by_classifier else 1.0

    @property
    def is_off(self) -> bool:
        """Whether the model is left as it is."""
        return self.scale == 1 and not self.by_classifier

    @property
    def by_classifier(self) -> bool:
        """Whether the other checkpoint is that of a classifier."""
        return self.other is not None and CLASSIFIER in self.other.description["models"]

    @property
    def classes(self) -> DataInfo | None:
        """The classes that a classifier tells apart."""
        if self.other is None or not self.by_classifier or "data" not in self.other.description:
            return None
        return DataInfo.from_json(self.other.description["data"], f"guide_with={str(self.other.path)!r}")

    def apply(
        self, model: NetworkScoreModel, example: Condition, own: Checkpoint, autoencoder: Path | None
    ) -> ScoreModel:
        """The guided model.

        Args:
            model: the model.
            example: a condition that it takes, None for a model without.
            own: its checkpoint.
            autoencoder: the file of one that takes the place of its own, or None.

        Raises:
            UsageError: for a model that cannot be guided so.
        """
        if self.is_off:
            return model
        if self.other is not None:
            _check_same_latents(own, self.other)
        if self.other is not None and self.by_classifier:
            require(
                not isinstance(example, Mapping),
                f"guide_with={str(self.other.path)!r}: a classifier guides to classes, and this model takes captions; "
                "leave it out, and --guidance weighs the captions",
            )
            classifier = self.other.classifier(autoencoder=autoencoder).to(model.device)
            return ClassifierGuidance(
                model, classifier, self.scale, interval=self.interval, model_cond=example is not None
            )
        if self.other is not None:
            worse = self.other.model(autoencoder=autoencoder).to(model.device)
            require(
                same_scaling(worse.codec, model.codec),
                f"guide_with={str(self.other.path)!r}: its model scales the data by {worse.codec}, and this one by "
                f"{model.codec}; give a checkpoint of the same data",
            )
            return Autoguidance(model, worse, self.scale, self.interval, self.rule)
        require(
            example is not None,
            f"guidance={self.scale:g}: this model was trained without labels; --guide_with=CHECKPOINT guides it by a "
            "classifier, or away from an earlier checkpoint",
        )
        guided = ClassifierFreeGuidance(model, self.scale, self.interval, self.rule)
        try:
            guided.check_cond(condition.to(example, model.device))
        except UsageError as error:
            raise UsageError(
                f"guidance={self.scale:g}: {error}; on the command line, --guide_with=CHECKPOINT guides away from an "
                "earlier checkpoint"
            ) from error
        return guided

    def key(self) -> dict[str, Any]:
        """All that guidance depends on, as JSON can hold it; empty if it is off."""
        if self.is_off:
            return {}
        other = None if self.other is None else self.other.digest
        return {"guidance": [self.scale, self.interval and list(self.interval), str(self.rule), other]}

    @property
    def label(self) -> str:
        """What is added to the name of a file of samples."""
        return "" if self.is_off else f"-w{self.scale:g}"


def _check_same_latents(own: Checkpoint, other: Checkpoint) -> None:
    """Raises `UsageError` if only one of two models is of latents, or they are those of different autoencoders."""
    codecs = []
    for header in (own, other):
        (model,) = header.description["models"].values()
        codecs.append(model["codec"])
    of = [f"the latents of {codec.get('digest')}" if codec.get("name") == LATENT else "data" for codec in codecs]
    require(
        of[0] == of[1],
        f"guide_with={str(other.path)!r}: was trained on {of[1]}, and the model on {of[0]}; train one like the model, "
        + (f"with --config.data.autoencoder={codecs[0].get('path')}" if of[0] != "data" else "without an autoencoder"),
    )


def _rule(config: ConfigDict) -> Rule:
    """The rule of `config.sampling.guidance`."""
    settings = config.sampling.guidance
    field = "config.sampling.guidance"
    require(settings.radius >= 0, f"{field}.radius={settings.radius}: need a positive norm, or 0 for none")
    projected = (settings.eta, settings.radius, settings.momentum) != (1, 0, 0)
    require(
        not (projected and settings.rescale),
        f"{field}.rescale={settings.rescale}: goes with eta=1, radius=0 and momentum=0 alone",
    )
    if projected:
        return APG(settings.eta, settings.radius or math.inf, settings.momentum)
    return Rescale(settings.rescale) if settings.rescale else Linear()


def _interval(text: str | None) -> tuple[float, float] | None:
    """Noise levels "low,high"."""
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise UsageError(
            f"guidance_interval={text!r}: need two noise levels between a comma, as in --guidance_interval=0.3,1.6"
        ) from error
    return low, high
