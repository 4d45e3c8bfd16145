"""Curves: that they show what they are given."""

import math

import pytest
import torch

from scoresde import UsageError, plots
from tests.plots.drawing import drawn, plane


@pytest.mark.parametrize(
    "errors", [{"a": [1.0, 0.1], "b": [math.nan, 0.2]}, {"a": [1e-5, 1e-7]}, {"a": [math.nan] * 2}]
)
def test_error_curves_show_what_is_there(errors):
    figure = plots.error_curves([5, 10], errors, 1e-4, ("evaluations", "error"))
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == list(errors)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("evaluations", "error")
    shown = [v for values in errors.values() for v in values if v > 0]
    assert all(axes.get_ylim()[0] <= v <= axes.get_ylim()[1] for v in shown)
    assert drawn(figure) > 5000


def test_schedules_grids_and_a_table_with_its_numbers():
    t = {"vp": torch.linspace(0, 1, 9), "ve": torch.linspace(0, 1, 9)}
    quantities = {"alpha": t, "sigma": {name: values.exp() for name, values in t.items()}}
    table = torch.tensor([[1.0, -0.5], [0.25, math.nan]])
    grids = {"karras": torch.logspace(2, -2, 5)}
    figure = plots.schedules(t, quantities, ["sigma"], grids, table, ["a", "b"], ("grids", "table"))
    upper, lower = figure.subfigs
    assert [axes.get_yscale() for axes in upper.axes] == ["linear", "log"]
    assert [text.get_text() for text in lower.axes[1].texts] == ["1", "-0.5", "0.25", "nan"]
    assert drawn(figure) > 5000


@pytest.mark.parametrize("count", [1, 200])
def test_langevin_shows_chains_and_weights(count):
    clouds = {"plain": torch.randn(count, 2), "annealed": torch.randn(count, 2)}
    steps = {name: torch.linspace(0, 1, 4) for name in clouds}
    weights = {name: torch.full((4, 3), 1 / 3) for name in clouds}
    truth = torch.tensor([0.7, 0.2, 0.1])
    figure = plots.langevin(clouds, plane(10), -plane(10).square().sum(-1), steps, weights, truth)
    assert [axes.get_title() for axes in figure.axes] == ["plain", "annealed", "mode weights"]
    assert len(figure.axes[2].lines) == 9
    assert drawn(figure) > 5000


@pytest.mark.parametrize(
    "loss", [[1.0], [1.0, None, 0.01], [None, None], [-0.5, 0.2]], ids=["one", "skipped", "none", "negative"]
)
def test_training_is_drawn_with_what_there_is(loss):
    records = {"step": list(range(len(loss))), "loss": loss, "grad_norm": loss, "held_out_loss": [None] * len(loss)}
    figure = plots.training(records, torch.logspace(-1, 1, 5), {"learned": torch.rand(5) + 0.1})
    assert drawn(figure) > 5000
    if loss == [None, None]:
        assert figure.axes[0].texts[0].get_text() == "no finite value"


def test_training_needs_a_step():
    with pytest.raises(UsageError, match="records: hold no step"):
        plots.training({"step": [], "loss": [], "grad_norm": []}, torch.ones(1), {"learned": torch.ones(1)})


def test_a_classifier_is_shown_beside_a_guess():
    levels = torch.logspace(-2, 1, 4)
    losses = {"training": torch.tensor([0.1, 0.2, 0.9, 1.3]), "held out": torch.tensor([0.2, 0.3, 1.0, 1.4])}
    accuracies = {name: 1 - loss / 2 for name, loss in losses.items()}
    figure = plots.classification(levels, losses, accuracies, 4)
    for axes, curves, guess in zip(figure.axes, (losses, accuracies), (math.log(4), 0.25), strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        assert lines["a guess"].get_ydata()[0] == guess
        for name, values in curves.items():
            assert lines[name].get_ydata().tolist() == values.tolist()
        assert axes.get_xscale() == "log"
        assert axes.get_ylim()[0] <= 0
    assert drawn(figure) > 5000


def test_measures_with_their_intervals_and_floors():
    measures = {
        "kid": [plots.Interval(3.0, 2.0, 4.0), plots.Interval(1.0, 0.5, 1.5)],
        "sw2": [plots.Interval(1, 1, 1)] * 2,
    }
    figure = plots.measures_over([5, 10], measures, {"kid": 0.2, "sw2": math.nan}, "steps", "100 samples")
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("kid", "sw2")
    assert [line.get_label() for line in first.lines] == ["value", "floor"]
    assert [line.get_label() for line in second.lines] == ["value"]
    assert first.lines[0].get_ydata().tolist() == [3.0, 1.0]
    assert first.collections[0].get_datalim(first.transData).ymax == 4.0
    assert drawn(figure) > 5000
