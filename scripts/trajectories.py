"""Paths from data to noise and back, and the density of x_t through time under VP, sub-VP and VE.

    python scripts/trajectories.py --sde vp --output trajectories.png

They are those of the exact score of a mixture of nine modes. --workdir runs/toy takes a trained model.
"""

import sys

from scoresde.app.cli import picture

if __name__ == "__main__":
    sys.exit(picture("trajectories", __doc__))
