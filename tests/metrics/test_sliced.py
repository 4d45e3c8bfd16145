"""The sliced Wasserstein distance against closed forms."""

import pytest
import torch

from scoresde import UsageError
from scoresde.metrics import sliced_wasserstein


def test_sliced_wasserstein_of_a_shift_is_its_share_along_a_line(device):
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)
    shift = torch.tensor([0.3, -0.1, 0.7], dtype=torch.float64, device=device)
    expected = (shift.square().sum() / 3).sqrt().item()  # the mean of (shift . direction)^2
    assert sliced_wasserstein(x, x + shift, 20_000) == pytest.approx(expected, rel=0.02)
    assert sliced_wasserstein(x, x.flip(0)) < 1e-12


def test_sliced_wasserstein_of_unequal_numbers_is_that_of_the_quantile_functions(device):
    x, y = torch.tensor([[0.0], [1.0]], device=device), torch.tensor([[0.0], [0.5], [1.0]], device=device)
    # on [0, 1/3] both 0; [1/3, 1/2] 0 and 1/2; [1/2, 2/3] 1 and 1/2; then both 1
    assert sliced_wasserstein(x, y) == pytest.approx((1 / 3 * 0.25) ** 0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (torch.zeros(5), torch.zeros(5, 2), r"first of shape \(5,\): need finite samples"),
        (torch.zeros(5, 2), torch.full((5, 2), float("nan")), r"second of shape \(5, 2\): need finite samples"),
        (torch.zeros(5, 2), torch.zeros(5, 3), r"second of shape \(5, 3\): need samples of one shape"),
    ],
)
def test_samples_that_cannot_be_compared_are_refused(first, second, message):
    with pytest.raises(UsageError, match=message):
        sliced_wasserstein(first, second)
