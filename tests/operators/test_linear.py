"""Linear operators: adjoints, matrices and eigenbases, whatever is measured of whatever shape."""

from __future__ import annotations

import pytest
import torch

from scoresde.operators import BlockAverage, Blur, Mask, MatrixOperator, check_adjoint
from scoresde.operators.base import LARGEST_DENSE
from tests.operators.cases import LINEAR, randn

each = pytest.mark.parametrize(("make", "shape"), LINEAR.values(), ids=LINEAR)
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}


def inner(a, b):
    return (a * b).flatten(1).sum(1)


def batch(operator, dtype, device):
    """Samples and measurements, three of each, and the operator in their type."""
    operator = operator.to(device, dtype)
    x = randn(3, *operator.shape, seed=1).to(device, dtype)
    y = randn(3, *operator.measured_shape, seed=2).to(device, dtype)
    return operator, x, y


@each
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_adjoint_is_the_adjoint(make, shape, dtype, device):
    operator, x, y = batch(make(shape), dtype, device)
    measured = operator(x)
    back = operator.adjoint(y)
    scale = inner(measured, measured).sqrt() * inner(y, y).sqrt()
    assert ((inner(measured, y) - inner(x, back)).abs() <= TOLERANCES[dtype] * scale).all()
    check_adjoint(operator)


@each
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_shapes_and_types_are_kept_and_samples_not_mixed(make, shape, dtype, device):
    operator, x, y = batch(make(shape), dtype, device)
    basis = operator.eigenbasis
    for function, of, gives in (
        (operator, x, operator.measured_shape),
        (operator.adjoint, y, shape),
        (basis.into, x, None),
        (lambda part: basis.out_of(basis.into(part)), x, shape),
    ):
        whole = function(of)
        assert whole.dtype == dtype
        assert whole.device.type == device.type
        assert gives is None or whole.shape == (3, *gives)
        alone = torch.cat([function(of[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(whole, alone, rtol=0, atol=TOLERANCES[dtype])


@each
def test_own_derivatives_are_those_found_by_differentiation(make, shape, device):
    operator, x, y = batch(make(shape), torch.float64, device)
    by_differentiation = torch.autograd.functional.vjp(operator, x, y)[1]
    torch.testing.assert_close(operator.adjoint(y), by_differentiation, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(operator.vjp(x, y), by_differentiation, rtol=1e-12, atol=1e-12)
    along = torch.autograd.functional.jvp(operator, x, x + 1)[1]
    torch.testing.assert_close(operator.jvp(x, x + 1), along, rtol=1e-12, atol=1e-12)


@each
def test_the_matrix_is_the_operator(make, shape, device):
    operator, x, y = batch(make(shape), torch.float64, device)
    matrix = operator.matrix()
    assert matrix.shape == (y[0].numel(), x[0].numel())
    torch.testing.assert_close(x.flatten(1) @ matrix.mT, operator(x).flatten(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y.flatten(1) @ matrix, operator.adjoint(y).flatten(1), rtol=1e-12, atol=1e-12)


@each
def test_the_eigenbasis_is_orthonormal_and_diagonalises(make, shape, device):
    operator, x, _ = batch(make(shape), torch.float64, device)
    basis = operator.eigenbasis
    coordinates = basis.into(x)
    torch.testing.assert_close(inner(coordinates, coordinates), inner(x, x), rtol=1e-12, atol=0)
    torch.testing.assert_close(basis.out_of(coordinates), x, rtol=1e-12, atol=1e-12)
    twice = operator.adjoint(operator(x))
    torch.testing.assert_close(basis.out_of(basis.values * coordinates), twice, rtol=1e-10, atol=1e-10)


@each
def test_eigenvalues_are_the_squares_of_the_singular_values(make, shape, device):
    operator, x, _ = batch(make(shape), torch.float64, device)
    found = operator.eigenbasis.values.expand(operator.eigenbasis.into(x).shape[1:]).flatten().sort().values
    squares = torch.linalg.svdvals(operator.matrix()).square().sort().values
    count = min(len(squares), len(found))
    torch.testing.assert_close(found[-count:], squares[-count:], rtol=1e-10, atol=1e-10)
    assert (found[:-count] <= 1e-10).all()


@each
def test_the_adjoint_can_be_differentiated(make, shape, device):
    """As likelihoods under a posterior model need it: the derivative of A'y along v is A'v, and of |A'y|^2 2 A A'y."""
    operator, _, y = batch(make(shape), torch.float64, device)
    y.requires_grad_()
    for adjoint in (operator.adjoint, lambda v: operator.vjp(v.new_zeros(3, *shape), v)):
        gradient = torch.autograd.grad(adjoint(y).square().sum(), y)[0]
        expected = 2 * operator(operator.adjoint(y.detach()))
        torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-11)


def test_a_large_operator_has_only_an_eigenbasis_of_its_own():
    shape = (1, LARGEST_DENSE + 2)
    kernel = torch.tensor([0.25, 0.5, 0.25])
    assert Blur(shape, kernel, "zeros").eigenbasis is None
    assert MatrixOperator(torch.ones(1, LARGEST_DENSE + 2)).eigenbasis is None
    for operator in (Blur(shape, kernel), BlockAverage(shape, 2), Mask.random(shape, 0.5)):
        assert operator.eigenbasis is not None


def test_an_eigenbasis_moves_with_its_operator(device):
    """It is computed once, and again is in the type of the operator that it belongs to."""
    single = MatrixOperator(randn(3, 5))
    assert single.eigenbasis is single.eigenbasis
    moved = single.to(device, torch.float32)
    assert moved.eigenbasis.values.dtype == torch.float32
    assert moved.eigenbasis.values.device.type == device.type
    assert single.eigenbasis.values.dtype == torch.float64


def test_operators_say_what_they_measure():
    assert str(BlockAverage((3, 8, 6), 2)) == "BlockAverage(3x8x6 to 3x4x3)"
