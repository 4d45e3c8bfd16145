"""Score-based generative modelling through stochastic differential equations."""

from scoresde.autoencoding import AutoencodingObjective
from scoresde.bounds import ddpm_bound, elbo
from scoresde.checkpoint import load_autoencoder, load_classifier, load_model, models_in, save_model, save_models
from scoresde.classification import ClassificationObjective
from scoresde.codec import Codec, Scaling
from scoresde.condition import Condition
from scoresde.errors import UsageError
from scoresde.guidance import (
    APG,
    Autoguidance,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    ConditionedModel,
    GradientGuidance,
    ProductModel,
    Rescale,
)
from scoresde.hybrid import HybridObjective
from scoresde.learned_sde import LearnedVPSDE
from scoresde.models.autoencoder import Autoencoder
from scoresde.models.classifier import NoisyClassifier
from scoresde.models.exact import ExactLabelledModel, ExactScoreModel
from scoresde.models.latent_codec import AutoencoderCodec
from scoresde.models.network import CallableScoreModel, NetworkScoreModel
from scoresde.models.thresholded import ThresholdedModel
from scoresde.named_sdes import EDMSDE, VESDE, VPSDE, CosineSDE, DiscreteVPSDE, RectifiedFlowSDE, SubVPSDE
from scoresde.networks import (
    MLP,
    ClassifierNetwork,
    ConvAutoencoder,
    DiT,
    MLPClassifier,
    MPUNet,
    Network,
    UNet,
    UNetClassifier,
)
from scoresde.noise import BatchNoise, Noise
from scoresde.objective import (
    Batch,
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
    Objective,
    UniformTimes,
    VariationalObjective,
    VelocityWeighting,
)
from scoresde.parametrization import (
    DenoisedParametrization,
    EDMParametrization,
    FlowParametrization,
    LogSigmaInput,
    NoiseParametrization,
    ScoreParametrization,
    TimeInput,
    UnitVarianceInput,
    VelocityParametrization,
)
from scoresde.registry import register
from scoresde.reverse import MeasuredVariance
from scoresde.score_model import GridModel, ScoreModel, WrappedModel
from scoresde.sde import SDE, GaussianPathSDE, Level
from scoresde.targets import EmpiricalDistribution, Gaussian, GaussianMixture
from scoresde.text import TextEncoder, open_text_encoder
from scoresde.training import TrainingOptions, fit
from scoresde.upsampling import UpsamplingObjective

__all__ = [
    "APG",
    "EDMSDE",
    "MLP",
    "SDE",
    "VESDE",
    "VPSDE",
    "Autoencoder",
    "AutoencoderCodec",
    "AutoencodingObjective",
    "Autoguidance",
    "Batch",
    "BatchNoise",
    "CallableScoreModel",
    "ClassificationObjective",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "ClassifierNetwork",
    "Codec",
    "Condition",
    "ConditionedModel",
    "ConvAutoencoder",
    "CosineSDE",
    "DenoisedParametrization",
    "DenoisedWeighting",
    "DenoisingObjective",
    "DiT",
    "DiscreteTimes",
    "DiscreteVPSDE",
    "EDMParametrization",
    "EDMWeighting",
    "EmpiricalDistribution",
    "ExactLabelledModel",
    "ExactScoreModel",
    "FlowParametrization",
    "FlowWeighting",
    "Gaussian",
    "GaussianMixture",
    "GaussianPathSDE",
    "GradientGuidance",
    "GridModel",
    "HybridObjective",
    "LadderTimes",
    "LearnedVPSDE",
    "Level",
    "LikelihoodWeighting",
    "LogNormalNoiseLevels",
    "LogSigmaInput",
    "MLPClassifier",
    "MPUNet",
    "MeasuredVariance",
    "MinSNRWeighting",
    "Network",
    "NetworkScoreModel",
    "Noise",
    "NoiseParametrization",
    "NoiseWeighting",
    "NoisyClassifier",
    "Objective",
    "ProductModel",
    "RectifiedFlowSDE",
    "Rescale",
    "Scaling",
    "ScoreModel",
    "ScoreParametrization",
    "SubVPSDE",
    "TextEncoder",
    "ThresholdedModel",
    "TimeInput",
    "TrainingOptions",
    "UNet",
    "UNetClassifier",
    "UniformTimes",
    "UnitVarianceInput",
    "UpsamplingObjective",
    "UsageError",
    "VariationalObjective",
    "VelocityParametrization",
    "VelocityWeighting",
    "WrappedModel",
    "ddpm_bound",
    "elbo",
    "fit",
    "load_autoencoder",
    "load_classifier",
    "load_model",
    "models_in",
    "open_text_encoder",
    "register",
    "save_model",
    "save_models",
]
