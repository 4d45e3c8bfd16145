"""Log densities: errors and error bars on exact mixtures, bits of digits, and time beside the usual way.

    python -m benchmarks.likelihood exact       RMSE in nats per dimension over evaluations, under every SDE
    python -m benchmarks.likelihood probes      by probes in 64 dimensions: deviation, and coverage of 1,000 intervals
    python -m benchmarks.likelihood digits      bits per dimension of held-out digits, [--folder runs/likelihood]
    python -m benchmarks.likelihood time        against adaptive RK45 with two evaluations a step and one fixed probe

`digits` trains what the folder does not hold (about 10 core-minutes a model): unconditional networks on uniformly
dequantised digits, 17 levels, and beside them scikit-learn's GaussianMixture, full covariances, its number of
components and its regularisation chosen by the held-out density itself.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.samplers_nfe import mixture_in_the_plane, mixture_of_digits
from samplers import Exact, Probes, adaptive_log_prob, log_prob
from samplers.likelihood.divergence import Divergence
from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    CosineSDE,
    DiscreteVPSDE,
    ExactScoreModel,
    Gaussian,
    GaussianMixture,
    RectifiedFlowSDE,
    ScoreModel,
    SubVPSDE,
)
from scoresde.app.cli import main as command_line
from scoresde.app.densities import training_gaussian
from scoresde.app.run_folder import RunFolder
from scoresde.bounds import elbo
from scoresde.data import ArrayData, load
from scoresde.metrics import UniformDequantization, bits_per_dim, dequantize

SDES = (VPSDE(), SubVPSDE(), VESDE(), EDMSDE(), CosineSDE(), RectifiedFlowSDE(), DiscreteVPSDE())
COMMON = [
    "--config.data.class_conditional=False",
    "--config.training.dequantize=True",
    "--config.training.num_steps=6000",
    "--device=cpu",
]
RECIPES = {
    "vp": ["--sde=vp"],
    "subvp": ["--sde=subvp"],
    "ve": ["--sde=ve"],
    "vp, likelihood weights": ["--sde=vp", "--config.objective.weighting.name=LikelihoodWeighting"],
    "vdm": ["--sde=vdm"],
}


def targets() -> dict[str, GaussianMixture]:
    """Nine modes of deviation 0.03 in the plane, and ten low-rank components in 64 dimensions."""
    plane = mixture_in_the_plane()
    narrow = torch.full((len(plane.means),), 0.03**2, dtype=torch.float64)
    return {"2-D": GaussianMixture(plane.weights, plane.means, narrow), "64-D": mixture_of_digits()}


def drawn(target: GaussianMixture, count: int) -> tuple[Tensor, Tensor, Gaussian, float]:
    """Samples, their exact log density, the Gaussian of the target's moments, and its deviation."""
    x = target.sample(count, torch.Generator().manual_seed(1))
    many = target.sample(200_000, torch.Generator().manual_seed(2))
    one = torch.ones((), dtype=torch.float64)
    return x, target.log_prob(x, one, 0 * one), Gaussian(many.mean(0), torch.cov(many.T)), many.std().item()


def exact() -> None:
    counts = (32, 64, 128, 256)
    print(" " * 26 + "".join(f"{count:>10}" for count in counts) + f"{'adaptive':>12}{'evaluations':>13}")
    for name, target in targets().items():
        x, truth, prior, sd = drawn(target, 300 if name == "2-D" else 40)
        dim = x.shape[1]
        for sde in SDES:
            model, options = ExactScoreModel(target, sde), {"divergence": Exact(64), "prior": prior, "sd": sd}
            found = [log_prob(model, x, num_evaluations=count, **options) for count in counts]
            found.append(adaptive_log_prob(model, x, **options))
            errors = [((f.log_prob - truth) / dim).square().mean().sqrt().item() for f in found]
            numbers = "".join(f"{e:>10.1e}" for e in errors[:-1]) + f"{errors[-1]:>12.1e}{found[-1].nfe:>13}"
            print(f"{name:6}{type(sde).__name__:20}{numbers}", flush=True)


def probes() -> None:
    target = targets()["64-D"]
    x, truth, prior, sd = drawn(target, 1000)
    print(
        f"{'':20}{'':18}{'RMSE':>10}{'their error bar':>17}{'within 95 %':>13}   (nats per dimension, 64 evaluations)"
    )
    for sde in SDES:
        for divergence in (Probes(1), Probes(4), Probes(4, orthogonal=True)):
            found = log_prob(ExactScoreModel(target, sde), x, divergence=divergence, prior=prior, sd=sd)
            error = found.log_prob - truth
            inside = (error.abs() < 1.96 * found.standard_error).double().mean().item()
            name = f"{divergence.num_probes} {'orthogonal' if divergence.orthogonal else 'plain'}"
            rmse, bar = (value.square().mean().sqrt().item() / 64 for value in (error, found.standard_error))
            print(f"{type(sde).__name__:20}{name:18}{rmse:>10.4f}{bar:>17.4f}{inside:>13.3f}", flush=True)


def spread(data: ArrayData, seed: int) -> tuple[Tensor, Tensor]:
    """Dequantised samples in the model's units, and log q."""
    return dequantize(data.all()[0], data.scaling, UniformDequantization(), torch.Generator().manual_seed(seed))


def mixture_bits(train: ArrayData, held_out: ArrayData) -> tuple[float, str]:
    """The least bits per dimension of scikit-learn's mixtures, fitted to 1 or 16 dequantisations, and which it is."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture as Mixture

    warnings.simplefilter("ignore", ConvergenceWarning)
    x, log_q = spread(held_out, 0)
    best = []
    for draws, numbers in ((1, (1, 2, 5, 8, 10, 12, 15, 20)), (16, (8, 10, 12))):
        fitted_to = torch.cat([spread(train, 1 + k)[0] for k in range(draws)]).flatten(1).double().numpy()
        for components in numbers:
            for ridge in (3e-4, 1e-3, 3e-3):
                try:
                    mixture = Mixture(components, reg_covar=ridge, random_state=0).fit(fitted_to)
                except ValueError:  # a component that collapsed
                    continue
                density = torch.from_numpy(mixture.score_samples(x.flatten(1).double().numpy()))
                bits = bits_per_dim(density, log_q, 64).mean().item()
                best.append((bits, f"{components} components, ridge {ridge:g}, {draws} dequantisations"))
    return min(best)


def digits(folder: Path, names: list[str]) -> None:
    train, held_out = load("digits").split(0.25)
    assert held_out is not None
    x, log_q = spread(held_out, 0)
    prior, root = training_gaussian(train), len(x) ** 0.5
    bits, which = mixture_bits(train, held_out)
    print(f"{'':26}{'bits/dim':>10}{'standard error':>16}{'by probes':>11}{'ELBO':>9}{'step':>7}{'core-s':>8}")
    print(f"{'GaussianMixture':26}{bits:>10.3f}   ({which})", flush=True)
    for name in names:
        run = RunFolder(folder / name.replace(", ", "-").replace(" ", "-"))
        command_line(["--mode=train", f"--workdir={run.path}", *RECIPES[name], *COMMON])
        checkpoint = run.newest_checkpoint()
        assert checkpoint is not None
        model, began = checkpoint.model(), time.process_time()
        found = log_prob(model, x, prior=prior, sd=train.std())
        seconds = time.process_time() - began
        flow = bits_per_dim(found.log_prob, log_q, 64)
        bound = bits_per_dim(elbo(model, x, prior=prior, generator=torch.Generator().manual_seed(0)).bound, log_q, 64)
        by_probes = found.standard_error.square().mean().sqrt().item() / 64 / math.log(2) / root
        numbers = f"{flow.mean():>10.3f}{flow.std() / root:>16.3f}{by_probes:>11.4f}{bound.mean():>9.3f}"
        print(f"{name:26}{numbers}{checkpoint.step:>7}{seconds:>8.0f}", flush=True)


def usual_way(model: ScoreModel, x: Tensor, seed: int) -> tuple[Tensor, int]:
    """Song et al.'s likelihood: RK45 of SciPy for a batch of data taken for x at t = 1e-5, one Gaussian probe for all
    steps, the model evaluated for the drift and again for the divergence, and N(0, sigma_T^2 I) at the end.

    Returns log densities, and the number of evaluations.
    """
    from scipy.integrate import solve_ivp

    sde, calls = model.sde, 0
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)

    def drift(x_t: Tensor, t: float) -> Tensor:
        nonlocal calls
        calls += 1
        return model.flow_velocity(x_t, torch.full((len(x_t),), t, dtype=x_t.dtype))

    def slope(t: float, state: np.ndarray) -> np.ndarray:
        x_t = torch.from_numpy(state[: x.numel()]).reshape(x.shape).to(x.dtype)
        with torch.no_grad():
            velocity = drift(x_t, t)
        with torch.enable_grad():
            x_t.requires_grad_()
            product = (drift(x_t, t) * eps).sum()
            (gradient,) = torch.autograd.grad(product, x_t)
        trace = (gradient * eps).flatten(1).sum(1)
        return np.concatenate([velocity.numpy().ravel(), trace.numpy()]).astype(np.float64)

    state = np.concatenate([x.numpy().ravel(), np.zeros(len(x))])
    end = solve_ivp(slope, (1e-5, sde.t_max), state, rtol=1e-5, atol=1e-5, method="RK45").y[:, -1]
    x_T = torch.from_numpy(end[: x.numel()]).reshape(x.shape)
    return sde.prior_log_prob(x_T) + torch.from_numpy(end[x.numel() :]), calls


def timed(folder: Path) -> None:
    train, held_out = load("digits").split(0.25)
    assert held_out is not None
    x = spread(held_out, 0)[0][:40]
    run = RunFolder(folder / "vp")
    command_line(["--mode=train", f"--workdir={run.path}", *RECIPES["vp"], *COMMON])
    checkpoint = run.newest_checkpoint()
    assert checkpoint is not None
    model, options = checkpoint.model(), {"prior": training_gaussian(train), "sd": train.std()}
    truth = log_prob(model, x, num_evaluations=256, divergence=Exact(), **options).log_prob
    print(f"{'':34}{'evaluations':>12}{'ms a sample':>13}{'ratio':>8}{'RMSE, nats/dim':>16}{'of the mean':>13}")

    def ours(divergence: Divergence) -> Callable[[int], tuple[Tensor, int]]:
        def run(seed: int) -> tuple[Tensor, int]:
            found = log_prob(model, x, divergence=divergence, seed=seed, **options)
            return found.log_prob, found.nfe

        return run

    usual = math.nan
    for name, way, seeds in (
        ("score_sde's way, RK45 at 1e-5", lambda seed: usual_way(model, x, seed), 3),
        ("64 evaluations, a probe a step", ours(Probes(1)), 3),
        ("64 evaluations, 4 probes a step", ours(Probes(4)), 3),
        ("64 evaluations, exact", ours(Exact()), 1),
    ):
        errors, began = [], time.process_time()
        for seed in range(seeds):
            found, evaluations = way(seed)
            errors.append((found.double() - truth) / 64)
        seconds, error = (time.process_time() - began) / seeds, torch.stack(errors)
        usual = seconds if math.isnan(usual) else usual
        numbers = f"{1000 * seconds / len(x):>13.1f}{seconds / usual:>8.2f}"
        rmse, mean = error.square().mean().sqrt().item(), error.mean().item()
        print(f"{name:34}{evaluations:>12}{numbers}{rmse:>16.4f}{mean:>13.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("exact", "probes", "digits", "time"))
    parser.add_argument("--folder", type=Path, default=Path("runs/likelihood"))
    parser.add_argument("--recipes", default=";".join(RECIPES), help="of digits, between semicolons")
    options = parser.parse_args()
    if options.what == "digits":
        digits(options.folder, options.recipes.split(";"))
    elif options.what == "time":
        timed(options.folder)
    else:
        {"exact": exact, "probes": probes}[options.what]()


if __name__ == "__main__":
    main()
