"""The error of samplers over their number of evaluations, beside that of diffusers, azula and k-diffusion.

The error of a sample is its RMS distance from the end of the converged probability flow from the same noise; a line
gives the RMS over samples without the worst in a hundred. Peers are run from their own code, each configuration of a
solver and its nodes on the same denoiser and from the same noise; at every number of evaluations the best of them is
compared with

    piloted       `samplers.fitted.pilot`: tables fitted by one pilot run of 32 samples on other noise
    calibrated    `samplers.fitted.calibrate`, from there and even nodes: up to 10 evaluations, again on other noises
    trigonometric `Trigonometric` with two values, the data's deviation for its scale, and power 1.5

Problems: two mixtures with exact scores (in the plane; in 64 dimensions, low-rank components fitted to the digits), and
networks that are trained here if the folder does not hold them (12 core-minutes in all; MNIST with --mnist FILE, 100
samples). Errors of peers are kept in the folder of their problem; without them they are measured again:

    python -m benchmarks.samplers_nfe [--problems mix2d,...] [--folder runs/nfe] [--mnist t10k-images-idx3-ubyte.gz]
        [--counts 5,6] [--samples 400] [--noises 640]

k-diffusion is compared if its `k_diffusion` can be imported.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from samplers import RungeKutta4, Trigonometric, phi_to_clean, pilot
from samplers.fitted.calibrate import calibrate
from samplers.fitted.reference import reference_coupling
from samplers.integrands import level_at
from scoresde import EDMSDE, VPSDE, ExactScoreModel, GaussianMixture, Noise, ScoreModel
from scoresde.app.cli import main as command_line
from scoresde.app.run_folder import RunFolder
from scoresde.data import load

COUNTS = (5, 6, 8, 10, 15, 20, 35, 50)
MOST_CALIBRATED = 10
SAMPLES = {"mix2d": 1000, "mix64": 1000, "plane": 500, "digits_edm": 200, "digits_vp": 200, "mnist": 100}
TRAINING = {
    "digits_edm": ["--sde=edm", "--config.training.num_steps=5000"],
    "digits_vp": ["--sde=vp", "--config.parametrization.name=NoiseParametrization", "--config.training.num_steps=5000"],
    "plane": ["--sde=edm", "--config=toy", "--config.data.name=modes", "--config.training.num_steps=10000"],
    "mnist": [
        "--config=edm",
        "--config.network.channels=20",
        "--config.network.multipliers=(1,2,2)",
        "--config.training.batch_size=32",
        "--config.training.num_steps=1500",
    ],
}


class Problem(NamedTuple):
    """A model, the noise that all start from, as x / alpha, and where the converged flow leads it."""

    model: ScoreModel
    start: Tensor
    cond: Tensor | None
    end: Tensor

    def denoise(self, u: Tensor, noise_level: float) -> Tensor:
        """D for x = alpha u; noise levels that the model does not know are its nearest."""
        level = level_at(self.model.sde, torch.tensor(noise_level, dtype=torch.float64))
        return self.model.denoise_at(u * level.alpha.item(), level.like(u), self.cond)

    @property
    def ends(self) -> tuple[float, float]:
        """The largest and the least noise level of the model."""
        first, last = self.model.sde.noise_level(
            torch.tensor([self.model.sde.t_max, self.model.sde.t_min], dtype=torch.float64)
        ).tolist()
        return first, last


def mixture_in_the_plane() -> GaussianMixture:
    """Nine narrow modes of unequal weights and widths on a spiral."""
    angle, radius = 2.4 * torch.arange(9), torch.linspace(0.15, 0.85, 9)
    weights = torch.tensor([1.0, 2, 3, 1, 2, 4, 1, 3, 2])
    variances = torch.linspace(0.02, 0.06, 9) ** 2
    means = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return GaussianMixture(weights / weights.sum(), means, variances[:, None, None] * torch.eye(2)).to(
        dtype=torch.float64
    )


def mixture_of_digits() -> GaussianMixture:
    """A component of rank 8 for each of the ten digits, and noise of deviation 0.03 around it."""
    x, labels = load("digits").split(0.25)[0].all()
    assert labels is not None
    weights, means, covariances = [], [], []
    for digit in range(10):
        of_class = x[labels == digit].flatten(1).double()
        vectors, values, _ = torch.linalg.svd(torch.cov(of_class.T))
        low_rank = (vectors[:, :8] * values[:8]) @ vectors[:, :8].T
        weights.append(len(of_class) / len(x))
        means.append(of_class.mean(0))
        covariances.append(low_rank + 0.03**2 * torch.eye(64, dtype=torch.float64))
    return GaussianMixture(torch.tensor(weights, dtype=torch.float64), torch.stack(means), torch.stack(covariances))


def trained(name: str, folder: Path, mnist: str) -> ScoreModel:
    """A network by the command line, trained if it is not there."""
    path, data = folder / name, [f"--config.data.path={mnist}"] if name == "mnist" else []
    if RunFolder(path).newest_checkpoint() is None:
        command_line(["--mode=train", f"--workdir={path}", "--device=cpu", *TRAINING[name], *data])
    checkpoint = RunFolder(path).newest_checkpoint()
    assert checkpoint is not None
    return checkpoint.model()


def problem(name: str, folder: Path, mnist: str, count: int | None = None) -> Problem:
    """A problem, its truth by 800 evaluations of Runge-Kutta's method; says what half as many change."""
    exact = {"mix2d": mixture_in_the_plane, "mix64": mixture_of_digits}
    model = ExactScoreModel(exact[name](), EDMSDE(t_min=1e-4)) if name in exact else trained(name, folder, mnist)
    classes = getattr(getattr(model, "network", None), "num_classes", 0)
    count = count or SAMPLES[name]
    start = model.sde.noise_level(torch.tensor(model.sde.t_max, dtype=torch.float64)).item() * Noise(
        100, torch.arange(count)
    ).normal(0, model.shape, torch.float64)
    start = start.to(model.like().dtype)
    cond = torch.arange(count) % classes if classes else None
    unsolved = Problem(model, start, cond, start)
    ends = []
    for steps in (100, 200):
        grid = torch.cat([level_at(model.sde, asinh(*unsolved.ends, steps + 1)).t, torch.zeros(1, dtype=torch.float64)])
        x_T = start * model.sde.alpha(grid[0]).item()
        with model.eval_mode():
            ends.append(RungeKutta4().run(model, x_T, grid, Noise(0, torch.arange(count)), cond))
    print(f"{name}: data deviation {ends[1].std():.3f}, truth good to {trimmed(ends[1] - ends[0]):.1e}", flush=True)
    return unsolved._replace(end=ends[1])


def trimmed(error: Tensor) -> float:
    """RMS without the worst sample in a hundred."""
    squares = error.double().flatten(1).square().mean(1).sort().values
    return squares[: math.ceil(0.99 * len(squares))].mean().sqrt().item()


def asinh(first: float, last: float, n: int, width: float = 0.03) -> Tensor:
    """n noise levels even in asinh(noise level / width)."""
    ends = [math.asinh(r / width) for r in (first, last)]
    return width * torch.sinh(torch.linspace(*ends, n, dtype=torch.float64))


def node_families(first: float, least: float, n: int) -> Iterator[tuple[str, Tensor]]:
    """Nodes as the peers offer them, from the model's first noise level on."""
    u = torch.linspace(0, 1, n, dtype=torch.float64)
    vp = VPSDE()
    for t_end in (1e-3, 1e-4):
        t_max = min(1.0, vp.time(-2 * torch.tensor(first, dtype=torch.float64).log()).item())
        for name, power in (("time_quadratic", 2), ("time_uniform", 1)):
            t = (t_max ** (1 / power) + u * (t_end ** (1 / power) - t_max ** (1 / power))) ** power
            yield f"{name} {t_end:g}", vp.noise_level(t)
    for last in (0.002, 0.01, 0.03):
        end = max(last, least)
        yield f"log_snr {end:g}", torch.exp(math.log(first) + u * math.log(end / first))
        yield f"karras {end:g}", (first ** (1 / 7) + u * (end ** (1 / 7) - first ** (1 / 7))) ** 7
    t = torch.linspace(first / (1 + first), 0, n + 1, dtype=torch.float64)[:-1]
    yield "flow", t / (1 - t)
    phi = torch.linspace(math.atan(first), 0, n + 1, dtype=torch.float64)[:-1]
    yield "atan", torch.tan(phi)


def of_diffusers(p: Problem, n: int) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    import diffusers

    schedulers = [
        ("UniPCMultistepScheduler", {"solver_order": 2}),
        ("UniPCMultistepScheduler", {"solver_order": 3}),
        ("DPMSolverMultistepScheduler", {"solver_order": 1}),
        ("DPMSolverMultistepScheduler", {"solver_order": 2}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("DEISMultistepScheduler", {"solver_order": 2}),
        ("DEISMultistepScheduler", {"solver_order": 3}),
    ]

    def run(name: str, options: dict[str, int], levels: Tensor) -> Tensor:
        to_zero = not name.startswith("DEIS")  # whose last step is the denoiser, since it takes no noise level of 0
        scheduler, steps = getattr(diffusers, name)(prediction_type="sample", **options), n if to_zero else n - 1
        scheduler.set_timesteps(steps)
        scheduler.sigmas = torch.cat([levels, torch.zeros(1, dtype=torch.float64)]) if to_zero else levels
        scheduler.timesteps, scheduler.num_inference_steps = torch.arange(steps, 0, -1), steps
        scale, r = torch.sqrt(1 + levels**2).tolist(), levels.tolist()
        x = p.start / scale[0]
        for k, step in enumerate(scheduler.timesteps):
            x = scheduler.step(p.denoise(x * scale[k], r[k]), step, x).prev_sample.to(p.start.dtype)
        return x if to_zero else p.denoise(x * scale[-1], r[-1])

    for nodes, levels in node_families(*p.ends, n):
        for name, options in schedulers:
            label = f"diffusers {name.removesuffix('Scheduler')} {options['solver_order']} {nodes}"
            yield label, lambda name=name, options=options, levels=levels: run(name, options, levels)  # type: ignore[misc]


def of_k_diffusion(p: Problem, n: int) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    from k_diffusion import sampling

    def run(name: str, levels: Tensor) -> Tensor:
        sigmas = torch.cat([levels, levels.new_zeros(1)]).to(p.start.dtype)
        function = getattr(sampling, name)
        return function(lambda u, sigma, **_: p.denoise(u, sigma[0].item()), p.start, sigmas, disable=True)

    for name, count in (("sample_euler", n), ("sample_dpmpp_2m", n), ("sample_heun", (n + 1) // 2)):
        for nodes, levels in node_families(*p.ends, count):
            if name != "sample_heun" or n % 2:
                yield f"k-diffusion {name} {nodes}", lambda name=name, levels=levels: run(name, levels)  # type: ignore[misc]


def of_azula(p: Problem, n: int) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    import azula.denoise
    import azula.noise
    import azula.sample

    first, least = p.ends

    class Denoiser(azula.denoise.Denoiser):  # type: ignore[misc]
        def __init__(self, schedule: azula.noise.Schedule) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t: Tensor, t: Tensor, **_: object) -> object:
            alpha, sigma = self.schedule(t.double())
            u = (x_t / alpha).to(p.start.dtype)
            return azula.denoise.DiracPosterior(p.denoise(u, (sigma / alpha).item()).to(x_t.dtype))

    schedules = {
        "Rectified": azula.noise.RectifiedSchedule(alpha_min=1 / (1 + first), sigma_min=max(least, 1e-3)),
        "VE": azula.noise.VESchedule(sigma_min=max(least, 1e-3), sigma_max=first),
        "VP": azula.noise.VPSchedule(alpha_min=1 / math.sqrt(1 + first**2), sigma_min=max(least, 1e-3)),
    }

    def run(kind: str, options: dict[str, int], schedule: azula.noise.Schedule) -> Tensor:
        sampler = getattr(azula.sample, kind)(Denoiser(schedule), steps=n, silent=True, dtype=torch.float64, **options)
        alpha, _ = schedule(torch.tensor(1.0, dtype=torch.float64))
        return sampler(p.start.double() * alpha.item())

    for name, schedule in schedules.items():
        kinds = [("vABSampler", 2), ("vABSampler", 3), ("zABSampler", 2), ("zEABSampler", 3), ("DDIMSampler", 0)]
        for kind, order in kinds:
            options = {"order": order} if order else {}
            label = f"azula {kind} {order or ''} {name}"
            yield label, lambda kind=kind, options=options, schedule=schedule: run(kind, options, schedule)  # type: ignore[misc]


def best_peer(p: Problem, n: int, kept: Path) -> tuple[float, str, int]:
    """The least error of all peers' configurations, which that is, and how many were run.

    Their errors are those of a network, and are kept beside it.
    """
    if not kept.exists():
        found = {}
        for peers in (of_diffusers, of_k_diffusion, of_azula):
            with contextlib.suppress(ImportError):
                for label, run in peers(p, n):
                    with contextlib.suppress(RuntimeError, IndexError, ValueError, ZeroDivisionError):
                        error = trimmed(run() - p.end)
                        if math.isfinite(error):
                            found[label] = error
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found))
    errors = json.loads(kept.read_text())
    best = min(errors, key=errors.__getitem__)
    return errors[best], best, len(errors)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default="mix2d,mix64,plane,digits_edm,digits_vp")
    parser.add_argument("--folder", type=Path, default=Path("runs/nfe"))
    parser.add_argument("--mnist", default="")
    parser.add_argument("--samples", type=int, help="that judge, in place of the problem's own number")
    parser.add_argument("--noises", type=int, default=640, help="of the calibration")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    options = parser.parse_args()
    for name in options.problems.split(","):
        p = problem(name, options.folder, options.mnist, options.samples)
        began, calls = time.process_time(), 0

        def count(done: int) -> None:
            nonlocal calls
            calls = done

        classes = 0 if p.cond is None else int(p.cond.max()) + 1
        piloted = pilot(p.model, torch.arange(32) % classes if classes else None, count)
        print(f"{name}: pilot of {calls} evaluations, {time.process_time() - began:.1f} core-s", flush=True)
        began = time.process_time()
        labels = torch.arange(options.noises) % classes if classes else None
        truth = reference_coupling(p.model, piloted.fits[8].sd, labels, options.noises, seed=50)
        print(f"{name}: {options.noises} noises to calibrate on, {time.process_time() - began:.1f} core-s", flush=True)
        scale = p.end.std().item()
        columns = "".join(f"{c:>11}" for c in ("piloted", "calibrated", "trigonom.", "best peer"))
        print(f"{'evaluations':>12}{columns}   ratios    core-s  best peer of how many")
        for n in map(int, options.counts.split(",")):
            began = time.process_time()
            calibrated = calibrate(p.model, piloted, n, truth).sampler if n <= MOST_CALIBRATED else None
            seconds = time.process_time() - began
            errors = []
            with p.model.eval_mode():
                for sampler, grid in (
                    (piloted, piloted.default_grid(p.model.sde, n)),
                    (calibrated, None if calibrated is None else calibrated.default_grid(p.model.sde, n)),
                    (Trigonometric(2, scale), phi_to_clean(p.model.sde, n, 1.5, scale)),
                ):
                    if sampler is None or grid is None:
                        errors.append(math.nan)
                        continue
                    x_T = p.start / p.ends[0] * p.model.sde.sigma(grid[0]).item()
                    x = sampler.run(p.model, x_T, grid, Noise(0, torch.arange(len(x_T))), p.cond)
                    errors.append(trimmed(x - p.end))
                peer, label, tried = best_peer(p, n, options.folder / name / f"peers_{len(p.start)}_{n}.json")
            numbers = f"{n:>12}" + "".join(f"{e:>11.2g}" for e in (*errors, peer))
            ratios = f"{errors[0] / peer:>7.2f}{errors[1] / peer:>6.2f}{seconds:>7.0f}"
            print(f"{numbers}{ratios}  {label} ({tried})".replace("nan", "  -"), flush=True)


if __name__ == "__main__":
    main()
