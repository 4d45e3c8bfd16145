"""A learned score beside the exact one, over the log density of a mixture of nine modes, at four noise levels.

    python scripts/score_field.py --sde vp --output score_field.png

A small network is trained on draws from the mixture first, which takes about half a minute. The seed fixes the picture.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from scoresde import ExactScoreModel, TrainingSettings, UsageError, fit, plots
from scoresde.app.settings import load_config
from scoresde.data import ArrayData, nine_modes
from sde_configs import build

NOISE_LEVELS = (0.05, 0.15, 0.4, 1.5)  # sigma / alpha
POINTS = 96  # along an axis


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sde", default="vp", help="vp, subvp, ve, cosine, edm, flow or ddpm")
    parser.add_argument("--output", type=Path, default=Path("score_field.png"), help="a .png or .svg file")
    parser.add_argument("--num_steps", type=int, default=2000, help="steps of training")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        draw(options.sde, options.output, options.num_steps, options.seed)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"picture: {options.output}")
    return 0


def draw(sde_name: str, output: Path, num_steps: int, seed: int) -> None:
    """Trains, and writes the picture."""
    target, config = nine_modes(), load_config(sde_name, "toy")
    x_0 = target.sample(50_000, torch.Generator().manual_seed(seed))
    config.seed = seed
    learned = build.build_model(config, ArrayData(x_0))
    settings = TrainingSettings(num_steps=num_steps, batch_size=512, lr=2e-3)
    learned = fit(learned, x_0, objective=build.build_objective(config, learned), settings=settings, seed=seed)
    exact = ExactScoreModel(target, learned.sde)

    grids, log_densities, columns, fields = [], [], [], ([], [])
    for noise_level in NOISE_LEVELS:
        t = learned.sde.time(-2 * torch.tensor(noise_level).log())
        level = learned.sde.level(t)
        reach = 1.4 * (level.alpha**2 + level.sigma**2).sqrt().item()
        axis = torch.linspace(-reach, reach, POINTS)
        grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
        points = grid.reshape(-1, 2)
        grids.append(grid)
        log_densities.append(target.log_prob(points, level.alpha, level.sigma).reshape(POINTS, POINTS))
        columns.append(f"t = {t:.3g},  $\\sigma/\\alpha$ = {noise_level:g}")
        with torch.no_grad():
            for field, model in zip(fields, (learned, exact), strict=True):
                field.append(model.score(points, t).reshape(POINTS, POINTS, 2))
    figure = plots.score_fields(grids, log_densities, fields, ("learned", "exact"), columns)
    figure.savefig(output, dpi=90)


if __name__ == "__main__":
    sys.exit(main())
