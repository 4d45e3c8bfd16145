"""The same step by step as diffusers and k-diffusion, where the definitions coincide.

On an exact mixture, in float64, from the same start, on the same grid and with the same noise: the largest difference
of any sample from the peer's, relative to the data's deviation. Peers that are not installed are left out. Where a
line says "differs", docs/samplers.md says how:

    python -m benchmarks.peers
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

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

NUM_STEPS, NUM_SAMPLES = 20, 64
Result = tuple[str, str, StepSampler, SDE, Tensor, Callable[[ExactScoreModel, Tensor, Tensor, Noise], Tensor]]


def k_diffusion(name: str, noisy: bool = False, **options: Any) -> Callable[..., Tensor]:
    """A sampler of k-diffusion on the sigmas of a grid under EDM's path, where t is sigma."""
    from k_diffusion import sampling

    def run(model: ExactScoreModel, x_T: Tensor, grid: Tensor, noise: Noise) -> Tensor:
        draws = iter(range(1, 10**6))
        if noisy:
            options["noise_sampler"] = lambda *_: noise.normal(next(draws), tuple(x_T.shape[1:]), x_T.dtype)
        ones = x_T.new_ones(len(x_T))
        return getattr(sampling, name)(
            lambda x, sigma, **_: model.denoise(x, (sigma * ones)[0].item()), x_T, grid, disable=True, **options
        )

    return run


def diffusers(name: str, **config: Any) -> Callable[..., Tensor]:
    """A scheduler of diffusers on the noise levels of a grid under VP, up to the grid's last noisy time."""
    import diffusers as library

    def run(model: ExactScoreModel, x_T: Tensor, grid: Tensor, noise: Noise) -> Tensor:
        scheduler = getattr(library, name)(prediction_type="sample", lower_order_final=False, **config)
        scheduler.set_timesteps(len(grid) - 1)
        scheduler.sigmas = model.sde.noise_level(grid)
        scheduler.timesteps = torch.arange(len(grid) - 1, 0, -1)
        scheduler.num_inference_steps = len(grid) - 1
        x = x_T
        for k, step in enumerate(scheduler.timesteps):
            x = scheduler.step(model.denoise(x, grid[k].item()), step, x).prev_sample
        return x

    return run


def comparisons() -> list[Result]:
    """Peer, its sampler, ours, the SDE, the grid, and how to run the peer's."""
    edm, vp, found = EDMSDE(), VPSDE(), []
    sigmas, times = karras(edm, NUM_STEPS), uniform_log_snr(vp, NUM_STEPS)[:-1]
    with contextlib.suppress(ImportError):
        for name, ours, noisy, options in (
            ("sample_euler", DDIM(), False, {}),
            ("sample_heun", Heun(), False, {}),
            ("sample_dpmpp_2m", DPMSolver(2), False, {}),
            ("sample_dpmpp_2m_sde", SDEDPMSolver(2), True, {"solver_type": "midpoint"}),
            ("sample_dpmpp_3m_sde", SDEDPMSolver(3), True, {}),
        ):
            found.append(("k-diffusion", name, ours, edm, sigmas, k_diffusion(name, noisy, **options)))
    with contextlib.suppress(ImportError):
        multistep, unipc, deis = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
        for name, ours, config in (
            (multistep, DPMSolver(2), {"solver_order": 2, "final_sigmas_type": "sigma_min"}),
            (multistep, DPMSolver(3), {"solver_order": 3, "final_sigmas_type": "sigma_min"}),
            (unipc, UniPC(1), {"solver_order": 1}),
            (unipc, UniPC(2), {"solver_order": 2}),
            (unipc, UniPC(2, "B1"), {"solver_order": 2, "solver_type": "bh1"}),
            (unipc, UniPC(3), {"solver_order": 3}),
            (deis, Adams(2, False, "noise", "log_snr"), {"solver_order": 2}),
            (deis, Adams(3, False, "noise", "log_snr"), {"solver_order": 3}),
        ):
            found.append(("diffusers", f"{name} {config}", ours, vp, times, diffusers(name, **config)))
    return found


def main() -> None:
    target = nine_modes().to(dtype=torch.float64)
    scale = target.sample(10_000, torch.Generator().manual_seed(0)).std().item()
    print(f"{'peer':<13}{'its sampler':<68}{'here':<80}difference")
    for peer, name, ours, sde, grid, run in comparisons():
        model, noise = ExactScoreModel(target, sde), Noise(0, torch.arange(NUM_SAMPLES))
        x_T = sde.prior_std() * noise.normal(0, (2,), torch.float64)
        difference = (run(model, x_T, grid, noise) - ours.run(model, x_T, grid, noise)).abs().max().item() / scale
        verdict = "" if difference < 1e-5 else "  differs"
        print(f"{peer:<13}{name:<68}{ours!s:<80}{difference:.1e}{verdict}", flush=True)


if __name__ == "__main__":
    main()
