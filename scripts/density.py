"""The log density of a score by its probability flow, beside the exact one.

    python scripts/density.py --sde vp --output density.png

A small network is trained on draws from a mixture of nine modes first, in seconds. --config.data.name=moons takes other
points, --workdir runs/toy a trained model.
"""

import sys

from scoresde.app.cli import picture

if __name__ == "__main__":
    sys.exit(picture("density", __doc__))
