"""Curves of posteriors: that samples, means, intervals and what was measured are where they belong."""

import numpy as np
import torch

from scoresde import plots
from tests.plots.drawing import drawn


def test_every_measurement_has_its_samples_mean_band_and_points(device):
    samples = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(0)).to(device)
    truth = torch.arange(10.0).reshape(2, 5).to(device)
    measured = torch.full((2, 5), torch.nan)
    measured[:, 1] = 7.0
    figure = plots.posterior_curves(samples, truth, measured.to(device))
    assert len(figure.axes) == 2
    for k, axes in enumerate(figure.axes):
        lines = {line.get_label(): line for line in axes.lines}
        np.testing.assert_allclose(lines["mean"].get_ydata(), samples[k].mean(0).cpu(), rtol=1e-6)
        np.testing.assert_allclose(lines["truth"].get_ydata(), truth[k].cpu())
        np.testing.assert_array_equal(np.isfinite(lines["measured"].get_ydata()), [False, True, False, False, False])
        assert sum(len(line.get_xdata()) == 5 for line in axes.lines) == 40 + 3
        edges = axes.collections[0].get_paths()[0].vertices[:, 1]
        quantiles = np.quantile(samples[k].cpu().numpy(), [0.05, 0.95], axis=0)
        assert (edges.min(), edges.max()) == (np.float64(quantiles.min()), np.float64(quantiles.max()))
    assert drawn(plots.posterior_curves(samples)) > 1000
