"""A learned score beside the exact one and its error, over the log density, at four noise levels.

    python scripts/score_field.py --sde vp --output score_field.png

A small network is trained on draws from a mixture of nine modes first, in seconds; with --config.training.num_steps=0
there is the exact score alone. A .gif goes through time. --config.data.name=moons takes other points, --workdir runs/vp
a trained model, which is seen along two principal directions of its data.
"""

import sys

from scoresde.app.cli import picture

if __name__ == "__main__":
    sys.exit(picture("score_field", __doc__))
