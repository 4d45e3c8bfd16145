"""The guidance that flags and the configuration ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

from ml_collections import ConfigDict

from scoresde import checkpoint as checkpoint_file
from scoresde.app.flags import TrainedFlags
from scoresde.app.run_folder import checkpoint_at
from scoresde.checkpoint import Checkpoint
from scoresde.codec import same_scaling
from scoresde.errors import UsageError, require
from scoresde.guidance import APG, Autoguidance, ClassifierFreeGuidance, Linear, Rescale, Rule
from scoresde.models.network import NetworkScoreModel
from scoresde.score_model import ScoreModel


@final
@dataclass(frozen=True)
class Guiding:
    """How a trained model is guided.

    Attributes:
        scale: the weight w; 1 is off.
        interval: noise levels with guidance, or None for all.
        rule: how estimates are combined.
        worse: the checkpoint to guide away from; None for the model without its condition.
    """

    scale: float
    interval: tuple[float, float] | None
    rule: Rule
    worse: Checkpoint | None

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
        worse = None if given is None else checkpoint_file.load(checkpoint_at(given, "guide_with"))
        return cls(scale, _interval(flags.guidance_interval), rule, worse)

    @property
    def is_off(self) -> bool:
        """Whether the model is left as it is."""
        return self.scale == 1

    def apply(self, model: NetworkScoreModel) -> ScoreModel:
        """The guided model.

        Raises:
            UsageError: for a model that cannot be guided so.
        """
        if self.is_off:
            return model
        if self.worse is not None:
            worse = self.worse.model().to(model.device)
            require(
                same_scaling(worse.codec, model.codec),
                f"guide_with={str(self.worse.path)!r}: its model scales the data by {worse.codec}, and this one by "
                f"{model.codec}; give a checkpoint of the same data",
            )
            return Autoguidance(model, worse, self.scale, self.interval, self.rule)
        try:
            return ClassifierFreeGuidance(model, self.scale, self.interval, self.rule)
        except UsageError as error:
            raise UsageError(
                f"guidance={self.scale:g}: {error}; on the command line, --guide_with=CHECKPOINT guides away from an "
                "earlier checkpoint"
            ) from error

    def key(self) -> dict[str, Any]:
        """All that guidance depends on, as JSON can hold it; empty if it is off."""
        if self.is_off:
            return {}
        worse = None if self.worse is None else self.worse.digest
        return {"guidance": [self.scale, self.interval and list(self.interval), str(self.rule), worse]}

    @property
    def label(self) -> str:
        """What is added to the name of a file of samples."""
        return "" if self.is_off else f"-w{self.scale:g}"


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
