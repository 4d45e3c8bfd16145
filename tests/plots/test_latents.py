"""The picture of an autoencoder: images, series and vectors, and the moments that it says."""

import pytest
import torch

from scoresde import UsageError, plots
from tests.plots.drawing import drawn


def encoded(shape, latents, count=3, **parts):
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(count, *shape, generator=generator)
    usual = {
        "data": data,
        "back": data + 0.1,
        "shown": torch.randn(count, *latents, generator=generator),
        "law": 0.5 + 2 * torch.randn(40, *latents, generator=generator),
        "notes": [f"{k} dB" for k in range(count)],
        "title": "a title",
        "law_title": "the law",
    }
    return plots.Encoded(**usual | parts)


SHAPES = {
    "grey images": ((1, 8, 8), (2, 4, 4)),
    "images of many channels": ((5, 8, 4), (20, 2, 1)),
    "series": ((2, 12), (3, 6)),
    "vectors": ((7,), (2,)),
}


@pytest.mark.parametrize(("shape", "latents"), SHAPES.values(), ids=SHAPES.keys())
def test_data_of_every_shape(shape, latents):
    some = encoded(shape, latents)
    figure = plots.autoencoder(some)
    assert drawn(figure) > 1000
    titles = [axes.get_title() for axes in figure.axes if axes.get_title().startswith("$z_")]
    assert len(titles) == min(16, latents[0])
    values = some.law[:, 0]
    expected = f"$z_{{1}}$: mean {values.mean().item():.2f}, deviation {values.std(correction=0).item():.2f}"
    assert titles[0] == expected


def test_no_samples_are_refused():
    with pytest.raises(UsageError, match="samples: there are none"):
        plots.autoencoder(encoded((1, 8, 8), (2, 4, 4), count=0))
