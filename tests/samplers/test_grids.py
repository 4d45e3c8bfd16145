"""Grids start and end where they should, and are spaced as they say."""

from __future__ import annotations

import pytest
import torch

from samplers import (
    chain,
    karras,
    phi_to_clean,
    power_phi,
    quadratic_time,
    uniform_log_snr,
    uniform_phi,
    uniform_time,
    vp_quadratic,
)
from samplers.grids import check_grid
from scoresde import EDMSDE, VPSDE, DiscreteVPSDE, UsageError


def phi(sde, t, sigma_data=1.0):
    return torch.atan(sde.noise_level(t) / sigma_data)


EVEN_IN = {
    uniform_time: lambda sde, t: t,
    quadratic_time: lambda sde, t: t**0.5,
    uniform_log_snr: lambda sde, t: sde.log_snr(t),
    karras: lambda sde, t: sde.noise_level(t) ** (1 / 7),
    power_phi: lambda sde, t: phi(sde, t) ** (1 / 2),
    uniform_phi: phi,
}
ENDS_ELSEWHERE = [vp_quadratic, phi_to_clean]  # at a noise level of their own, before the step to clean data


def test_a_grid_goes_from_t_max_by_t_end_to_zero(sde):
    for grid_of in (*EVEN_IN, *ENDS_ELSEWHERE):
        for num_steps in (1, 2, 3, 50):
            case = f"{grid_of.__name__}, {num_steps} steps"
            grid = check_grid(sde, grid_of(sde, num_steps))
            assert grid.shape == (num_steps + 1,), case
            assert grid.dtype == torch.float64, case
            assert grid[0] == sde.t_max, case
            assert grid[-1] == 0, case
            assert num_steps == 1 or grid_of in ENDS_ELSEWHERE or grid[-2] == sde.t_end, case


def assert_even(values, case):
    steps = values.diff()
    torch.testing.assert_close(
        steps, steps.mean().expand(len(steps)), rtol=1e-6, atol=0, msg=lambda text: f"{case}: {text}"
    )


def test_a_grid_is_even_in_its_variable(sde):
    for grid_of, variable in EVEN_IN.items():
        assert_even(variable(sde, grid_of(sde, 30)[:-1]), grid_of.__name__)


def test_phi_is_meant_relative_to_the_scale_of_the_data(sde):
    """power_phi and phi_to_clean take phi = atan(noise_level / sigma_data)."""
    for sigma_data in (0.25, 2.0):
        assert_even(phi(sde, power_phi(sde, 12, 1.5, sigma_data)[:-1], sigma_data) ** (1 / 1.5), "power_phi")
        # phi_max (1 - k / n)^power, if the last node is inside the SDE's range
        nodes = phi(sde, phi_to_clean(sde, 12, 1.5, sigma_data)[:-1], sigma_data)
        assert_even(nodes ** (1 / 1.5), "phi_to_clean")
        least = phi(sde, torch.tensor(sde.t_min, dtype=torch.float64), sigma_data)
        last = torch.maximum(nodes[0] / 12**1.5, least)
        torch.testing.assert_close(nodes[-1], last, rtol=1e-6, atol=0)


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


def test_some_levels_of_a_chain_are_the_published_ones():
    """Trailing: Lin et al. 2024, table 2. Leading: Song, Meng and Ermon 2021, from the first level up."""
    sde = DiscreteVPSDE()
    assert torch.equal((1000 * chain(sde, 5)).round(), torch.tensor([1000.0, 800, 600, 400, 200, 0]).double())
    leading = chain(sde, 5, spacing="leading")
    assert torch.equal((1000 * leading).round(), torch.tensor([801.0, 601, 401, 201, 1, 0]).double())
    with pytest.raises(UsageError, match="num_steps=1001"):
        chain(sde, 1001)
    with pytest.raises(UsageError, match="unknown spacing 'leadng': did you mean 'leading'"):
        chain(sde, 5, spacing="leadng")


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


def test_no_steps_are_refused(sde):
    for grid_of in (*EVEN_IN, *ENDS_ELSEWHERE, chain):
        with pytest.raises(UsageError, match="num_steps=0"):
            grid_of(sde, 0)
