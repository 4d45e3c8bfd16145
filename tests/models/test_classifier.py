"""A classifier sees x_t as a score network does, means the same under every SDE, and names what it cannot take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scoresde import (
    EDMSDE,
    VESDE,
    VPSDE,
    EDMParametrization,
    LearnedVPSDE,
    MLPClassifier,
    NetworkScoreModel,
    NoisyClassifier,
    RectifiedFlowSDE,
    TimeInput,
    UsageError,
)


class Keeps(nn.Module):
    """A network that keeps what it is given."""

    def __init__(self, output):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.output = output

    def forward(self, x, c_noise, cond=None):
        self.given = x, c_noise
        return self.output(x)


def make_classifier(sde, dtype=torch.float64, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MLPClassifier(2, 3, width=16, depth=1)
        nn.init.normal_(network.last.weight)
    return NoisyClassifier(network, sde, (2,), 3, **options).to(dtype=dtype)


def states(sde, noise_level, seed=0):
    """u times alpha at a noise level, u the same under every SDE."""
    level = sde.at_noise_level(torch.tensor(noise_level, dtype=torch.float64))
    u = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return level.alpha * u, level


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(), RectifiedFlowSDE()], ids=lambda sde: type(sde).__name__)
def test_it_sees_what_the_score_network_sees(sde):
    x_t, level = states(sde, 7.0)
    score = NetworkScoreModel(Keeps(lambda x: x), sde, EDMParametrization(sigma_data=0.6), (2,))
    classifier = NoisyClassifier(Keeps(lambda x: x[:, :1].expand(-1, 4)), sde, (2,), 4, sigma_data=0.6)
    score.denoise_at(x_t, level)
    classifier.logits(x_t, level)
    for seen, expected in zip(classifier.network.given, score.network.given, strict=True):
        assert torch.equal(seen, expected)
    wide = 7.0**2 + 0.6**2  # the variance of u
    torch.testing.assert_close(classifier.network.given[0], (x_t / level.alpha / wide**0.5).float())


@pytest.mark.parametrize("input_", [None, TimeInput(scale=3.0)], ids=["unit variance", "time"])
@pytest.mark.parametrize("sde", [EDMSDE(), VESDE(), RectifiedFlowSDE()], ids=lambda sde: type(sde).__name__)
def test_it_means_the_same_under_another_sde(sde, input_):
    classifier = make_classifier(VPSDE(), **({} if input_ is None else {"input": input_}))
    for noise_level in (0.03, 0.8, 20.0):
        expected = classifier.logits(*states(VPSDE(), noise_level))
        x_t, level = states(sde, noise_level)
        torch.testing.assert_close(classifier.under(sde)(x_t, level), expected, rtol=1e-7, atol=1e-9)


def test_beyond_its_noise_levels_it_is_taken_at_their_ends():
    classifier = make_classifier(VESDE(sigma_min=0.1, sigma_max=10.0))
    x_t, level = states(VPSDE(), 90.0)
    expected = classifier.logits(*states(VESDE(sigma_min=0.1, sigma_max=10.0), 10.0))
    torch.testing.assert_close(classifier.under(VPSDE())(x_t, level), expected, rtol=1e-6, atol=1e-8)
    assert classifier.noise_range() == pytest.approx((0.1, 10.0), rel=1e-4)


def test_the_type_is_that_of_the_state():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        classifier = make_classifier(VPSDE(), dtype)
        x_t, level = states(VPSDE(), 1.0)
        logits = classifier.logits(x_t.to(classifier.dtype), level.to(x_t.device, classifier.dtype))
        assert logits.dtype == classifier.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        exact = make_classifier(VPSDE()).logits(x_t, level)
        tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.1}[dtype]
        assert (logits.double() - exact).abs().max() < tolerance * exact.abs().max()


def test_a_schedule_with_weights_is_copied_and_not_trained():
    sde = LearnedVPSDE()
    classifier = make_classifier(sde, torch.float32).requires_grad_(True)
    assert all(p.requires_grad for p in sde.parameters())
    assert not any(p.requires_grad for p in classifier.sde.parameters())
    assert all(p.requires_grad for p in classifier.network.parameters())


MISTAKES = {
    "shape": (lambda: make_classifier(VPSDE()).logits(torch.ones(4, 3), VPSDE().level(torch.tensor(0.5))), r"\(4, 3\)"),
    "one class": (lambda: NoisyClassifier(nn.Linear(2, 1), VPSDE(), (2,), 1), r"num_classes=1: .*at least two"),
    "classes": (
        lambda: NoisyClassifier(MLPClassifier(2, 3), VPSDE(), (2,), 5),
        r"num_classes=5: the network tells 3 classes apart",
    ),
    "scale": (lambda: make_classifier(VPSDE(), sigma_data=-0.5), r"sigma_data=-0\.5: must be positive"),
    "input": (lambda: make_classifier(VPSDE(), input=4), r"input=4: need an Input"),
    "output": (
        lambda: NoisyClassifier(Keeps(lambda x: x), VPSDE(), (2,), 6).logits(*states(VPSDE(), 1.0)),
        r"returns \(5, 2\) for 5 samples: need \(5, 6\)",
    ),
    "no labels": (lambda: make_classifier(VPSDE()).check_cond(None), r"no condition; .* needs labels 0\.\.2"),
    "float labels": (lambda: make_classifier(VPSDE()).check_cond(torch.ones(4)), r"float32.*needs labels 0\.\.2"),
    "truth values": (lambda: make_classifier(VPSDE()).check_cond(torch.ones(4) > 0), r"bool.*needs labels 0\.\.2"),
    "large label": (lambda: make_classifier(VPSDE()).check_cond(torch.tensor([0, 3])), r"from 0 to 3; .*0\.\.2"),
    "negative label": (lambda: make_classifier(VPSDE()).check_cond(torch.tensor([0, -1])), r"from -1 to 0"),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named(make, message):
    with pytest.raises(UsageError, match=message):
        make()
