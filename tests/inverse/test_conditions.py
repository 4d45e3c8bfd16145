"""Measurements as conditions: one for each sample, beside a model's own condition; types, costs and mistakes."""

from __future__ import annotations

import pytest
import torch

from samplers import DDIM, Heun, sample
from scoresde import (
    VPSDE,
    CallableScoreModel,
    ClassifierFreeGuidance,
    ConditionedModel,
    DenoisedParametrization,
    ExactScoreModel,
    ScoreParametrization,
    UsageError,
)
from scoresde.inverse import DPS, MMPS, DiffPIR, MeasuredModel, PiGDM
from scoresde.operators import FunctionOperator, LinearFunctionOperator, Mask, MatrixOperator, PoissonNoise
from tests.analytic import mixture
from tests.guidance.labelled import labelled
from tests.inverse.problems import MODELS, STD, level_at, matrix, projection, states
from tests.operators.cases import randn

every = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
MIDDLE = level_at(VPSDE(), 0.4)
LINE = MatrixOperator(torch.tensor([[1.0, 0.5]], dtype=torch.float64))


def measured(count, operator, device="cpu"):
    """A measurement for each of some samples."""
    return randn(count, *operator.measured_shape, seed=3).to(device)


# --- each sample has its own ----------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("noise", [STD, PoissonNoise(20.0, offset=5.0)], ids=["gaussian", "poisson"])
def test_an_estimate_is_what_it_is_alone(make, noise, device):
    model = make(ExactScoreModel(mixture(device, (6,)), VPSDE()), projection(), noise)
    level = MIDDLE.to(device, torch.float64)
    x_t, y = states(level, (6,)), measured(4, projection(), device)
    together = model.denoise_at(x_t, level, y)
    assert together.isfinite().all()
    for i in range(4):
        alone = model.denoise_at(x_t[i : i + 1], level, y[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-9, atol=1e-9)


@every
def test_levels_may_differ_from_sample_to_sample(make, device):
    model = make(ExactScoreModel(mixture(device, (2, 3)), VPSDE()), Mask.random((2, 3), 0.5), STD)
    x_t, y = states(MIDDLE.to(device, torch.float64), (2, 3)), measured(4, model.operator, device)
    t = torch.tensor([0.02, 0.2, 0.5, 0.9], dtype=torch.float64, device=device)
    together = model.denoise(x_t, t, y)
    for i in range(4):
        alone = model.denoise(x_t[i : i + 1], t[i].item(), y[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-9, atol=1e-9)


@every
def test_samples_do_not_depend_on_their_neighbours(make, device):
    model = make(ExactScoreModel(mixture(device, (6,)), VPSDE()), projection(), STD)
    y = measured(5, projection(), device)
    whole = sample(model, Heun(), 5, num_steps=6, cond=y).x
    parts = sample(model, Heun(), 5, num_steps=6, cond=y, batch_size=2).x
    torch.testing.assert_close(whole, parts, rtol=1e-8, atol=1e-8)
    last = sample(model, Heun(), 1, num_steps=6, cond=y[4:], first_index=4).x
    torch.testing.assert_close(whole[4:], last, rtol=1e-8, atol=1e-8)
    assert not torch.allclose(sample(model, Heun(), 1, num_steps=6, cond=y[:1], first_index=4).x, last, atol=1e-2)


@every
def test_estimates_are_the_same_in_every_mode_of_gradients(make, device):
    model = make(ExactScoreModel(mixture(device, (6,)), VPSDE()), projection(), STD)
    level = MIDDLE.to(device, torch.float64)
    x_t, y = states(level, (6,)), measured(4, projection(), device)
    expected = model.denoise_at(x_t, level, y)
    assert not expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(model.denoise_at(x_t, level, y), expected)
            assert torch.equal(model.denoise_at(x_t + 0, level, y + 0), expected)


# --- the model's own condition --------------------------------------------------------------------------------------


@every
def test_a_dict_holds_the_measurement_and_the_condition_of_the_model(make, device):
    model = labelled(VPSDE(), device)
    level = MIDDLE.to(device, torch.float64)
    x_t, y = states(level, (2,)), measured(4, LINE, device)
    given = make(model, LINE, STD)
    for label in range(3):
        labels = torch.full((4,), label, device=device)
        of_label = make(ConditionedModel(model, torch.tensor([label], device=device)), LINE, STD)
        expected = of_label.denoise_at(x_t, level, y)
        torch.testing.assert_close(given.denoise_at(x_t, level, {"y": y, "cond": labels}), expected)
    torch.testing.assert_close(given.denoise_at(x_t, level, {"y": y}), given.denoise_at(x_t, level, y))
    drawn = sample(given, DDIM(), 4, num_steps=5, cond={"y": y, "cond": [0, 1, 2, 0]}, batch_size=3).x
    each = [
        sample(given, DDIM(), 1, num_steps=5, cond={"y": y[i : i + 1], "cond": [i % 3]}, first_index=i).x
        for i in range(4)
    ]
    torch.testing.assert_close(drawn, torch.cat(each), rtol=1e-8, atol=1e-8)


def test_other_parts_of_the_dict_go_to_the_model():
    seen = []

    def function(x, t, *cond):
        seen.append(cond)
        return -x

    model = MeasuredModel(CallableScoreModel(function, ScoreParametrization(), VPSDE(), (2,)), LINE, STD)
    y, other = torch.ones(3, 1), torch.arange(3)
    for cond, expected in (
        (y, ()),
        ({"y": y}, ()),
        ({"y": y, "cond": other}, (other,)),
        ({"y": y, "cond": {"text": other}}, ({"text": other},)),
        ({"y": y, "text": other, "cond": other}, ({"text": other, "cond": other},)),
        ({"y": y, "text": other}, ({"text": other},)),
    ):
        model.denoise(torch.zeros(3, 2), 0.5, cond)
        assert repr(seen[-1]) == repr(expected)


@pytest.mark.parametrize("make", [PiGDM, DiffPIR, MMPS, MeasuredModel])
def test_guidance_by_labels_around_a_posterior_or_inside_it(make, device):
    """Outside it moves from the posterior without a label to that with one; inside, the guided prior is measured."""
    model = labelled(VPSDE(), device)
    level = MIDDLE.to(device, torch.float64)
    x_t, y = states(level, (2,)), measured(4, LINE, device)
    labels = torch.tensor([0, 1, 2, 1], device=device)
    posterior = make(model, LINE, STD)
    cond = {"y": y, "cond": labels}
    outside = ClassifierFreeGuidance(posterior, 2.5)
    outside.check_cond(cond)
    null, own = posterior.denoise_at(x_t, level, y), posterior.denoise_at(x_t, level, cond)
    torch.testing.assert_close(outside.denoise_at(x_t, level, cond), null + 2.5 * (own - null), rtol=1e-9, atol=1e-9)
    inside = make(ClassifierFreeGuidance(model, 1.0), LINE, STD)
    torch.testing.assert_close(inside.denoise_at(x_t, level, cond), own, rtol=1e-9, atol=1e-9)


# --- costs, types and places ----------------------------------------------------------------------------------------


class Counted:
    """A model that counts its evaluations and the passes back through each."""

    def __init__(self):
        self.forward = 0
        self.backward = 0
        self.model = CallableScoreModel(self._call, DenoisedParametrization(0.7), VPSDE(), (6,))

    def _call(self, x, t):
        self.forward += 1
        output = x.tanh()
        if output.requires_grad:
            output.register_hook(self._back)
        return output

    def _back(self, gradient):
        self.backward += 1

    def costs(self, make, operator):
        """Of one evaluation of a posterior model."""
        self.forward = self.backward = 0
        make(self.model, operator, STD).denoise(torch.ones(2, 6), 0.4, torch.ones(2, *operator.measured_shape))
        return self.forward, self.backward


def test_an_evaluation_costs_what_is_promised():
    counted = Counted()
    curved = FunctionOperator(lambda x: x[:, :4].sin(), (6,))
    for operator in (projection(), curved):
        count = operator.measured_shape[0]
        assert counted.costs(DPS, operator) == (1, 1)
        for iterations in (1, 2, 3):
            make = lambda *given, iterations=iterations: MMPS(*given, iterations)  # noqa: E731
            assert counted.costs(make, operator) == (1, iterations)
        assert counted.costs(MODELS["MMPS, exact"], operator) == (1, count)
    assert counted.costs(PiGDM, projection()) == (1, 1)
    assert counted.costs(DiffPIR, projection()) == (1, 0)
    assert counted.costs(MeasuredModel, projection()) == (1, 0)


@every
def test_samplers_count_the_evaluations(make):
    counted = Counted()
    model = make(counted.model, projection(), STD)
    assert sample(model, Heun(), 3, num_steps=5, cond=torch.zeros(3, 3)).nfe == counted.forward == 9


@every
def test_a_measurement_is_cast_and_the_operator_moves_along(make, device):
    double = make(ExactScoreModel(mixture(device, (6,)), VPSDE()), projection(), STD)
    single = double.to(device, torch.float32)
    again = single.to(dtype=torch.float64)
    assert (double.operator.values.dtype, single.operator.values.dtype) == (torch.float64, torch.float32)
    assert single.operator.values.device.type == device.type
    level = MIDDLE.to(device, torch.float64)
    x_t, y = states(level, (6,)), measured(4, projection(), device)
    expected = double.denoise_at(x_t, level, y)
    for model, dtype, tolerance in ((single, torch.float32, 1e-3), (again, torch.float64, 1e-5)):
        found = model.denoise_at(x_t.to(dtype), level.to(device, dtype), y)  # y is float64 always
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_function_has_the_precision_of_the_model(device):
    """An operator without numbers of its own works in the type of the model that it is given to."""
    operator = LinearFunctionOperator(lambda x: x @ matrix().to(x).mT, (6,))
    model = ExactScoreModel(mixture(device, (6,)), VPSDE())
    for dtype in (torch.float32, torch.float64):
        given = PiGDM(model.to(dtype=dtype), operator, STD)
        assert given.operator.matrix().dtype == dtype
        assert given.operator.matrix().device.type == device.type
        assert given.operator.eigenbasis.values.dtype == dtype
    torch.testing.assert_close(given.operator.matrix(), matrix().to(device), rtol=1e-14, atol=0)


# --- mistakes -------------------------------------------------------------------------------------------------------

EXACT = ExactScoreModel(mixture(shape=(6,)), VPSDE())
CURVED = FunctionOperator(torch.sin, (6,))
MISTAKES = {
    "other samples": (
        lambda: PiGDM(EXACT, MatrixOperator(matrix(3, 5)), STD),
        r"operator=MatrixOperator\(5 to 3\): measures samples of shape \(5,\); this model has \(6,\)",
    ),
    "curved for PiGDM": (
        lambda: PiGDM(EXACT, CURVED, STD),
        r"operator=FunctionOperator\(6 to 6\): is not linear, as PiGDM needs it; DPS, MMPS and SplitGibbs take it",
    ),
    "curved for DiffPIR": (lambda: DiffPIR(EXACT, CURVED, STD), "is not linear, as DiffPIR needs it; DPS, MMPS and"),
    "no noise for MMPS": (lambda: MMPS(EXACT, projection(), 0.0), "noise=0: MMPS needs some"),
    "negative noise": (lambda: DPS(EXACT, projection(), -1.0), r"std=-1\.0"),
    "no iterations": (lambda: MMPS(EXACT, projection(), STD, 0), "iterations=0: need 1 or more, or None"),
    "no strength": (lambda: DiffPIR(EXACT, projection(), STD, 0.0), r"strength=0\.0: must be positive"),
    "no length": (lambda: DPS(EXACT, projection(), STD, 0.0), r"zeta=0\.0: must be positive"),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_making_a_model_is_named(make, message):
    with pytest.raises(UsageError, match=message):
        make()


WRONG_CONDITIONS = {
    "none": (None, r"cond: no condition; need the measurements, \(batch, 3\), or a dict with them as 'y'"),
    "a dict without": ({"z": torch.zeros(2, 3)}, r"cond: cond\['z'\] \(float32, \(2, 3\)\); need the measurements"),
    "an empty dict": ({}, "cond: an empty condition; need the measurements"),
    "a dict of a dict": ({"y": {"y": torch.zeros(2, 3)}}, r"need the measurements, \(batch, 3\)"),
    "another shape": (
        torch.zeros(2, 4),
        r"cond of shape \(2, 4\).*measures floats of shape \(3,\), so need \(batch, 3\)",
    ),
    "another shape in a dict": ({"y": torch.zeros(2, 4)}, r"cond\['y'\] of shape \(2, 4\)"),
    "whole numbers": (torch.zeros(2, 3, dtype=torch.long), r"cond of shape \(2, 3\), torch\.int64"),
    "missing": (torch.full((2, 3), torch.nan), "cond: holds NaN or infinity; leave such entries out with a mask"),
    "infinite": ({"y": torch.full((2, 3), torch.inf)}, r"cond\['y'\]: holds NaN or infinity"),
    "another number": (torch.zeros(5, 3), "cond of length 5: need one entry a sample, 2"),
    "one more part": ({"y": torch.zeros(2, 3), "cond": torch.zeros(2)}, "takes none"),
}


@every
@pytest.mark.parametrize(("cond", "message"), WRONG_CONDITIONS.values(), ids=WRONG_CONDITIONS)
def test_a_wrong_measurement_is_named(make, cond, message):
    with pytest.raises(UsageError, match=message):
        sample(make(EXACT, projection(), STD), DDIM(), 2, num_steps=3, cond=cond)


def test_a_wrong_label_beside_a_measurement_is_named():
    model = PiGDM(labelled(VPSDE()), LINE, STD)
    with pytest.raises(UsageError, match=r"labels \[7, 0\]; need labels 0\.\.2"):
        sample(model, DDIM(), 2, num_steps=3, cond={"y": torch.zeros(2, 1), "cond": [7, 0]})
