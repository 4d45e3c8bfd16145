"""Grids start and end where they should, and are spaced as they say."""

from __future__ import annotations

import pytest
import torch

from samplers import karras, quadratic_time, uniform_log_snr, uniform_time, vp_quadratic
from samplers.grids import check_grid
from scoresde import EDMSDE, VPSDE, DiscreteVPSDE, UsageError

GRIDS = [uniform_time, quadratic_time, uniform_log_snr, karras]


@pytest.mark.parametrize("grid_of", GRIDS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 50])
def test_a_grid_goes_from_t_max_by_t_end_to_zero(sde, grid_of, num_steps):
    grid = check_grid(sde, grid_of(sde, num_steps))
    assert grid.shape == (num_steps + 1,)
    assert grid.dtype == torch.float64
    assert grid[0] == sde.t_max
    assert grid[-1] == 0
    assert num_steps == 1 or grid[-2] == sde.t_end


@pytest.mark.parametrize(
    ("grid_of", "variable"),
    [
        (uniform_time, lambda sde, t: t),
        (quadratic_time, lambda sde, t: t**0.5),
        (uniform_log_snr, lambda sde, t: sde.log_snr(t)),
        (karras, lambda sde, t: sde.noise_level(t) ** (1 / 7)),
    ],
)
def test_a_grid_is_even_in_its_variable(sde, grid_of, variable):
    steps = variable(sde, grid_of(sde, 30)[:-1]).diff()
    torch.testing.assert_close(steps, steps.mean().expand(29), rtol=1e-6, atol=0)


def test_vp_quadratic_has_the_same_noise_levels_under_every_sde(sde):
    grid, vp = check_grid(sde, vp_quadratic(sde, 20)), VPSDE()
    assert grid[0] == sde.t_max
    assert grid[-1] == 0
    levels = sde.log_snr(grid[1:-1])
    steps = vp.time(levels).sqrt().diff()
    inside = (levels > vp.log_snr(torch.tensor(1.0))) & (levels < vp.log_snr(torch.tensor(1e-3)))  # at ends it is cut
    kept = steps[inside[1:] & inside[:-1]]
    torch.testing.assert_close(kept, kept.mean().expand(len(kept)), rtol=1e-5, atol=0)
    torch.testing.assert_close(vp_quadratic(vp, 20), quadratic_time(vp, 20), rtol=1e-9, atol=1e-12)


def test_karras_grid_is_the_published_formula():
    # Karras et al. 2022, equation 5, with sigma from 80 to 0.002 in 18 steps
    i = torch.arange(18, dtype=torch.float64)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(karras(EDMSDE(), 18)[:-1], expected, rtol=1e-12, atol=0)


def test_uniform_time_on_a_ddpm_chain_is_the_chain():
    expected = torch.arange(1000, -1, -1, dtype=torch.float64) / 1000
    torch.testing.assert_close(uniform_time(DiscreteVPSDE(), 1000), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("grid", "complaint"),
    [
        ([1.0], "grid of shape"),
        ([[1.0, 0.5]], "grid of shape"),
        ([0.5, 1.0], "fall strictly"),
        ([1.0, 1.0, 0.0], "fall strictly"),
        ([1.0, float("nan"), 0.0], "finite"),
        ([1.5, 0.5, 0.0], "must lie in"),
        ([1.0, 0.5, -0.1], "must lie in"),
        ([1.0, 1e-7, 0.0], "must lie in"),
        ([1.0, 1e-7], "must lie in"),
    ],
)
def test_a_grid_that_cannot_be_stepped_along_is_refused(grid, complaint):
    with pytest.raises(UsageError, match=complaint):
        check_grid(VPSDE(), torch.tensor(grid))


@pytest.mark.parametrize("grid_of", GRIDS)
def test_no_steps_are_refused(sde, grid_of):
    with pytest.raises(UsageError, match="num_steps=0"):
        grid_of(sde, 0)
