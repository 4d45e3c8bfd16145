"""A denoiser that is kept within the range of the data."""

from __future__ import annotations

import pytest
import torch

from samplers import DDIM, sample
from scoresde import (
    VESDE,
    VPSDE,
    CallableScoreModel,
    DenoisedParametrization,
    ExactScoreModel,
    Gaussian,
    ThresholdedModel,
    UsageError,
)


def shouting(device, factor=3.0):
    """A model whose estimate of x_0 is a multiple of x_t."""
    return CallableScoreModel(lambda x, t: factor * x, DenoisedParametrization(), VPSDE(), (4,), device)


def test_static_thresholding_clips(device):
    x = torch.tensor([[-0.1, 0.2, 1.0, -2.0]], device=device)
    kept = ThresholdedModel(shouting(device), -0.5, 1.0).denoise(x, 0.5)
    torch.testing.assert_close(kept, torch.tensor([[-0.3, 0.6, 1.0, -0.5]], device=device))


def test_dynamic_thresholding_rescales_the_samples_that_leave_the_range(device):
    """Saharia et al. 2022, section 2.3, around the middle of the range: here 1, with half a width of 2."""
    x = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.9, 1.1, 1.0, 1.0]], device=device) / 3
    x[0] = torch.tensor([1.0, 3.0, 7.0, -3.0], device=device) / 3  # D - 1 = 0, 2, 6, -4
    kept = ThresholdedModel(shouting(device), -1.0, 3.0, quantile=0.75).denoise(x, 0.5)
    expected = torch.tensor([[1.0, 1 + 2 / 2, 1 + 4 / 2, 1 - 4 / 2], [0.9, 1.1, 1.0, 1.0]], device=device)
    torch.testing.assert_close(kept, expected)


@pytest.mark.parametrize("quantile", [None, 0.5, 1.0])
def test_samples_end_in_the_range_whatever_the_loop(quantile, device):
    """The last step is the denoiser itself; `on_grid` and `denoise_at` are one model."""
    model = ThresholdedModel(shouting(device, 30.0), -1.0, 1.0, quantile)
    x, _ = sample(model, DDIM(), 8, num_steps=5)
    assert x.abs().max() <= 1
    assert x.abs().max() > 0.99
    level = model.sde.level(torch.tensor([0.7, 0.4], dtype=torch.float64))
    on_grid, y = model.on_grid(level, x), torch.linspace(-2, 2, 8, device=device).reshape(2, 4)
    for k in range(2):
        x0_hat = on_grid.c_skip[k] * y + on_grid.c_out[k] * on_grid.network(k, y, None)
        torch.testing.assert_close(x0_hat, model.denoise(y, level.t[k].item()).double(), check_dtype=False)


def test_a_range_that_is_wide_enough_changes_nothing(device):
    exact = ExactScoreModel(Gaussian(torch.zeros(3), torch.eye(3)).to(device), VPSDE())
    for quantile in (None, 0.9):
        x = sample(ThresholdedModel(exact, -100.0, 100.0, quantile), DDIM(), 5, num_steps=5).x
        torch.testing.assert_close(x, sample(exact, DDIM(), 5, num_steps=5).x)


def test_the_range_moves_with_the_model(device):
    low = torch.tensor([-1.0, -1.0, 0.0, 0.0], dtype=torch.float64)
    model = ThresholdedModel(shouting("cpu"), low, 1.0)
    assert model.low.dtype == model.dtype == torch.float32
    moved = model.to(device, torch.float64)
    assert moved.low.dtype == moved.high.dtype == moved.dtype == torch.float64
    assert moved.low.device.type == moved.device.type == device.type
    x = torch.full((1, 4), -3.0, dtype=torch.float64, device=device)
    assert torch.equal(moved.denoise(x, 0.5).cpu(), low[None])  # a range of its own for each entry
    assert model.low.dtype == torch.float32


def test_a_thresholded_model_under_another_sde_keeps_the_range(device):
    model = ThresholdedModel(shouting(device, 30.0), -1.0, 1.0)
    x = sample(model.under(VESDE()), DDIM(), 8, num_steps=5).x
    assert 0.99 < x.abs().max() <= 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [((1.0, -1.0), "need low < high"), ((0.0, 1.0, 0.0), "quantile=0"), ((0.0, 1.0, 1.5), "quantile=1.5")],
)
def test_bad_ranges_are_named(arguments, complaint):
    with pytest.raises(UsageError, match=complaint):
        ThresholdedModel(shouting("cpu"), *arguments)
