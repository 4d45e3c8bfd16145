"""Step by step the same as diffusers and k-diffusion, where the definitions coincide.

On an exact mixture, in float64, both start from the same state and take the same grid and noise. A line gives the
largest difference between any sample and the peer's, relative to the data's deviation. Peers that are not installed are
left out. docs/samplers.md explains the lines that say "differs":

    python -m benchmarks.peers
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers import (
    DDIM,
    Adams,
    DPMSolver,
    Heun,
    SDEDPMSolver,
    StepSampler,
    UniPC,
    karras,
    uniform_log_snr,
)
from scoresde import EDMSDE, SDE, VPSDE, ExactScoreModel, Noise
from scoresde.data import nine_modes

NUM_STEPS = 20
NUM_SAMPLES = 64
SAME = 1e-5  # of the data's deviation: a larger difference is reported
Run = Callable[[ExactScoreModel, Tensor, Tensor, Noise], Tensor]  # model, x_T, grid and noise to samples


class Comparison(NamedTuple):
    """A sampler of a peer and ours, with what both are run on.

    Attributes:
        peer: the library.
        name: its sampler.
        ours: our sampler.
        sde, grid: the SDE, and the times.
        run: runs the peer's sampler.
    """

    peer: str
    name: str
    ours: StepSampler
    sde: SDE
    grid: Tensor
    run: Run


def k_diffusion(name: str, noisy: bool, options: dict[str, Any]) -> Run:
    """A sampler of k-diffusion on the noise levels of a grid under EDM's SDE, where t is the noise level."""
    from k_diffusion import sampling

    def run(model: ExactScoreModel, x_T: Tensor, grid: Tensor, noise: Noise) -> Tensor:
        draws = iter(range(1, NUM_STEPS + 1))
        given = dict(options)
        if noisy:
            given["noise_sampler"] = lambda *_: noise.normal(next(draws), tuple(x_T.shape[1:]), x_T.dtype)

        def denoise(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
            return model.denoise(x, sigma.flatten()[0].item())

        return getattr(sampling, name)(denoise, x_T, grid, disable=True, **given)

    return run


def diffusers(name: str, config: dict[str, Any]) -> Run:
    """A scheduler of diffusers on the noise levels of a grid under VP, up to the grid's last time."""
    import diffusers as library

    def run(model: ExactScoreModel, x_T: Tensor, grid: Tensor, noise: Noise) -> Tensor:
        num_steps = len(grid) - 1
        scheduler = getattr(library, name)(prediction_type="sample", lower_order_final=False, **config)
        scheduler.set_timesteps(num_steps)
        scheduler.sigmas = model.sde.noise_level(grid)
        scheduler.timesteps = torch.arange(num_steps, 0, -1)
        scheduler.num_inference_steps = num_steps
        x = x_T
        for k, step in enumerate(scheduler.timesteps):
            x = scheduler.step(model.denoise(x, grid[k].item()), step, x).prev_sample
        return x

    return run


def of_k_diffusion() -> Iterator[Comparison]:
    """Comparisons with k-diffusion."""
    sde = EDMSDE()
    grid = karras(sde, NUM_STEPS)
    samplers: list[tuple[str, StepSampler, bool, dict[str, Any]]] = [
        ("sample_euler", DDIM(), False, {}),
        ("sample_heun", Heun(), False, {}),
        ("sample_dpmpp_2m", DPMSolver(2), False, {}),
        ("sample_dpmpp_2m_sde", SDEDPMSolver(2), True, {"solver_type": "midpoint"}),
        ("sample_dpmpp_3m_sde", SDEDPMSolver(3), True, {}),
    ]
    for name, ours, noisy, options in samplers:
        yield Comparison("k-diffusion", name, ours, sde, grid, k_diffusion(name, noisy, options))


def of_diffusers() -> Iterator[Comparison]:
    """Comparisons with diffusers."""
    sde = VPSDE()
    grid = uniform_log_snr(sde, NUM_STEPS)[:-1]
    multistep = "DPMSolverMultistepScheduler"
    unipc = "UniPCMultistepScheduler"
    deis = "DEISMultistepScheduler"
    samplers: list[tuple[str, StepSampler, dict[str, Any]]] = [
        (multistep, DPMSolver(2), {"solver_order": 2, "final_sigmas_type": "sigma_min"}),
        (multistep, DPMSolver(3), {"solver_order": 3, "final_sigmas_type": "sigma_min"}),
        (unipc, UniPC(1), {"solver_order": 1}),
        (unipc, UniPC(2), {"solver_order": 2}),
        (unipc, UniPC(2, "B1"), {"solver_order": 2, "solver_type": "bh1"}),
        (unipc, UniPC(3), {"solver_order": 3}),
        (deis, Adams(2, False, "noise", "log_snr"), {"solver_order": 2}),
        (deis, Adams(3, False, "noise", "log_snr"), {"solver_order": 3}),
    ]
    for name, ours, config in samplers:
        yield Comparison("diffusers", f"{name} {config}", ours, sde, grid, diffusers(name, config))


def main() -> None:
    target = nine_modes().to(dtype=torch.float64)
    print(f"{'peer':<13}{'its sampler':<90}{'here':<82}difference")
    for comparisons in (of_k_diffusion, of_diffusers):
        with contextlib.suppress(ImportError):
            for peer, name, ours, sde, grid, run in comparisons():
                model = ExactScoreModel(target, sde)
                noise = Noise(0, torch.arange(NUM_SAMPLES))
                x_T = sde.prior_std() * noise.normal(0, (2,), torch.float64)
                error = run(model, x_T, grid, noise) - ours.run(model, x_T, grid, noise)
                difference = error.abs().max().item() / model.sigma_data
                verdict = "" if difference < SAME else "  differs"
                print(f"{peer:<13}{name:<90}{ours!s:<82}{difference:.1e}{verdict}", flush=True)


if __name__ == "__main__":
    main()
