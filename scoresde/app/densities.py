"""The densities of `--mode evaluate`: log density, bits, and bounds."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor

from samplers import Ancestral, log_prob
from samplers.likelihood.log_prob import EXACT_UP_TO
from scoresde import condition
from scoresde._batches import batches, choose_batch_size
from scoresde.app.progress import Progress
from scoresde.app.trained import Trained
from scoresde.bounds import ddpm_bound, elbo
from scoresde.codec import Codec, Scaling
from scoresde.condition import Condition
from scoresde.data.arrays import ArrayData
from scoresde.errors import UsageError
from scoresde.metrics import DEQUANTIZATIONS, Dequantization, bits_per_dim, dequantize, train_dequantization
from scoresde.metrics.latent_bits import draw_latents
from scoresde.models.latent_codec import AutoencoderCodec
from scoresde.noise import Noise
from scoresde.targets import Gaussian

CHAIN = 1000
TERMS = 64
FULL_COVARIANCE_UP_TO = 1024  # entries of a sample
BELOW = "part of noise below t_min, nats per dimension"
STEPS = "error of the steps, nats per dimension, at most about"
VARIATIONAL = "variational"  # dequantisation, learned for the model that is evaluated
TRAINING_STEPS = 500  # of it


class Row(NamedTuple):
    """A line of the table: a number, and its standard error if it has one."""

    name: str
    value: float
    error: float = math.nan


@final
@dataclass(frozen=True)
class Evaluation:
    """An evaluation: the first `count` samples of `data`, under a trained model.

    Attributes:
        trained: the model.
        train: the data that it was trained on, or None if they cannot be had.
        data: the data that are evaluated.
        count: how many of them.
        record: what will be written; whoever computes a number adds what it is of.
    """

    trained: Trained
    train: ArrayData | None
    data: ArrayData
    count: int
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """Entries of a sample, in the model's units."""
        return math.prod(self.trained.model.shape)

    @property
    def quantized(self) -> bool:
        """Whether the data are whole numbers."""
        return not self.data.values.is_floating_point()

    @property
    def raw(self) -> Tensor:
        """The samples in raw units."""
        return self.data.values[: self.count]

    @property
    def cond(self) -> Condition:
        """Their conditions, on the model's device."""
        return condition.to(self.data.conditions(slice(self.count)), self.trained.device)


def densities(evaluation: Evaluation, metrics: Collection[str], num_evaluations: int, dequantization: str) -> list[Row]:
    """Log density and its bound, both as bits too if the data are whole numbers."""
    if isinstance(evaluation.data.codec, AutoencoderCodec):
        return _through_decoder(evaluation, evaluation.data.codec, metrics, num_evaluations)
    x, log_q = _in_model_units(evaluation, dequantization)
    if evaluation.cond is not None:
        evaluation.record["conditional"] = True
    volume = _log_volume(evaluation)
    evaluation.record["units of nats"] = "the model's" if volume is None else "the data's"
    shift = volume or 0.0
    prior = None if evaluation.train is None else training_gaussian(evaluation.train)
    rows = []
    if {"nll", "bits"} & set(metrics):
        nats, error = _by_flow(evaluation, x, prior, num_evaluations)
        if "nll" in metrics:
            rows += _in_nats("log density", nats - shift, evaluation.dim)
        if "bits" in metrics:
            rows.append(_in_bits("log density", nats, log_q, evaluation.dim))
        _record_error(evaluation, "log density", error)
    if "elbo" in metrics:
        nats, error = _by_bound(evaluation, x, prior, max(3, num_evaluations))
        rows += _in_nats("ELBO", nats - shift, evaluation.dim)
        if evaluation.quantized:
            rows.append(_in_bits("ELBO", nats, log_q, evaluation.dim))
        _record_error(evaluation, "ELBO", error)
    return rows


def _through_decoder(
    evaluation: Evaluation, codec: AutoencoderCodec, metrics: Collection[str], num_evaluations: int
) -> list[Row]:
    """The bound of a latent model, and its two parts (`scoresde.metrics.latent_bits`)."""
    trained = evaluation.trained
    ends = (trained.data.low, trained.data.high) if evaluation.quantized else None
    places = torch.arange(evaluation.count, device=trained.device)
    size = trained.batch_size()
    drawn = []
    for part in batches(evaluation.count, size):
        eps = Noise(trained.seed, places[part]).stream("latents").normal(0, trained.model.shape)
        drawn.append(draw_latents(codec, evaluation.raw[part].to(trained.device), eps, ends))
    z, log_q, likelihood = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    if evaluation.cond is not None:
        evaluation.record["conditional"] = True
    evaluation.record["bound"] = "reconstruction and rate, by one draw of the latents of each sample"
    prior = None if evaluation.train is None else training_gaussian(evaluation.train)
    dim = math.prod(evaluation.data.shape)
    unit, name = (math.log(2), "bits") if evaluation.quantized else (1.0, "nats")
    scale = dim * unit
    rows = [mean_row(f"reconstruction, {name} per dimension", -likelihood.cpu() / scale)]
    for how, wanted in (("flow", {"nll", "bits"}), ("ELBO", {"elbo"})):
        if not wanted & set(metrics):
            continue
        density = _by_flow if how == "flow" else _by_bound
        nats, error = density(evaluation, z, prior, max(3, num_evaluations))
        rate = log_q.cpu() - nats
        rows.append(mean_row(f"rate by the {how}, {name} per dimension", rate / scale))
        rows.append(mean_row(f"bound by the {how}, {name} per dimension", (rate - likelihood.cpu()) / scale))
        _record_error(evaluation, f"rate by the {how}", error)
    return rows


def _in_model_units(evaluation: Evaluation, dequantization: str) -> tuple[Tensor, Tensor]:
    """The samples in the model's units, dequantised if they are whole numbers, and log q in nats, zeros for floats."""
    trained = evaluation.trained
    codec = evaluation.data.codec
    if not evaluation.quantized:
        return codec.encode(evaluation.raw).to(trained.device), torch.zeros(evaluation.count, dtype=torch.float64)
    how = _dequantization(evaluation, dequantization)
    draws = torch.Generator().manual_seed(trained.seed)
    spread = [dequantize(part, codec, how, draws) for part in evaluation.raw.split(trained.batch_size())]
    x, log_q = (torch.cat(parts) for parts in zip(*spread, strict=True))
    low = trained.data.low
    high = trained.data.high
    evaluation.record["quantization"] = {
        "levels": int(high - low) + 1,
        "low": low,
        "high": high,
        "offset": -0.5,
        "dequantization": dequantization,
        "levels a model unit": _scaling(codec).scale,
    }
    return x.to(trained.device), log_q


def _log_volume(evaluation: Evaluation) -> float | None:
    """What a log density in the data's units is below that in the model's; None if the codec does not tell."""
    codec = evaluation.data.codec
    return codec.log_volume(evaluation.trained.model.shape) if isinstance(codec, Scaling) else None


def _scaling(codec: Codec) -> Scaling:
    """The codec as a scaling; raises `UsageError` for another, whose levels are not known."""
    if not isinstance(codec, Scaling):
        raise UsageError(f"codec={type(codec).__name__}: bits of whole numbers need a Scaling of the data")
    return codec


def _dequantization(evaluation: Evaluation, name: str) -> Dequantization:
    """The dequantisation of a name; the variational one is learned now, from the training data."""
    if name != VARIATIONAL:
        return DEQUANTIZATIONS[name]
    trained = evaluation.trained
    assert evaluation.train is not None
    with Progress("dequantisation", TRAINING_STEPS) as progress:
        model = trained.checkpoint.model()
        size = trained.batch_size(graphs=1)
        return train_dequantization(model, evaluation.train, TRAINING_STEPS, trained.seed, progress.advance, size)


def _by_flow(evaluation: Evaluation, x: Tensor, prior: Gaussian | None, num_evaluations: int) -> tuple[Tensor, Tensor]:
    """Log densities in nats `(B,)`, and their standard errors by probes, on the host."""
    of_data = "prior of the training data's mean and covariance"
    flow = {"evaluations": num_evaluations, "prior": of_data if prior else "prior of the data's deviation alone"}
    flow["divergence"] = "exact" if evaluation.dim <= EXACT_UP_TO else "by a fresh probe a step"
    size = evaluation.trained.batch_size(graphs=1)
    with Progress("likelihood", -(-len(x) // size) * num_evaluations, unit="evaluations") as progress:
        found = log_prob(
            evaluation.trained.model,
            x,
            evaluation.cond,
            num_evaluations=num_evaluations,
            prior=prior,
            seed=evaluation.trained.seed,
            batch_size=size,
            on_evaluation=progress.advance,
        )
    evaluation.record["flow"] = flow | {
        BELOW: found.truncation.mean().item() / evaluation.dim,
        STEPS: found.step_error.mean().item() / evaluation.dim,
    }
    return found.log_prob.cpu(), found.standard_error.cpu()


def _by_bound(evaluation: Evaluation, x: Tensor, prior: Gaussian | None, num_evaluations: int) -> tuple[Tensor, Tensor]:
    """Variational bounds in nats `(B,)`, and their standard errors, on the host."""
    trained = evaluation.trained
    size = trained.batch_size()
    with Progress("bound", -(-len(x) // size) * num_evaluations, unit="evaluations") as progress:
        found = elbo(
            trained.model,
            x,
            evaluation.cond,
            num_evaluations=num_evaluations,
            prior=prior,
            generator=torch.Generator().manual_seed(trained.seed),
            batch_size=size,
            on_evaluation=progress.advance,
        )
    return found.bound.cpu(), found.standard_error.cpu()


def discrete_bound(evaluation: Evaluation) -> list[Row]:
    """DDPM's variational bound in bits per dimension, and its three parts."""
    trained = evaluation.trained
    codec = _scaling(evaluation.data.codec)
    model = trained.model
    device = trained.device
    one = torch.ones(model.shape, dtype=torch.float64)
    bin_width = codec.encode_change(one).to(device)
    low, high = (codec.encode(end * one, torch.float64).to(device) for end in (trained.data.low, trained.data.high))
    x = codec.encode(evaluation.raw).to(device)
    grid = Ancestral().grid(model, CHAIN)
    variance: Literal["posterior", "learned"] = "learned" if trained.network_model.learned_variance else "posterior"
    evaluation.record["discrete bound"] = {"steps": CHAIN, "terms": TERMS, "variance": variance}
    size = trained.batch_size()
    with Progress("discrete bound", -(-len(x) // size) * (TERMS + 1), unit="evaluations") as progress:
        found = ddpm_bound(
            model,
            x,
            grid,
            evaluation.cond,
            bin_width=bin_width,
            low=low,
            high=high,
            variance=variance,
            num_terms=TERMS,
            generator=torch.Generator().manual_seed(trained.seed),
            batch_size=size,
            on_evaluation=progress.advance,
        )
    nats = {
        "discrete bound": -found.bound,
        "  L_T": found.prior,
        "  L_1 .. L_{T-1}": found.steps.sum(1),
        "  L_0": found.decoder,
    }
    scale = evaluation.dim * math.log(2)
    return [mean_row(f"{name}, bits per dimension", value.cpu() / scale) for name, value in nats.items()]


def _in_nats(name: str, nats: Tensor, dim: int) -> list[Row]:
    return [mean_row(f"{name}, nats", nats), mean_row(f"{name}, nats per dimension", nats / dim)]


def _in_bits(name: str, nats: Tensor, log_q: Tensor, dim: int) -> Row:
    return mean_row(f"{name}, bits per dimension", bits_per_dim(nats, log_q, dim))


def _record_error(evaluation: Evaluation, name: str, error: Tensor) -> None:
    """Notes how much of the mean's standard error is due to probes and noise."""
    drawn = error.square().mean().sqrt().item() / evaluation.dim / len(error) ** 0.5
    evaluation.record.setdefault("standard error by probes and noise, nats per dimension", {})[name] = drawn


def mean_row(name: str, values: Tensor) -> Row:
    """The mean over samples, with its standard error; the noise of probes is a part of it."""
    values = values.double()
    return Row(name, values.mean().item(), values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan)


def training_gaussian(train: ArrayData) -> Gaussian:
    """The Gaussian of the training data's mean and covariance (variances alone, for large samples), float64."""
    dim = math.prod(train.codec.encoded_shape(train.shape))
    full = dim <= FULL_COVARIANCE_UP_TO and len(train) >= 2
    total = torch.zeros(dim, dtype=torch.float64)
    for part in _blocks(train):
        total += part.sum(0)
    mean = total / len(train)
    spread = torch.zeros((dim, dim) if full else (dim,), dtype=torch.float64)
    for part in _blocks(train):
        centred = part - mean
        spread += centred.T @ centred if full else centred.square().sum(0)
    shape = train.batch(slice(1))[0].shape[1:]
    covariance = spread / len(train)
    return Gaussian(mean.reshape(shape), covariance if full else covariance.reshape(shape))


def _blocks(data: ArrayData) -> Iterator[Tensor]:
    """The data in the model's units, flat and float64, some at a time."""
    size = choose_batch_size(None, data.shape, torch.device("cpu"))
    for part in batches(len(data), size):
        yield data.batch(part, torch.float64)[0].flatten(1)
