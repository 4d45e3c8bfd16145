"""Models that call a network, or any function of x and t."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from scoresde.codec import Codec, Scaling
from scoresde.condition import Condition
from scoresde.errors import UsageError
from scoresde.models.base import NetworkModel, state_dtype
from scoresde.parametrization import Input, Parametrization
from scoresde.score_model import GridModel, ScoreModel, evaluating
from scoresde.sde import SDE, Level


@final
class NetworkScoreModel(NetworkModel, ScoreModel):
    """A network under an SDE: D = c_skip x_t + c_out F(c_in x_t, c_noise, cond).

    A network with a second output also gives v of a learned variance; only what asks for it sees it.

    Args:
        network: called as `network(x, c_noise, cond)` with x `(B, *shape)` and c_noise `(B,)`; returns `(B, *shape)`.
            A `Network` also checks its conditions and says whether it has a second output; another module gets every
            condition unchecked.
        sde: the SDE under which it is trained.
        parametrization: the network's input and output.
        shape: shape of one sample, in the model's units.
        codec: the map from raw data to the model's units and back; the identity by default.
    """

    role = "score"

    def __init__(
        self,
        network: nn.Module,
        sde: SDE,
        parametrization: Parametrization,
        shape: Sequence[int],
        codec: Codec = Scaling(),  # noqa: B008  frozen
    ) -> None:
        super().__init__(network, sde, shape, codec)
        self.parametrization = parametrization

    @property
    def sigma_data(self) -> float:
        return self.parametrization.sigma_data

    @property
    def input(self) -> Input:
        return self.parametrization.input

    def with_network(self, network: nn.Module) -> NetworkScoreModel:
        return NetworkScoreModel(network, self.sde, self.parametrization, self.shape, self.codec)

    @property
    def learned_variance(self) -> bool:
        """Whether the network has a second output."""
        network = self.contract()
        return network is not None and network.learned_variance

    def output(self, x_t: Tensor, level: Level, cond: Condition = None) -> Tensor:
        """The raw network output F at a level, in the type of x_t."""
        return self.outputs(x_t, level, cond)[0]

    def outputs(self, x_t: Tensor, level: Level, cond: Condition = None) -> tuple[Tensor, Tensor | None]:
        """F, and v of the learned variance; None in its place if the network has no second output."""
        x, c_noise = self.inputs(x_t, level)
        output = self.network(x, c_noise, cond)
        if not self.learned_variance:
            return _same_shape(output, x_t).to(x_t.dtype), None
        first, second = _halves(output, x_t)
        return first.to(x_t.dtype), (second.to(x_t.dtype) + 1) / 2

    def denoise_at(self, x_t: Tensor, level: Level, cond: Condition = None) -> Tensor:
        return self.denoise_with_variance(x_t, level, cond)[0]

    def denoise_with_variance(self, x_t: Tensor, level: Level, cond: Condition = None) -> tuple[Tensor, Tensor | None]:
        output, v = self.outputs(x_t, level, cond)
        level = level.match_rank(x_t)
        return self.parametrization.c_skip(level) * x_t + self.parametrization.c_out(level) * output, v

    def on_grid(self, levels: Level, like: Tensor) -> GridModel:
        self._check_shape(like)
        rule = self.parametrization
        network = self.network
        compute = self.compute_dtype(like.dtype)
        same_type = compute == like.dtype
        c_in = rule.c_in(levels).tolist()
        scaled = [abs(factor - 1) > 1e-12 for factor in c_in]
        c_noise = _for_each(rule.c_noise(levels), like, state_dtype(compute))
        two = self.learned_variance

        def evaluate(k: int, x_t: Tensor, cond: Condition) -> Tensor:
            x = x_t * c_in[k] if scaled[k] else x_t
            output = network(x if same_type else x.to(compute), c_noise[k].expand(x_t.shape[0]), cond)
            output = _halves(output, x_t)[0] if two else _same_shape(output, x_t)
            return output if same_type else output.to(x_t.dtype)

        return GridModel(rule.c_skip(levels), rule.c_out(levels), evaluate)

    def check_cond(self, cond: Condition) -> None:
        network = self.contract()
        if network is not None:
            network.check_cond(cond)

    def null_cond(self, cond: Condition, hidden: Tensor) -> Condition:
        network = self.contract()
        if network is None:
            raise UsageError(
                f"network of {type(self.network).__name__}: does not define a null condition; make it a "
                "scoresde.networks.Network with null_cond"
            )
        return network.null_cond(cond, hidden)


@final
class CallableScoreModel(ScoreModel):
    """A function of (x_t, t), or of (x_t, t, cond) if a condition is given, that estimates one of the views.

    Args:
        function: called with x_t `(B, *shape)` and t `(B,)`; a network, a closure, another library's model. A
            `torch.nn.Module` is moved by `to`, and is in evaluation mode while samples are drawn.
        predicts: its output: NoiseParametrization() for the noise, DenoisedParametrization() for x_0,
            ScoreParametrization() for the score, VelocityParametrization() for v, EDMParametrization(sigma_data) for F.
        sde: the SDE to which t refers.
        shape: shape of one sample.
        device, dtype: device and type of the samples.

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
        self.function = function
        self.predicts = predicts
        self.sde = sde
        self.shape = tuple(shape)
        self._device = torch.device(device)
        self._dtype = dtype

    @property
    def sigma_data(self) -> float:
        return self.predicts.sigma_data

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def _call(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        output = self.function(x_t, t) if cond is None else self.function(x_t, t, cond)
        return _same_shape(output, x_t)

    def denoise_at(self, x_t: Tensor, level: Level, cond: Condition = None) -> Tensor:
        self._check_shape(x_t)
        predicted = self._call(x_t, level.t.expand(x_t.shape[0]), cond)
        level = level.match_rank(x_t)
        return self.predicts.c_skip(level) * x_t + self.predicts.c_out(level) * predicted

    def on_grid(self, levels: Level, like: Tensor) -> GridModel:
        self._check_shape(like)
        t = _for_each(levels.t, like, like.dtype)
        return GridModel(
            self.predicts.c_skip(levels),
            self.predicts.c_out(levels),
            lambda k, x_t, cond: self._call(x_t, t[k].expand(x_t.shape[0]), cond),
        )

    def check_cond(self, cond: Condition) -> None:
        """Accepts every condition: the function's use of it is unknown."""

    def null_cond(self, cond: Condition, hidden: Tensor) -> Condition:
        raise UsageError("model: a CallableScoreModel does not define a null condition")

    def eval_mode(self) -> contextlib.AbstractContextManager[None]:
        return evaluating(self.function) if isinstance(self.function, nn.Module) else contextlib.nullcontext()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> CallableScoreModel:
        function = self.function
        if isinstance(function, nn.Module):
            function = function.to(device=device, dtype=dtype)
        device = self._device if device is None else device
        dtype = self._dtype if dtype is None else dtype
        return CallableScoreModel(function, self.predicts, self.sde, self.shape, device, dtype)


def _for_each(times: Tensor, like: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """A tensor `(1,)` for each of the times `(n,)`, on the device of a batch."""
    return times.to(like.device, dtype)[:, None].unbind()


def _same_shape(output: Tensor, x_t: Tensor) -> Tensor:
    """The output of a network or function; raises `UsageError` unless it has the shape of the input."""
    if output.shape != x_t.shape:
        raise UsageError(
            f"a network that returns {tuple(output.shape)} for x_t of shape {tuple(x_t.shape)}: need the same shape"
        )
    return output


def _halves(output: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """The two outputs of a network with a learned variance; raises `UsageError` unless each has the input's shape."""
    if output.ndim != x_t.ndim or output.shape != (x_t.shape[0], 2 * x_t.shape[1], *x_t.shape[2:]):
        raise UsageError(
            f"a network with learned_variance that returns {tuple(output.shape)} for x_t of shape {tuple(x_t.shape)}: "
            "need twice its channels or columns"
        )
    first, second = output.chunk(2, 1)
    return first, second
