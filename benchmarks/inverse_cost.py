"""What posterior sampling costs beside deepinv: the time of its run divided by that of ours.

The two U-Nets of `benchmarks.guidance_cost` with random weights, none of them 0, and a mask that shows 30 % of the
pixels. Both libraries ask the network equally often; MMPS and deepinv's moment matching take three iterations. Runs are
timed in turn, on one thread. A line gives medians of the ratios and, in brackets, their quartiles: above 1 ours is
faster. "without" is our run over that of DDIM without a measurement:

    python -m benchmarks.inverse_cost [--batch_sizes 1,16] [--seconds 30]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.guidance_cost import NETWORKS, ratios
from benchmarks.inverse_peers import deepinv
from samplers import DDIM, DDRM, Sampler, prepare
from scoresde import VPSDE, EDMParametrization, NetworkScoreModel, Noise, ScoreModel, UNet
from scoresde.inverse import DPS, MMPS, DiffPIR, MeasuredModel, PiGDM, PosteriorModel
from scoresde.operators import Mask

NOISE = 0.05
NUM_STEPS = 10
SPREAD = 0.05  # of the noise that weights are given
Run = Callable[[], Tensor]

METHODS: dict[str, tuple[type[PosteriorModel], Sampler]] = {
    "MMPS": (MMPS, DDIM()),
    "PiGDM": (PiGDM, DDIM()),
    "DPS": (DPS, DDIM()),
    "DiffPIR": (DiffPIR, DDIM()),
    "DDRM": (MeasuredModel, DDRM()),
}


def denoiser_of(model: ScoreModel, images: bool) -> Any:
    """A model as a denoiser of deepinv: of its own data, or of images in [0, 1] (x = 2 image - 1)."""
    library = deepinv()

    class Denoiser(library.models.Denoiser):  # type: ignore[misc]
        def forward(self, x: Tensor, sigma: Tensor | float, **_: Any) -> Tensor:
            size = 2.0 if images else 1.0
            noise_level = torch.as_tensor(sigma, dtype=torch.float64).flatten()[0] * size
            level = model.sde.level(model.sde.time(-2 * noise_level.log()).clamp(model.sde.t_min, model.sde.t_max))
            level = level.to(x.device, x.dtype)
            u = 2 * x - 1 if images else x
            found = model.denoise_at(level.alpha * u, level)
            return (found + 1) / 2 if images else found

    return Denoiser()


def peer_of(name: str, model: ScoreModel, seen: Tensor, y: Tensor) -> Run:
    """The same method of deepinv, with as many evaluations."""
    library = deepinv()
    sampling = library.sampling
    physics = library.physics.Inpainting(
        img_size=model.shape, mask=seen.to(y), noise_model=library.physics.GaussianNoise(NOISE)
    )
    if name in ("MMPS", "PiGDM", "DPS"):
        fidelity = {
            "MMPS": "MomentMatchingDataFidelity",
            "PiGDM": "PiGDMDataFidelity",
            "DPS": "DPSDataFidelity",
        }[name]
        sde = sampling.VariancePreservingDiffusion(minus_one_one=False)
        times = torch.linspace(sde.T, 0, NUM_STEPS + 1, dtype=torch.float64)
        likelihood = getattr(sampling, fidelity)()
        solver = sampling.DDIMSolver(timesteps=times)
        run = sampling.PosteriorDiffusion(likelihood, denoiser_of(model, False), sde, solver, minus_one_one=False)
        return lambda: run(y, physics)
    denoiser = denoiser_of(model, True)
    if name == "DDRM":
        run = sampling.DDRM(denoiser, sigmas=torch.linspace(1, 0, NUM_STEPS + 1).tolist())
    else:
        run = sampling.DiffPIR(denoiser, data_fidelity=library.optim.data_fidelity.L2(), max_iter=NUM_STEPS)
    return lambda: run((y + 1) / 2 * seen, physics)


def runs_of(name: str, model: ScoreModel, batch_size: int) -> list[Run]:
    """Ours, deepinv's, and the same sampler without a measurement."""
    build, sampler = METHODS[name]
    operator = Mask.random(model.shape, 0.3, 0, dims=len(model.shape) - 1)
    clean = torch.randn(batch_size, *model.shape, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    posterior = build(model, operator, NOISE)
    grid = sampler.grid(posterior, NUM_STEPS)
    noise = Noise(0, torch.arange(batch_size))
    x_T = noise.normal(0, model.shape, model.dtype)
    y = operator(clean)
    ours = prepare(posterior, sampler, grid)
    prior = prepare(model, DDIM(), DDIM().grid(model, NUM_STEPS))
    peer = peer_of(name, model, operator.seen, clean * operator.seen)
    return [lambda: ours(x_T, noise, y).x, peer, lambda: prior(x_T, noise).x]


class Counted(NetworkScoreModel):
    """A network that counts its evaluations."""

    calls = 0

    def denoise_at(self, *arguments: Any, **options: Any) -> Tensor:
        self.calls += 1
        return super().denoise_at(*arguments, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", default="1,16")
    parser.add_argument("--seconds", type=float, default=30, help="of a line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'network':>8}{'batch':>7}  {'method':<9}{'rounds':>7}{'evaluations':>12}{'deepinv':>24}{'without':>24}")
    for name, (shape, settings) in NETWORKS.items():
        network = UNet(shape[0], **settings)  # type: ignore[arg-type]
        for weight in network.parameters():  # layers of zeros make D linear, whose systems are solved at once
            weight.data += SPREAD * torch.randn_like(weight)
        model = Counted(network, VPSDE(), EDMParametrization(sigma_data=0.5), shape).eval().requires_grad_(False)
        for batch_size in map(int, options.batch_sizes.split(",")):
            for method in METHODS:
                runs = runs_of(method, model, batch_size)
                counts = []
                for run in runs[:2]:
                    model.calls = 0
                    run()
                    counts.append(model.calls)
                theirs, without = ratios(runs, "cpu", options.seconds)
                columns = ""
                for column in (theirs, [1 / value for value in without]):
                    low, middle, high = statistics.quantiles(column, n=4)
                    columns += f"{middle:>8.2f} ({low:.2f}, {high:.2f})".rjust(24)
                counted = "/".join(map(str, counts))
                print(f"{name:>8}{batch_size:>7}  {method:<9}{len(theirs):>7}{counted:>12}{columns}", flush=True)


if __name__ == "__main__":
    main()
