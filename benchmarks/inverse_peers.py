"""Posterior samplers of azula and deepinv, on an exact denoiser.

Peers run their own code, through their public interface, and draw their own noise. They take E[x_0 | x_t] of the prior,
the linear map, the measurement and the standard deviation of its noise. A peer that asks the denoiser more often than
`num_steps` times fails. A name gives the library, the method with what is not the library's default, and the solver:

    DDPM, DDIM       ancestral sampling, and its form without noise
    REAB, vAB, zEAB  azula's multistep samplers, without noise, of one evaluation a step
    Euler, Heun      deepinv's, of the reverse SDE and of the ODE; a step of Heun takes two evaluations
    rectified, flow  the straight path from data to noise, in azula's words and in deepinv's
    VE               deepinv's; where no path is named it is VP

azula's data are x_0 itself. So are deepinv's in `PosteriorDiffusion`, as "images" of shape `(1, 1, d)`. Its DPS, DDRM
and DiffPIR are made for images in [0, 1], to which x_0 is mapped for them.

    PEERS["azula MMPS, DDIM"](problem, num_samples, num_steps, seed)  # ImportError if the library is not installed
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from benchmarks.samplers_nfe import azula_denoiser
from scoresde import GaussianMixture

REPAINT_ITERATIONS = 3  # azula's default
RANGE = 4.0  # standard deviations from the mean to the ends of an image's [0, 1]
LAST = 1e-3  # time at which deepinv's Euler and Heun end, as in its DPS
TORCHVISION = (
    "",
    ".transforms",
    ".transforms.functional",
    ".utils",
    ".datasets",
    ".datasets.folder",
    ".datasets.utils",
)


class Problem(NamedTuple):
    """y = A x_0 + noise_std eps.

    Attributes:
        target: the prior, float64, of vectors: its shape is `(d,)`.
        matrix: A, `(m, d)`, float64, of rank m.
        y: the measurement, `(m,)`.
        noise_std: the standard deviation of its noise.
    """

    target: GaussianMixture
    matrix: Tensor
    y: Tensor
    noise_std: float


class Exact:
    """E[x_0 | x_0 + noise_level eps = u], which counts how often it was asked."""

    def __init__(self, target: GaussianMixture) -> None:
        self.target = target
        self.calls = 0

    def __call__(self, u: Tensor, noise_level: Tensor | float) -> Tensor:
        self.calls += 1
        level = torch.as_tensor(noise_level, dtype=torch.float64)
        return self.target.denoise(u.double(), torch.ones_like(level), level)


class Task(NamedTuple):
    """What a peer is asked for."""

    problem: Problem
    estimate: Exact
    num_samples: int
    num_steps: int


Run = Callable[[Task], Tensor]  # to samples `(num_samples, d)`
Peer = Callable[[Problem, int, int, int], Tensor]  # num_samples, num_steps and a seed to the same
Guide = Callable[[Problem], tuple[str, dict[str, Any]]]  # name and options of a method of azula


def draw(run: Run, problem: Problem, num_samples: int, num_steps: int, seed: int) -> Tensor:
    """Samples of a peer, whose evaluations are counted."""
    estimate = Exact(problem.target)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x = run(Task(problem, estimate, num_samples, num_steps))
    if estimate.calls > num_steps:
        raise RuntimeError(f"{estimate.calls} evaluations: more than {num_steps}")
    return x.detach().double()


class Solver(NamedTuple):
    """A sampler of azula by name, a schedule by name, and the sampler's options."""

    name: str
    schedule: str = "VPSchedule"
    options: tuple[tuple[str, Any], ...] = ()


SOLVERS = {
    "DDPM": Solver("DDPMSampler"),
    "DDIM": Solver("DDIMSampler"),
    "REAB": Solver("REABSampler"),
    "vAB of order 3": Solver("vABSampler", options=(("order", 3),)),
    "zEAB": Solver("zEABSampler"),
    "rectified, DDPM": Solver("DDPMSampler", "RectifiedSchedule"),
    "rectified, DDIM": Solver("DDIMSampler", "RectifiedSchedule"),
    "rectified, vAB of order 3": Solver("vABSampler", "RectifiedSchedule", (("order", 3),)),
    "rectified, zEAB": Solver("zEABSampler", "RectifiedSchedule"),
}


def azula_exact(estimate: Callable[[Tensor, float], Tensor], schedule: str = "VPSchedule") -> Any:
    """azula's denoiser on one of its schedules."""
    from azula import noise

    return azula_denoiser(getattr(noise, schedule)(), estimate)


def azula_draw(kind: Callable[..., Any], task: Task, num_steps: int | None = None, **options: Any) -> Tensor:
    """Samples of a sampler of azula, from its own initial noise."""
    sampler = kind(steps=num_steps or task.num_steps, silent=True, dtype=torch.float64, **options)
    return sampler(sampler.init((task.num_samples, *task.problem.target.shape), dtype=torch.float64))


def linear(problem: Problem) -> Callable[[Tensor], Tensor]:
    """x to A x."""
    return lambda x: x @ problem.matrix.mT


def azula_guided(guide: Guide, solver: Solver, task: Task) -> Tensor:
    """Methods of azula that change the denoiser, for any sampler."""
    from azula import guidance, sample

    name, options = guide(task.problem)
    exact = azula_exact(task.estimate, solver.schedule)
    guided = getattr(guidance, name)(exact, y=task.problem.y, A=linear(task.problem), **options)
    return azula_draw(partial(getattr(sample, solver.name), guided, **dict(solver.options)), task)


def mmps(options: dict[str, Any], problem: Problem) -> tuple[str, dict[str, Any]]:
    """Options of MMPS."""
    from azula.linalg.covariance import IsotropicCovariance

    return "MMPSDenoiser", {"cov_y": IsotropicCovariance(problem.noise_std**2), **options}


def jfps(options: dict[str, Any], problem: Problem) -> tuple[str, dict[str, Any]]:
    """Options of JFPS, with the prior's own covariance."""
    from azula.linalg.covariance import FullCovariance, IsotropicCovariance

    variances, vectors = torch.linalg.eigh(covariance(problem.target))
    given = {"cov_y": IsotropicCovariance(problem.noise_std**2), "cov_x": FullCovariance(vectors, variances)}
    return "JFPSDenoiser", {**given, **options}


def with_variance(name: str, options: dict[str, Any], problem: Problem) -> tuple[str, dict[str, Any]]:
    """Options of a method that takes the noise's variance."""
    return name, {"var_y": problem.noise_std**2, **options}


def covariance(target: GaussianMixture) -> Tensor:
    """The covariance of a mixture over its flattened data, `(D, D)`."""
    inner = torch.diag_embed(target.variances)
    if target.rotations is not None:
        inner = target.rotations.mT @ inner @ target.rotations
    offset = target.means - target.weights @ target.means
    return torch.einsum("k,kij->ij", target.weights, inner + offset[:, :, None] * offset[:, None])


def azula_dps(zeta: float, own_norms: bool, task: Task) -> Tensor:
    """DPS, which steps along the gradient of the norm of the whole batch's residual: a sample's step depends on others.

    With `own_norms` the map is -sum_i |y - A x_i| and its measurement 0, so that the norm is the sum of the samples'.
    """
    from azula.guidance import DPSSampler

    problem = task.problem

    def norms(x: Tensor) -> Tensor:
        return -torch.linalg.vector_norm(problem.y - x @ problem.matrix.mT, dim=-1).sum()

    y, A = (torch.zeros(()).double(), norms) if own_norms else (problem.y, linear(problem))
    return azula_draw(DPSSampler, task, denoiser=azula_exact(task.estimate), y=y, A=A, zeta=zeta)


def azula_pgdm(eta: float, task: Task) -> Tensor:
    """PiGDM for a measurement without noise: azula has no other."""
    from azula.guidance import PGDMSampler

    inverse = torch.linalg.pinv(task.problem.matrix)
    operator = {"y": task.problem.y, "A": linear(task.problem), "A_inv": lambda y: y @ inverse.mT}
    return azula_draw(PGDMSampler, task, denoiser=azula_exact(task.estimate), eta=eta, **operator)


def azula_repaint(eta: float, task: Task) -> Tensor:
    """RePaint, for a measurement without noise, in the right singular vectors of A: there A is a mask."""
    from azula.guidance import RePaintSampler

    U, singular, basis = torch.linalg.svd(task.problem.matrix)  # A = U diag(singular) basis[:m]
    known = torch.arange(len(basis)) < len(singular)
    y = torch.zeros(len(basis)).double()
    y[known] = U.mT @ task.problem.y / singular

    def rotated(u: Tensor, noise_level: float) -> Tensor:
        return task.estimate(u @ basis, noise_level) @ basis.mT

    sampler = partial(RePaintSampler, azula_exact(rotated), y=y, mask=known, iterations=REPAINT_ITERATIONS, eta=eta)
    return azula_draw(sampler, task, task.num_steps // REPAINT_ITERATIONS) @ basis


def azula_tds(isotropic: bool, task: Task) -> Tensor:
    """TDS: the samples are the particles of one run.

    Its user gives the twist. Here it is PiGDM's N(y; A x, noise_std^2 + r^2 A A'), or N(y; A x, noise_std^2 +
    noise_level^2) if `isotropic`.
    """
    from azula.guidance import TDSSampler

    matrix = task.problem.matrix
    eye = torch.eye(len(matrix)).double()

    def twist(x: Tensor, noise_level: Tensor) -> Tensor:
        variance = noise_level**2
        spread = variance * eye if isotropic else variance / (1 + variance) * matrix @ matrix.mT
        return MultivariateNormal(x @ matrix.mT, task.problem.noise_std**2 * eye + spread).log_prob(task.problem.y)

    return azula_draw(TDSSampler, task, denoiser=azula_exact(task.estimate), twist=twist)


def deepinv() -> Any:
    """deepinv, which imports torchvision for data sets, pictures and transforms.

    None of them is used here. Where torchvision is not installed, mock modules stand in for it while deepinv is
    imported: whatever deepinv would do with torchvision does not work then.
    """
    if "deepinv" not in sys.modules and find_spec("torchvision") is None:
        import torchmetrics  # noqa: F401  # looks for torchvision: before the mocks are there

        stubs = {f"torchvision{part}": mock.MagicMock() for part in TORCHVISION}
        sys.modules.update(stubs)
        try:
            import deepinv
        finally:
            for name in stubs:
                del sys.modules[name]
    import deepinv

    return deepinv


class Scale(NamedTuple):
    """deepinv is given x_0 / size + shift."""

    size: float = 1.0
    shift: float = 0.0


def image_scale(target: GaussianMixture) -> Scale:
    """The map to images in [0, 1]."""
    largest = (target.means.abs().amax(1) + RANGE * target.variances.amax(1).sqrt()).max().item()
    return Scale(2 * largest, 0.5)


def deepinv_draw(make: Callable[[Any], Any], task: Task, scale: Scale, **given: Any) -> Tensor:
    """Samples of a model of deepinv, which `make` builds for a denoiser.

    The operator is given by its singular value decomposition, measurements as `(B, 1, 1, m)`.
    """
    library = deepinv()
    m, d = task.problem.matrix.shape
    U, singular, basis = torch.linalg.svd(scale.size * task.problem.matrix)

    def samples(x: Tensor) -> Tensor:
        return (x.double().flatten(1) - scale.shift) * scale.size

    class Denoiser(library.models.Denoiser):  # type: ignore[misc]
        def forward(self, x: Tensor, sigma: Tensor | float, **_: Any) -> Tensor:
            level = torch.as_tensor(sigma).double().flatten() * scale.size
            return (task.estimate(samples(x), level) / scale.size + scale.shift).reshape(x.shape)

    physics = library.physics.DecomposablePhysics(
        U=lambda z: z[..., :m].double() @ U.mT,
        U_adjoint=lambda y: torch.nn.functional.pad(y.double() @ U, (0, d - m)),
        V=lambda z: z.double() @ basis,
        V_adjoint=lambda x: x.double() @ basis.mT,
        mask=torch.nn.functional.pad(singular, (0, d - m)).reshape(1, 1, 1, d),
        img_size=(1, 1, d),
        noise_model=library.physics.GaussianNoise(task.problem.noise_std),
    )
    y = task.problem.y + scale.size * scale.shift * task.problem.matrix.sum(1)
    return samples(make(Denoiser())(y.repeat(task.num_samples, 1, 1, 1), physics, **given))


class Scheme(NamedTuple):
    """How deepinv's `PosteriorDiffusion` solves.

    Attributes:
        sde, solver: their names.
        alpha: the SDE's weight of noise, for Euler and Heun; 0 is the ODE.
        last: the time at which it ends.
        per_step, extra: evaluations of a step, and of the denoising at the end.
    """

    sde: str
    solver: str
    alpha: float = 0.0
    last: float = 0.0
    per_step: int = 1
    extra: int = 0


VP, VE, FLOW = "VariancePreservingDiffusion", "VarianceExplodingDiffusion", "FlowMatching"
SCHEMES = {
    "DDPM": Scheme(VP, "DDPMSolver"),
    "DDIM": Scheme(VP, "DDIMSolver"),
    "VE, DDIM": Scheme(VE, "DDIMSolver", extra=1),
    "VE, Euler": Scheme(VE, "EulerSolver", alpha=1.0, last=LAST, extra=1),
    "flow, DDPM": Scheme(FLOW, "DDPMSolver"),
    "flow, DDIM": Scheme(FLOW, "DDIMSolver"),
    "flow, Euler": Scheme(FLOW, "EulerSolver", alpha=1.0, last=LAST, extra=1),
    "flow, Heun": Scheme(FLOW, "HeunSolver", last=LAST, per_step=2),
}


def deepinv_diffusion(fidelity: str, options: dict[str, Any], scheme: Scheme, task: Task) -> Tensor:
    """deepinv's `PosteriorDiffusion` with one of its likelihoods, on the data's own range."""
    sampling = deepinv().sampling
    sde = getattr(sampling, scheme.sde)(alpha=scheme.alpha, minus_one_one=False)
    steps = (task.num_steps - scheme.extra) // scheme.per_step
    times = torch.linspace(sde.T, scheme.last, steps + 1, dtype=torch.float64)

    def make(denoiser: Any) -> Any:
        likelihood = getattr(sampling, fidelity)(**options)
        solver = getattr(sampling, scheme.solver)(timesteps=times)
        return sampling.PosteriorDiffusion(likelihood, denoiser, sde, solver, minus_one_one=False)

    return deepinv_draw(make, task, Scale())


def deepinv_dps(options: dict[str, Any], task: Task) -> Tensor:
    """deepinv's `DPS` of images, whose estimates it clips. n of its time steps are n - 1 evaluations."""
    make = partial(deepinv().sampling.DPS, num_steps=task.num_steps + 1, **options)
    return deepinv_draw(make, task, image_scale(task.problem.target))


def deepinv_ddrm(log_grid: bool, task: Task) -> Tensor:
    """deepinv's `DDRM` of images, on its own even grid of noise levels or an even grid of their logarithms."""
    if log_grid:
        levels = [*torch.logspace(0, -4, task.num_steps - 1).tolist(), 0.0]
    else:
        levels = torch.linspace(1, 0, task.num_steps).tolist()
    return deepinv_draw(partial(deepinv().sampling.DDRM, sigmas=levels), task, image_scale(task.problem.target))


def deepinv_diffpir(options: dict[str, Any], task: Task) -> Tensor:
    """deepinv's `DiffPIR` of images."""
    library = deepinv()
    fidelity = library.optim.data_fidelity.L2()
    make = partial(library.sampling.DiffPIR, data_fidelity=fidelity, max_iter=task.num_steps, **options)
    return deepinv_draw(make, task, image_scale(task.problem.target))


BOTH = ("DDPM", "DDIM")


def azula_runs() -> dict[str, Run]:
    """azula's methods."""
    guides: dict[str, tuple[Guide, Iterable[str]]] = {
        "MMPS": (partial(mmps, {}), BOTH),
        "MMPS, 5 iterations": (partial(mmps, {"iterations": 5}), SOLVERS),
        "JFPS": (partial(jfps, {}), BOTH),
        "JFPS, 5 iterations": (partial(jfps, {"iterations": 5}), BOTH),
        "TMPD": (partial(with_variance, "TMPDenoiser", {}), BOTH),
        "DiffPIR": (partial(with_variance, "DiffPIRDenoiser", {}), BOTH),
        "DiffPIR, lambda 1": (partial(with_variance, "DiffPIRDenoiser", {"lmbda": 1.0}), BOTH),
        "DiffPIR, 8 iterations": (partial(with_variance, "DiffPIRDenoiser", {"iterations": 8}), BOTH),
    }
    runs: dict[str, Run] = {}
    for method, (guide, solvers) in guides.items():
        for solver in solvers:
            runs[f"azula {method}, {solver}"] = partial(azula_guided, guide, SOLVERS[solver])
    for eta, solver in ((1.0, "DDPM"), (0.0, "DDIM")):
        runs[f"azula PiGDM, {solver}"] = partial(azula_pgdm, eta)
        runs[f"azula RePaint, {solver}"] = partial(azula_repaint, eta)
    runs["azula DPS, DDPM"] = partial(azula_dps, 1.0, False)
    for zeta in (1.0, 0.3, 0.1):
        runs[f"azula DPS, zeta {zeta:g}, own norms, DDPM"] = partial(azula_dps, zeta, True)
    runs["azula TDS, DDPM"] = partial(azula_tds, False)
    runs["azula TDS, isotropic twist, DDPM"] = partial(azula_tds, True)
    return runs


def deepinv_runs() -> dict[str, Run]:
    """deepinv's methods."""
    moments = "MomentMatchingDataFidelity"
    likelihoods: dict[str, tuple[str, dict[str, Any], Iterable[str]]] = {
        "moment matching": (moments, {}, SCHEMES),
        "moment matching, 30 iterations": (moments, {"cg_max_iter": 30}, ("flow, DDIM", "flow, Heun")),
        "PiGDM": ("PiGDMDataFidelity", {}, SCHEMES),
        "DPS likelihood": ("DPSDataFidelity", {}, BOTH),
        "DPS likelihood, weight 10": ("DPSDataFidelity", {"weight": 10.0}, BOTH),
        "DPS likelihood, annealed": ("DPSDataFidelity", {"guidance": "annealed"}, BOTH),
        "ALD": ("ALDDataFidelity", {}, BOTH),
        "ScoreSDE": ("ScoreSDEDataFidelity", {}, BOTH),
        "ILVR": ("ILVRDataFidelity", {}, BOTH),
    }
    runs: dict[str, Run] = {
        "deepinv DPS, DDPM": partial(deepinv_dps, {}),
        "deepinv DPS, DDIM": partial(deepinv_dps, {"solver": "ddim"}),
        "deepinv DPS, weight 10, DDPM": partial(deepinv_dps, {"weight": 10.0}),
        "deepinv DDRM": partial(deepinv_ddrm, False),
        "deepinv DDRM, logarithmic levels": partial(deepinv_ddrm, True),
        "deepinv DiffPIR": partial(deepinv_diffpir, {}),
        "deepinv DiffPIR, zeta 1": partial(deepinv_diffpir, {"zeta": 1.0}),
    }
    for method, (fidelity, options, schemes) in likelihoods.items():
        for scheme in schemes:
            runs[f"deepinv {method}, {scheme}"] = partial(deepinv_diffusion, fidelity, options, SCHEMES[scheme])
    return runs


PEERS: dict[str, Peer] = {name: partial(draw, run) for name, run in {**azula_runs(), **deepinv_runs()}.items()}
