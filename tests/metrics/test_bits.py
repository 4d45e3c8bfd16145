"""Bits per dimension of models whose bits are known."""

import dataclasses
import math

import pytest
import torch

from scoresde import VPSDE, Codec, EDMParametrization, Scaling, UsageError
from scoresde.data import ArrayData
from scoresde.metrics import (
    DEQUANTIZATIONS,
    TruncatedNormalDequantization,
    UniformDequantization,
    bits_per_dim,
    dequantize,
    train_dequantization,
)
from tests.analytic import gaussian, network_model


def test_bits_of_a_uniform_model_are_the_logarithm_of_the_levels(device):
    scaling = Scaling(center=8.0, scale=8.0)
    raw = torch.randint(0, 17, (50, 1, 4, 4), generator=torch.Generator().manual_seed(1)).to(device)
    for how in DEQUANTIZATIONS.values():
        spread, log_q = dequantize(raw, scaling, how, torch.Generator(device).manual_seed(2))
        change = scaling.decode(spread) - raw
        assert change.abs().max() <= 0.5
        assert abs(change.mean().item()) < 4 * 0.29 / 800**0.5
        log_p = torch.full((50,), -16 * math.log(17 / 8), dtype=torch.float64, device=device)  # even on 17/8
        bits = bits_per_dim(log_p, log_q, 16).mean().item()
        exact = math.log2(17)
        assert bits >= exact - 1e-9  # a bound
        assert bits < exact + (1e-9 if isinstance(how, UniformDequantization) else 0.5)


def test_the_density_of_a_truncated_normal_is_one_over_its_interval(device):
    how = TruncatedNormalDequantization(0.3)
    u, log_q = how.draw(
        torch.zeros(200_000, 1, dtype=torch.float64, device=device), torch.Generator(device).manual_seed(0)
    )
    # E_q[1 / q] is the length of the interval
    assert (-log_q).exp().mean().item() == pytest.approx(1, rel=0.01)
    assert u.abs().max() <= 0.5
    with pytest.raises(UsageError, match="std=0"):
        TruncatedNormalDequantization(0)


@dataclasses.dataclass(frozen=True)
class Roots(Codec):
    """A map that changes densities from place to place."""

    def encode(self, raw, dtype=torch.float32):
        return raw.to(dtype).sqrt()

    def decode(self, x):
        return x**2

    def encoded_shape(self, raw_shape):
        return raw_shape


def test_bits_need_a_codec_whose_units_of_density_are_known():
    message = "codec=Roots: bits of whole numbers need a Scaling"
    with pytest.raises(UsageError, match=message):
        dequantize(torch.ones(2, 3), Roots(), UniformDequantization())
    model = network_model(gaussian(), VPSDE(), EDMParametrization(0.8))
    model.codec = Roots()
    with pytest.raises(UsageError, match=message):
        train_dequantization(model, ArrayData(torch.ones(2, 3).byte()), 1)


def test_each_column_has_its_own_unit_of_density(device):
    codec = Scaling((0.0, 1.0), (2.0, -0.25))
    raw = torch.tensor([[3, 4], [0, 1]], device=device)
    spread, log_q = dequantize(raw, codec, UniformDequantization(), torch.Generator(device).manual_seed(0))
    assert log_q.tolist() == pytest.approx([math.log(2 * 0.25)] * 2)
    assert ((codec.decode(spread) - raw).abs() <= 0.5).all()
