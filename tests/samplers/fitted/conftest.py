"""An exact model, the run that its tables are fitted to, and the tables: made once for all tests of the folder."""

from __future__ import annotations

import pytest
import torch

from samplers import fit_sampler
from samplers.fitted.reference import reference_coupling, reference_run
from scoresde import EDMSDE, ExactScoreModel
from scoresde.data import nine_modes


@pytest.fixture(scope="session")
def model():
    return ExactScoreModel(nine_modes().to(dtype=torch.float64), EDMSDE())


@pytest.fixture(scope="session")
def reference(model):
    """Not to be changed: tests share it."""
    return reference_run(model)


@pytest.fixture(scope="session")
def counted_pilot(model):
    """Fitted tables, and the number of evaluations of the model that were reported meanwhile."""
    evaluations = []
    return fit_sampler(model, on_evaluation=lambda: evaluations.append(1)), len(evaluations)


@pytest.fixture(scope="session")
def piloted(counted_pilot):
    return counted_pilot[0]


@pytest.fixture(scope="session")
def coupling(model, reference):
    """Noises that no pilot saw, and where the flow leads from them."""
    return reference_coupling(model, reference.sigma_data, num_samples=1000, seed=1)
