"""Guided samplers of diffusers and azula, for the table of `benchmarks.guidance`.

Peers run their own code: diffusers' guiders with its schedulers along DDPM's chain, from its last timestep on, and
azula's `CFGDenoiser` with its samplers. They take the two estimates of x_0 from the same model. A scale of diffusers
counts as ours: 1 is off. azula counts from 0, and so does diffusers' APG as its paper writes it. Peers that cannot be
imported are left out.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.samplers_nfe import azula_denoiser, denoise
from scoresde import ExactLabelledModel

STEPS = 200
CORRECTED_STEPS = 40  # with as many evaluations in all
CORRECTIONS = 4

Estimate = Callable[[Tensor, float, Tensor], Tensor]  # D of x / alpha `(B, *)`, a noise level, and labels `(B,)`
Peers = Iterator[tuple[str, Callable[[Tensor], Tensor]]]  # names, and how to draw from standard normal noise


def peers(model: ExactLabelledModel, w: float, cond: int, count: int) -> Iterator[tuple[str, Tensor, int]]:
    """The name of each peer, `count` samples of class `cond`, and the network evaluations of each sample."""
    asked, none = (torch.full((count,), label) for label in (cond, model.num_classes))
    calls = 0

    def estimate(u: Tensor, noise_level: float, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return denoise(model, u, noise_level, labels)

    for of_peer in (of_diffusers, of_azula):
        with contextlib.suppress(ImportError):
            for name, run in of_peer(estimate, model, w, (asked, none)):
                calls = 0
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    x = run(torch.randn(count, *model.shape, dtype=model.dtype))
                yield name, x, calls


def of_diffusers(estimate: Estimate, model: ExactLabelledModel, w: float, labels: tuple[Tensor, Tensor]) -> Peers:
    """Guiders of diffusers with its schedulers."""
    import diffusers
    from diffusers import guiders

    def run(name: str, options: dict[str, Any], guider: guiders.BaseGuidance, x: Tensor) -> Tensor:
        scheduler = getattr(diffusers, name)(prediction_type="sample", timestep_spacing="trailing", **options)
        scheduler.set_timesteps(STEPS)
        for k, t in enumerate(scheduler.timesteps):
            alpha_bar = scheduler.alphas_cumprod[t].item()
            u, noise_level = x / math.sqrt(alpha_bar), math.sqrt(1 / alpha_bar - 1)
            guider.set_state(k, STEPS, t)
            parts = guider.prepare_inputs({"labels": labels})
            for part in parts:
                part.noise_pred = estimate(u, noise_level, part.labels)
            x = scheduler.step(guider(parts).pred, t, x).prev_sample.to(x.dtype)
        return x

    no_clip = {"clip_sample": False}
    stochastic = {"algorithm_type": "sde-dpmsolver++"}
    free = partial(guiders.ClassifierFreeGuidance, guidance_scale=w)
    projected = partial(guiders.AdaptiveProjectedGuidance, eta=0.0, adaptive_projected_guidance_rescale=0.0)
    yield "diffusers DDPM, CFG", partial(run, "DDPMScheduler", no_clip, free())
    yield "diffusers SDE-DPM-Solver++, CFG", partial(run, "DPMSolverMultistepScheduler", stochastic, free())
    for name, guider in {
        "CFG": free(),
        "APG of eta 0": projected(guidance_scale=w),
        "APG of eta 0, as in its paper": projected(guidance_scale=w - 1, use_original_formulation=True),
        "magnitude-aware": guiders.MagnitudeAwareGuidance(guidance_scale=w),
        "tangential": guiders.TangentialClassifierFreeGuidance(guidance_scale=w),
    }.items():
        yield f"diffusers DDIM, {name}", partial(run, "DDIMScheduler", no_clip, guider)


def of_azula(estimate: Estimate, model: ExactLabelledModel, w: float, labels: tuple[Tensor, Tensor]) -> Peers:
    """azula's guided denoiser with its samplers, on its VP schedule over the model's noise levels."""
    import azula.noise
    import azula.sample
    from azula.guidance import CFGDenoiser

    first, last = model.sde.span().noise_level.tolist()
    schedule = azula.noise.VPSchedule(alpha_min=1 / math.sqrt(1 + first**2), sigma_min=last)
    guided = CFGDenoiser(azula_denoiser(schedule, estimate))
    positive, negative = ({"labels": part} for part in labels)

    def run(name: str, steps: int, options: dict[str, Any], x: Tensor) -> Tensor:
        sampler = getattr(azula.sample, name)(guided, steps=steps, silent=True, dtype=torch.float64, **options)
        return sampler(x, positive=positive, negative=negative, guidance=w - 1)

    yield "azula DDPM, CFG", partial(run, "DDPMSampler", STEPS, {})
    yield "azula DDIM, CFG", partial(run, "DDIMSampler", STEPS, {})
    for delta in (0.01, 0.32, 0.8):  # its default, what snr 0.4 is here, and more
        options = {"corrections": CORRECTIONS, "delta": delta}
        name = f"azula {CORRECTED_STEPS} steps, {CORRECTIONS} corrections of {delta:g}"
        yield name, partial(run, "PCSampler", CORRECTED_STEPS, options)
