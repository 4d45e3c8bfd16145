"""Memory that does not suffice for a step: one line, with the fields to change and values to try."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from scoresde import TrainingOptions, UsageError
from scoresde.objective import DenoisingObjective, Objective
from scoresde.training import World
from scoresde.training.refusals import refusal
from tests.training.trainers import advance, assert_same_state, gaussian_data, make_trainer

CPU = torch.device("cpu")
CUDA_ERROR = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.2 GiB is free."
)


class Checkpointed(nn.Module):
    """A network that can compute its activations twice."""

    def __init__(self, checkpointing):
        super().__init__()
        self.checkpointing = checkpointing


def said(size=1, network=None, **options):
    return refusal(CUDA_ERROR, TrainingOptions(**options), World(0, size), network or nn.Identity(), CPU)


def values(message):
    """The fields that a message says to set."""
    return dict(re.findall(r"config\.([\w.]+)=(\w+)", message))


def test_the_fields_and_values_to_try_are_named():
    message = said(batch_size=64, network=Checkpointed(False))
    assert message.startswith("training: out of memory (tried to allocate 2.50 GiB) with training.batch_size=64 and")
    assert values(message) == {
        "training.accumulate": "2",
        "network.checkpointing": "True",
        "training.batch_size": "32",
    }
    assert "from 32 samples at a time" in message
    assert "checkpointing" not in said(batch_size=64, network=Checkpointed(True))
    assert "checkpointing" not in said(batch_size=64)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_what_is_said_can_be_set(size):
    """The values keep each process's share in equal parts, with fewer samples in each, until there is one."""
    for batch_size in range(size, 61, size):
        for accumulate in (k for k in range(1, batch_size // size + 1) if batch_size // size % k == 0):
            options = {"batch_size": batch_size, "accumulate": accumulate}
            at_a_time = batch_size // size // accumulate
            found = values(said(size, **options))
            for field in ("batch_size", "accumulate"):
                if f"training.{field}" in found:
                    new = options | {field: int(found[f"training.{field}"])}
                    assert new["batch_size"] % (size * new["accumulate"]) == 0
                    assert 1 <= new["batch_size"] // size // new["accumulate"] <= at_a_time / 2
            assert ("training.accumulate" in found) == (at_a_time > 1)
            assert bool(found) == (at_a_time > 1)
            assert bool(found) or "a smaller config.network" in said(size, **options)


def allocate():
    torch.empty(2**60, dtype=torch.uint8)


def device_error():
    raise CUDA_ERROR


def host_error():
    raise MemoryError("Unable to allocate 8.00 EiB for an array")


class Large(Objective):
    """The denoising loss, for which memory does not suffice in some step."""

    def __init__(self, fail, step):
        self.fail = fail
        self.step = step

    def draw(self, model, batch, noise):
        self.now = noise.step
        return DenoisingObjective().draw(model, batch, noise)

    def at(self, model, batch, draws, averaged=None):
        if self.now == self.step:
            self.fail()
        return DenoisingObjective().at(model, batch, draws)


@pytest.mark.parametrize("fail", [allocate, device_error, host_error])
def test_a_step_without_memory_is_a_mistake_and_changes_nothing(fail):
    trainer = make_trainer(CPU, objective=Large(fail, 2))
    advance(trainer, 2)
    with pytest.raises(UsageError, match=r"out of memory \(tried to allocate [\d.]+ \w+\) with .*accumulate=2"):
        trainer.step()
    assert trainer.step_number == 2
    assert_same_state(trainer.state(), advance(make_trainer(CPU), 2).state())
    trainer.objective = Large(fail, 0)
    with pytest.raises(UsageError, match="training: out of memory"):
        trainer.held_out_loss(gaussian_data(8, 1))


def test_other_errors_are_not_taken_for_it():
    def fail():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        make_trainer(CPU, objective=Large(fail, 0)).step()
