r"""Linear systems of Gaussian measurements.

If x_0 ~ N(m, v I) and y = A x_0 + noise of variance S, then E[x_0 | y] = m + v A' w with w = (v A A' + S)^-1 (y - A m).
In an eigenbasis of A'A, and for white noise, A'w = V (v s^2 + S)^-1 V'A'(y - A m). Otherwise w is found by conjugate
gradients, in the space of measurements.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde._shape import match_rank
from scoresde.errors import require
from scoresde.operators import LinearOperator

ITERATIONS = 50  # of conjugate gradients if there is no eigenbasis
SMALL = 1e-12  # of the squared residual at the start, at which an iteration ends
ROUNDED = 100.0  # roundings below which the image of a direction says nothing


def pulled(operator: LinearOperator, e: Tensor, variance: Tensor, noise: Tensor | float) -> tuple[Tensor, Tensor]:
    """A'(v A A' + S)^-1 e `(B, *shape)`, and the quadratic form e'(v A A' + S)^-1 e of each sample `(B,)`, float64.

    The part of e that no sample can explain is left out of the form: it is the same for all samples.

    Args:
        operator: A.
        e: `(B, *measured_shape)`.
        variance: v, `()` or `(B,)`.
        noise: S, a number, or `(B, *measured_shape)`.

    Raises:
        UsageError: without noise, for an operator without an eigenbasis.
    """
    basis = operator.eigenbasis
    if basis is not None and not isinstance(noise, Tensor):
        back = operator.adjoint(e)
        coordinates = basis.into(back)
        squares = basis.values.to(coordinates)
        total = match_rank(variance.to(coordinates), coordinates) * squares + noise
        weighed = torch.where(squares > 0, coordinates / torch.where(squares > 0, total, 1), 0)
        inverse = torch.where(squares > 0, 1 / torch.where(squares > 0, squares, 1), 0)
        form = (coordinates.double() * weighed.double() * inverse.double()).flatten(1).sum(1)
        return basis.out_of(weighed), form
    require(
        isinstance(noise, Tensor) or noise > 0,
        f"noise=0: {operator} is too large for an eigenbasis, and needs some noise; a tenth of the last digit will do",
    )
    v = match_rank(variance.to(e), e)
    w = conjugate_gradients(lambda p: v * operator(operator.adjoint(p)) + noise * p, e, ITERATIONS)
    return operator.adjoint(w), (e.double() * w.double()).flatten(1).sum(1)


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """x of M x = b after some iterations from 0, for a symmetric positive M; each sample `(B, *)` has its own steps.

    A sample stops where its residual vanishes, or where M is not positive along its direction, as that of an imperfect
    network may be.
    """
    x = torch.zeros_like(b)
    residual = b
    direction = b
    squares = inner(b, b)
    going = squares > 0
    least = SMALL * squares
    for k in range(iterations):
        image = apply(direction)
        curvature = inner(direction, image)
        going = going & (curvature > 0) & (squares > least)
        step = torch.where(going, squares / torch.where(going, curvature, 1), 0)
        x = x + match_rank(step, b) * direction
        if k + 1 == iterations:
            break
        residual = residual - match_rank(step, b) * image
        after = inner(residual, residual)
        direction = residual + match_rank(after / torch.where(squares > 0, squares, 1), b) * direction
        squares = after
    return x


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each sample, `(B,)`."""
    return (a * b).flatten(1).sum(1)


def least_residual(apply: Callable[[Tensor], tuple[Tensor, Tensor]], b: Tensor, iterations: int) -> Tensor:
    """L x with x of M x = b after some iterations from 0, for any M; each sample `(B, *)` has its own steps.

    The residual is the smallest in the span of b, M b, M^2 b, ..., so it never grows, whatever M is (the method of
    generalised conjugate residuals, Eisenstat, Elman and Schultz 1983).

    Args:
        apply: v to M v, and to L v for some other linear L that is known along with it.
        b: the right side.
        iterations: 1 or more; each calls `apply` once.
    """
    found: Tensor | None = None
    residual = b
    directions: list[tuple[Tensor, Tensor]] = []  # M p and L p
    least = SMALL * inner(b, b)
    rounded = (ROUNDED * torch.finfo(b.dtype).eps) ** 2
    largest = torch.zeros_like(least)  # |M p|^2 / |p|^2 so far
    for _ in range(iterations):
        image, moved = apply(residual)
        size = inner(residual, residual)
        largest = torch.maximum(largest, inner(image, image) / torch.where(size > 0, size, 1)).detach()
        for earlier, its_moved in directions:
            share = inner(image, earlier)
            image = image - match_rank(share, image) * earlier
            moved = moved - match_rank(share, moved) * its_moved
        squares = inner(image, image)
        going = (squares > rounded * largest * size) & (size > least)
        scale = torch.where(going, torch.where(going, squares, 1).rsqrt(), 0)  # finite gradients at 0
        image = match_rank(scale, image) * image
        moved = match_rank(scale, moved) * moved
        step = inner(residual, image)
        part = match_rank(step, moved) * moved
        found = part if found is None else found + part
        residual = residual - match_rank(step, b) * image
        directions.append((image, moved))
    assert found is not None
    return found
