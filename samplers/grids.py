r"""Where a sampler takes its steps: plain functions that return plain tensors.

A grid has shape `(num_steps + 1,)`, is float64 on the host, falls strictly, starts at t_max and ends with 0: the last
step goes from t_end to clean data by the denoiser itself. A grid of your own may start anywhere in (t_min, t_max], and
end with 0 or anywhere above t_min, where the samples keep the noise of that time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.errors import require, unknown_name
from scoresde.named_sdes import VPSDE
from scoresde.sde import SDE


def _times(sde: SDE, num_steps: int, warp: torch.Tensor) -> Tensor:
    """t_max .. t_end and 0, where `warp` holds the inner times; the ends are set, so that no rounding moves them."""
    warp[0], warp[-1] = sde.t_max, sde.t_end if num_steps > 1 else sde.t_max
    return torch.cat([warp, warp.new_zeros(1)])


def _fractions(num_steps: int) -> Tensor:
    require(num_steps >= 1, f"num_steps={num_steps}: need at least 1")
    return torch.linspace(0, 1, num_steps, dtype=torch.float64)


def uniform_time(sde: SDE, num_steps: int) -> Tensor:
    """Equal steps in t from t_max to t_end, then 0. On a DDPM chain with all its levels: the chain itself."""
    u = _fractions(num_steps)
    return _times(sde, num_steps, sde.t_max + u * (sde.t_end - sde.t_max))


def quadratic_time(sde: SDE, num_steps: int) -> Tensor:
    """Equal steps in sqrt(t), finer towards the data (Song, Meng and Ermon 2021, appendix D.2)."""
    u = _fractions(num_steps)
    return _times(sde, num_steps, (sde.t_max**0.5 + u * (sde.t_end**0.5 - sde.t_max**0.5)) ** 2)


def vp_quadratic(sde: SDE, num_steps: int, power: float = 2.0) -> Tensor:
    """The noise levels of equal steps in t^(1/power) of the standard VP SDE, down to its t = 1e-3, under any SDE.

    Under that SDE and with power 2 it is `quadratic_time`; under others t means something else, and this does not.
    """
    require(power > 0, f"power={power}: must be positive")
    vp, ends = VPSDE(), sde.log_snr(torch.tensor([sde.t_max, sde.t_end], dtype=torch.float64))
    ends[1] = torch.minimum(ends[1], vp.log_snr(torch.tensor(1e-3, dtype=torch.float64)))
    first, last = vp.time(ends).clamp(vp.t_min, vp.t_max) ** (1 / power)
    t = sde.time(vp.log_snr((first + _fractions(num_steps) * (last - first)) ** power)).clamp(sde.t_min, sde.t_max)
    t[0] = sde.t_max
    return torch.cat([t, t.new_zeros(1)])


def uniform_log_snr(sde: SDE, num_steps: int) -> Tensor:
    """Equal steps in the log signal-to-noise ratio: noise levels fall exponentially (Lu et al. 2022, section 3.3)."""
    first, last = sde.log_snr(torch.tensor([sde.t_max, sde.t_end], dtype=torch.float64))
    return _times(sde, num_steps, sde.time(first + _fractions(num_steps) * (last - first)))


def karras(sde: SDE, num_steps: int, rho: float = 7.0) -> Tensor:
    """Equal steps in noise_level^(1/rho) (Karras et al. 2022, equation 5; rho = 7: table 1)."""
    first, last = sde.noise_level(torch.tensor([sde.t_max, sde.t_end], dtype=torch.float64)) ** (1 / rho)
    noise_level = (first + _fractions(num_steps) * (last - first)) ** rho
    return _times(sde, num_steps, sde.time(-2 * noise_level.log()))


def power_phi(sde: SDE, num_steps: int, power: float = 2.0, sd: float = 1.0) -> Tensor:
    """Equal steps in phi^(1/power), phi = atan(noise_level / sd): power 1 is uniform in phi, 2 finer at the data."""
    require(power > 0 and sd > 0, f"power={power}, sd={sd}: both must be positive")
    ends = sde.noise_level(torch.tensor([sde.t_max, sde.t_end], dtype=torch.float64))
    first, last = torch.atan(ends / sd) ** (1 / power)
    phi = (first + _fractions(num_steps) * (last - first)) ** power
    return _times(sde, num_steps, sde.time(-2 * torch.log(sd * torch.tan(phi))))


def phi_to_clean(sde: SDE, num_steps: int, power: float = 1.5, sd: float = 0.7) -> Tensor:
    """phi_max (1 - k / num_steps)^power: the steps of `power_phi` with the last one to clean data itself.

    Where that would leave the SDE's range, the last node is at t_min.
    """
    require(power > 0 and sd > 0, f"power={power}, sd={sd}: both must be positive")
    first, least = torch.atan(sde.noise_level(torch.tensor([sde.t_max, sde.t_min], dtype=torch.float64)) / sd)
    last = torch.maximum(first / num_steps**power, least)
    phi = (first ** (1 / power) + _fractions(num_steps) * (last ** (1 / power) - first ** (1 / power))) ** power
    t = sde.time(-2 * torch.log(sd * torch.tan(phi))).clamp(sde.t_min, sde.t_max)
    t[0] = sde.t_max
    return torch.cat([t, t.new_zeros(1)])


def chain(sde: SDE, num_steps: int, num_levels: int = 1000, spacing: str = "trailing") -> Tensor:
    """Some of the levels t = i / num_levels of a DDPM chain, then 0.

    Args:
        sde: one with t_max = 1.
        num_steps: how many levels.
        num_levels: of the chain.
        spacing: "trailing": num_levels (1 - k / num_steps), rounded, from the last level down (Lin et al. 2024, table
            2); "leading": every (num_levels // num_steps)-th from the first level up (Song, Meng and Ermon 2021);
            "linspace": evenly from the last to the first.
    """
    require(1 <= num_steps <= num_levels, f"num_steps={num_steps}: need 1 to num_levels={num_levels}, one level a step")
    k = torch.arange(num_steps, dtype=torch.float64)
    spacings = {
        "trailing": torch.round(num_levels * (1 - k / num_steps)),
        "leading": 1 + (num_levels // num_steps) * k.flip(0),
        "linspace": torch.round(1 + (num_levels - 1) * (1 - k / max(num_steps - 1, 1))),
    }
    if spacing not in spacings:
        raise unknown_name("spacing", spacing, spacings)
    t = (spacings[spacing] / num_levels).clamp(sde.t_min, sde.t_max)
    return torch.cat([t, t.new_zeros(1)])


def check_grid(sde: SDE, grid: Tensor) -> Tensor:
    """The grid as float64 on the host; raises `UsageError` where it cannot be stepped along."""
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
