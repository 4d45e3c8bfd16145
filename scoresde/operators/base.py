r"""What is measured of a sample: y = A(x) + noise.

An `Operator` maps samples `(B, *shape)` to measurements `(B, *measured_shape)`. A `LinearOperator` has an adjoint A',
<A x, y> = <x, A' y>, which is found by differentiation unless a subclass knows it. Where A'A has a known eigenbasis
(`Eigenbasis`), A'A = V diag(s^2) V', solving with it costs two changes of basis. That is the singular value
decomposition of A without its left side, which is never needed: U'y = V'A'y / s.

Operators act in the model's units. One whose weights sum to 1 for each measured value, such as a blur, means the same
in raw data.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self, final

import torch
from torch import Tensor

from scoresde._movable import Movable
from scoresde.errors import UsageError, require

LARGEST_DENSE = 1024  # entries of a sample up to which an eigenbasis is found from the matrix
ADJOINT_ERROR = {torch.float64: 1e-9, torch.float32: 1e-3}  # of an inner product, against the norms


class Operator(Movable, ABC):
    """A map from samples to measurements.

    Attributes:
        shape: of a sample.
        measured_shape: of a measurement.
    """

    shape: tuple[int, ...]
    measured_shape: tuple[int, ...]
    _like: Tensor

    def __new__(cls, *args: object, **options: object) -> Self:
        operator = super().__new__(cls)
        operator._like = torch.zeros(())  # moves along: the device and type of an operator without numbers of its own
        return operator

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Samples `(B, *shape)` to what is measured of them without noise, `(B, *measured_shape)`; differentiable."""

    def jvp(self, x: Tensor, direction: Tensor) -> Tensor:
        """The derivative of A at x `(B, *shape)` along a direction `(B, *shape)`."""
        keep = torch.is_grad_enabled() and (x.requires_grad or direction.requires_grad)
        with torch.inference_mode(False), torch.enable_grad():
            x = x if keep and x.requires_grad else x.detach().clone().requires_grad_()
            direction = direction if keep else direction.detach().clone()
            measured = self(x)
            v = torch.zeros_like(measured, requires_grad=True)
            transposed = torch.autograd.grad(measured, x, v, create_graph=True)[0]
            if not transposed.requires_grad:  # a function of steps, such as the sign
                return torch.zeros_like(measured).detach()
            # J'v is linear in v, so its transposed derivative in v is J
            derivative: Tensor = torch.autograd.grad(transposed, v, direction, create_graph=keep)[0]
        return derivative

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """The transposed derivative of A at x `(B, *shape)`, applied to v `(B, *measured_shape)`; differentiable."""
        keep = torch.is_grad_enabled() and (x.requires_grad or v.requires_grad)
        with torch.inference_mode(False), torch.enable_grad():
            x = x if keep and x.requires_grad else x.detach().clone().requires_grad_()
            v = v if keep else v.detach().clone()
            measured = self(x)
            if not measured.requires_grad:
                return torch.zeros_like(x)
            gradient: Tensor = torch.autograd.grad(measured, x, v, create_graph=keep)[0]
        return gradient

    @final
    def check_measured(self, y: Tensor, name: str = "y") -> None:
        """Raises `UsageError` unless y is a batch of measurements of this operator, all finite."""
        require(
            y.shape[1:] == self.measured_shape and y.is_floating_point(),
            f"{name} of shape {tuple(y.shape)}, {y.dtype}: {self} measures floats of shape {self.measured_shape}, so "
            f"need (batch, {', '.join(map(str, self.measured_shape))})",
        )
        if not y.is_cuda:  # a GPU would have to be waited for
            require(bool(y.isfinite().all()), f"{name}: holds NaN or infinity; leave such entries out with a mask")

    def __str__(self) -> str:
        return f"{type(self).__name__}({'x'.join(map(str, self.shape))} to {'x'.join(map(str, self.measured_shape))})"


class LinearOperator(Operator):
    """A linear map A."""

    _dense: DenseBasis

    def adjoint(self, y: Tensor) -> Tensor:
        """A'y: `(B, *measured_shape)` to `(B, *shape)`."""
        return self.vjp(y.new_zeros(len(y), *self.shape), y)

    @final
    def jvp(self, x: Tensor, direction: Tensor) -> Tensor:
        return self(direction)

    @property
    def eigenbasis(self) -> Eigenbasis | None:
        """That of A'A; None if it is not known. By default it is found from the matrix if samples are small."""
        if math.prod(self.shape) > LARGEST_DENSE:
            return None
        if "_dense" not in vars(self):
            self._dense = DenseBasis(self.matrix(), self.shape)
        return self._dense

    @property
    def _any_tensor(self) -> Tensor:
        """A tensor whose device and type the operator's own numbers have."""
        own = [value for value in vars(self).values() if isinstance(value, Tensor) and value.is_floating_point()]
        return own[-1]  # `_like` is the first

    @final
    def matrix(self) -> Tensor:
        """A as a matrix `(m, D)` over flattened samples; for small ones."""
        like = self._any_tensor
        unit = torch.eye(math.prod(self.shape), device=like.device, dtype=like.dtype)
        return self(unit.reshape(-1, *self.shape)).flatten(1).mT.contiguous()


class Eigenbasis(Movable, ABC):
    """An orthonormal basis in which A'A is diagonal.

    Attributes:
        values: its eigenvalues, the squares s^2 of the singular values of A; they broadcast to coordinates.
    """

    values: Tensor

    @abstractmethod
    def into(self, x: Tensor) -> Tensor:
        """The coordinates V'x of samples `(B, *shape)`."""

    @abstractmethod
    def out_of(self, coordinates: Tensor) -> Tensor:
        """The samples V c of coordinates."""


@final
class AxesBasis(Eigenbasis):
    """Samples themselves: A'A is diagonal."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def into(self, x: Tensor) -> Tensor:
        return x

    def out_of(self, coordinates: Tensor) -> Tensor:
        return coordinates


@final
class DenseBasis(Eigenbasis):
    """From the matrix of A, `(m, D)`, over samples of a shape."""

    def __init__(self, matrix: Tensor, shape: tuple[int, ...]) -> None:
        _, singular, right = torch.linalg.svd(matrix.double(), full_matrices=True)
        values = matrix.new_zeros(matrix.shape[1])
        small = max(matrix.shape) * torch.finfo(matrix.dtype).eps * singular.max()
        values[: len(singular)] = torch.where(singular > small, singular**2, 0).to(matrix)
        self.values = values
        self.axes = right.to(matrix)  # rows
        self.shape = shape

    def into(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.axes.to(x).mT

    def out_of(self, coordinates: Tensor) -> Tensor:
        return (coordinates @ self.axes.to(coordinates)).reshape(-1, *self.shape)


@final
class FunctionOperator(Operator):
    """A user's function of samples: linear or not, differentiable.

    Args:
        function: `(B, *shape)` to `(B, *m)`, sample by sample.
        shape: of a sample.

    Raises:
        UsageError: for a function that returns another kind of tensor, or mixes samples.

    Example:
        FunctionOperator(lambda x: x.abs(), (3, 32, 32))
    """

    def __init__(self, function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
        self.function = function
        self.shape = tuple(shape)
        self.measured_shape = measured_by(function, self.shape)

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


@final
class LinearFunctionOperator(LinearOperator):
    """A user's linear function of samples, with its adjoint or without.

    Args:
        function: `(B, *shape)` to `(B, *m)`, sample by sample.
        shape: of a sample.
        adjoint: `(B, *m)` to `(B, *shape)`; found by differentiation if None.

    Raises:
        UsageError: for a function that is not linear, or an adjoint that is not its adjoint.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        adjoint: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.function = function
        self.own_adjoint = adjoint
        self.shape = tuple(shape)
        self.measured_shape = measured_by(function, self.shape)
        check_adjoint(self)

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return super().adjoint(y) if self.own_adjoint is None else self.own_adjoint(y)


@final
class MatrixOperator(LinearOperator):
    """y = A x over flattened samples.

    Args:
        matrix: A, `(m, D)`.
        shape: of a sample, of D entries; `(D,)` by default.
    """

    def __init__(self, matrix: Tensor, shape: tuple[int, ...] | None = None) -> None:
        require(matrix.ndim == 2, f"matrix of shape {tuple(matrix.shape)}: need (m, D)")
        self.shape = (matrix.shape[1],) if shape is None else tuple(shape)
        require(
            math.prod(self.shape) == matrix.shape[1],
            f"matrix of shape {tuple(matrix.shape)}: need {math.prod(self.shape)} columns, for samples of {self.shape}",
        )
        self.measured_shape = (len(matrix),)
        self.values = matrix

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.values.to(x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.values.to(y)).reshape(-1, *self.shape)


def random_projection(shape: tuple[int, ...], num_measured: int, seed: int = 0) -> MatrixOperator:
    """Sums of all entries with independent normal weights of variance 1 / num_measured (compressed sensing)."""
    dim = math.prod(shape)
    require(
        1 <= num_measured <= dim, f"num_measured={num_measured}: need 1 to {dim}, the number of entries of a sample"
    )
    weights = torch.randn(num_measured, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return MatrixOperator(weights / math.sqrt(num_measured), shape)


def measured_by(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what a function gives for one sample of a shape, tried on two samples.

    Raises:
        UsageError: for a function that gives no batch of floats, or whose output for a sample depends on the other.
    """
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            both = function(x)
        except RuntimeError as error:
            raise UsageError(
                f"function: fails on float32 samples {tuple(x.shape)} on the CPU, on which it is tried "
                f"({str(error).splitlines()[0]}); move and cast its own tensors to those of the samples"
            ) from error
        require(
            isinstance(both, Tensor) and both.ndim >= 2 and len(both) == 2 and both.is_floating_point(),
            "function: must give floats (B, ...) for samples (B, ...); complex numbers as their two parts",
        )
        alone = function(x[:1])
    require(
        alone.shape[1:] == both.shape[1:] and torch.allclose(alone, both[:1], rtol=1e-3, atol=1e-4),
        "function: gives another result for a sample alone than beside others; samples must not be mixed",
    )
    return tuple(both.shape[1:])


def check_adjoint(operator: LinearOperator) -> None:
    """Raises `UsageError` unless an operator is linear and its adjoint is its adjoint, on random numbers."""
    generator = torch.Generator().manual_seed(0)
    like = operator._any_tensor
    x, other = (torch.randn(2, 1, *operator.shape, generator=generator).to(like)).unbind()
    y = torch.randn(1, *operator.measured_shape, generator=generator).to(like)
    with torch.no_grad():
        both = operator(x + 2 * other)
        apart = operator(x) + 2 * operator(other)
        tolerance = ADJOINT_ERROR.get(both.dtype, ADJOINT_ERROR[torch.float32])
        require(
            bool(torch.linalg.vector_norm(both - apart) <= tolerance * torch.linalg.vector_norm(both)),
            f"{operator}: is not linear; FunctionOperator takes such a function",
        )
        one = (operator(x) * y).sum()
        back = operator.adjoint(y)
        if back.shape != x.shape:
            raise UsageError(f"adjoint: gives shape {tuple(back.shape)}; need {tuple(x.shape)}, that of samples")
        scale = torch.linalg.vector_norm(x) * torch.linalg.vector_norm(back)
        scale = scale + torch.linalg.vector_norm(operator(x)) * torch.linalg.vector_norm(y)
        require(
            bool((one - (x * back).sum()).abs() <= tolerance * scale),
            f"adjoint: <A x, y> = {one:.6g} but <x, A'y> = {(x * back).sum():.6g} for random x and y; leave it "
            "out, and it is found by differentiation",
        )
