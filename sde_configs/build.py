"""From a configuration to objects: the only place where names of the command line become classes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import nn

from samplers import (
    DDIM,
    DEIS,
    EDM,
    Adams,
    Ancestral,
    AnnealedLangevin,
    DPMSolver,
    DPMSolverSingle,
    EulerMaruyama,
    Heun,
    NormPredictorCorrector,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    RungeKutta4,
    Sampler,
    SDEDPMSolver,
    SDEDPMSolverSingle,
    StochasticHeun,
    Trigonometric,
    UniPC,
)
from scoresde import data
from scoresde.checkpoint import construct
from scoresde.data import ArrayData, ReadOptions, Scaling
from scoresde.errors import UsageError, require, unknown_name
from scoresde.models.thresholded import ThresholdedModel
from scoresde.objective import DenoisingObjective, Objective, TrainingTimes, VariationalObjective, Weighting
from scoresde.parametrization import Parametrization
from scoresde.score_model import NetworkScoreModel, ScoreModel
from scoresde.sde import SDE
from scoresde.training import TrainingOptions

AUTO = "auto"  # tables fitted to the model that is sampled from: see `samplers.fitted.pilot`
SAMPLERS: dict[str, type[Sampler]] = {
    "pc": PredictorCorrector,
    "langevin": AnnealedLangevin,
    "ancestral": Ancestral,
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "ode": ProbabilityFlow,
    "ddim": DDIM,
    "heun": Heun,
    "edm": EDM,
    "rk4": RungeKutta4,
    "trigonometric": Trigonometric,
    "adams": Adams,
    "deis": DEIS,
    "dpm_solver": DPMSolver,
    "dpm_solver_single": DPMSolverSingle,
    "unipc": UniPC,
    "sde_dpm_solver": SDEDPMSolver,
    "sde_dpm_solver_single": SDEDPMSolverSingle,
    "stochastic_heun": StochasticHeun,
}


def build_data(config: ConfigDict) -> tuple[ArrayData, ArrayData | None]:
    """Training and held-out data."""
    choices = {field.name: config.data[field.name] for field in fields(ReadOptions) if field.name in config.data}
    loaded = data.load(config.data.name, config.data.path, ReadOptions(**choices))
    train, held_out = loaded.split(config.data.held_out)
    require(
        held_out is None or held_out.num_classes <= train.num_classes,
        f"data.held_out={config.data.held_out}: leaves none of class {loaded.num_classes - 1} to train on; lower it",
    )
    return train, held_out


def build_model(config: ConfigDict, train: ArrayData) -> NetworkScoreModel:
    """The model for some data, its weights drawn from the seed; the global random state is left as it was."""
    network = dict(config.network)
    if network["name"] == "UNet":
        require(
            len(train.shape) == 3,
            f"network.name='UNet': needs images (channels, height, width), and the data has shape {train.shape}; "
            "use --config.network.name=MLP or --config toy",
        )
        network["channels_in"] = train.shape[0]
    elif network["name"] == "MLP":
        require(
            len(train.shape) == 1,
            f"network.name='MLP': needs vectors, and the data has shape {train.shape}; use --config.network.name=UNet",
        )
        network["dim"] = train.shape[0]
    require(0 <= config.seed < 2**64, f"seed={config.seed}: need 0 <= seed < 2**64")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        built = construct(network | {"num_classes": train.num_classes}, nn.Module, "config.network")
    parametrization = dict(config.parametrization)
    parametrization["sigma_data"] = parametrization["sigma_data"] or train.std()
    return NetworkScoreModel(
        built,
        construct(config.sde, SDE, "config.sde"),
        construct(parametrization, Parametrization, "config.parametrization"),
        train.shape,
    )


def build_objective(config: ConfigDict, model: NetworkScoreModel) -> Objective:
    """The objective; EDM's weight takes the model's `sigma_data`, and discrete times the chain's number of levels."""
    name = config.objective.get("name", "DenoisingObjective")  # what it is in configurations older than the field
    if name == "VariationalObjective":
        return VariationalObjective()
    if name != "DenoisingObjective":
        raise unknown_name("config.objective.name", str(name), ["DenoisingObjective", "VariationalObjective"])
    times: dict[str, Any] = dict(config.objective.times)
    if times["name"] == "DiscreteTimes" and "num_levels" in config.sde:
        times.setdefault("num_levels", config.sde.num_levels)
    weighting: dict[str, Any] = dict(config.objective.weighting)
    if weighting["name"] == "EDMWeighting":
        weighting.setdefault("sigma_data", model.parametrization.sigma_data)
    return DenoisingObjective(
        construct(times, TrainingTimes, "config.objective.times"),
        construct(weighting, Weighting, "config.objective.weighting"),
    )


def build_settings(config: ConfigDict) -> TrainingOptions:
    """How to optimise."""
    return TrainingOptions(**config.training)


def build_sampling_model(
    config: ConfigDict, model: NetworkScoreModel, scaling: Scaling, low: float, high: float
) -> ScoreModel:
    """A trained model as it is sampled from: compiled and thresholded as the configuration says.

    Args:
        config: its `sampling` part is read.
        model: what was trained, on the device of sampling.
        scaling: of the data.
        low, high: the range of the data, in raw units.
    """
    kind, quantile = config.sampling.threshold, config.sampling.quantile
    require(
        kind in ("none", "static", "dynamic"),
        f"config.sampling.threshold={kind!r}: need 'none', 'static' or 'dynamic'",
    )
    if config.sampling.compile:
        model.network.compile()
    if kind == "none":
        return model
    least, most = (scaling.to_model(torch.full(model.shape, end)) for end in (low, high))
    return ThresholdedModel(model, least, most, quantile if kind == "dynamic" else None)


def build_sampler(config: ConfigDict, name: str, num_steps: int | None) -> Sampler:
    """A sampler by its name on the command line. "ode" with a number of steps is Heun's method with that many.

    An snr of 0 is the sampler's own; `main.py` has it chosen by a pilot run before.
    """
    if name not in SAMPLERS:
        raise unknown_name("sampler", name, [*SAMPLERS, AUTO])
    if name == "ode" and num_steps is not None:
        return Heun()
    fields = dict(config.sampling.get(name, {}))
    if fields.get("snr") == 0:
        del fields["snr"]
    step = fields.pop("step", "sigma")
    require(step in ("sigma", "norm"), f"config.sampling.{name}.step={step!r}: need 'sigma' or 'norm'")
    cls = SAMPLERS[name]
    if step == "norm":
        cls, fields = NormPredictorCorrector, fields | ({"predictor": None} if name == "langevin" else {})
        require(
            not fields.pop("corrector_first", False),
            f"config.sampling.{name}: step='norm' has no corrector_first=True; leave one of them out",
        )
    try:
        return cls(**fields)
    except TypeError as error:
        raise UsageError(f"config.sampling.{name}: {error}") from error
