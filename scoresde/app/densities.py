"""The part of `--mode evaluate` that is about densities: log density, bits, and bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from ml_collections import ConfigDict
from torch import Tensor

from samplers import Ancestral, Exact, Probes, log_prob
from samplers.likelihood.log_prob import EXACT_UP_TO
from scoresde.app.progress import Progress
from scoresde.app.user_data import labels_of
from scoresde.bounds import ddpm_bound, elbo
from scoresde.checkpoint import Checkpoint
from scoresde.data import ArrayData
from scoresde.metrics import DEQUANTIZATIONS, Dequantization, bits_per_dim, dequantize, train_dequantization
from scoresde.score_model import ScoreModel
from scoresde.targets import Gaussian

CHAIN, TERMS = 1000, 64  # steps of the discrete bound, and how many of them are looked at for each sample
FULL_COVARIANCE_UP_TO = 1024  # entries of a sample
BATCH = 250
VARIATIONAL = "variational"  # dequantisation, learned for the model that is looked at
TRAINING_STEPS = 500  # of it


class Row(NamedTuple):
    """A line of the table: a number, and its standard error where it has one."""

    name: str
    value: float
    error: float = math.nan


class Asked(NamedTuple):
    """What is evaluated: the first `size` of some data, under a model as it is sampled from, trained on `train`.

    `record` is what will be written; whoever computes a number adds what it is of.
    """

    model: ScoreModel
    checkpoint: Checkpoint
    config: ConfigDict
    train: ArrayData
    data: ArrayData
    size: int
    seed: int
    record: dict[str, Any]


def densities(asked: Asked, metrics: Sequence[str], num_evaluations: int, dequantization: str) -> list[Row]:
    """Log density, its bound, and both as bits where the data are whole numbers."""
    model, checkpoint, _, train, data, count, seed, record = asked
    described, dim = checkpoint.description["data"], math.prod(data.shape)
    x, cond = data.batch(torch.arange(count))[0], labels_of(data, checkpoint)
    cond = None if cond is None else cond[:count]
    generator, log_q = torch.Generator().manual_seed(seed), torch.zeros(count, dtype=torch.float64)
    if not data.values.is_floating_point():
        low, high = described["low"], described["high"]
        x, log_q = dequantize(x, data.scaling, _how(dequantization, checkpoint, train, seed), generator)
        record["quantization"] = {"levels": int(high - low) + 1, "low": low, "high": high, "offset": -0.5}
        record["quantization"] |= {"dequantization": dequantization, "levels a model unit": described["scale"]}
    if cond is not None:
        record["conditional"] = True
    device = model.like().device
    x, cond = x.to(device), None if cond is None else cond.to(device)
    prior, divergence = training_gaussian(train), Exact() if dim <= EXACT_UP_TO else Probes()
    rows: list[Row] = []

    def add(name: str, nats: Tensor, error: Tensor, in_nats: bool, in_bits: bool) -> None:
        if in_nats:
            rows.append(_mean(f"{name}, nats", nats))
            rows.append(_mean(f"{name}, nats per dimension", nats / dim))
        if in_bits:
            rows.append(_mean(f"{name}, bits per dimension", bits_per_dim(nats, log_q, dim)))
        drawn = error.square().mean().sqrt().item() / dim / count**0.5
        record.setdefault("standard error by probes and noise, nats per dimension", {})[name] = drawn

    if {"nll", "bits"} & set(metrics):
        record["flow"] = {"evaluations": num_evaluations, "prior": "prior of the training data's mean and covariance"}
        record["flow"]["divergence"] = "exact" if dim <= EXACT_UP_TO else "by a fresh probe a step"
        with Progress("likelihood", -(-count // BATCH) * num_evaluations, unit="evaluation") as progress:
            found = log_prob(
                model,
                x,
                cond,
                num_evaluations=num_evaluations,
                divergence=divergence,
                prior=prior,
                sd=described["std"],
                seed=seed,
                batch_size=BATCH,
                tell=progress.advance,
            )
        density = found.log_prob.cpu()
        add("log density", density, found.standard_error.cpu(), "nll" in metrics, "bits" in metrics)
        below = found.truncation.mean().item() / dim
        record["flow"]["part of noise below t_min, nats per dimension"] = below
    if "elbo" in metrics:
        with Progress("bound", -(-count // BATCH), unit="part") as progress:
            bounds, errors = [], []
            draws = torch.Generator(device).manual_seed(seed)
            for first in range(0, count, BATCH):
                part = slice(first, first + BATCH)
                given = None if cond is None else cond[part]
                bound = elbo(
                    model, x[part], given, num_evaluations=max(3, num_evaluations), prior=prior, generator=draws
                )
                bounds.append(bound.bound.cpu())
                errors.append(bound.standard_error.cpu())
                progress.advance()
        add("ELBO", torch.cat(bounds), torch.cat(errors), True, not data.values.is_floating_point())
    return rows


def discrete_bound(asked: Asked) -> list[Row]:
    """DDPM's variational bound in bits per dimension, and its three parts."""
    model, checkpoint, _, _, data, count, seed, record = asked
    labels = labels_of(data, checkpoint)
    described, device, width = checkpoint.description["data"], model.like().device, torch.ones(data.shape)
    least, most, one = (
        part.to(device)
        for part in (
            data.scaling.to_model(described["low"] * width, torch.float64),
            data.scaling.to_model(described["high"] * width, torch.float64),
            data.scaling.change_to_model(width.double()),
        )
    )
    x, generator, parts = data.batch(torch.arange(count))[0], torch.Generator(device).manual_seed(seed), []
    grid = Ancestral().default_grid(model.sde, CHAIN)
    record["discrete bound"] = {"steps": CHAIN, "terms": TERMS, "variance": "posterior"}
    with Progress("discrete bound", -(-count // BATCH), unit="part") as progress:
        for first in range(0, count, BATCH):
            part = slice(first, min(first + BATCH, count))
            cond = None if labels is None else labels[part].to(device)
            options: dict[str, Any] = {
                "bin_width": one,
                "low": least,
                "high": most,
                "num_terms": TERMS,
                "generator": generator,
            }
            parts.append(ddpm_bound(model, x[part].to(device), grid, cond, **options))
            progress.advance()
    nats = {
        "discrete bound": torch.cat([-p.bound for p in parts]),
        "  L_T": torch.cat([p.prior for p in parts]),
        "  L_1 .. L_{T-1}": torch.cat([p.steps.sum(1) for p in parts]),
        "  L_0": torch.cat([p.decoder for p in parts]),
    }
    scale = math.prod(data.shape) * math.log(2)
    return [_mean(f"{name}, bits per dimension", value.cpu() / scale) for name, value in nats.items()]


def _how(dequantization: str, checkpoint: Checkpoint, train: ArrayData, seed: int) -> Dequantization:
    """The dequantisation of a name; the variational one is learned now, from the training data."""
    if dequantization != VARIATIONAL:
        return DEQUANTIZATIONS[dequantization]
    with Progress("dequantisation", TRAINING_STEPS) as progress:
        return train_dequantization(checkpoint.model(), train, TRAINING_STEPS, seed, progress.advance)


def _mean(name: str, values: Tensor) -> Row:
    """The mean over samples, with its standard error; the noise of probes is a part of it."""
    values = values.double()
    return Row(name, values.mean().item(), values.std().item() / len(values) ** 0.5 if len(values) > 1 else math.nan)


def training_gaussian(train: ArrayData) -> Gaussian:
    """The Gaussian of the training data's mean and covariance (variances alone, of large samples), float64."""
    x = train.batch(torch.arange(len(train)))[0].double()
    if math.prod(train.shape) > FULL_COVARIANCE_UP_TO or len(x) < 2:
        return Gaussian(x.mean(0), x.var(0, correction=0))
    return Gaussian(x.mean(0), torch.cov(x.flatten(1).T, correction=0).reshape(2 * (math.prod(train.shape),)))
