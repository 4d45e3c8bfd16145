"""Files of pictures: pixels or lines, and small."""

import pytest
import torch
from PIL import Image

from scoresde import UsageError, plots


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
