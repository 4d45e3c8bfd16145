"""The order of convergence of every sampler, measured where the truth is known, and the table of it in the docs.

A Gaussian target gives everything in closed form. Deterministic samplers are compared with the exact flow of its
samples (strong order), between noise levels where every SDE is smooth; multistep methods start with values on that
flow, and in the next column without. For stochastic samplers the whole chain is affine in the start and the noises, so
that its mean and variance are exact numbers, without Monte Carlo (weak order: of the variance). Slopes are over the
last two halvings of the steps above rounding, under VP with even steps in log-SNR:

    python -m benchmarks.orders        writes the table into docs/samplers.md

The tests take the same measurements under every SDE.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import torch

from samplers import RungeKutta4, TableSampler, run
from samplers.multistep import Multistep, multistep_table
from samplers.quadrature import Time
from scoresde import VPSDE, DiscreteVPSDE, ExactScoreModel, Gaussian, Noise
from scoresde.noise import NoiseSource
from sde_configs import default
from sde_configs.build import SAMPLERS, build_sampler

PAGE = Path(__file__).parent.parent / "docs" / "samplers.md"
BEGIN, END = "<!-- orders: begin -->\n", "<!-- orders: end -->\n"


def gaussian(device="cpu", shape=(3,)):
    """A shifted Gaussian with correlated entries of very different variances; float64."""
    generator = torch.Generator().manual_seed(1)
    dim = torch.Size(shape).numel()
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
    variances = torch.logspace(-2, 0.6, dim, dtype=torch.float64)
    mean = torch.linspace(-1, 1.5, dim, dtype=torch.float64).reshape(shape)
    return Gaussian(mean.to(device), ((rotation * variances) @ rotation.T).to(device))


def noise_for(num_samples, device="cpu"):
    return Noise(0, torch.arange(num_samples, device=device))


def inner_grid(sde, num_steps, spacing, first=4.0, last=0.05):
    """Times between two noise levels at which every SDE is smooth, evenly in t, sqrt(t) or log-SNR; no clean end."""
    u = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    log_snr = -2 * torch.tensor([first, last], dtype=torch.float64).log()
    start, end = sde.time(log_snr)
    if spacing == "log_snr":
        return sde.time(log_snr[0] + u * (log_snr[1] - log_snr[0]))
    if spacing == "sqrt":
        return (start.sqrt() + u * (end.sqrt() - start.sqrt())) ** 2
    return start + u * (end - start)


def smooth(sde):
    """The SDE, or for a DDPM chain one of so many levels that steps do not see the kinks of its beta."""
    if isinstance(sde, DiscreteVPSDE):
        return DiscreteVPSDE(beta_start=1e-6, beta_end=2e-4, num_levels=100_000)
    return sde


def slopes(errors):
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


def errors_on_a_gaussian(sampler, sde, spacing, counts, device, exact_history):
    """RMS errors of a deterministic sampler at the end of grids of more and more steps, against the exact flow.

    With `exact_history` a multistep method starts with as many values on the exact flow as it uses, instead of with
    steps of lower order.
    """
    sde, target, errors = smooth(sde), gaussian(device), []
    model = ExactScoreModel(target, sde)
    x_0 = target.sample(64, torch.Generator(device).manual_seed(0))
    for num_steps in counts:
        grid = inner_grid(sde, num_steps, spacing, first=2.0, last=0.4)
        levels = sde.level(grid.to(device))
        start, end = levels.at(0), levels.at(-1)
        x_T = start.alpha * x_0 + start.sigma * noise_for(64, device).normal(0, (3,), torch.float64)

        def flow(to, x_T=x_T, start=start):
            return target.probability_flow(x_T, (start.alpha, start.sigma), (to.alpha, to.sigma))

        table, known = sampler.table(sde, grid), 0
        x, history = x_T, []
        if exact_history and isinstance(sampler, Multistep):
            scheme, known = sampler.scheme(sde), sampler.scheme(sde).num_values - 1
            host = sde.level(grid)
            uncorrected = multistep_table(scheme._replace(corrector=False), host.at(slice(-1)), host.at(slice(1, None)))
            table.b[known, : known + 1], table.b[known, known + 1 :] = uncorrected.b[known], 0
            p, q = scheme.integrand.factors(levels.at(slice(0, known)))
            for k in range(known):
                here, x_k = levels.at(k), flow(levels.at(k))
                history.insert(0, p[k] * model.denoise_at(x_k, here) + q[k] * x_k)
            x = flow(levels.at(known))
        result = run(table.rows(slice(known, None)), model, x, noise_for(64, device), history=history)
        errors.append((result - flow(end)).square().mean().sqrt().item())
    return errors


def asymptotic_slopes(errors):
    """Slopes over the last two halvings whose errors are well above rounding."""
    above = [error for error in errors if error > 1e-13]
    assert len(above) >= 3, errors
    return slopes(above[-3:])


def counts(sampler):
    """Numbers of steps: high orders need fine grids to show, but with four stages a step rounding is near."""
    if isinstance(sampler, RungeKutta4):
        return (16, 32, 64, 128)
    if sampler.order <= 2:
        first = 64
    else:
        first = 256 if sampler.order == 3 and isinstance(sampler, Multistep) else 128
    return tuple(first * 2**k for k in range(4))


def kinked(sampler, sde):
    """Whether a method takes polynomials in t along a chain, whose path is smooth only between its levels."""
    return (
        isinstance(sde, DiscreteVPSDE) and isinstance(sampler, Multistep) and isinstance(sampler.scheme(sde)[1], Time)
    )


class ProbeNoise(NoiseSource):
    """Noise whose draw in interval k is 1 for sample k of the batch and 0 for all others."""

    def __init__(self, size, device):
        self.size, self.device = size, device

    def normals(self, draws, shape, dtype):
        unit = torch.zeros(len(draws), self.size, *shape, dtype=dtype, device=self.device)
        unit[range(len(draws)), draws] = 1
        return unit


def chain_moments(sampler, sde, grid, mean, variance, device):
    """Exact mean and variance of a sampler's result on N(mean, variance), started from the exact marginal.

    The chain is affine in (x_T, z_1, ..., z_n): sample 0 of the batch starts at the mean with no noise, sample k sees
    z_k = 1 alone, and the last starts one unit off the mean. All differences to sample 0 are the chain's coefficients.
    """
    target = Gaussian(torch.tensor([mean], dtype=torch.float64), torch.tensor([variance], dtype=torch.float64))
    model = ExactScoreModel(Gaussian(target.mixture.means[0].to(device), target.mixture.variances[0].to(device)), sde)
    rows = len(sampler.table(sde, grid))
    start = sde.level(grid[0])
    x_T = torch.full((rows + 2, 1), (start.alpha * mean).item(), dtype=torch.float64, device=device)
    x_T[-1] += 1
    y = run(sampler.table(sde, grid), model, x_T, ProbeNoise(rows + 2, device))[:, 0].cpu()
    coefficients = y[1:] - y[0]
    start_variance = (start.alpha**2 * variance + start.sigma**2).item()
    return y[0].item(), (coefficients[:-1].square().sum() + coefficients[-1] ** 2 * start_variance).item()


def variance_errors(sampler, sde, spacing, mean, variance, device):
    """Errors of the mean and of the variance at the end of grids of more and more steps."""
    mean_errors, errors = [], []
    for num_steps in (200, 400, 800):
        grid = inner_grid(sde, num_steps, spacing, first=3.0, last=0.2)
        end = sde.level(grid[-1])
        got_mean, got_variance = chain_moments(sampler, sde, grid, mean, variance, device)
        mean_errors.append(abs(got_mean - (end.alpha * mean).item()))
        errors.append(abs(got_variance - (end.alpha**2 * variance + end.sigma**2).item()))
    return mean_errors, errors


def measured(sampler):
    """The sampler's slope, and for a multistep method that of a start with fewer values (both under VP)."""
    device = torch.device("cpu")
    if sampler.noise != "none":
        return min(slopes(variance_errors(sampler, VPSDE(), "log_snr", -0.4, 2.5, device)[1])), None
    runs = [True, False] if isinstance(sampler, Multistep) else [True]
    found = [
        min(asymptotic_slopes(errors_on_a_gaussian(sampler, VPSDE(), "log_snr", counts(sampler), device, exact)))
        for exact in runs
    ]
    return found[0], found[1] if len(found) > 1 else None


def rows():
    """A line of the table for each name of the command line, with the configuration's settings."""
    for name, cls in SAMPLERS.items():
        sampler = build_sampler(default.get_config(), name, None)
        if not isinstance(sampler, TableSampler) or sampler.order == 0:
            continue
        slope, ramped = measured(sampler)
        kind = "strong" if sampler.noise == "none" else "weak"
        start = "" if ramped is None else f"{ramped:.2f}"
        yield f"| `{name}` | `{cls.__name__}` | {kind} | {sampler.order} | {slope:.2f} | {start} |"


def table():
    """The table of the page."""
    head = "| `--sampler` | class | kind | declared order | measured | from a start with fewer values |\n"
    return head + "|---|---|---|---|---|---|\n" + "\n".join(rows()) + "\n"


def main():
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.split(END)[1])
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
