"""Images as published networks take them."""

import pytest
import torch

from scoresde import UsageError
from scoresde.metrics.features import Levels
from scoresde.metrics.features.images import resized


def test_bytes_stay_as_they_are_and_grey_is_repeated():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    shown = Levels().colour(images)
    assert shown.shape == (1, 3, 16, 16)
    assert torch.equal(shown[0, 1], images[0, 0].float())
    assert Levels().tag == ""


def test_another_range_is_brought_to_256_levels_and_rounded():
    images = torch.tensor([0.0, 8.0, 16.0, 17.0]).reshape(1, 1, 2, 2)
    shown = Levels(0.0, 16.0).colour(images)[0, 0]
    assert shown.flatten().tolist() == [0.0, 128.0, 255.0, 255.0]  # 127.5 to even; what lies beyond is cut off
    assert Levels(-1.0, 1.0).colour(torch.full((1, 3, 1, 1), 0.999)).unique().item() == 255.0  # cut off it were 254
    assert Levels(0.0, 16.0).tag == "/levels 0 to 16"


def test_resizing_keeps_the_mean_of_what_is_made_smaller():
    image = (torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    assert resized(image, 8).mean().item() == pytest.approx(image.mean().item(), abs=5e-3)
    assert resized(image, 8).std() < 0.2  # every pixel counts, not four of 64


def test_what_is_no_image_is_refused():
    for shape in ((4, 5), (4, 2, 8, 8)):
        with pytest.raises(UsageError, match="need images"):
            Levels().colour(torch.zeros(shape))
