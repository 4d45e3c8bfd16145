"""The error of samplers by number of evaluations, beside that of diffusers, azula and k-diffusion.

The error of a sample is its RMS distance from the end of the converged probability flow from the same noise. A line
gives the RMS over samples without the worst in a hundred. Peers run their own code: each configuration of a solver and
its nodes, on the same denoiser and from the same noise. At every number of evaluations the best peer is compared with

    fitted        `samplers.fit_sampler`: tables fitted by one pilot run of 32 samples from other noise
    calibrated    `samplers.calibrate`, for up to 10 evaluations: the same tables, fitted to other noises again
    trigonometric `samplers.Trigonometric` with its defaults

Problems: two mixtures with exact scores (in the plane; in 64 dimensions, low-rank components fitted to the digits), and
networks. Networks that the folder does not hold are trained first (12 core-minutes in all). MNIST needs --mnist FILE,
and is judged by 100 samples. The peers' errors are kept in the folder of their problem; delete them to measure again:

    python -m benchmarks.samplers_nfe [--problems mix2d,...] [--folder runs/nfe] [--mnist t10k-images-idx3-ubyte.gz]
        [--counts 5,6] [--samples 400] [--noises 640]

Peers that cannot be imported are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samplers import (
    FittedSampler,
    RungeKutta4,
    TableSampler,
    Trigonometric,
    calibrate,
    fit_sampler,
    reference_coupling,
)
from scoresde import EDMSDE, VPSDE, ExactScoreModel, GaussianMixture, Noise, ScoreModel
from scoresde.app.cli import main as command_line
from scoresde.app.run_folder import RunFolder
from scoresde.data import load
from scoresde.data.info import DataInfo

Runs = Iterator[tuple[str, Callable[[], Tensor]]]  # names of configurations, and how to draw with them

COUNTS = (5, 6, 8, 10, 15, 20, 35, 50)
MOST_CALIBRATED = 10
PILOT_SAMPLES = 32
SAMPLES = {"mix2d": 1000, "mix64": 1000, "plane": 500, "digits_edm": 200, "digits_vp": 200, "mnist": 100}
TRAINING = {
    "digits_edm": ["--sde=edm", "--config.training.num_steps=5000"],
    "digits_vp": ["--sde=vp", "--config.parametrization.name=NoiseParametrization", "--config.training.num_steps=5000"],
    "digits_guided": ["--sde=vp", "--config.network.label_dropout=0.2", "--config.training.num_steps=6000"],
    "plane": ["--sde=edm", "--config=toy", "--config.data.name=modes", "--config.training.num_steps=10000"],
    "mnist": [
        "--config=edm",
        "--config.network.channels=20",
        "--config.network.multipliers=(1,2,2)",
        "--config.training.batch_size=32",
        "--config.training.num_steps=1500",
    ],
}
REFUSED = (RuntimeError, IndexError, ValueError, ZeroDivisionError)  # by peers, for configurations they do not take


class Problem(NamedTuple):
    """A model, and pairs of noise and data that its probability flow joins.

    Attributes:
        model: what is sampled from.
        classes: number of classes that it is conditioned on, 0 for none.
        start: the noise that all start from, as x / alpha at t_max.
        cond: the labels of the samples, or None.
        end: where the converged flow leads.
    """

    model: ScoreModel
    classes: int
    start: Tensor
    cond: Tensor | None
    end: Tensor

    def denoise(self, u: Tensor, noise_level: float) -> Tensor:
        """D for x = alpha u."""
        return denoise(self.model, u, noise_level, self.cond)

    @property
    def ends(self) -> tuple[float, float]:
        """The largest and the smallest noise level of the model."""
        first, last = self.model.sde.span().noise_level.tolist()
        return first, last

    def error(self, sampler: TableSampler, n: int) -> float:
        """The error of a sampler with n evaluations on its default grid."""
        grid = sampler.grid(self.model, n)
        x_T = self.start / self.ends[0] * self.model.sde.sigma(grid[0]).item()
        with self.model.eval_mode():
            x = sampler.run(self.model, x_T, grid, Noise(0, torch.arange(len(x_T))), self.cond)
        return trimmed(x - self.end)


def denoise(model: ScoreModel, u: Tensor, noise_level: float, cond: Tensor | None) -> Tensor:
    """D for x = alpha u; a noise level outside the model's range becomes its nearest end."""
    level = model.sde.at_noise_level(torch.tensor(noise_level, dtype=torch.float64))
    return model.denoise_at(u * level.alpha.item(), level.to(u.device, u.dtype), cond)


def mixture_in_the_plane() -> GaussianMixture:
    """Nine narrow modes of unequal weights and widths on a spiral."""
    angle = 2.4 * torch.arange(9)
    radius = torch.linspace(0.15, 0.85, 9)
    weights = torch.tensor([1.0, 2, 3, 1, 2, 4, 1, 3, 2])
    variances = torch.linspace(0.02, 0.06, 9) ** 2
    means = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    covariances = variances[:, None, None] * torch.eye(2)
    return GaussianMixture(weights / weights.sum(), means, covariances).to(dtype=torch.float64)


def mixture_of_digits() -> GaussianMixture:
    """A component of rank 8 for each of the ten digits, and noise of deviation 0.03 around it."""
    x, labels = load("digits").split(0.25)[0].all()
    assert isinstance(labels, Tensor)
    weights = []
    means = []
    covariances = []
    for digit in range(10):
        of_class = x[labels == digit].flatten(1).double()
        vectors, values, _ = torch.linalg.svd(torch.cov(of_class.T))
        low_rank = (vectors[:, :8] * values[:8]) @ vectors[:, :8].T
        weights.append(len(of_class) / len(x))
        means.append(of_class.mean(0))
        covariances.append(low_rank + 0.03**2 * torch.eye(64, dtype=torch.float64))
    return GaussianMixture(torch.tensor(weights, dtype=torch.float64), torch.stack(means), torch.stack(covariances))


EXACT = {"mix2d": mixture_in_the_plane, "mix64": mixture_of_digits}


def trained(name: str, folder: Path, mnist: str) -> tuple[ScoreModel, int]:
    """A network and its number of classes; trained by the command line if the folder does not hold it."""
    run = RunFolder(folder / name)
    data = [f"--config.data.path={mnist}"] if name == "mnist" else []
    if run.newest_checkpoint() is None:
        command_line(["--mode=train", f"--workdir={run.path}", "--device=cpu", *TRAINING[name], *data])
    checkpoint = run.newest_checkpoint()
    assert checkpoint is not None
    info = DataInfo.from_json(checkpoint.description["data"], str(run.path))
    return checkpoint.model(), info.num_classes


def labels(count: int, classes: int) -> Tensor | None:
    """Labels of samples, all classes in turn; None for a model without classes."""
    return torch.arange(count) % classes if classes else None


def problem(name: str, folder: Path, mnist: str, count: int | None = None) -> Problem:
    """A problem by its name, judged by `count` samples."""
    if name in EXACT:
        model: ScoreModel = ExactScoreModel(EXACT[name](), EDMSDE(t_min=1e-4))
        classes = 0
    else:
        model, classes = trained(name, folder, mnist)
    return joined(name, model, classes, count or SAMPLES[name])


def joined(name: str, model: ScoreModel, classes: int, count: int) -> Problem:
    """The problem of a model; its truth is Runge-Kutta's method with 800 evaluations.

    Prints what half as many would change.
    """
    cond = labels(count, classes)
    first, last = model.sde.span().noise_level.tolist()
    start = (first * Noise(100, torch.arange(count)).normal(0, model.shape, torch.float64)).to(model.dtype)
    ends = []
    for steps in (100, 200):
        inner = model.sde.at_noise_level(asinh(first, last, steps + 1)).t
        grid = torch.cat([inner, inner.new_zeros(1)])
        x_T = start * model.sde.alpha(grid[0]).item()
        with model.eval_mode():
            ends.append(RungeKutta4().run(model, x_T, grid, Noise(0, torch.arange(count)), cond))
    print(f"{name}: data deviation {ends[1].std():.3f}, truth good to {trimmed(ends[1] - ends[0]):.1e}", flush=True)
    return Problem(model, classes, start, cond, ends[1])


def trimmed(error: Tensor) -> float:
    """RMS without the worst sample in a hundred."""
    squares = error.double().flatten(1).square().mean(1).sort().values
    return squares[: math.ceil(0.99 * len(squares))].mean().sqrt().item()


def asinh(first: float, last: float, n: int, width: float = 0.03) -> Tensor:
    """n noise levels, even in asinh(noise level / width)."""
    ends = [math.asinh(r / width) for r in (first, last)]
    return width * torch.sinh(torch.linspace(*ends, n, dtype=torch.float64))


def node_families(first: float, last: float, n: int) -> Iterator[tuple[str, Tensor]]:
    """Nodes as the peers offer them, from the model's first noise level on, and not below its last."""
    u = torch.linspace(0, 1, n, dtype=torch.float64)
    vp = VPSDE()
    for t_end in (1e-3, 1e-4):
        t_max = min(1.0, vp.time(-2 * torch.tensor(first, dtype=torch.float64).log()).item())
        for name, power in (("time_quadratic", 2), ("time_uniform", 1)):
            t = (t_max ** (1 / power) + u * (t_end ** (1 / power) - t_max ** (1 / power))) ** power
            yield f"{name} {t_end:g}", vp.noise_level(t)
    for smallest in (0.002, 0.01, 0.03):
        end = max(smallest, last)
        yield f"log_snr {end:g}", torch.exp(math.log(first) + u * math.log(end / first))
        yield f"karras {end:g}", (first ** (1 / 7) + u * (end ** (1 / 7) - first ** (1 / 7))) ** 7
    t = torch.linspace(first / (1 + first), 0, n + 1, dtype=torch.float64)[:-1]
    yield "flow", t / (1 - t)
    phi = torch.linspace(math.atan(first), 0, n + 1, dtype=torch.float64)[:-1]
    yield "atan", torch.tan(phi)


def of_diffusers(p: Problem, n: int) -> Runs:
    """The multistep schedulers of diffusers, each on all nodes."""
    import diffusers

    schedulers = [
        ("UniPCMultistepScheduler", 2),
        ("UniPCMultistepScheduler", 3),
        ("DPMSolverMultistepScheduler", 1),
        ("DPMSolverMultistepScheduler", 2),
        ("DPMSolverMultistepScheduler", 3),
        ("DEISMultistepScheduler", 2),
        ("DEISMultistepScheduler", 3),
    ]

    def run(name: str, order: int, levels: Tensor) -> Tensor:
        to_zero = not name.startswith("DEIS")  # DEIS takes no noise level of 0: its last step is the denoiser
        steps = n if to_zero else n - 1
        scheduler = getattr(diffusers, name)(prediction_type="sample", solver_order=order)
        scheduler.set_timesteps(steps)
        scheduler.sigmas = torch.cat([levels, levels.new_zeros(1)]) if to_zero else levels
        scheduler.timesteps = torch.arange(steps, 0, -1)
        scheduler.num_inference_steps = steps
        scale = torch.sqrt(1 + levels**2).tolist()
        r = levels.tolist()
        x = p.start / scale[0]
        for k, step in enumerate(scheduler.timesteps):
            x = scheduler.step(p.denoise(x * scale[k], r[k]), step, x).prev_sample.to(p.start.dtype)
        return x if to_zero else p.denoise(x * scale[-1], r[-1])

    for nodes, levels in node_families(*p.ends, n):
        for name, order in schedulers:
            yield f"diffusers {name.removesuffix('Scheduler')} {order} {nodes}", partial(run, name, order, levels)


def of_k_diffusion(p: Problem, n: int) -> Runs:
    """Samplers of k-diffusion without noise, each on all nodes; Heun's needs an odd number of evaluations."""
    from k_diffusion import sampling

    def run(name: str, levels: Tensor) -> Tensor:
        sigmas = torch.cat([levels, levels.new_zeros(1)]).to(p.start.dtype)
        function = getattr(sampling, name)
        return function(lambda u, sigma, **_: p.denoise(u, sigma[0].item()), p.start, sigmas, disable=True)

    for name, count in (("sample_euler", n), ("sample_dpmpp_2m", n), ("sample_heun", (n + 1) // 2)):
        for nodes, levels in node_families(*p.ends, count):
            if name != "sample_heun" or n % 2:
                yield f"k-diffusion {name} {nodes}", partial(run, name, levels)


def azula_denoiser(schedule: Any, estimate: Callable[..., Tensor], dtype: torch.dtype = torch.float64) -> Any:
    """azula's denoiser for a function that gives D of u `(B, *)` in a type, a noise level, and azula's keywords."""
    import azula.denoise

    class Denoiser(azula.denoise.Denoiser):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t: Tensor, t: Tensor, **given: Any) -> object:
            alpha, sigma = schedule(t.double())
            mean = estimate((x_t / alpha).to(dtype), (sigma / alpha).item(), **given)
            return azula.denoise.DiracPosterior(mean.to(x_t.dtype))

    return Denoiser()


def of_azula(p: Problem, n: int) -> Runs:
    """Samplers of azula without noise, each with three schedules."""
    import azula.noise
    import azula.sample

    first, last = p.ends
    smallest = max(last, 1e-3)
    schedules = {
        "Rectified": azula.noise.RectifiedSchedule(alpha_min=1 / (1 + first), sigma_min=smallest),
        "VE": azula.noise.VESchedule(sigma_min=smallest, sigma_max=first),
        "VP": azula.noise.VPSchedule(alpha_min=1 / math.sqrt(1 + first**2), sigma_min=smallest),
    }

    def run(kind: str, options: dict[str, Any], schedule: azula.noise.Schedule) -> Tensor:
        denoiser = azula_denoiser(schedule, p.denoise, p.start.dtype)
        sampler = getattr(azula.sample, kind)(denoiser, steps=n, silent=True, dtype=torch.float64, **options)
        alpha, _ = schedule(torch.tensor(1.0, dtype=torch.float64))
        return sampler(p.start.double() * alpha.item())

    kinds = [("vABSampler", 2), ("vABSampler", 3), ("zABSampler", 2), ("zEABSampler", 3), ("DDIMSampler", 0)]
    for name, schedule in schedules.items():
        for kind, order in kinds:
            options = {"order": order} if order else {}
            yield f"azula {kind} {order or ''} {name}", partial(run, kind, options, schedule)


PEERS = (of_diffusers, of_k_diffusion, of_azula)


def best_peer(
    p: Problem, n: int, kept: Path, peers: Sequence[Callable[[Problem, int], Runs]] = PEERS
) -> tuple[float, str, int]:
    """The smallest error of all configurations of peers, which one has it, and how many were run.

    The errors are read from the file `kept`, or measured and written there.
    """
    if not kept.exists():
        found = {}
        for of_peer in peers:
            with contextlib.suppress(ImportError):
                for label, run in of_peer(p, n):
                    with contextlib.suppress(*REFUSED):
                        error = trimmed(run() - p.end)
                        if math.isfinite(error):
                            found[label] = error
        if not found:
            return math.nan, "none installed", 0
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found))
    errors = json.loads(kept.read_text())
    best = min(errors, key=errors.__getitem__)
    return errors[best], best, len(errors)


def fitted(name: str, p: Problem) -> FittedSampler:
    """Tables of a pilot run; prints what the run took."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    began = time.process_time()
    sampler = fit_sampler(p.model, labels(PILOT_SAMPLES, p.classes), count)
    print(f"{name}: pilot of {calls} evaluations, {time.process_time() - began:.1f} core-s", flush=True)
    return sampler


@torch.no_grad()
def compare(name: str, p: Problem, counts: list[int], noises: int, folder: Path) -> None:
    """Prints the errors on a problem, a line for each number of evaluations."""
    of_pilot = fitted(name, p)
    began = time.process_time()
    sigma_data = of_pilot.tables[8].sigma_data
    truth = reference_coupling(p.model, sigma_data, labels(noises, p.classes), noises, seed=50)
    print(f"{name}: {noises} noises to calibrate on, {time.process_time() - began:.1f} core-s", flush=True)
    columns = "".join(f"{c:>11}" for c in ("fitted", "calibrated", "trigonom.", "best peer"))
    print(f"{'evaluations':>12}{columns}   ratios    core-s  best peer of how many")
    for n in counts:
        own = p.error(of_pilot, n)
        calibrated = math.nan
        seconds = 0.0
        began = time.process_time()
        if n <= MOST_CALIBRATED:
            sampler = calibrate(p.model, of_pilot, n, truth).sampler
            seconds = time.process_time() - began
            calibrated = p.error(sampler, n)
        fixed = p.error(Trigonometric(), n)
        with p.model.eval_mode():
            peer, label, tried = best_peer(p, n, folder / name / f"peers_{len(p.start)}_{n}.json")
        numbers = f"{n:>12}" + "".join(f"{e:>11.2g}" for e in (own, calibrated, fixed, peer))
        ratios = f"{own / peer:>7.2f}{calibrated / peer:>6.2f}{seconds:>7.0f}"
        print(f"{numbers}{ratios}  {label} ({tried})".replace("nan", "  -"), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default="mix2d,mix64,plane,digits_edm,digits_vp")
    parser.add_argument("--folder", type=Path, default=Path("runs/nfe"), help="of networks and the peers' errors")
    parser.add_argument("--mnist", default="", help="file of MNIST images, for the problem mnist")
    parser.add_argument("--samples", type=int, help="that judge, instead of the problem's own number")
    parser.add_argument("--noises", type=int, default=640, help="that tables are calibrated on")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)), help="numbers of evaluations")
    options = parser.parse_args()
    counts = [int(n) for n in options.counts.split(",")]
    for name in options.problems.split(","):
        p = problem(name, options.folder, options.mnist, options.samples)
        compare(name, p, counts, options.noises, options.folder)


if __name__ == "__main__":
    main()
