r"""Where a sampler takes its steps: plain functions that return plain tensors.

A grid has shape `(num_steps + 1,)`, is float64 on the host, falls strictly, starts at t_max and ends with 0: the last
step goes from t_end to clean data by the denoiser itself. A user-defined grid may start anywhere in (t_min, t_max]. It
may end with 0, or anywhere above t_min; the samples then keep the noise of that time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.errors import require, unknown_name
from scoresde.named_sdes import VPSDE
from scoresde.sde import SDE, Level


def _first_and_last(sde: SDE) -> Level:
    """The levels of t_max and t_end, between which most grids step."""
    return sde.level(torch.tensor([sde.t_max, sde.t_end], dtype=torch.float64))


def _grid(sde: SDE, inner: Tensor) -> Tensor:
    """The times `inner`, with t_max and t_end exactly at the ends, so that no rounding moves them; then 0."""
    times = inner.clone()
    if len(times) > 1:
        times[-1] = sde.t_end
    times[0] = sde.t_max
    return torch.cat([times, times.new_zeros(1)])


def _fractions(num_steps: int) -> Tensor:
    require(num_steps >= 1, f"num_steps={num_steps}: need at least 1")
    return torch.linspace(0, 1, num_steps, dtype=torch.float64)


def _between(ends: Tensor, power: float, num_steps: int) -> Tensor:
    """Equal steps in v^(1/power) from v = ends[0] to ends[1]."""
    first, last = ends ** (1 / power)
    return (first + _fractions(num_steps) * (last - first)) ** power


def uniform_time(sde: SDE, num_steps: int) -> Tensor:
    """Equal steps in t from t_max to t_end, then 0. On a DDPM chain with all its levels: the chain itself."""
    return _grid(sde, _between(_first_and_last(sde).t, 1.0, num_steps))


def quadratic_time(sde: SDE, num_steps: int) -> Tensor:
    """Equal steps in sqrt(t), finer towards the data (Song, Meng and Ermon 2021, appendix D.2)."""
    return _grid(sde, _between(_first_and_last(sde).t, 2.0, num_steps))


def vp_quadratic(sde: SDE, num_steps: int, power: float = 2.0) -> Tensor:
    """The noise levels of equal steps in t^(1/power) of the standard VP SDE, down to its t = 1e-3, under any SDE.

    Under VP and with power 2 it is `quadratic_time`. Under other SDEs `quadratic_time` has other noise levels, and this
    grid has the same.
    """
    require(power > 0, f"power={power}: must be positive")
    vp = VPSDE()
    ends = _first_and_last(sde).log_snr
    ends[1] = torch.minimum(ends[1], vp.log_snr(torch.tensor(1e-3, dtype=torch.float64)))
    t_of_vp = _between(vp.time(ends).clamp(vp.t_min, vp.t_max), power, num_steps)
    t = sde.time(vp.log_snr(t_of_vp)).clamp(sde.t_min, sde.t_max)
    t[0] = sde.t_max
    return torch.cat([t, t.new_zeros(1)])


def uniform_log_snr(sde: SDE, num_steps: int) -> Tensor:
    """Equal steps in the log signal-to-noise ratio: noise levels fall exponentially (Lu et al. 2022, section 3.3)."""
    first, last = _first_and_last(sde).log_snr
    return _grid(sde, sde.time(first + _fractions(num_steps) * (last - first)))


def karras(sde: SDE, num_steps: int, rho: float = 7.0) -> Tensor:
    """Equal steps in noise_level^(1/rho) (Karras et al. 2022, equation 5; rho = 7: table 1)."""
    noise_level = _between(_first_and_last(sde).noise_level, rho, num_steps)
    return _grid(sde, sde.time(-2 * noise_level.log()))


def power_phi(sde: SDE, num_steps: int, power: float = 2.0, sigma_data: float = 1.0) -> Tensor:
    """Equal steps in phi^(1/power), phi = atan(noise_level / sigma_data).

    Power 1 is `uniform_phi`; power 2 is finer towards the data.
    """
    _check_phi(power, sigma_data)
    phi = _between(torch.atan(_first_and_last(sde).noise_level / sigma_data), power, num_steps)
    return _grid(sde, sde.time(-2 * torch.log(sigma_data * torch.tan(phi))))


def uniform_phi(sde: SDE, num_steps: int, sigma_data: float = 1.0) -> Tensor:
    """Equal steps in phi = atan(noise_level / sigma_data)."""
    return power_phi(sde, num_steps, 1.0, sigma_data)


def phi_to_clean(sde: SDE, num_steps: int, power: float = 1.5, sigma_data: float = 1.0) -> Tensor:
    """phi_max (1 - k / num_steps)^power: the steps of `power_phi` with the last one to clean data itself.

    If that would leave the SDE's range, the last node is at t_min.
    """
    _check_phi(power, sigma_data)
    first, least = torch.atan(sde.span().noise_level / sigma_data)
    last = torch.maximum(first / num_steps**power, least)
    phi = _between(torch.stack([first, last]), power, num_steps)
    t = sde.time(-2 * torch.log(sigma_data * torch.tan(phi))).clamp(sde.t_min, sde.t_max)
    t[0] = sde.t_max
    return torch.cat([t, t.new_zeros(1)])


def _check_phi(power: float, sigma_data: float) -> None:
    require(power > 0 and sigma_data > 0, f"power={power}, sigma_data={sigma_data}: both must be positive")


def chain(sde: SDE, num_steps: int, num_levels: int = 1000, spacing: str = "trailing") -> Tensor:
    """Some of the levels t = i / num_levels of a DDPM chain, then 0.

    Args:
        sde: an SDE with t_max = 1.
        num_steps: how many levels.
        num_levels: of the chain.
        spacing: "trailing": num_levels (1 - k / num_steps), rounded, from the last level down (Lin et al. 2024, table
            2); "leading": every (num_levels // num_steps)-th from the first level up (Song, Meng and Ermon 2021).
    """
    require(1 <= num_steps <= num_levels, f"num_steps={num_steps}: need 1 to num_levels={num_levels}, one level a step")
    k = torch.arange(num_steps, dtype=torch.float64)
    spacings = {
        "trailing": torch.round(num_levels * (1 - k / num_steps)),
        "leading": 1 + (num_levels // num_steps) * k.flip(0),
    }
    if spacing not in spacings:
        raise unknown_name("spacing", spacing, spacings)
    t = (spacings[spacing] / num_levels).clamp(sde.t_min, sde.t_max)
    return torch.cat([t, t.new_zeros(1)])


def check_grid(sde: SDE, grid: Tensor) -> Tensor:
    """The grid as float64 on the host; raises `UsageError` if it cannot be stepped along."""
    grid = torch.as_tensor(grid).detach().to("cpu", torch.float64)
    require(grid.ndim == 1 and len(grid) >= 2, f"grid of shape {tuple(grid.shape)}: need (num_steps + 1,), two or more")
    require(bool(grid.isfinite().all() and (grid.diff() < 0).all()), "grid: times must be finite and fall strictly")
    slack = 1e-6 * sde.t_max  # a float32 grid may miss the ends by its rounding
    inside = (grid[:-1] >= sde.t_min - slack).all() and grid[0] <= sde.t_max + slack
    ends = grid[-1] == 0 or grid[-1] >= sde.t_min - slack
    require(
        bool(inside and ends),
        f"grid from {grid[0]:g} to {grid[-1]:g}: times must lie in [{sde.t_min:g}, {sde.t_max:g}], "
        "with 0 (clean data) allowed as the last",
    )
    return torch.where(grid == 0, grid, grid.clamp(sde.t_min, sde.t_max))
