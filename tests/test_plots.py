"""Pictures: where each pixel of a grid lies, and that plots show what they are given."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde import UsageError, plots

GREY = 128


def pixels(images, columns, **options):
    return np.asarray(plots.image_grid(images, columns, **options))


def drawn(figure):
    figure.savefig(file := io.BytesIO(), format="png")
    return len(file.getvalue())


def test_a_grid_has_gaps_of_one_pixel_and_empty_cells_are_grey(device):
    images = (torch.arange(5, device=device) / 5).reshape(5, 1, 1, 1).expand(5, 1, 2, 3)
    grid = pixels(images, 3, enlarge=1)
    assert grid.shape == (2 * 3 + 1, 3 * 4 + 1)
    expected = np.full((7, 13), GREY)
    for k in range(5):
        top, left = 1 + 3 * (k // 3), 1 + 4 * (k % 3)
        expected[top : top + 2, left : left + 3] = round(255 * k / 5)
    assert (grid == expected).all()


def test_enlarging_repeats_pixels_and_gaps(device):
    images = torch.rand(4, 1, 2, 3, generator=torch.Generator().manual_seed(0)).to(device)
    small, large = pixels(images, 2, gap=2, enlarge=1), pixels(images, 2, gap=2, enlarge=5)
    assert small.shape == (2 * 4 + 2, 2 * 5 + 2)
    assert (large == small.repeat(5, 0).repeat(5, 1)).all()


@pytest.mark.parametrize(("size", "enlarge"), [((8, 8), 6), ((28, 28), 2), ((8, 16), 3), ((64, 64), 1), ((200, 8), 1)])
def test_small_images_are_enlarged_by_a_whole_factor(size, enlarge):
    grid = pixels(torch.zeros(1, 1, *size), 1)
    assert grid.shape == (enlarge * (size[0] + 2), enlarge * (size[1] + 2))


def test_colours_stay_in_their_channels(device):
    images = torch.zeros(1, 3, 1, 1, device=device)
    images[0, 1] = 1
    grid = pixels(images, 1, enlarge=1)
    assert grid.shape == (3, 3, 3)
    assert grid[1, 1].tolist() == [0, 255, 0]
    assert grid[0, 0].tolist() == [GREY] * 3


@pytest.mark.parametrize(
    ("value", "level"), [(math.nan, GREY), (-3.0, 0), (7.0, 255), (math.inf, 255), (-math.inf, 0), (0.2, 51)]
)
def test_values_outside_the_range_are_cut_and_nan_is_grey(value, level):
    assert pixels(torch.full((1, 1, 1, 1), value), 1, enlarge=1)[1, 1] == level


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (3, 2, 8, 8), (3, 8, 8)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(UsageError, match="need \\(N, 1 or 3, H, W\\)"):
        plots.image_grid(torch.zeros(shape), 1)


def test_a_grid_needs_a_column():
    with pytest.raises(UsageError, match="columns=0"):
        plots.image_grid(torch.zeros(1, 1, 2, 2), 0)


def test_scatter_shows_every_point_in_the_colour_of_its_label(device):
    points = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)).to(device)
    labels = (torch.arange(10) % 3).to(device)
    axes = plots.scatter(points, labels).axes[0]
    assert len(axes.collections) == 3
    shown = np.concatenate([c.get_offsets() for c in axes.collections])
    order = torch.cat([points[labels == k, :2] for k in range(3)]).cpu().numpy()
    np.testing.assert_allclose(shown, order)
    assert len({tuple(c.get_facecolor()[0]) for c in axes.collections}) == 3


@pytest.mark.parametrize(
    "points",
    [
        torch.zeros(1, 2),
        torch.zeros(1, 1),
        torch.linspace(0, 1, 50)[:, None],
        torch.tensor([[math.nan, 0.0], [1.0, math.inf]]),
        torch.tensor([[math.nan], [1.0], [math.inf]]),
    ],
    ids=["one point", "one number", "one coordinate", "not finite", "numbers not finite"],
)
def test_scatter_draws_few_and_broken_points(points):
    assert drawn(plots.scatter(points)) > 1000


def test_a_histogram_counts_every_number():
    axes = plots.scatter(torch.linspace(0, 1, 50)[:, None]).axes[0]
    assert sum(bar.get_height() for bar in axes.patches) == 50


def test_score_fields_has_a_panel_for_each_row_and_column():
    side = torch.linspace(-2, 2, 24)
    xy = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    log_densities = [-(xy**2).sum(-1) / 2, -(xy**2).sum(-1) / 8, -(xy**2).sum(-1) / 18]
    fields = [[-xy, -xy / 4, -xy / 9], [torch.zeros_like(xy), xy, -2 * xy]]
    figure = plots.score_fields([xy] * 3, log_densities, fields, ["exact", "learned"], ["t = 0.1", "t = 0.5", "t = 1"])
    assert len(figure.axes) == 6
    assert [a.get_title() for a in figure.axes[:3]] == ["t = 0.1", "t = 0.5", "t = 1"]
    assert figure.axes[0].get_ylabel().startswith("exact")
    assert figure.axes[3].get_ylabel().startswith("learned")
    assert drawn(figure) > 5000


def test_score_arrows_point_along_the_field():
    side = torch.linspace(-1, 1, 20)
    xy = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    field = torch.stack([torch.full((20, 20), 3.0), torch.full((20, 20), -3.0)], -1)
    axes = plots.score_fields([xy], [-(xy**2).sum(-1)], [[field]], ["row"], ["column"]).axes[0]
    (arrows,) = [c for c in axes.collections if hasattr(c, "U")]
    np.testing.assert_allclose(arrows.U, math.sqrt(0.5), rtol=1e-5)
    np.testing.assert_allclose(arrows.V, -math.sqrt(0.5), rtol=1e-5)


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


def plane(count, reach=2.0):
    side = torch.linspace(-reach, reach, count)
    return torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)


@pytest.mark.parametrize("hole", [math.nan, math.inf, -math.inf])
def test_a_field_with_holes_is_drawn_around_them(hole):
    xy = plane(20)
    field, log_density = -xy.clone(), -(xy**2).sum(-1)
    field[5:15], log_density[10:12] = hole, hole
    axes = plots.score_fields([xy], [log_density], [[field]], ["row"], ["column"]).axes[0]
    (arrows,) = [c for c in axes.collections if hasattr(c, "U")]
    assert arrows.Umask.sum() == 200
    assert np.isfinite(arrows.U).all()
    assert drawn(axes.figure) > 5000


def test_arrays_without_a_finite_number_are_refused():
    xy, nothing = plane(20), torch.full((20, 20), math.nan)
    with pytest.raises(UsageError, match=r"score, learned of shape .*holds no finite number to draw"):
        plots.score_fields([xy], [-(xy**2).sum(-1)], [[nothing[..., None].expand(-1, -1, 2)]], ["learned"], ["t"])
    with pytest.raises(UsageError, match="density of shape \\(20, 20\\): holds no finite number"):
        plots.densities(xy, [nothing], ["density"])
    with pytest.raises(UsageError, match="paths of shape"):
        plots.trajectories([plots.Paths("paths", torch.full((3, 1, 2), math.nan))])


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("dim", [1, 2])
def test_paths_of_one_and_many_points(count, dim):
    x = torch.randn(9, count, dim, generator=torch.Generator().manual_seed(0))
    moves = plots.Paths("moves", x, torch.arange(8) % 2, ("predictor", "corrector"))
    figure = plots.trajectories([plots.Paths("all", x), moves], ground=torch.zeros(1, 2) if dim == 2 else None)
    assert [axes.get_title() for axes in figure.axes] == ["all", "moves"]
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["predictor", "corrector"]
    first, second = ({line.get_color() for line in axes.lines} for axes in figure.axes)
    assert len(first) == min(count, 8)
    assert second == set(plots.COLOURS[:2])
    assert drawn(figure) > 5000


def test_a_predictors_moves_are_those_of_its_kind():
    x = torch.arange(5.0)[:, None, None].expand(5, 1, 2)
    axes = plots.trajectories([plots.Paths("", x, torch.tensor([0, 1, 1, 0]), ("a", "b"))]).axes[0]
    a, b = (line.get_xdata()[np.isfinite(line.get_xdata())].tolist() for line in axes.lines)
    assert (a, b) == ([0, 1, 3, 4], [1, 2, 2, 3])


def test_densities_in_time_and_space_stand_below_the_paths():
    t, x = torch.linspace(0, 1, 6), torch.linspace(-1, 1, 8)
    part = plots.TimeSpace("VP", t, x, torch.rand(8, 6) + 0.1, torch.zeros(6, 2))
    figure = plots.trajectories([plots.Paths("p", torch.randn(4, 2, 2))] * 4, [part] * 3)
    assert len(figure.axes) == 7
    assert drawn(figure) > 5000


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 300])
def test_strips_of_points(dim, count):
    clouds = [torch.randn(count, dim) for _ in range(3)]
    figure = plots.point_strips([clouds, clouds], ["x_t", "x_0"], ["1", "2", "3"])
    assert len(figure.axes) == 6
    assert drawn(figure) > 5000


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5)])
def test_strips_of_images(channels, shape):
    images = torch.rand(*shape, channels, 4, 4)
    strips = [plots.Strip("a", images, ["row"] * shape[0], ["column"] * shape[1], "note"), plots.Strip("b", images)]
    figure = plots.image_strips(strips)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    assert figure.axes[0].images[0].get_array().shape[:2] == (5 * shape[0] + 1, 5 * shape[1] + 1)
    assert drawn(figure) > 2000


def test_strips_need_images():
    with pytest.raises(UsageError, match="images of shape \\(2, 3, 4, 4\\): need \\(rows, columns, 1 or 3, H, W\\)"):
        plots.image_strips([plots.Strip("a", torch.rand(2, 3, 4, 4))])
    with pytest.raises(UsageError, match="strips: there are none"):
        plots.image_strips([])


@pytest.mark.parametrize("dim", [1, 2])
def test_densities_and_their_difference(dim):
    grid = plane(12) if dim == 2 else torch.linspace(-2, 2, 30)[:, None]
    log_p = -grid.square().sum(-1)
    figure = plots.densities(grid, [log_p + 0.3, log_p], ["learned", "exact"], "difference")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == (["learned", "exact", "difference", "", ""] if dim == 2 else [""])
    assert drawn(figure) > 5000
    assert len(plots.densities(grid, [log_p], ["alone"]).axes) == dim  # with the bar of its colours


def test_scores_on_a_line():
    x = [torch.linspace(-1, 1, 20)] * 2
    figure = plots.score_curves(x, [-v.square() for v in x], [[-v for v in x], x], ["learned", "exact"], ["a", "b"])
    panel = figure.axes[0]
    np.testing.assert_allclose(panel.lines[0].get_ydata(), -x[0].numpy())
    assert panel.get_xlabel() == "$x$ (data units)"
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


def test_a_figure_is_saved_as_pixels_or_lines(tmp_path):
    figure = plots.scatter(torch.randn(30, 2))
    plots.save(figure, tmp_path / "a.png")
    plots.save(figure, tmp_path / "a.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (tmp_path / "a.svg").read_text()
    image = plots.image_grid(torch.rand(4, 1, 3, 3), 2)
    plots.save(image, tmp_path / "b.png")
    with pytest.raises(UsageError, match="made of pixels; need \\.png"):
        plots.save(image, tmp_path / "b.svg")
    with pytest.raises(UsageError, match=r"a\.jpg.*need the name of a \.png or \.svg file"):
        plots.save(figure, tmp_path / "a.jpg")
    with pytest.raises(UsageError, match=r"cannot be written .*choose another with --output"):
        plots.save(figure, tmp_path / "gone" / "a.png")


def test_large_pictures_are_reduced(tmp_path):
    noise = torch.rand(1, 3, 300, 300, generator=torch.Generator().manual_seed(0))
    plots.save(plots.image_grid(noise, 1), tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size < 100_000


@pytest.mark.parametrize("channels", [0, 1, 3])
def test_an_animation_has_all_frames_and_stays_small(tmp_path, channels):
    generator = torch.Generator().manual_seed(0)
    if channels:
        frames = [plots.image_grid(torch.rand(9, channels, 40, 40, generator=generator), 3) for _ in range(4)]
    else:
        frames = [plots.scatter(torch.randn(200, 2, generator=generator)) for _ in range(4)]
    plots.save_animation(frames, tmp_path / "a.gif", max_bytes=20_000)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 4
    assert (tmp_path / "a.gif").stat().st_size <= 20_000
    with pytest.raises(UsageError, match="frames: there are none"):
        plots.save_animation([], tmp_path / "b.gif")
    with pytest.raises(UsageError, match="cannot be written"):
        plots.save_animation(frames, tmp_path / "gone" / "b.gif")
