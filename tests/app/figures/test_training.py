"""The error of a Gaussian's denoiser, beside which a model's is drawn."""

from __future__ import annotations

import pytest
import torch

from scoresde import VPSDE, Gaussian
from scoresde.app.figures import training
from scoresde.data import ArrayData


def test_the_floor_of_a_gaussian_is_the_error_of_its_denoiser():
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    target = Gaussian(torch.zeros(2, dtype=torch.float64), covariance)
    x_0 = target.sample(20_000, torch.Generator().manual_seed(0))
    level = VPSDE().level(torch.tensor([0.05, 0.3, 0.8], dtype=torch.float64))
    floor = training.gaussian_error(ArrayData(x_0[:2000]), level)
    for k in range(3):
        at = level[k]
        x_t = at.alpha * x_0 + at.sigma * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(k)).double()
        error = (target.denoise(x_t, at.alpha, at.sigma) - x_0).square().mean()
        assert floor[k].item() == pytest.approx(error.item(), rel=0.06)  # of 2000 samples' covariance
