"""Linear systems of measurements: by an eigenbasis, by conjugate gradients and by least residuals."""

from __future__ import annotations

import pytest
import torch

from scoresde import UsageError
from scoresde.inverse import solve
from scoresde.inverse.solve import SMALL, conjugate_gradients, pulled
from scoresde.operators import Blur, gaussian_kernel
from tests.inverse.problems import dense_pull
from tests.operators.cases import LINEAR, randn

each = pytest.mark.parametrize(("make", "shape"), LINEAR.values(), ids=LINEAR)
V = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
S = 0.3


@each
def test_an_eigenbasis_solves_what_the_matrix_solves(make, shape, device):
    """With a variance for each sample. The form leaves out what is in no measurement of any sample."""
    operator = make(shape).to(device, torch.float64)
    A, e, v = operator.matrix(), randn(3, *operator.measured_shape, seed=2).to(device), V.to(device)
    pull, form = pulled(operator, e, v, S)
    torch.testing.assert_close(pull.flatten(1), dense_pull(A, e.flatten(1), v, S), rtol=1e-9, atol=1e-10)
    left, values, _ = torch.linalg.svd(A, full_matrices=False)
    left = left[:, values > 1e-9 * values.max()]
    seen = e.flatten(1) @ left @ left.mT
    solved = torch.linalg.solve(v[:, None, None] * A @ A.mT + S * torch.eye(len(A)).to(A), seen[..., None])[..., 0]
    torch.testing.assert_close(form, (seen * solved).sum(1), rtol=1e-9, atol=1e-10)


@each
def test_conjugate_gradients_solve_what_the_eigenbasis_solves(make, shape, device):
    """To the relative residual at which they end, 1e-6."""
    operator = make(shape).to(device, torch.float64)
    e, noise = randn(3, *operator.measured_shape, seed=2).to(device), 100.0  # so that 50 iterations are enough
    by_basis, _ = pulled(operator, e, V.to(device), noise)
    by_iteration, form = pulled(operator, e, V.to(device), torch.full_like(e, noise))
    largest = operator.eigenbasis.values.max().sqrt()
    size = torch.linalg.vector_norm(e.flatten(1), dim=1)
    error = torch.linalg.vector_norm((by_iteration - by_basis).flatten(1), dim=1)
    assert (error <= 2 * SMALL**0.5 * largest * size / noise).all()
    A = operator.matrix()
    spread = V.to(device)[:, None, None] * A @ A.mT + noise * torch.eye(len(A)).to(A)
    expected = (e.flatten(1) * torch.linalg.solve(spread, e.flatten(1)[..., None])[..., 0]).sum(1)
    assert ((form - expected).abs() <= 2 * SMALL**0.5 * size**2 / noise).all()


@each
def test_without_noise_only_what_is_measured_is_pulled(make, shape, device):
    """The limit of little noise, by the pseudo-inverse: A' (v A A')^+ e."""
    operator = make(shape).to(device, torch.float64)
    e = randn(3, *operator.measured_shape, seed=2).to(device)
    A = operator.matrix()
    pull, form = pulled(operator, e, V.to(device), 0.0)
    expected = (e.flatten(1) @ torch.linalg.pinv(A, rtol=1e-9).mT) / V.to(device)[:, None]
    torch.testing.assert_close(pull.flatten(1), expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(form, V.to(device) * expected.square().sum(1), rtol=1e-7, atol=1e-7)


def test_entries_with_noise_of_their_own(device):
    operator = Blur((2, 8), gaussian_kernel(0.8, 1), "reflect").to(device, torch.float64)
    e = randn(3, 2, 8, seed=2).to(device)
    noise = randn(3, 2, 8, seed=3).to(device).exp()
    expected = dense_pull(operator.matrix(), e.flatten(1), V.to(device), noise.flatten(1))
    pull, _ = pulled(operator, e, V.to(device), noise)
    torch.testing.assert_close(pull.flatten(1), expected, rtol=1e-4, atol=1e-5)


# --- iterations -----------------------------------------------------------------------------------------------------


def system(kind, dim=8, seed=0):
    """A matrix of each of three samples, `(3, dim, dim)`, and right-hand sides."""
    factor = randn(3, dim, dim, seed=seed)
    eye = torch.eye(dim, dtype=torch.float64)
    matrices = {
        "positive": factor @ factor.mT / dim + 0.1 * eye,
        "indefinite": factor + factor.mT,
        "any": factor,
        "singular": factor[..., :2] @ factor[..., :2].mT,
        "skew": factor - factor.mT,
    }
    return matrices[kind], randn(3, dim, seed=seed + 1)


def applied(matrices):
    return lambda x: (matrices @ x[..., None])[..., 0]


def least_residual(apply, b, iterations):
    """x itself."""
    return solve.least_residual(lambda v: (apply(v), v), b, iterations)


@pytest.mark.parametrize(
    ("solve", "kind"), [(conjugate_gradients, "positive"), (least_residual, "positive"), (least_residual, "any")]
)
def test_as_many_iterations_as_unknowns_solve_a_system(solve, kind):
    """Up to the residual at which an iteration ends."""
    matrices, b = system(kind)
    x = solve(applied(matrices), b, 8)
    residual = torch.linalg.vector_norm(applied(matrices)(x) - b, dim=1) / torch.linalg.vector_norm(b, dim=1)
    assert (residual < 2 * SMALL**0.5).all()


def test_conjugate_gradients_never_lose_ground_in_their_own_norm():
    """The error in the norm of M falls with every iteration."""
    matrices, b = system("positive")
    exact = torch.linalg.solve(matrices, b[..., None])[..., 0]
    errors = [exact - conjugate_gradients(applied(matrices), b, k) for k in range(1, 9)]
    norms = torch.stack([(error * applied(matrices)(error)).sum(1) for error in errors])
    assert (norms[1:] <= norms[:-1] * (1 + 1e-9)).all()


@pytest.mark.parametrize("kind", ["positive", "indefinite", "any", "singular", "skew"])
def test_least_residuals_never_grow_and_are_the_least(kind):
    """After k iterations no combination of M b, ..., M^k b is nearer to b, whatever M is."""
    matrices, b = system(kind)
    before = torch.linalg.vector_norm(b, dim=1)
    powers = [b]
    for k in range(1, 7):
        powers.append(applied(matrices)(powers[-1]))
        basis = torch.linalg.qr(torch.stack([power / power.norm(dim=1, keepdim=True) for power in powers[1:]], 2)).Q
        best = torch.linalg.vector_norm(b - (basis @ (basis.mT @ b[..., None]))[..., 0], dim=1)
        residual = torch.linalg.vector_norm(b - applied(matrices)(least_residual(applied(matrices), b, k)), dim=1)
        assert (residual <= before * (1 + 1e-9)).all()
        if kind not in ("singular", "skew"):  # whose powers do not span, or whose first step leads nowhere
            torch.testing.assert_close(residual, best, rtol=1e-6, atol=1e-6)
        before = residual


@pytest.mark.parametrize("solve", [conjugate_gradients, least_residual])
@pytest.mark.parametrize("kind", ["positive", "indefinite", "any", "singular", "skew"])
def test_iterations_stay_finite_and_do_not_mix_samples(solve, kind):
    matrices, b = system(kind)
    b[1] = 0  # asks for nothing
    for iterations in (1, 5, 40):
        x = solve(applied(matrices), b, iterations)
        assert x.isfinite().all()
        assert (x[1] == 0).all()
        for i in range(3):
            alone = solve(applied(matrices[i : i + 1]), b[i : i + 1], iterations)
            torch.testing.assert_close(x[i : i + 1], alone, rtol=1e-9, atol=1e-9)


def test_conjugate_gradients_stop_where_a_system_is_not_positive():
    """diag(1, -1) and b = (2, 1): the first direction has the curvature 3; the second a negative one."""
    b = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    diagonal = torch.tensor([1.0, -1.0], dtype=torch.float64)
    first = conjugate_gradients(lambda x: diagonal * x, b, 1)
    assert torch.equal(conjugate_gradients(lambda x: diagonal * x, b, 30), first)
    torch.testing.assert_close(first, 5 / 3 * b)


def test_another_map_of_the_solution_comes_along():
    matrices, b = system("any")
    other = randn(3, 5, 8, seed=7)
    along = solve.least_residual(lambda v: (applied(matrices)(v), applied(other)(v)), b, 4)
    torch.testing.assert_close(along, applied(other)(least_residual(applied(matrices), b, 4)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solve", [conjugate_gradients, least_residual])
def test_a_solution_has_finite_derivatives_though_it_is_reached(solve):
    """Iterations beyond it leave its derivative as it is: that of the inverse."""
    matrices, b = system("positive", 2)
    b.requires_grad_()
    u = randn(3, 2, seed=9)
    (gradient,) = torch.autograd.grad((solve(applied(matrices), b, 6) * u).sum(), b)
    torch.testing.assert_close(gradient, torch.linalg.solve(matrices, u[..., None])[..., 0], rtol=1e-8, atol=1e-8)


def test_what_has_no_eigenbasis_needs_noise():
    operator = Blur((1, 40, 40), gaussian_kernel(1.0), "zeros")
    e = torch.zeros(1, 1, 40, 40)
    with pytest.raises(UsageError, match=r"noise=0: Blur\(1x40x40 to 1x40x40\) is too large for an eigenbasis"):
        pulled(operator, e, torch.ones(()), 0.0)
    assert pulled(operator, e, torch.ones(()), 0.1)[0].shape == (1, 1, 40, 40)
