"""Classifier-free guidance and autoguidance beside their closed forms, and what they cost."""

from __future__ import annotations

import warnings

import pytest
import torch

from samplers import DDIM, EDM, Heun, NormPredictorCorrector, PredictorCorrector, ProbabilityFlow, log_prob, sample
from scoresde import (
    APG,
    EDMSDE,
    MLP,
    VESDE,
    VPSDE,
    Autoguidance,
    CallableScoreModel,
    ClassifierFreeGuidance,
    DenoisedParametrization,
    EDMParametrization,
    NetworkScoreModel,
    NoiseParametrization,
    Rescale,
    ThresholdedModel,
    UNet,
    UsageError,
)
from scoresde._batches import choose_batch_size
from tests.analytic import SDES, mixture
from tests.guidance.labelled import labelled, powered_score

paths = pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
LABELS = torch.tensor([0, 1, 2, 2])


def states(sde, device, count=4):
    """States at a time in the middle, their level and labels."""
    t = torch.tensor(0.5 * (sde.t_min + sde.t_max), dtype=torch.float64, device=device)
    level = sde.level(t)
    x_t = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    return (level.alpha**2 + level.sigma**2).sqrt() * x_t, level, LABELS[:count].to(device)


def network(device, rule=None, dropout=0.2):
    """An untrained network with random weights, float64, that counts the samples of each call."""
    torch.manual_seed(3)
    net = MLP(2, 16, 2, num_classes=3, label_dropout=dropout).to(device).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model = NetworkScoreModel(net, VPSDE(), rule or EDMParametrization(0.7), (2,))
    counts = []
    net.register_forward_hook(lambda module, given, output: counts.append(len(output)))
    return model, counts


@paths
@pytest.mark.parametrize("w", [0.0, 0.4, 3.0])
def test_the_guided_score_is_that_of_the_powered_marginal(sde, w, device):
    model = labelled(sde, device)
    x_t, level, labels = states(sde, device)
    guided = ClassifierFreeGuidance(model, w)
    expected = powered_score(model, x_t, level, labels, w)
    torch.testing.assert_close(guided.score(x_t, level.t, labels), expected, rtol=1e-9, atol=1e-9)


def test_a_scale_of_one_is_off_bit_for_bit_and_costs_one_evaluation(device):
    model, counts = network(device)
    labels = LABELS.to(device)
    guided = ClassifierFreeGuidance(model, 1.0)
    for sampler in (DDIM(), Heun(), PredictorCorrector(snr=0.2), ProbabilityFlow()):
        steps = None if isinstance(sampler, ProbabilityFlow) else 6
        plain = sample(model, sampler, 4, num_steps=steps, cond=labels)
        counts.clear()
        off = sample(guided, sampler, 4, num_steps=steps, cond=labels)
        assert torch.equal(plain.x, off.x)
        assert off.nfe == plain.nfe == len(counts)
        assert set(counts) == {4}


@pytest.mark.parametrize("rule", [None, Rescale(0.7), APG(0.3, 2.5)], ids=str)
@pytest.mark.parametrize("interval", [None, (0.05, 3.0)])
def test_a_grid_gives_what_single_evaluations_give_in_one_doubled_batch(rule, interval, device):
    model, counts = network(device)
    guided = ClassifierFreeGuidance(model, lambda r: 1.5 + 1 / (1 + r), interval, rule)
    x_t, _, labels = states(model.sde, device)
    levels = model.sde.level(torch.tensor([0.9, 0.5, 0.05, 1e-4], dtype=torch.float64))
    on_grid = guided.on_grid(levels, x_t)
    counts.clear()
    for k in range(4):
        output = on_grid.network(k, x_t, labels)
        x0_hat = on_grid.c_skip[k].item() * x_t + on_grid.c_out[k].item() * output
        expected = guided.denoise_at(x_t, levels[k].to(x_t.device, x_t.dtype), labels)
        torch.testing.assert_close(x0_hat, expected, rtol=1e-9, atol=1e-9)
    inside = [True] * 4 if interval is None else [0.05 < r <= 3.0 for r in levels.noise_level.tolist()]
    assert counts[::2] == [8 if part else 4 for part in inside]
    assert guided.num_calls(levels) == 4 + sum(inside)


def test_a_large_batch_is_not_doubled(device):
    model, counts = network(device)
    guided = ClassifierFreeGuidance(model, 2.0)
    size = choose_batch_size(None, model.shape, model.device)
    level = model.sde.level(torch.tensor([0.5], dtype=torch.float64))
    x_t, _, _ = states(model.sde, device, size)
    labels = torch.arange(size, device=device) % 3
    one_level = level[0].to(x_t.device, x_t.dtype)
    x0_hat, reference = (model.denoise_at(x_t, one_level, cond) for cond in (labels, torch.full_like(labels, 3)))
    for count, calls in ((size, [size, size]), (size // 2, [size])):
        counts.clear()
        on_grid = guided.on_grid(level, x_t[:count])
        output = on_grid.network(0, x_t[:count], labels[:count])
        assert counts == calls
        found = guided.denoise_at(x_t[:count], one_level, labels[:count])
        assert counts == 2 * calls
        expected = (2 * x0_hat - reference)[:count]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        x0_hat_on_grid = on_grid.c_skip.item() * x_t[:count] + on_grid.c_out.item() * output
        torch.testing.assert_close(x0_hat_on_grid, expected, rtol=1e-9, atol=1e-9)


def test_the_number_of_evaluations_is_true_on_every_sampler(device):
    model, counts = network(device)
    guided = ClassifierFreeGuidance(model, 2.0, (0.1, 1.0))
    labels = LABELS.to(device)
    for sampler in (DDIM(), Heun(), EDM(), PredictorCorrector(snr=0.2), NormPredictorCorrector(), ProbabilityFlow()):
        steps = None if isinstance(sampler, ProbabilityFlow) else 7
        counts.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("samplers.predictor_corrector.FEWEST_NUMBERS", 1)
            found = sample(guided, sampler, 4, num_steps=steps, cond=labels)
        assert found.nfe == sum(counts) // 4
    counts.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ten steps are few
        found = log_prob(guided, torch.zeros(4, 2, dtype=torch.float64, device=device), labels, num_evaluations=10)
    assert found.nfe == sum(counts) // 4


def test_guidance_means_the_same_under_another_sde(device):
    model = labelled(VPSDE(), device)
    guided = ClassifierFreeGuidance(model, 3.0, (0.3, 2.0))
    other = ClassifierFreeGuidance(model.under(VESDE()), 3.0, (0.3, 2.0))
    re_expressed = guided.under(VESDE())
    for change in (lambda each: each, lambda each: ThresholdedModel(each, -1.0, 1.0)):
        ends = [
            sample(change(each), DDIM(), 4, num_steps=9, cond=LABELS.to(device)).x for each in (other, re_expressed)
        ]
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-9)


def test_autoguidance_is_affine_whatever_the_parametrisations(device):
    better, _ = network(device)
    worse, _ = network(device, NoiseParametrization(0.7))
    x_t, _, labels = states(better.sde, device)
    guided = Autoguidance(better, worse, 2.5, (0.0, 5.0))
    levels = better.sde.level(torch.tensor([0.9, 0.5, 0.05], dtype=torch.float64))
    on_grid = guided.on_grid(levels, x_t)
    for k in range(3):
        level = levels[k].to(x_t.device, x_t.dtype)
        strong, weak = better.denoise_at(x_t, level, labels), worse.denoise_at(x_t, level, labels)
        expected = weak + 2.5 * (strong - weak) if levels.noise_level[k] <= 5 else strong
        torch.testing.assert_close(guided.denoise_at(x_t, level, labels), expected, rtol=1e-12, atol=1e-12)
        found = on_grid.c_skip[k].item() * x_t + on_grid.c_out[k].item() * on_grid.network(k, x_t, labels)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert guided.num_calls(levels) == 5


def test_autoguidance_by_a_model_under_another_sde(device):
    exact, wide = labelled(VPSDE(), device), labelled(EDMSDE(), device)
    x_t, level, labels = states(exact.sde, device)
    guided = Autoguidance(exact, wide, 4.0)
    torch.testing.assert_close(
        guided.denoise_at(x_t, level, labels), exact.denoise_at(x_t, level, labels), rtol=1e-9, atol=1e-9
    )


def test_an_average_of_many_levels_is_guided_sample_by_sample(device):
    """As bounds evaluate models: each sample has its own level, and the interval holds some of them."""
    model = labelled(VPSDE(), device)
    guided = ClassifierFreeGuidance(model, 3.0, (0.1, 1.0))
    x_t, _, labels = states(model.sde, device)
    t = torch.tensor([0.02, 0.2, 0.4, 0.9], dtype=torch.float64, device=device)
    whole = guided.denoise(x_t, t, labels)
    single = torch.cat([guided.denoise(x_t[i : i + 1], t[i].item(), labels[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(whole, single, rtol=1e-9, atol=1e-9)


def test_a_guided_model_follows_to_a_type(device):
    guided = Autoguidance(labelled(VPSDE(), device), labelled(VPSDE(), device), 2.0).to(dtype=torch.float32)
    assert guided.dtype == guided.worse.dtype == torch.float32
    assert sample(guided, DDIM(), 2, num_steps=3, cond=LABELS[:2].to(device)).x.dtype == torch.float32


def test_mistakes_are_named(device):
    model = labelled(VPSDE(), device)
    unlabelled, _ = network(device, dropout=0.0)
    foreign = CallableScoreModel(lambda x, t: -x, DenoisedParametrization(), VPSDE(), (2,))
    for make, message in (
        (lambda: ClassifierFreeGuidance(model, -1.0), "scale=-1.0: need a number that is not negative"),
        (lambda: ClassifierFreeGuidance(model, float("nan")), "scale=nan"),
        (lambda: ClassifierFreeGuidance(model, 2.0, (3.0, 1.0)), r"interval=\(3, 1\)"),
        (lambda: ClassifierFreeGuidance(model, 2.0, (1e5, 2e5)), "outside the noise levels of VPSDE"),
        (lambda: Autoguidance(model, labelled(VPSDE(), device, (3,)), 2.0), r"worse: .*shape \(3,\); need \(2,\)"),
        (lambda: Rescale(1.5), "mix=1.5"),
        (lambda: APG(radius=0.0), "radius=0.0"),
        (lambda: APG(momentum=1.0), "momentum=1.0"),
    ):
        with pytest.raises(UsageError, match=message):
            make()
    for asked, message in (
        (unlabelled, "network.label_dropout=0.1; or take Autoguidance"),
        (foreign, "does not define a null condition; or take"),
    ):
        with pytest.raises(UsageError, match=message):
            sample(ClassifierFreeGuidance(asked, 2.0), DDIM(), 4, num_steps=3, cond=LABELS.to(device))
    with pytest.raises(UsageError, match="cond: guidance needs a condition"):
        sample(ClassifierFreeGuidance(model, 2.0), DDIM(), 4, num_steps=3)
    with pytest.raises(UsageError, match=r"scale: its function gives -0.5 at a noise level of"):
        sample(ClassifierFreeGuidance(model, lambda r: 0 * r - 0.5), DDIM(), 4, num_steps=3, cond=LABELS.to(device))
    with pytest.raises(UsageError, match="cond: labels"):
        sample(
            ClassifierFreeGuidance(model, 2.0), DDIM(), 4, num_steps=3, cond=torch.tensor([0, 1, 2, 9], device=device)
        )


def test_the_mixture_of_an_exact_labelled_model_is_its_classes_weighed(device):
    model = labelled(VPSDE(), device)
    x_t, level, labels = states(model.sde, device)
    torch.testing.assert_close(
        model.denoise_at(x_t, level), model.mixture.denoise(x_t, level.alpha, level.sigma), rtol=1e-9, atol=1e-9
    )
    none = model.null_cond(labels, torch.tensor([True, False, True, False], device=device))
    assert none.tolist() == [3, 1, 3, 2]
    found = model.denoise_at(x_t, level, none)
    torch.testing.assert_close(found[0], model.denoise_at(x_t, level)[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1], model.denoise_at(x_t, level, labels)[1], rtol=1e-12, atol=1e-12)
    assert mixture(device).components(torch.tensor([0, 2], device=device)).weights.sum().item() == pytest.approx(1)


def test_tokens_without_a_mask_can_be_guided():
    """The null condition has a mask, which the given one lacks."""
    torch.manual_seed(0)
    network = UNet(1, 8, context_channels=3, label_dropout=0.1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    model = NetworkScoreModel(network.double(), VPSDE(), EDMParametrization(1.0), (1, 4, 4)).eval()
    x, t, tokens = torch.randn(2, 1, 4, 4).double(), torch.tensor(0.5).double(), torch.randn(2, 5, 3).double()
    given, none = model.denoise(x, t, {"tokens": tokens}), model.denoise(x, t)
    guided = ClassifierFreeGuidance(model, 3.0)
    torch.testing.assert_close(guided.denoise(x, t, {"tokens": tokens}), none + 3 * (given - none))
    drawn = sample(guided, DDIM(), 2, num_steps=2, cond={"tokens": tokens})
    assert drawn.x.isfinite().all()
