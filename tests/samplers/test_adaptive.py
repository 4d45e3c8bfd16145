"""Adaptive solvers end in any case, and say why."""

import pytest
import torch

from samplers import Heun, NormPredictorCorrector, PredictorCorrector, ProbabilityFlow, adaptive_log_prob, sample
from samplers import adaptive as adaptive_module
from samplers.snr import choose_snr
from scoresde import (
    EDMSDE,
    MLP,
    VPSDE,
    EDMParametrization,
    ExactScoreModel,
    Gaussian,
    NetworkScoreModel,
    UsageError,
    WrappedModel,
)


def exact(dtype=torch.float32, scale=1.0, sde=None):
    return ExactScoreModel(Gaussian(torch.zeros(2, dtype=dtype), scale**2 * torch.eye(2, dtype=dtype)), sde or VPSDE())


@pytest.mark.parametrize(("rtol", "atol"), [(1e-13, 1e-13), (1e-7, 1e-12)])
def test_a_tolerance_below_rounding_is_refused_with_the_least(rtol, atol):
    uses = (
        lambda model: sample(model, ProbabilityFlow(rtol, atol), 3),
        lambda model: adaptive_log_prob(model, torch.zeros(3, 2, dtype=model.dtype), rtol=rtol, atol=atol),
    )
    for use in uses:
        with pytest.raises(UsageError, match=r"rounding in float32 is larger; need at least 2e-06"):
            use(exact())
    assert sample(exact(torch.float64), ProbabilityFlow(1e-7, 1e-12), 3).x.isfinite().all()


class Jump(WrappedModel):
    """A denoiser that jumps with the noise level, in ever finer steps."""

    def denoise_at(self, x_t, level, cond=None):
        return self.model.denoise_at(x_t, level, cond) + torch.sign(torch.sin(1e5 * level.noise_level))


def test_a_flow_that_never_arrives_is_ended(monkeypatch):
    monkeypatch.setattr(adaptive_module, "MAX_EVALUATIONS", 300)
    jump = Jump(exact())
    with pytest.raises(UsageError, match=r"(300 evaluations|no step is small enough).*raise rtol and atol"):
        sample(jump, ProbabilityFlow(1e-5, 1e-5), 3)
    with pytest.raises(UsageError, match=r"(300 evaluations|no step is small enough).*raise rtol and atol"):
        adaptive_log_prob(jump, torch.zeros(3, 2))


def broken():
    """A network that returns NaN."""
    model = NetworkScoreModel(MLP(2, width=8, depth=1), EDMSDE(), EDMParametrization(0.5), (2,))
    with torch.no_grad():
        model.network.last.bias.fill_(torch.nan)
    return model


def test_a_model_of_nan_is_named():
    with pytest.raises(UsageError, match=r"its denoiser is not finite at noise level 80; has training diverged"):
        sample(broken(), ProbabilityFlow(), 3)
    with pytest.raises(UsageError, match="its denoiser is not finite"):
        adaptive_log_prob(broken(), torch.zeros(3, 2))
    with pytest.warns(UserWarning, match=r"3 of 3 samples hold NaN or infinity"):
        sample(broken(), Heun(), 3, num_steps=6)
    grid = PredictorCorrector().grid(broken(), 20)
    with pytest.warns(UserWarning, match="NaN"), pytest.raises(UsageError, match=r"snr=0\.16 are not finite"):
        choose_snr(broken(), lambda snr: PredictorCorrector(snr=snr), grid)


@pytest.mark.parametrize(("scale", "sde"), [(2e-4, VPSDE()), (300.0, VPSDE()), (5e-3, EDMSDE())])
def test_a_scale_beyond_the_noise_levels_is_named(scale, sde):
    with pytest.warns(
        UserWarning, match=rf"sigma_data={scale:.3g}: the noise levels of {type(sde).__name__}.*do not span"
    ):
        sample(exact(scale=scale, sde=sde), Heun(), 3)


def test_norms_of_few_numbers_are_warned_of():
    with pytest.warns(UserWarning, match=r"10 numbers in a batch are too few"):
        sample(exact(), NormPredictorCorrector(), 5, num_steps=10)
    sample(exact(), NormPredictorCorrector(), 16, num_steps=10)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_too_few_steps_of_a_noise_integrand_are_refused(count):
    with pytest.raises(UsageError, match=rf"num_steps={count}: Heun.* needs at least 5; Trigonometric"):
        sample(exact(), Heun(), 4, num_steps=count)
    assert sample(exact(), Heun("velocity"), 400, num_steps=count).x.std() < 1.5
