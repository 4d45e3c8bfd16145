"""Methods of inverse problems on trained networks: accuracy and calibration, and score_sde_pytorch's inpainting.

    python -m benchmarks.inverse_networks --runs runs/vp,runs/patches [--tasks inpaint,superres] [--methods mmps,ddrm]
    python -m benchmarks.inverse_networks --runs runs/vp --score_sde CHECKOUT [--counts 100,300] [--seeds 3]

The first prints a line for each task and method that can take it, with the settings of `--mode solve`. The measured
samples are held-out ones of the run, 19 draws each: PSNR and SSIM of the mean of the draws, PSNR of single draws,
coverage of nominal 90 % intervals and regions, the energy score (the smaller, the better), the residual over the
deviation of the noise, evaluations of the network, and seconds.

The second compares `Replacement` with the inpainting of a checkout of score_sde_pytorch, which it imports: the same
network, masks, classes and number of evaluations, pixels known without noise. Each draws its own noise, with several
seeds. It prints the energy score, its standard error over seeds, and the PSNR of the mean of a seed's draws.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from samplers import Ancestral, PredictorCorrector, Replacement, Sampler, sample
from scoresde import condition
from scoresde.app.calibration import SAMPLES, simulate
from scoresde.app.flags import SolveFlags
from scoresde.app.methods import METHODS, Solver
from scoresde.app.tasks import build_task
from scoresde.app.trained import Trained
from scoresde.app.user_data import own_data
from scoresde.data.arrays import ArrayData
from scoresde.errors import UsageError
from scoresde.inverse import MeasuredModel
from scoresde.metrics.calibration import energy_score, interval_coverage, ranks, region_coverage
from scoresde.operators import Mask

TASKS = ("inpaint", "outpaint", "colorize", "superres", "deblur", "cs")
SNR = 0.16  # of score_sde_pytorch's Langevin steps
SMALLEST = 1e-3  # time at which its samplers end: its default under the VP SDE


def held_out_of(trained: Trained) -> ArrayData:
    """The held-out samples of a run."""
    data = own_data(trained)[1]
    assert data is not None, "the run held out no samples"
    return data


def accuracy(trained: Trained, x: Tensor, truth: Tensor) -> tuple[float, float]:
    """PSNR and SSIM of images, means over images."""
    ends = (float(trained.data.low), float(trained.data.high))
    raw = trained.decode(truth).float()
    found = trained.decode(x).float()
    psnr = peak_signal_noise_ratio(found, raw, data_range=ends, dim=(1, 2, 3), reduction="elementwise_mean")
    return psnr.item(), structural_similarity_index_measure(found.clamp(*ends), raw, data_range=ends).item()


def table(workdir: str, tasks: list[str], methods: list[str], cases: int, given: tuple[str, ...]) -> None:
    """A line for each task and method."""
    for task in tasks:
        flags = SolveFlags(workdir=workdir, task=task)
        trained = Trained.of(flags, given)
        try:
            operator, noise = build_task(trained, flags)
        except UsageError as error:
            print(f"\n{workdir}, {task}: left out ({error})")
            continue
        truth, cond, y = simulate(held_out_of(trained), operator, noise, cases, trained.seed)
        print(f"\n{workdir}, {task}: {operator}, {noise}, {cases} cases of {SAMPLES} draws")
        head = ("PSNR", "of a draw", "SSIM", "intervals", "regions", "energy", "residual", "nfe", "s")
        print(f"{'':12}" + "".join(f"{name:>15}" for name in head), flush=True)
        for name in methods:
            try:
                solver = Solver.of(trained, flags, name, operator, noise)
            except UsageError:
                continue
            start = time.monotonic()
            drawn = solver.draw(y, cond, SAMPLES, trained.seed)
            seconds = time.monotonic() - start
            found = ranks(truth, drawn.x)
            psnr, ssim = accuracy(trained, drawn.x.mean(1), truth)
            single, _ = accuracy(trained, drawn.x[:, 0], truth)
            left = y[:, None] - operator(drawn.x.flatten(0, 1)).unflatten(0, (cases, SAMPLES))
            residual = left.square().mean().sqrt() / torch.as_tensor(noise.variance(y)).mean().sqrt()
            cells = (
                f"{psnr:.2f}",
                f"{single:.2f}",
                f"{ssim:.3f}",
                str(interval_coverage(found)),
                str(region_coverage(found)),
                f"{energy_score(truth, drawn.x).mean():.3f}",
                f"{residual:.2f}",
                f"{drawn.nfe}",
                f"{seconds:.0f}",
            )
            print(f"{name:12}" + "".join(f"{cell:>15}" for cell in cells), flush=True)


class ScoreSDE:
    """The inpainting of a checkout of score_sde_pytorch, for a model under the VP SDE."""

    def __init__(self, checkout: str, trained: Trained) -> None:
        sys.path.insert(0, str(Path(checkout).resolve()))
        import controllable_generation
        import sampling
        import sde_lib

        self.inpainter = controllable_generation.get_pc_inpainter
        self.sampling = sampling
        self.sde: Callable[[int], Any] = lambda steps: sde_lib.VPSDE(0.1, 20.0, N=steps)
        self.model = trained.network_model

    def draw(self, data: Tensor, seen: Tensor, cond: Tensor | None, steps: int, names: tuple[str, str]) -> Tensor:
        """Samples that agree with data where seen, by a predictor and a corrector of these names, `steps` of each."""
        model = self.model

        class Network(torch.nn.Module):
            """The estimate of eps from x_t and 999 t, as their networks under the VP SDE give it."""

            def forward(self, x: Tensor, labels: Tensor) -> Tensor:
                return model.noise(x, (labels / 999).double(), cond)

        predictor = self.sampling.get_predictor(names[0])
        corrector = self.sampling.get_corrector(names[1])
        run = self.inpainter(self.sde(steps), predictor, corrector, lambda x: x, SNR, continuous=True, eps=SMALLEST)
        found: Tensor = run(Network(), data, seen.to(data).expand_as(data))
        return found


def beside_score_sde(workdir: str, checkout: str, counts: list[int], cases: int, seeds: int) -> None:
    """Energy score and PSNR of both, for the same masks and samples."""
    flags = SolveFlags(workdir=workdir)
    trained = Trained.of(flags, ())
    peer = ScoreSDE(checkout, trained)
    model = trained.network_model
    truth, cond = held_out_of(trained).batch(slice(0, cases))
    each = torch.arange(cases).repeat_interleave(SAMPLES)
    given = condition.take(cond, each)
    labels = given if isinstance(given, Tensor) else None
    space = model.shape[1:]
    masks = {
        "30 % of the pixels": Mask.random(model.shape, 0.3, trained.seed, dims=2),
        "all but the middle": Mask.box(
            model.shape, tuple(n // 4 for n in space), tuple(n - n // 4 for n in space), inside=False
        ),
        "the upper half": Mask.box(model.shape, (0, 0), (space[0] // 2, space[1])),
    }
    ours: dict[str, tuple[Sampler, int]] = {
        "Replacement(Ancestral())": (Replacement(Ancestral()), 1),
        "Replacement(PredictorCorrector())": (Replacement(PredictorCorrector(snr=SNR)), 2),
    }
    theirs = {
        "score_sde, reverse_diffusion": (("reverse_diffusion", "none"), 1),
        "score_sde, ancestral_sampling": (("ancestral_sampling", "none"), 1),
        "score_sde, reverse_diffusion + langevin": (("reverse_diffusion", "langevin"), 2),
        "score_sde, ancestral_sampling + langevin": (("ancestral_sampling", "langevin"), 2),
    }
    for title, operator in masks.items():
        y = operator(truth)
        print(f"\n{workdir}, {title} seen, without noise: {cases} cases of {SAMPLES} draws, {seeds} seeds")
        print(f"{'evaluations':44}" + "".join(f"{count:>22}" for count in counts), flush=True)
        measured = MeasuredModel(model, operator, 0.0)
        conditions = {"y": y[each]} if given is None else {"y": y[each], "cond": given}

        def draw_ours(
            name: str, steps: int, seed: int, measured: Any = measured, conditions: Any = conditions
        ) -> Tensor:
            return sample(measured, ours[name][0], len(each), num_steps=steps, cond=conditions, seed=seed).x

        def draw_theirs(name: str, steps: int, seed: int, seen: Tensor = operator.seen) -> Tensor:
            torch.manual_seed(seed)
            return peer.draw(truth[each], seen, labels, steps, theirs[name][0])

        for name in (*ours, *theirs):
            per_step = ours[name][1] if name in ours else theirs[name][1]
            cells = []
            for count in counts:
                scores = []
                ratios = []
                for seed in range(seeds):
                    with model.eval_mode(), torch.no_grad():
                        drawn = (draw_ours if name in ours else draw_theirs)(name, count // per_step, seed)
                    x = drawn.unflatten(0, (cases, SAMPLES))
                    scores.append(energy_score(truth, x).mean().item())
                    ratios.append(accuracy(trained, x.mean(1), truth)[0])
                error = statistics.stdev(scores) / seeds**0.5
                cells.append(f"{statistics.mean(scores):.3f} ({error:.3f}) {statistics.mean(ratios):.2f}")
            print(f"{name:44}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


def main() -> None:
    """Prints what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", required=True)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--score_sde", default="")
    parser.add_argument("--counts", default="100,300")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--particles", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for run in arguments.runs.split(","):
        if arguments.score_sde:
            counts = [int(count) for count in arguments.counts.split(",")]
            beside_score_sde(run, arguments.score_sde, counts, arguments.cases, arguments.seeds)
        else:
            given = (f"--config.sampling.method.particles={arguments.particles}",)
            table(run, arguments.tasks.split(","), arguments.methods.split(","), arguments.cases, given)


if __name__ == "__main__":
    main()
