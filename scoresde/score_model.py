r"""One model, four views.

For x_t = alpha x_0 + sigma eps the conditional mean D(x_t, t) = E[x_0 | x_t], the score, the noise and the velocity
are the same knowledge:

    score = (alpha D - x_t) / sigma^2,    eps_hat = (x_t - alpha D) / sigma,    v_hat = alpha eps_hat - sigma D.

`denoise` is the primitive, because it stays bounded at both ends of the noise range; the others are views of it, exact
but for rounding, which their division by sigma enlarges: in float32 eps_hat is good to about 1e-7 alpha |D| / sigma.
Samplers, likelihoods, guidance and plots see a `ScoreModel` and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from scoresde._shape import match_rank
from scoresde.errors import UsageError, require
from scoresde.parametrization import EDMParametrization, Parametrization
from scoresde.sde import SDE, Level
from scoresde.targets import Target

logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class GridModel:
    """A model along times that are known beforehand: D = skip[k] x_t + out[k] raw(k, x_t, cond) at time k.

    The factors `(n,)` are float64 on the host. So a loop can fold them into its own, where a network
    that predicts noise would lose digits in D at large noise, and computes no scalar on the way.
    """

    skip: Tensor
    out: Tensor
    raw: Callable[[int, Tensor, Tensor | None], Tensor]


class ScoreModel(ABC):
    """An estimate of the score of p_t under an SDE.

    Attributes:
        sde: the forward process under which times are meant.
        shape: shape of one sample.
    """

    sde: SDE
    shape: tuple[int, ...]

    @abstractmethod
    def denoise_at(self, x_t: Tensor, level: Level, cond: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t] at a `Level` that is known already, so that loops compute no alpha and sigma again."""

    @abstractmethod
    def on_grid(self, level: Level, x: Tensor) -> GridModel:
        """This model at the times of a level, parts `(n,)` in float64 on the host, for batches like `x`."""

    @final
    def denoise(self, x_t: Tensor, t: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """D(x_t, t) = E[x_0 | x_t].

        Args:
            x_t: `(B, *shape)`.
            t: a number, or `(B,)`, in [sde.t_min, sde.t_max].
            cond: what the model is conditioned on (for the built-in networks class labels, `(B,)`), or None.
        """
        return self.denoise_at(x_t, self._level(x_t, t), cond)

    @final
    def score(self, x_t: Tensor, t: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """grad log p_t(x_t) = (alpha D - x_t) / sigma^2. Arguments as in `denoise`."""
        level = self._level(x_t, t)
        x0_hat, level = self.denoise_at(x_t, level, cond), level.match_rank(x_t)
        return (level.alpha * x0_hat - x_t) / level.sigma**2

    @final
    def noise(self, x_t: Tensor, t: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """eps_hat = (x_t - alpha D) / sigma. Arguments as in `denoise`."""
        level = self._level(x_t, t)
        x0_hat, level = self.denoise_at(x_t, level, cond), level.match_rank(x_t)
        return (x_t - level.alpha * x0_hat) / level.sigma

    @final
    def velocity(self, x_t: Tensor, t: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """v_hat = alpha eps_hat - sigma D (Salimans and Ho 2022). Arguments as in `denoise`."""
        level = self._level(x_t, t)
        x0_hat, level = self.denoise_at(x_t, level, cond), level.match_rank(x_t)
        return level.alpha * (x_t - level.alpha * x0_hat) / level.sigma - level.sigma * x0_hat

    @final
    def flow_velocity(self, x_t: Tensor, t: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """The velocity of the probability flow, alpha' D + sigma' eps_hat; on a rectified flow eps_hat - D.

        With alpha' = f alpha and (sigma^2)' = 2 f sigma^2 + g^2 it is f x_t + g^2 / (2 sigma) eps_hat. Arguments as in
        `denoise`.
        """
        eps_hat, level = self.noise(x_t, t, cond), self._level(x_t, t)
        pull = match_rank(self.sde.diffusion(level.t) ** 2 / (2 * level.sigma), x_t)
        return match_rank(self.sde.drift_coef(level.t), x_t) * x_t + pull * eps_hat

    @final
    def edm_output(self, x_t: Tensor, t: Tensor | float, sigma_data: float, cond: Tensor | None = None) -> Tensor:
        """Karras et al.'s F: D = c_skip x_t + c_out F with their preconditioning. Arguments as in `denoise`."""
        level, edm = self._level(x_t, t), EDMParametrization(sigma_data)
        x0_hat, level = self.denoise_at(x_t, level, cond), level.match_rank(x_t)
        return (x0_hat - edm.c_skip(level) * x_t) / edm.c_out(level)

    @abstractmethod
    def like(self) -> Tensor:
        """An empty tensor on the device and in the type that the model computes with."""

    @abstractmethod
    def check_cond(self, cond: Tensor) -> None:
        """Raises `UsageError` for conditions that the model is known not to take; on a device they would be a crash."""

    @abstractmethod
    def eval_mode(self) -> contextlib.AbstractContextManager[None]:
        """While entered, networks are in evaluation mode."""

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
        if t.device.type == "cpu":  # on a GPU it would wait
            low, high = self.sde.t_min * (1 - 1e-6), self.sde.t_max * (1 + 1e-6)
            outside = t[~((t >= low) & (t <= high))].flatten()
            require(
                len(outside) == 0,
                f"t={next(iter(outside.tolist()), '')}: must lie in [{self.sde.t_min:g}, {self.sde.t_max:g}], "
                f"the times of {type(self.sde).__name__}",
            )
        return self.sde.level(t)

    @final
    def _check_shape(self, x_t: Tensor) -> None:
        require(
            x_t.shape[1:] == self.shape,
            f"x_t of shape {tuple(x_t.shape)}: this model takes (batch, {', '.join(map(str, self.shape))})",
        )


@final
class NetworkScoreModel(nn.Module, ScoreModel):
    """A network under an SDE: D = c_skip x_t + c_out F(c_in x_t, c_noise, cond).

    Args:
        network: called as `network(x, c_noise, cond)` with x `(B, *shape)` and c_noise `(B,)`; returns `(B, *shape)`.
        sde: the SDE that it is trained under.
        parametrization: what the network emits.
        shape: shape of one sample.
    """

    def __init__(self, network: nn.Module, sde: SDE, parametrization: Parametrization, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.sde = sde
        self.parametrization = parametrization
        require(isinstance(shape, Sequence), f"shape={shape!r}: need the shape of one sample, such as (2,)")
        require(isinstance(sde, SDE), f"sde={sde!r}: need an SDE, such as VPSDE()")
        self.shape = tuple(shape)

    def output(self, x_t: Tensor, level: Level, cond: Tensor | None = None) -> Tensor:
        """The raw network output F at a level."""
        self._check_shape(x_t)
        c_in = self.parametrization.c_in(level.match_rank(x_t))
        return _same_shape(self.network(c_in * x_t, self.parametrization.c_noise(level).expand(len(x_t)), cond), x_t)

    def denoise_at(self, x_t: Tensor, level: Level, cond: Tensor | None = None) -> Tensor:
        output, level = self.output(x_t, level, cond), level.match_rank(x_t)
        return self.parametrization.c_skip(level) * x_t + self.parametrization.c_out(level) * output

    def on_grid(self, level: Level, x: Tensor) -> GridModel:
        self._check_shape(x)
        rule = self.parametrization
        network, c_in, c_noise = self.network, rule.c_in(level).tolist(), _for_each(rule.c_noise(level), x)
        scaled = [abs(factor - 1) > 1e-12 for factor in c_in]

        def raw(k: int, x_t: Tensor, cond: Tensor | None) -> Tensor:
            return _same_shape(network(x_t * c_in[k] if scaled[k] else x_t, c_noise[k], cond), x_t)

        return GridModel(rule.c_skip(level), rule.c_out(level), raw)

    def check_cond(self, cond: Tensor) -> None:
        num_classes = getattr(self.network, "num_classes", None)  # a network of the user's own may not tell
        if not isinstance(num_classes, int):
            return
        require(num_classes > 0, "cond: this network was made without classes (num_classes=0); leave it out")
        require(
            not cond.is_floating_point() and cond.ndim == 1 and 0 <= int(cond.min()) <= int(cond.max()) < num_classes,
            f"cond from {cond.min()} to {cond.max()}, {cond.dtype}, of shape {tuple(cond.shape)}: need whole numbers "
            f"from 0 to {num_classes - 1}, one a sample",
        )

    @contextlib.contextmanager
    def eval_mode(self) -> Iterator[None]:
        was = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was)

    def like(self) -> Tensor:
        return next(self.parameters()).new_empty(0)


@final
class CallableScoreModel(ScoreModel):
    """Any function of (x_t, t), or of (x_t, t, cond) where a condition is given, that estimates one of the views.

    Args:
        function: called with x_t `(B, *shape)` and t `(B,)`; a network, a closure, another library's model.
        predicts: what it returns: NoiseParametrization() for the noise, DenoisedParametrization() for x_0,
            ScoreParametrization() for the score, VelocityParametrization() for v, EDMParametrization(sigma_data) for F.
        sde: the SDE under which t is meant.
        shape: shape of one sample.
        device, dtype: where and in what samples are to be computed.

    Example:
        CallableScoreModel(lambda x, t: -x, ScoreParametrization(), VPSDE(), shape=(2,))  # the score of N(0, I)
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        predicts: Parametrization,
        sde: SDE,
        shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.function, self.predicts, self.sde, self.shape = function, predicts, sde, tuple(shape)
        self._like = torch.empty(0, device=device, dtype=dtype)

    def denoise_at(self, x_t: Tensor, level: Level, cond: Tensor | None = None) -> Tensor:
        self._check_shape(x_t)
        arguments = (x_t, level.t.expand(len(x_t))) + (() if cond is None else (cond,))
        predicted, level = _same_shape(self.function(*arguments), x_t), level.match_rank(x_t)
        return self.predicts.c_skip(level) * x_t + self.predicts.c_out(level) * predicted

    def on_grid(self, level: Level, x: Tensor) -> GridModel:
        self._check_shape(x)
        t = _for_each(level.t, x)

        def raw(k: int, x_t: Tensor, cond: Tensor | None) -> Tensor:
            return _same_shape(self.function(x_t, t[k], *(() if cond is None else (cond,))), x_t)

        return GridModel(self.predicts.c_skip(level), self.predicts.c_out(level), raw)

    def check_cond(self, cond: Tensor) -> None:
        pass

    def eval_mode(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def like(self) -> Tensor:
        return self._like


@final
class ExactScoreModel(ScoreModel):
    """The true score of a known distribution: no network, no error."""

    def __init__(self, target: Target, sde: SDE) -> None:
        self.target, self.sde, self.shape = target, sde, target.shape

    def denoise_at(self, x_t: Tensor, level: Level, cond: Tensor | None = None) -> Tensor:
        self._check_shape(x_t)
        require(cond is None, "cond: an exact model of one distribution takes none; leave it out")
        return self.target.denoise(x_t, level.alpha, level.sigma)

    def on_grid(self, level: Level, x: Tensor) -> GridModel:
        alphas, sigmas = level.like(x).alpha.unbind(), level.like(x).sigma.unbind()

        def raw(k: int, x_t: Tensor, cond: Tensor | None) -> Tensor:
            return self.denoise_at(x_t, Level(alphas[k], alphas[k], sigmas[k]), cond)

        return GridModel(torch.zeros_like(level.alpha), torch.ones_like(level.alpha), raw)

    def check_cond(self, cond: Tensor) -> None:
        pass

    def eval_mode(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def like(self) -> Tensor:
        return self.target.like()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ExactScoreModel:
        """The same model on a device and in a type."""
        return ExactScoreModel(self.target.to(device, dtype), self.sde)


@final
class ReexpressedModel(ScoreModel):
    """A model trained under one SDE, seen under another.

    Two Gaussian paths pass the same signal-to-noise ratios, and at equal ratio x_t / alpha has the same law. So
    D'(x', t') = D(alpha x' / alpha', t) at the t of equal log-SNR. Outside the noise levels that the model was made
    for nothing is known: the range of the new SDE is cut to them, and a log message says so.
    """

    def __init__(self, model: ScoreModel, sde: SDE) -> None:
        ends = torch.tensor([model.sde.t_min, model.sde.t_max], dtype=torch.float64)
        t_min, t_max = sde.time(model.sde.log_snr(ends)).clamp(sde.t_min, sde.t_max).tolist()
        require(t_min < t_max, f"sde={sde}: shares no noise level with the model's {model.sde}")
        if not (math.isclose(t_min, sde.t_min, rel_tol=1e-9) and math.isclose(t_max, sde.t_max, rel_tol=1e-9)):
            logger.warning("times of %s kept within [%g, %g], the noise levels of %s", sde, t_min, t_max, model.sde)
            sde = sde.restricted(t_min, t_max)
        self.model, self.sde, self.shape = model, sde, model.shape

    def denoise_at(self, x_t: Tensor, level: Level, cond: Tensor | None = None) -> Tensor:
        original = self._original(level)
        scale = original.match_rank(x_t).alpha / level.match_rank(x_t).alpha
        return self.model.denoise_at(scale * x_t, original, cond)

    def _original(self, level: Level) -> Level:
        t = self.model.sde.time(level.log_snr).clamp(self.model.sde.t_min, self.model.sde.t_max)
        return self.model.sde.level(t)

    def on_grid(self, level: Level, x: Tensor) -> GridModel:
        original = self._original(level)
        factor = original.alpha / level.alpha
        inner, scale = self.model.on_grid(original, x), factor.tolist()

        def raw(k: int, x_t: Tensor, cond: Tensor | None) -> Tensor:
            return inner.raw(k, x_t if scale[k] == 1 else x_t * scale[k], cond)

        return GridModel(inner.skip * factor, inner.out, raw)

    def check_cond(self, cond: Tensor) -> None:
        self.model.check_cond(cond)

    def eval_mode(self) -> contextlib.AbstractContextManager[None]:
        return self.model.eval_mode()

    def like(self) -> Tensor:
        return self.model.like()


def check_data(model: ScoreModel, x_0: Tensor, cond: Tensor | None) -> None:
    """Raises `UsageError` for data or conditions that a model cannot take."""
    require(
        x_0.shape[1:] == model.shape and len(x_0) > 0 and x_0.is_floating_point(),
        f"x_0 of shape {tuple(x_0.shape)}, {x_0.dtype}: need floats, (batch, {', '.join(map(str, model.shape))})",
    )
    bad = int((~x_0.isfinite()).flatten(1).any(1).sum())
    require(bad == 0, f"x_0: {bad} of {len(x_0)} samples hold NaN or infinity; remove or repair them")
    if cond is not None:
        require(len(cond) == len(x_0), f"cond of length {len(cond)}: need one a sample, {len(x_0)}")
        model.check_cond(cond)


def _for_each(times: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """For each of the times `(n,)` a tensor `(B,)` of it, on the device and in the type of a batch."""
    return times.to(x.device, x.dtype)[:, None].expand(-1, len(x)).unbind()


def _same_shape(output: Tensor, x_t: Tensor) -> Tensor:
    """The output of a network or function; raises `UsageError` for one that would broadcast against its input."""
    if output.shape != x_t.shape:
        raise UsageError(
            f"a network that returns {tuple(output.shape)} for x_t of shape {tuple(x_t.shape)}: need the same shape"
        )
    return output
