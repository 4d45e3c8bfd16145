"""Langevin dynamics on three modes does what theory says."""

from __future__ import annotations

import pytest

from scoresde import VESDE, VPSDE, SubVPSDE
from scoresde.app.figures import langevin


def test_plain_langevin_ends_with_the_basins_of_its_start():
    """2000 samples: a share of 1/3 is known to 0.011, and the total variation of three to about 0.02."""
    ends = langevin.plain(2000, 200, seed=0).weights[-1]
    shares = langevin.share_of_basins()
    assert 0.5 * (ends - shares).abs().sum() < 0.04
    assert langevin.total_variation(shares) == pytest.approx(0.7 - 1 / 3, abs=0.01)
    assert langevin.total_variation(ends) > 0.3


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=lambda sde: type(sde).__name__)
def test_annealed_langevin_ends_with_the_weights(sde):
    assert langevin.total_variation(langevin.annealed(sde, 2000, 500, seed=0).weights[-1]) < 0.05
