"""Pictures from arrays, without models or solvers."""

from scoresde.plots.attention import attention
from scoresde.plots.curves import Interval, classification, error_curves, langevin, measures_over, schedules, training
from scoresde.plots.fields import densities, score_curves, score_fields
from scoresde.plots.guidance import ByLevel, Ground, GuidedRow, guided_images, guided_points
from scoresde.plots.images import Strip, image_grid, image_strips
from scoresde.plots.latents import Encoded, autoencoder
from scoresde.plots.paths import Paths, TimeSpace, trajectories
from scoresde.plots.points import point_strips, scatter
from scoresde.plots.posteriors import posterior_curves
from scoresde.plots.similarities import similarities
from scoresde.plots.style import COLOURS, image_of, literal, png_bytes, save, save_animation

__all__ = [
    "COLOURS",
    "ByLevel",
    "Encoded",
    "Ground",
    "GuidedRow",
    "Interval",
    "Paths",
    "Strip",
    "TimeSpace",
    "attention",
    "autoencoder",
    "classification",
    "densities",
    "error_curves",
    "guided_images",
    "guided_points",
    "image_grid",
    "image_of",
    "image_strips",
    "langevin",
    "literal",
    "measures_over",
    "png_bytes",
    "point_strips",
    "posterior_curves",
    "save",
    "save_animation",
    "scatter",
    "schedules",
    "score_curves",
    "score_fields",
    "similarities",
    "training",
    "trajectories",
]
