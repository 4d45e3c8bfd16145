"""Points in the plane: known facts of each distribution."""

import math

import pytest
import torch

from scoresde.data import labelled_mixture, load, nine_modes


def test_moons_are_two_balanced_half_circles():
    data = load("moons")
    assert (data.shape, data.num_classes) == ((2,), 2)
    assert torch.bincount(data.labels).tolist() == [len(data) // 2] * 2
    # centres (0, 0) and (1, 0.5), radius 1, and noise of 0.05: the mean squared radius is 1 + 2 * 0.05^2
    for label, center in enumerate([(0.0, 0.0), (1.0, 0.5)]):
        square = (data.values[data.labels == label] - torch.tensor(center)).square().sum(1)
        assert (square.mean() - 1.005).abs() < 5 * square.std() / len(square) ** 0.5
    assert torch.equal(load("moons").values, data.values)


def test_modes_are_draws_of_the_known_mixture():
    data, target = load("modes"), nine_modes()
    assert data.labels is None
    assert data.num_classes == 0
    assert torch.equal(load("modes").values, data.values)
    nearest = torch.cdist(data.values, target.means).argmin(1)
    share = torch.bincount(nearest, minlength=9) / len(data)
    expected = torch.arange(1.0, 10) / 45
    # a mode is 15 standard deviations from the next; the counts are binomial, 5 standard errors
    assert ((share - expected).abs() < 5 * (expected * (1 - expected) / len(data)).sqrt()).all()
    offset = (data.values - target.means[nearest]) / 0.05
    assert (offset.std(0) - 1).abs().max() < 5 / math.sqrt(2 * len(data))


def test_blobs_are_draws_of_the_known_mixture_and_its_classes():
    data = load("blobs")
    mixture, classes = labelled_mixture()
    assert data.num_classes == 3
    for label in range(3):
        own = data.values[data.labels == label].double()
        share = mixture.weights[classes == label].sum()
        assert (len(own) / len(data) - share).abs() < 5 * (share * (1 - share) / len(data)).sqrt()
        part = mixture.components(classes == label)
        mean = part.weights @ part.means
        assert ((own.mean(0) - mean).abs() < 5 * own.std(0) / len(own) ** 0.5).all()


PLANES = ("moons", "modes", "swiss_roll", "checkerboard", "eight_gaussians", "rings", "blobs")


@pytest.mark.parametrize("name", PLANES)
def test_a_toy_is_ten_thousand_points_of_about_unit_size_and_always_the_same(name):
    torch.manual_seed(len(name))  # whatever the state of the world
    data = load(name)
    assert data.values.shape == (10_000, 2)
    assert data.values.dtype == torch.float32
    assert 0.5 < data.std() < 1.5
    assert torch.equal(load(name).values, data.values)
    assert len(data.values.unique(dim=0)) > 9_990


def test_rings_are_circles_and_eight_gaussians_lie_on_one():
    data = load("rings")
    radius = data.values.norm(dim=1)
    assert data.num_classes == 3
    for label in range(3):
        own = radius[data.labels == label]
        assert abs(own.mean().item() - 0.5 * (label + 1)) < 0.01  # noise of 0.05 across adds 0.05^2 / (2 r) at most
        assert own.std().item() == pytest.approx(0.05, rel=0.1)
    data = load("eight_gaussians")
    assert torch.bincount(data.labels).tolist() == [1250] * 8
    means = torch.stack([data.values[data.labels == label].mean(0) for label in range(8)])
    torch.testing.assert_close(means.norm(dim=1), torch.full((8,), 2**0.5), atol=0.02, rtol=0)
    assert (torch.cdist(means, means) + 10 * torch.eye(8)).min() > 1.0


def test_the_checkerboard_is_uniform_on_its_dark_squares():
    cell = (load("checkerboard").values + 2).floor().long()
    assert ((cell >= 0) & (cell < 4)).all()
    assert (cell.sum(1) % 2 == 0).all()
    count = torch.bincount(4 * cell[:, 0] + cell[:, 1], minlength=16)
    assert (count[count > 0] - 1250).abs().max() < 5 * 35  # binomial, five deviations
    assert (count > 0).sum() == 8


def test_the_swiss_roll_is_a_spiral():
    """The radius is 1.5 pi to 4.5 pi, over 7, and grows with the angle."""
    points = load("swiss_roll").values
    radius = points.norm(dim=1)
    assert radius.min() > (1.5 * math.pi - 2) / 7
    assert radius.max() < (4.5 * math.pi + 2) / 7
    turn = torch.atan2(points[:, 1], points[:, 0])
    offset = (7 * radius - turn) / (2 * math.pi)
    assert (offset - offset.round()).std() < 0.1
