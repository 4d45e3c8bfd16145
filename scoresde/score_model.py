r"""One model, four views.

For x_t = alpha x_0 + sigma eps, the conditional mean D(x_t, t) = E[x_0 | x_t], the score, the noise and the velocity
are equivalent:

    score = (alpha D - x_t) / sigma^2,    eps_hat = (x_t - alpha D) / sigma,    v_hat = alpha eps_hat - sigma D.

`denoise` is the primitive, because it stays bounded at both ends of the noise range. The others are views of it, exact
up to rounding, which the division by sigma amplifies: in float32 eps_hat has an error of about 1e-7 alpha |D| / sigma.
Samplers, likelihoods, guidance and plots use a `ScoreModel` and nothing else.

The state x_t is float64 for a float64 network and float32 for every other. A network in bfloat16 or float16 computes in
its own type, and its output is added to a float32 state.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor, nn

from scoresde._movable import Movable
from scoresde._shape import match_rank
from scoresde.condition import Condition, check_count
from scoresde.errors import UsageError, require
from scoresde.sde import SDE, Level

SPANNED = 4  # how far beyond the deviation of the data noise levels reach at either end
REPEATED = 0.1  # share of samples with one value, at which a column has no density
REPEATS_AMONG = 1000  # samples that are looked at
FEWEST_SAMPLES = 20  # to tell repeated values from chance

logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class GridModel:
    """A model at times that are known beforehand: D = c_skip[k] x_t + c_out[k] network(k, x_t, cond) at time k.

    The factors `(n,)` are float64 on the host. A loop can fold them into its own: D itself loses digits at large noise
    if the network predicts noise. No scalar is computed inside the loop.
    """

    c_skip: Tensor
    c_out: Tensor
    network: Callable[[int, Tensor, Condition], Tensor]


class ScoreModel(ABC):
    """An estimate of the score of p_t under an SDE.

    Attributes:
        sde: the forward process to which times refer.
        shape: shape of one sample.
        one_evaluation_a_step: whether the model depends on the evaluation before, so that it can be sampled from only
            by samplers with one evaluation a step.
    """

    sde: SDE
    shape: tuple[int, ...]
    one_evaluation_a_step: bool = False

    @property
    @abstractmethod
    def sigma_data(self) -> float:
        """Standard deviation of the data over all entries, in the model's units."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device on which the model computes."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The type of the state: float64 or float32."""

    @abstractmethod
    def denoise_at(self, x_t: Tensor, level: Level, cond: Condition = None) -> Tensor:
        """E[x_0 | x_t] at a `Level`, whose alpha and sigma are not computed again; in the type of x_t."""

    def denoise_with_variance(self, x_t: Tensor, level: Level, cond: Condition = None) -> tuple[Tensor, Tensor | None]:
        """D at a level, and v `(B, *)` of the learned variance of a reverse step from there (`scoresde.reverse`).

        None in place of v, which is the default, if the model has learned no variance.
        """
        return self.denoise_at(x_t, level, cond), None

    def on_grid(self, levels: Level, like: Tensor) -> GridModel:
        """This model at some times, for batches like `like`. The default has factors 0 and 1 around D itself.

        Args:
            levels: the times, parts `(n,)`, float64 on the host.
            like: a batch `(B, *shape)`, of which the size, device and type matter.
        """
        on_device = levels.to(like.device, like.dtype)
        each = [on_device[k] for k in range(len(levels))]
        return GridModel(
            torch.zeros_like(levels.alpha),
            torch.ones_like(levels.alpha),
            lambda k, x_t, cond: self.denoise_at(x_t, each[k], cond),
        )

    def num_calls(self, levels: Level) -> int:
        """Network evaluations of a sample, if the model is evaluated once at each of some levels."""
        return levels.t.numel()

    @abstractmethod
    def check_cond(self, cond: Condition) -> None:
        """Raises `UsageError` for conditions that the model does not take; on a GPU they could crash the process."""

    @abstractmethod
    def null_cond(self, cond: Condition, hidden: Tensor) -> Condition:
        """The condition with "none" in place of that of the samples `hidden` `(B,)`; see `Network.null_cond`."""

    @abstractmethod
    def eval_mode(self) -> contextlib.AbstractContextManager[None]:
        """While entered, networks are in evaluation mode."""

    @abstractmethod
    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The model on a device and in a type. Networks are moved in place, as `torch.nn.Module.to` does."""

    @final
    def denoise(self, x_t: Tensor, t: Tensor | float, cond: Condition = None) -> Tensor:
        """D(x_t, t) = E[x_0 | x_t].

        Args:
            x_t: `(B, *shape)`.
            t: a number, or `(B,)`, in [sde.t_min, sde.t_max].
            cond: what the model is conditioned on (for the built-in networks class labels, `(B,)`), or None.
        """
        return self.denoise_at(x_t, self._level(x_t, t), cond)

    @final
    def score(self, x_t: Tensor, t: Tensor | float, cond: Condition = None) -> Tensor:
        """grad log p_t(x_t) = (alpha D - x_t) / sigma^2. Arguments as in `denoise`."""
        level = self._level(x_t, t)
        x0_hat = self.denoise_at(x_t, level, cond)
        level = level.match_rank(x_t)
        return (level.alpha * x0_hat - x_t) / level.sigma**2

    @final
    def noise(self, x_t: Tensor, t: Tensor | float, cond: Condition = None) -> Tensor:
        """eps_hat = (x_t - alpha D) / sigma. Arguments as in `denoise`."""
        level = self._level(x_t, t)
        x0_hat = self.denoise_at(x_t, level, cond)
        level = level.match_rank(x_t)
        return (x_t - level.alpha * x0_hat) / level.sigma

    @final
    def velocity(self, x_t: Tensor, t: Tensor | float, cond: Condition = None) -> Tensor:
        """v_hat = alpha eps_hat - sigma D (Salimans and Ho 2022). Arguments as in `denoise`."""
        level = self._level(x_t, t)
        x0_hat = self.denoise_at(x_t, level, cond)
        level = level.match_rank(x_t)
        return level.alpha * (x_t - level.alpha * x0_hat) / level.sigma - level.sigma * x0_hat

    @final
    def flow_velocity(self, x_t: Tensor, t: Tensor | float, cond: Condition = None) -> Tensor:
        """The velocity of the probability flow, alpha' D + sigma' eps_hat; on a rectified flow eps_hat - D.

        With alpha' = f alpha and (sigma^2)' = 2 f sigma^2 + g^2 it is f x_t + g^2 / (2 sigma) eps_hat. Arguments as in
        `denoise`.
        """
        eps_hat = self.noise(x_t, t, cond)
        level = self._level(x_t, t)
        pull = match_rank(self.sde.diffusion(level.t) ** 2 / (2 * level.sigma), x_t)
        return match_rank(self.sde.drift_coef(level.t), x_t) * x_t + pull * eps_hat

    @final
    def under(self, sde: SDE) -> ScoreModel:
        """This model re-expressed under another SDE, exactly (see `ReexpressedModel`)."""
        return ReexpressedModel(self, sde)

    @final
    def _level(self, x_t: Tensor, t: Tensor | float) -> Level:
        t = torch.as_tensor(t, dtype=x_t.dtype, device=x_t.device)
        require(
            t.ndim == 0 or t.shape == x_t.shape[:1],
            f"t of shape {tuple(t.shape)}: need a number or shape {tuple(x_t.shape[:1])}, one time a sample",
        )
        if t.device.type == "cpu":  # on a GPU the check would wait for the device
            low = self.sde.t_min * (1 - 1e-6)
            high = self.sde.t_max * (1 + 1e-6)
            outside = t[~((t >= low) & (t <= high))].flatten()
            require(
                len(outside) == 0,
                f"t={next(iter(outside.tolist()), '')}: must lie in [{self.sde.t_min:g}, {self.sde.t_max:g}], "
                f"the times of {type(self.sde).__name__}",
            )
        return self.sde.level(t)

    @final
    def _check_shape(self, x_t: Tensor) -> None:
        check_state(x_t, self.shape)


class WrappedModel(ScoreModel):
    """A model around another: it changes the denoiser and passes everything else on.

    A subclass implements `denoise_at`, and `on_grid` if it can be faster there. Attributes that are tensors, models,
    networks, distributions or operators move with it.

    Args:
        model: the wrapped model.
        sde: the SDE to which times refer; the model's by default.
        calls: evaluations of the wrapped model for one evaluation of this one.
    """

    def __init__(self, model: ScoreModel, sde: SDE | None = None, calls: int = 1) -> None:
        self.model = model
        self.sde = model.sde if sde is None else sde
        self.shape = model.shape
        self.one_evaluation_a_step = model.one_evaluation_a_step
        self._calls = calls

    @property
    @final
    def sigma_data(self) -> float:
        return self.model.sigma_data

    @property
    @final
    def device(self) -> torch.device:
        return self.model.device

    @property
    @final
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def num_calls(self, levels: Level) -> int:
        return self._calls * self.model.num_calls(levels)

    def check_cond(self, cond: Condition) -> None:
        self.model.check_cond(cond)

    def null_cond(self, cond: Condition, hidden: Tensor) -> Condition:
        return self.model.null_cond(cond, hidden)

    @final
    @contextlib.contextmanager
    def eval_mode(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for part in vars(self).values():
                if isinstance(part, ScoreModel):
                    stack.enter_context(part.eval_mode())
                elif isinstance(part, nn.Module):
                    stack.enter_context(evaluating(part))
            yield

    @final
    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        moved = copy.copy(self)
        for name, part in vars(self).items():
            if isinstance(part, Tensor):
                setattr(moved, name, part.to(device=device, dtype=dtype if part.is_floating_point() else None))
            elif isinstance(part, ScoreModel | Movable):
                setattr(moved, name, part.to(device, dtype))
            elif isinstance(part, nn.Module):
                part.to(device=device, dtype=dtype)
        return moved


@final
class ReexpressedModel(WrappedModel):
    """A model trained under one SDE, used under another.

    At equal signal-to-noise ratio x_t / alpha has the same law on every Gaussian path. So
    D'(x', t') = D(alpha x' / alpha', t) at the t of equal log-SNR. The range of the new SDE is restricted to the noise
    levels for which the model was made, and a warning is logged if that changes it.
    """

    def __init__(self, model: ScoreModel, sde: SDE) -> None:
        ends = torch.tensor([model.sde.t_min, model.sde.t_max], dtype=torch.float64)
        t_min, t_max = sde.time(model.sde.log_snr(ends)).clamp(sde.t_min, sde.t_max).tolist()
        require(t_min < t_max, f"sde={sde}: shares no noise level with the model's {model.sde}")
        if not (math.isclose(t_min, sde.t_min, rel_tol=1e-9) and math.isclose(t_max, sde.t_max, rel_tol=1e-9)):
            logger.warning("times of %s kept within [%g, %g], the noise levels of %s", sde, t_min, t_max, model.sde)
            sde = sde.restricted(t_min, t_max)
        super().__init__(model, sde)

    def _original(self, level: Level) -> Level:
        """The level of the wrapped model's SDE with the same log-SNR."""
        t = self.model.sde.time(level.log_snr).clamp(self.model.sde.t_min, self.model.sde.t_max)
        return self.model.sde.level(t)

    def denoise_at(self, x_t: Tensor, level: Level, cond: Condition = None) -> Tensor:
        original = self._original(level)
        scale = original.match_rank(x_t).alpha / level.match_rank(x_t).alpha
        return self.model.denoise_at(scale * x_t, original, cond)

    def on_grid(self, levels: Level, like: Tensor) -> GridModel:
        original = self._original(levels)
        factor = original.alpha / levels.alpha
        inner = self.model.on_grid(original, like)
        scale = factor.tolist()

        def evaluate(k: int, x_t: Tensor, cond: Condition) -> Tensor:
            return inner.network(k, x_t if scale[k] == 1 else x_t * scale[k], cond)

        return GridModel(inner.c_skip * factor, inner.c_out, evaluate)


def with_learned_variance(model: ScoreModel, x_t: Tensor, level: Level, cond: Condition) -> tuple[Tensor, Tensor]:
    """D and v of a model at a level; raises `UsageError` if the model has learned no variance."""
    x0_hat, v = model.denoise_with_variance(x_t, level, cond)
    if v is None:
        raise UsageError(
            "variance='learned': this model has learned none; train it with network.learned_variance=True and "
            "objective.name=HybridObjective, or take another variance"
        )
    return x0_hat, v


def check_state(x_t: Tensor, shape: tuple[int, ...]) -> None:
    """Raises `UsageError` unless x_t is a batch of samples of a shape."""
    if x_t.shape[1:] != shape:
        raise UsageError(f"x_t of shape {tuple(x_t.shape)}: this model takes (batch, {', '.join(map(str, shape))})")


def check_data(model: ScoreModel, x_0: Tensor, cond: Condition) -> None:
    """Raises `UsageError` for data or conditions that a model cannot take."""
    require(
        x_0.shape[1:] == model.shape and len(x_0) > 0 and x_0.is_floating_point(),
        f"x_0 of shape {tuple(x_0.shape)}, {x_0.dtype}: need floats, (batch, {', '.join(map(str, model.shape))})",
    )
    bad = int((~x_0.isfinite()).flatten(1).any(1).sum())
    require(bad == 0, f"x_0: {bad} of {len(x_0)} samples hold NaN or infinity; remove or repair them")
    check_count(cond, len(x_0))
    model.check_cond(cond)


def warn_of_scale(sde: SDE, sigma_data: float) -> None:
    """Warns if an SDE's noise levels do not span the scale of the data: it starts too narrow, or ends too noisy."""
    largest, smallest = sde.span().noise_level.tolist()
    if largest < SPANNED * sigma_data or smallest * SPANNED > sigma_data:
        warnings.warn(
            f"sigma_data={sigma_data:.3g}: the noise levels of {type(sde).__name__}, {smallest:.3g} to "
            f"{largest:.3g}, do not span it; scale the data to a deviation near 1, or choose other noise levels",
            stacklevel=3,
        )


def warn_of_repeats(x_0: Tensor) -> None:
    """Warns of columns in which many samples share one value: no density exists along them."""
    some = torch.randperm(len(x_0), generator=torch.Generator().manual_seed(0))[:REPEATS_AMONG].to(x_0.device)
    columns = x_0.detach()[some].flatten(1).unique(dim=0).sort(dim=0).values
    count = len(columns)
    if count < FEWEST_SAMPLES:
        return
    span = max(2, round(REPEATED * count))  # a run of equal values this long
    repeats = (columns[span - 1 :] == columns[: count - span + 1]).any(0).nonzero().flatten().tolist()
    if repeats:
        named = ", ".join(map(str, repeats[:10])) + (", ..." if len(repeats) > 10 else "")
        warnings.warn(
            f"x_0: {len(repeats)} of {columns.shape[1]} columns ({named}) hold one value in {REPEATED:.0%} of the "
            "samples or more; a density does not exist along them, and log densities depend on the smallest noise; "
            "dequantise whole numbers, and leave constant columns out",
            stacklevel=3,
        )


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """While entered, a module is in evaluation mode; afterwards each part returns to its own mode.

    Where gradients are off its weights are constants too: a gradient along the data then keeps less in memory.
    """
    modes = [(part, part.training) for part in module.modules()]  # some parts may have been in evaluation mode
    learned = [] if torch.is_grad_enabled() else [weight for weight in module.parameters() if weight.requires_grad]
    module.eval()
    for weight in learned:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
        for weight in learned:
            weight.requires_grad_()
