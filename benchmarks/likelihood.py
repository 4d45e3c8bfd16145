"""Log densities: errors and error bars on exact mixtures, bits of digits, and time beside the usual way.

    python -m benchmarks.likelihood exact       RMSE in nats per dimension by number of evaluations, under every SDE
    python -m benchmarks.likelihood probes      probes in 64 dimensions: RMSE, error bars, coverage of 1,000 intervals
    python -m benchmarks.likelihood scales      RMSE with all defaults, for data at 1e-3 to 1e3 times the usual scale
    python -m benchmarks.likelihood digits      bits per dimension of held-out digits, [--folder runs/likelihood]
    python -m benchmarks.likelihood time        beside adaptive RK45 with two evaluations a step and one fixed probe

`digits` trains the models that the folder does not hold (about 10 core-minutes each): unconditional networks on
uniformly dequantised digits, 17 levels. It compares them with scikit-learn's GaussianMixture with full covariances,
whose number of components and regularisation are chosen by the held-out density itself.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.samplers_nfe import mixture_in_the_plane, mixture_of_digits
from samplers import Exact, Probes, adaptive_log_prob, log_prob
from samplers.likelihood import Divergence
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
from scoresde.checkpoint import Checkpoint
from scoresde.data import ArrayData, load
from scoresde.data.scaling import fit_scaling
from scoresde.metrics import UniformDequantization, bits_per_dim, dequantize

SCALES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3)
SDES = (VPSDE(), SubVPSDE(), VESDE(), EDMSDE(), CosineSDE(), RectifiedFlowSDE(), DiscreteVPSDE())
COUNTS = (32, 64, 128, 256)
PROBES = (Probes(1), Probes(4), Probes(4, orthogonal=True))
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
DIGITS_DIM = 64


class Drawn(NamedTuple):
    """Samples of a distribution `(B, dim)`, their exact log density `(B,)`, and the Gaussian of its moments."""

    x: Tensor
    truth: Tensor
    prior: Gaussian


def targets() -> dict[str, GaussianMixture]:
    """Nine modes of deviation 0.03 in the plane, and ten low-rank components in 64 dimensions."""
    plane = mixture_in_the_plane()
    narrow = torch.full((len(plane.means),), 0.03**2, dtype=torch.float64)
    return {"2-D": GaussianMixture(plane.weights, plane.means, narrow), "64-D": mixture_of_digits()}


def drawn(target: GaussianMixture, count: int) -> Drawn:
    """Some samples of a mixture."""
    x = target.sample(count, torch.Generator().manual_seed(1))
    many = target.sample(200_000, torch.Generator().manual_seed(2))
    one = torch.ones((), dtype=torch.float64)
    return Drawn(x, target.log_prob(x, one, 0 * one), Gaussian(many.mean(0), torch.cov(many.T)))


def rms(values: Tensor) -> float:
    """Root mean square."""
    return values.square().mean().sqrt().item()


def exact() -> None:
    """Errors with the exact divergence, in fixed steps and in adaptive ones."""
    print(" " * 26 + "".join(f"{count:>10}" for count in COUNTS) + f"{'adaptive':>12}{'evaluations':>13}")
    for name, target in targets().items():
        x, truth, prior = drawn(target, 300 if name == "2-D" else 40)
        dim = x.shape[1]
        for sde in SDES:
            model = ExactScoreModel(target, sde)
            found = [log_prob(model, x, num_evaluations=count, divergence=Exact(64), prior=prior) for count in COUNTS]
            adaptive = adaptive_log_prob(model, x, divergence=Exact(64), prior=prior)
            errors = "".join(f"{rms((each.log_prob - truth) / dim):>10.1e}" for each in found)
            adaptive_error = rms((adaptive.log_prob - truth) / dim)
            print(f"{name:6}{type(sde).__name__:20}{errors}{adaptive_error:>12.1e}{adaptive.nfe:>13}", flush=True)


def narrower(target: GaussianMixture, factor: float) -> GaussianMixture:
    """The same modes with a share of their deviations."""
    narrow = copy.copy(target)
    narrow.variances = factor**2 * target.variances
    return narrow


def probes() -> None:
    """Errors by probes, beside the standard errors that the probes themselves give, and what these omit."""
    columns = f"{'RMSE':>10}{'their error bar':>17}{'within 95 %':>13}{'step error':>12}{'truncation':>12}  warned"
    print(f"{'':38}{columns}   (nats per dimension, 64 evaluations)")
    for factor in (1.0, 0.1):
        target = narrower(targets()["64-D"], factor)
        x, truth, prior = drawn(target, 1000)
        dim = x.shape[1]
        print(f"modes of {factor:g} of the usual deviation")
        for sde in SDES:
            for divergence in PROBES:
                with warnings.catch_warnings(record=True) as shown:
                    warnings.simplefilter("always")
                    found = log_prob(ExactScoreModel(target, sde), x, divergence=divergence, prior=prior)
                error = found.log_prob - truth
                inside = (error.abs() < 1.96 * found.standard_error).double().mean().item()
                name = f"{divergence.num_probes} {'orthogonal' if divergence.orthogonal else 'plain'}"
                numbers = f"{rms(error) / dim:>10.4f}{rms(found.standard_error) / dim:>17.4f}{inside:>13.3f}"
                omitted = f"{rms(found.step_error) / dim:>12.1e}{rms(found.truncation) / dim:>12.1e}"
                print(f"{type(sde).__name__:20}{name:18}{numbers}{omitted}  {'yes' if shown else 'no'}", flush=True)


def scales() -> None:
    """Errors with all defaults, of data that are scaled when they are loaded, and of exact scores in raw units."""
    plane = targets()["2-D"]
    one = torch.ones((), dtype=torch.float64)
    columns = f"{'loaded':>12}{'raw, VP':>12}  warned{'raw, EDM':>12}  warned"
    print(f"{'scale':>8}{columns}   (RMSE, nats per dimension, 64 evaluations)")
    for scale in SCALES:
        target = GaussianMixture(plane.weights, scale * plane.means, (scale**2) * plane.variances[:, 0])
        x = target.sample(300, torch.Generator().manual_seed(1))
        truth = target.log_prob(x, one, 0 * one)
        codec = fit_scaling(target.sample(20_000, torch.Generator().manual_seed(2)), "x")
        variances = codec.encode_change(target.variances.sqrt()).square()
        of_model = GaussianMixture(target.weights, codec.encode(target.means, torch.float64), variances)
        inside = log_prob(ExactScoreModel(of_model, VPSDE()), codec.encode(x, torch.float64)).log_prob
        line = f"{scale:>8g}{rms(inside - codec.log_volume((2,)) - truth) / 2:>12.1e}"
        for sde in (VPSDE(), EDMSDE()):
            with warnings.catch_warnings(record=True) as shown:
                warnings.simplefilter("always")
                found = log_prob(ExactScoreModel(target, sde), x).log_prob
            line += f"{rms(found - truth) / 2:>12.1e}  {'yes' if shown else 'no':6}"
        print(line, flush=True)


def dequantized(data: ArrayData, seed: int) -> tuple[Tensor, Tensor]:
    """Dequantised samples in the model's units, and log q."""
    return dequantize(data.values, data.codec, UniformDequantization(), torch.Generator().manual_seed(seed))


def digits_split() -> tuple[ArrayData, ArrayData]:
    """Digits to train on, and held-out ones."""
    train, held_out = load("digits").split(0.25)
    assert held_out is not None
    return train, held_out


def mixture_bits(train: ArrayData, held_out: ArrayData) -> tuple[float, str]:
    """The smallest bits per dimension of scikit-learn's mixtures, fitted to 1 or 16 dequantisations, and of which."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture as Mixture

    warnings.simplefilter("ignore", ConvergenceWarning)
    x, log_q = dequantized(held_out, 0)
    tried = []
    for draws, numbers in ((1, (1, 2, 5, 8, 10, 12, 15, 20)), (16, (8, 10, 12))):
        fitted_to = torch.cat([dequantized(train, 1 + k)[0] for k in range(draws)]).flatten(1).double().numpy()
        for components in numbers:
            for ridge in (3e-4, 1e-3, 3e-3):
                try:
                    mixture = Mixture(components, reg_covar=ridge, random_state=0).fit(fitted_to)
                except ValueError:  # a component collapsed
                    continue
                density = torch.from_numpy(mixture.score_samples(x.flatten(1).double().numpy()))
                bits = bits_per_dim(density, log_q, DIGITS_DIM).mean().item()
                tried.append((bits, f"{components} components, ridge {ridge:g}, {draws} dequantisations"))
    return min(tried)


def trained(folder: Path, name: str) -> Checkpoint:
    """The last checkpoint of a recipe, which is trained now if the folder does not hold it."""
    run = RunFolder(folder / name.replace(", ", "-").replace(" ", "-"))
    command_line(["--mode=train", f"--workdir={run.path}", *RECIPES[name], *COMMON])
    checkpoint = run.newest_checkpoint()
    assert checkpoint is not None
    return checkpoint


def digits(folder: Path, names: list[str]) -> None:
    """Bits of held-out digits by the flow, with their standard error over digits and by probes, and by the bound."""
    train, held_out = digits_split()
    x, log_q = dequantized(held_out, 0)
    prior = training_gaussian(train)
    root = len(x) ** 0.5
    bits, which = mixture_bits(train, held_out)
    print(f"{'':26}{'bits/dim':>10}{'standard error':>16}{'by probes':>11}{'ELBO':>9}{'step':>7}{'core-s':>8}")
    print(f"{'GaussianMixture':26}{bits:>10.3f}   ({which})", flush=True)
    for name in names:
        checkpoint = trained(folder, name)
        model = checkpoint.model()
        began = time.process_time()
        found = log_prob(model, x, prior=prior)
        seconds = time.process_time() - began
        flow = bits_per_dim(found.log_prob, log_q, DIGITS_DIM)
        bound = elbo(model, x, prior=prior, generator=torch.Generator().manual_seed(0)).bound
        bound_bits = bits_per_dim(bound, log_q, DIGITS_DIM).mean()
        by_probes = rms(found.standard_error) / DIGITS_DIM / math.log(2) / root
        numbers = f"{flow.mean():>10.3f}{flow.std() / root:>16.3f}{by_probes:>11.4f}{bound_bits:>9.3f}"
        print(f"{name:26}{numbers}{checkpoint.step:>7}{seconds:>8.0f}", flush=True)


def usual_way(model: ScoreModel, x: Tensor, seed: int) -> tuple[Tensor, int]:
    """The likelihood of Song et al.'s score_sde: log densities, and the number of evaluations.

    SciPy's RK45 for the whole batch; the data are taken for x at t = 1e-5; one Gaussian probe serves all steps; the
    model is evaluated for the drift and again for the divergence; the prior is N(0, sigma_T^2 I).
    """
    from scipy.integrate import solve_ivp

    sde = model.sde
    calls = 0
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
    """Time and error on 40 held-out digits, against 256 evaluations with the exact divergence."""
    train, held_out = digits_split()
    x = dequantized(held_out, 0)[0][:40]
    prior = training_gaussian(train)
    model = trained(folder, "vp").model()
    truth = log_prob(model, x, num_evaluations=256, divergence=Exact(), prior=prior).log_prob
    print(f"{'':34}{'evaluations':>12}{'ms a sample':>13}{'ratio':>8}{'RMSE, nats/dim':>16}{'of the mean':>13}")

    def ours(divergence: Divergence) -> Callable[[int], tuple[Tensor, int]]:
        def way(seed: int) -> tuple[Tensor, int]:
            found = log_prob(model, x, divergence=divergence, seed=seed, prior=prior)
            return found.log_prob, found.nfe

        return way

    usual = math.nan
    for name, way, seeds in (
        ("score_sde's way, RK45 from 1e-5", lambda seed: usual_way(model, x, seed), 3),
        ("64 evaluations, a probe a step", ours(Probes(1)), 3),
        ("64 evaluations, 4 probes a step", ours(Probes(4)), 3),
        ("64 evaluations, exact", ours(Exact()), 1),
    ):
        errors = []
        began = time.process_time()
        for seed in range(seeds):
            found, evaluations = way(seed)
            errors.append((found.double() - truth) / DIGITS_DIM)
        seconds = (time.process_time() - began) / seeds
        usual = seconds if math.isnan(usual) else usual
        error = torch.stack(errors)
        numbers = f"{1000 * seconds / len(x):>13.1f}{seconds / usual:>8.2f}"
        print(f"{name:34}{evaluations:>12}{numbers}{rms(error):>16.4f}{error.mean().item():>13.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("exact", "probes", "scales", "digits", "time"))
    parser.add_argument("--folder", type=Path, default=Path("runs/likelihood"), help="where the models of digits lie")
    parser.add_argument("--recipes", default=";".join(RECIPES), help="recipes for `digits`, separated by semicolons")
    options = parser.parse_args()
    if options.what == "exact":
        exact()
    elif options.what == "probes":
        probes()
    elif options.what == "scales":
        scales()
    elif options.what == "digits":
        digits(options.folder, options.recipes.split(";"))
    else:
        timed(options.folder)


if __name__ == "__main__":
    main()
