"""Options and fixtures of all tests. One thread: small tensors are slower on two."""

from __future__ import annotations

import signal

import pytest
import torch

from tests.analytic import SDES

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in what they start in the background


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device that the tests run on: cpu, cuda or cuda:N")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--device").startswith("cuda"):
        skip = pytest.mark.skip(reason="needs --device cuda")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of the run. Tests make their tensors there."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(params=SDES.values(), ids=SDES.keys())
def sde(request: pytest.FixtureRequest):
    """Each SDE in turn, one of a user's own among them."""
    return request.param
