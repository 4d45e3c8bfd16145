"""The learned dequantisation: from the uniform one to where the density is."""

import math

import pytest
import torch

from scoresde import VPSDE, EDMParametrization, GaussianMixture, Scaling, UsageError
from scoresde.data import ArrayData
from scoresde.metrics import VariationalDequantization, bits_per_dim, dequantize, train_dequantization
from tests.analytic import network_model


def test_a_variational_dequantisation_begins_uniform_and_learns_where_the_density_is(device):
    torch.manual_seed(0)
    raw = torch.randint(0, 3, (200, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    data = ArrayData(raw, None, Scaling(center=1.0, scale=1.0))
    x = data.all()[0].to(device)
    generator = torch.Generator(device).manual_seed(2)
    begun = VariationalDequantization((4,)).to(device)
    u, log_q = begun.draw(x, generator)
    assert u.abs().max() < 0.5
    assert log_q.abs().max() < 1e-4
    # an exact model of numbers that fill a tenth of their intervals: the bits of three levels are log2(3)
    points = torch.cartesian_prod(*([torch.arange(-1.0, 2.0)] * 4)).to(device)
    target = GaussianMixture(torch.ones(81, device=device), points, torch.full((81,), 0.1**2, device=device))
    model = network_model(target, VPSDE(), EDMParametrization(0.8))
    model.codec = data.codec
    learned = train_dequantization(model, data, 300)
    one, bits = torch.ones((), device=device), []
    for how in (begun, learned):
        spread, log_q = dequantize(raw.to(device), data.codec, how, generator)
        bits.append(bits_per_dim(target.log_prob(spread, one, 0 * one), log_q, 4).mean().item())
    assert bits[0] > math.log2(3) + 3  # uniform numbers where a narrow density is not
    assert math.log2(3) - 0.02 < bits[1] < math.log2(3) + 0.15  # a logistic curve is no Gaussian one
    with pytest.raises(UsageError, match="are floats"):
        train_dequantization(model, ArrayData(torch.randn(9, 4)), 1)
    with pytest.raises(UsageError, match="need images"):
        VariationalDequantization((2, 3))
