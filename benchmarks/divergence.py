"""Ways to a trace, along the probability flow of a mixture in 64 dimensions with 64 evaluations: which pays.

    python -m benchmarks.divergence

First the standard deviation of a log density, in nats per dimension, by the kind of its probes, all simulated on the
same exact Jacobians: plain and orthogonal ones in each step, Hutch++ (Meyer et al. 2021), rows of a Hadamard matrix
without replacement over blocks of steps, and one Rademacher or Gaussian probe for the whole way. Then the time of one
product and of a whole Jacobian by reverse and forward mode, on an untrained U-Net for 8x8 images. Then what the prior
costs: the error of the log density with N(0, sigma_T^2 I), and with the Gaussian of the data's mean and covariance.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vmap

from benchmarks.likelihood import SDES, drawn, targets
from samplers import Exact, log_prob
from samplers.likelihood.divergence import _hadamard
from samplers.likelihood.inversion import inversion
from samplers.table import Loop
from scoresde import VPSDE, EDMParametrization, ExactScoreModel, NetworkScoreModel, Noise, UNet
from scoresde.sde import Level

SAMPLES = 16
DRAWS = 60


def jacobians() -> Tensor:
    """The Jacobians of h, times their weights in the log density per dimension, `(SAMPLES, steps, 64, 64)`."""
    target = targets()["64-D"]
    x, _, _ = drawn(target, SAMPLES)
    model = ExactScoreModel(target, VPSDE())
    flow = inversion(model.sde, 64, model.sigma_data)
    eye = torch.eye(64, dtype=torch.float64)
    parts = []

    def watch(row: int, level: Level, x_t: Tensor, x0_hat: Tensor) -> None:
        with torch.enable_grad():
            u = x_t.detach().requires_grad_()
            d = model.denoise_at(u, level)
            rows = torch.autograd.grad(d, u, eye[:, None].expand(-1, SAMPLES, -1), is_grads_batched=True)[0]
        of_h = flow.table.p[row] * rows.transpose(0, 1) + flow.table.q[row] * eye
        parts.append(flow.totals[row] * flow.scale[row] / 64 * of_h)

    Loop(flow.table, model, x)(flow.scale[0].item() * x, Noise(0, torch.arange(SAMPLES)), None, watch)
    return torch.stack([part for part in parts if bool(part.any())], 1)


def signs(*shape: int) -> Tensor:
    return 2 * torch.randint(2, shape, dtype=torch.float64) - 1


def quadratic(j: Tensor, v: Tensor) -> Tensor:
    """The mean over probes v `(.., m, 64)` of v J v."""
    return torch.einsum("...mi,...ij,...mj->...m", v, j, v).mean(-1)


def hutch(j: Tensor, count: int) -> Tensor:
    """Hutch++: a third of the products sketch the range, a third give its trace, a third are probes of the rest."""
    third = count // 3
    q = torch.linalg.qr(j @ signs(*j.shape[:2], 64, third)).Q
    rest = signs(*j.shape[:2], 64, count - 2 * third)
    rest = rest - q @ (q.mT @ rest)
    return (q * (j @ q)).sum((-1, -2)) + (rest * (j @ rest)).sum((-1, -2)) / (count - 2 * third)


def deviation(estimate: Callable[[], Tensor]) -> float:
    """Standard deviation of the sum over steps, mean over samples."""
    return torch.stack([estimate() for _ in range(DRAWS)]).std(0).mean().item()


def compare_probes() -> None:
    j = jacobians()
    steps = j.shape[1]
    hadamard = _hadamard(torch.arange(64), 64).double()

    def strata(block: int) -> Tensor:
        rows = torch.cat([torch.randperm(64)[:block] for _ in range(-(-steps // block))])[:steps]
        sign = signs(SAMPLES, -(-steps // block), 64).repeat_interleave(block, 1)[:, :steps]
        return quadratic(j, (hadamard[rows] * sign)[:, :, None]).sum(1)

    def orthogonal(count: int) -> Tensor:
        rows = torch.stack([torch.randperm(64)[:count] for _ in range(SAMPLES * steps)]).reshape(SAMPLES, steps, count)
        return quadratic(j, hadamard[rows] * signs(SAMPLES, steps, 1, 64)).sum(1)

    whole = j.sum(1)
    gaussian = deviation(lambda: quadratic(whole, torch.randn(SAMPLES, 1, 64, dtype=torch.float64)))
    print(f"{'one for the whole way, Gaussian':44}{gaussian:.4f}")
    print(f"{'one for the whole way, signs':44}{deviation(lambda: quadratic(whole, signs(SAMPLES, 1, 64))):.4f}")
    for count in (1, 3, 12, 24, 48):
        plain = deviation(lambda count=count: quadratic(j, signs(SAMPLES, steps, count, 64)).sum(1))
        other = deviation(lambda count=count: orthogonal(count))
        sketch = f", Hutch++ {deviation(lambda count=count: hutch(j, count).sum(1)):.4f}" if count >= 3 else ""
        print(f"{f'{count} a step':44}{plain:.4f}, orthogonal {other:.4f}{sketch}", flush=True)
    for block in (4, 16, 64):
        print(f"{f'one a step, no row twice in {block} steps':44}{deviation(lambda block=block: strata(block)):.4f}")


def compare_modes() -> None:
    model = NetworkScoreModel(UNet(channels_in=1), VPSDE(), EDMParametrization(0.7), (1, 8, 8)).eval()
    model.requires_grad_(False)
    level = VPSDE().level(torch.tensor(0.3))
    for batch in (8, 50):
        x = torch.randn(batch, 1, 8, 8)
        eye = torch.eye(64).reshape(64, 1, 1, 8, 8).expand(64, batch, 1, 8, 8)

        def reverse(v: Tensor, x: Tensor = x) -> None:
            u = x.clone().requires_grad_()
            d = model.denoise_at(u, level)
            for part in v.split(8):
                torch.autograd.grad(d, u, part, is_grads_batched=True, retain_graph=True)

        def forward(v: Tensor, x: Tensor = x) -> None:
            with torch.no_grad():
                for part in v.split(8):
                    vmap(lambda e: jvp(lambda u: model.denoise_at(u, level), (x,), (e,))[1])(part)

        for name, v in (("one product", eye[:1]), ("the Jacobian", eye)):
            seconds = []
            for mode in (reverse, forward):
                mode(v)
                began = time.process_time()
                for _ in range(3):
                    mode(v)
                seconds.append(time.process_time() - began)
            print(f"batch {batch}, {name}: forward mode takes {seconds[1] / seconds[0]:.1f} of reverse mode's time")


def compare_priors() -> None:
    for name, target in targets().items():
        x, truth, prior = drawn(target, 40)
        for sde in SDES:
            model = ExactScoreModel(target, sde)
            errors = []
            for given in (None, prior):
                found = log_prob(model, x, num_evaluations=256, divergence=Exact(64), prior=given)
                error = (found.log_prob - truth) / x.shape[1]
                errors.append(error.square().mean().sqrt().item())
            numbers = f"N(0, sigma_T^2 I) {errors[0]:.1e}, moments {errors[1]:.1e}"
            print(f"{name} {type(sde).__name__:20} {numbers}", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    compare_probes()
    compare_modes()
    compare_priors()
