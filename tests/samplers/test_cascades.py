"""Cascades: exact on a Gaussian field, and stages that do not meet are refused."""

import pytest
import torch

from benchmarks.cascade_field import Field
from samplers import DDIM, Heun, Stage, cascade, sample
from samplers.cascades import stage_seed
from scoresde import (
    EDMSDE,
    VPSDE,
    ClassifierFreeGuidance,
    EDMParametrization,
    NetworkScoreModel,
    Scaling,
    UNet,
    UpsamplingObjective,
    UsageError,
)
from scoresde.resize import KERNELS


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_gaussian_field_is_drawn_within_one_percent(kernel):
    """Mean and variance given the low resolution, and the covariance of both: the maps are exact, not estimated."""
    field = Field(UpsamplingObjective(kernel=kernel), 0.3, EDMSDE(t_max=320.0))
    found = field.errors(Heun(), 120)
    assert max(found.values()) < 0.01, found
    coarser = field.errors(Heun(), 60)
    assert 3.3 < coarser["conditional covariance"] / found["conditional covariance"] < 4.7  # of order 2


def models(channels=1, **more):
    torch.manual_seed(0)
    base = NetworkScoreModel(
        UNet(channels, 8, num_classes=2), VPSDE(), EDMParametrization(1.0), (channels, 4, 4), Scaling(5.0, 2.0)
    )
    network = UNet(channels, 8, num_classes=2, label_dropout=0.1, image_channels=channels, keeps_image=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    above = NetworkScoreModel(network, EDMSDE(), EDMParametrization(1.0), (channels, 8, 8), Scaling(3.0, 4.0))
    return base.double().eval(), above.double().eval()


def stages(base, above, **more):
    return [Stage(base, DDIM(), 4), Stage(above, Heun(), 6, UpsamplingObjective(), **more)]


def test_the_first_stage_is_sample_and_the_second_sees_it():
    base, above = models()
    labels = torch.arange(6) % 2
    low, high = cascade(stages(base, above), 6, cond=labels, seed=3)
    assert torch.equal(low.x, sample(base, DDIM(), 6, num_steps=4, cond=labels, seed=3).x)
    raw = base.codec.decode(low.x)
    image = (raw - 3) / 4  # the units of the second
    eps = torch.zeros_like(image)
    given = UpsamplingObjective().condition(image, torch.zeros(6).double(), eps, labels)
    plain = cascade(stages(base, above, noise=0.0), 6, cond=labels, seed=3)[1].x
    expected = sample(above, Heun(), 6, num_steps=6, cond=given, seed=stage_seed(3, 1)).x
    torch.testing.assert_close(plain, expected)
    assert (plain - high.x).abs().max() > 1e-4  # with noise


def test_samples_do_not_depend_on_the_batch_size_and_guidance_keeps_the_image():
    base, above = models()
    labels = torch.arange(6) % 2
    guided = ClassifierFreeGuidance(above, 2.0)
    one = cascade(stages(base, guided), 6, cond=labels)
    other = cascade(stages(base, guided), 6, cond=labels, batch_size=4)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a.x, b.x)
    assert (one[1].x - cascade(stages(base, above), 6, cond=labels)[1].x).abs().max() > 1e-4


def test_stages_that_do_not_meet_are_refused_before_anything_is_drawn(monkeypatch):
    monkeypatch.setattr("samplers.cascades.sample", None)
    base, above = models()
    second = stages(base, above)[1]
    colour = models(3)[0]
    for given, message in {
        (second,): "stages: 1 of them",
        (second, second): r"stages\[0\]: is an upsampler",
        (Stage(base, Heun()), Stage(above, Heun())): r"stages\[1\]: is no upsampler",
        (Stage(above, Heun()), second): r"stages\[1\]: makes samples of shape \(1, 8, 8\) of \(1, 4, 4\), and "
        r"stages\[0\] gives \(1, 8, 8\)",
        (Stage(colour, Heun()), second): r"and stages\[0\] gives \(3, 4, 4\); need stages that meet",
    }.items():
        with pytest.raises(UsageError, match=message):
            cascade(given, 4)
    with pytest.raises(UsageError, match=r"noise=0\.6: this upsampler was trained with noise from 0 to 0\.5"):
        Stage(above, Heun(), None, UpsamplingObjective(), 0.6)
