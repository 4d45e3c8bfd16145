"""Score-based generative modelling through stochastic differential equations."""

from scoresde.bounds import ddpm_bound, elbo
from scoresde.checkpoint import load_model, save_model
from scoresde.errors import UsageError
from scoresde.learned_sde import LearnedVPSDE
from scoresde.models.thresholded import ThresholdedModel
from scoresde.named_sdes import EDMSDE, VESDE, VPSDE, CosineSDE, DiscreteVPSDE, RectifiedFlowSDE, SubVPSDE
from scoresde.networks import MLP, UNet
from scoresde.noise import Noise
from scoresde.objective import (
    DenoisedWeighting,
    DenoisingObjective,
    DiscreteTimes,
    EDMWeighting,
    FlowWeighting,
    LadderTimes,
    LikelihoodWeighting,
    LogNormalNoiseLevels,
    MinSNRWeighting,
    NoiseWeighting,
    UniformTimes,
    VariationalObjective,
    VelocityWeighting,
)
from scoresde.parametrization import (
    DenoisedParametrization,
    EDMParametrization,
    NoiseParametrization,
    ScoreParametrization,
    VelocityParametrization,
)
from scoresde.score_model import CallableScoreModel, ExactScoreModel, NetworkScoreModel, ScoreModel
from scoresde.sde import SDE, GaussianPathSDE
from scoresde.targets import EmpiricalDistribution, Gaussian, GaussianMixture
from scoresde.training import TrainingOptions, fit

__all__ = [
    "EDMSDE",
    "MLP",
    "SDE",
    "VESDE",
    "VPSDE",
    "CallableScoreModel",
    "CosineSDE",
    "DenoisedParametrization",
    "DenoisedWeighting",
    "DenoisingObjective",
    "DiscreteTimes",
    "DiscreteVPSDE",
    "EDMParametrization",
    "EDMWeighting",
    "EmpiricalDistribution",
    "ExactScoreModel",
    "FlowWeighting",
    "Gaussian",
    "GaussianMixture",
    "GaussianPathSDE",
    "LadderTimes",
    "LearnedVPSDE",
    "LikelihoodWeighting",
    "LogNormalNoiseLevels",
    "MinSNRWeighting",
    "NetworkScoreModel",
    "Noise",
    "NoiseParametrization",
    "NoiseWeighting",
    "RectifiedFlowSDE",
    "ScoreModel",
    "ScoreParametrization",
    "SubVPSDE",
    "ThresholdedModel",
    "TrainingOptions",
    "UNet",
    "UniformTimes",
    "UsageError",
    "VariationalObjective",
    "VelocityParametrization",
    "VelocityWeighting",
    "ddpm_bound",
    "elbo",
    "fit",
    "load_model",
    "save_model",
]
