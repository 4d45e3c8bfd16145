"""Loss and gradient norm of a training, and the error at each noise level beside that of a Gaussian.

    python scripts/training.py --sde vp --output training.png

A small network is trained on draws from a mixture of nine modes, in seconds. --workdir runs/vp takes a run. A .gif
shows samples through training.
"""

import sys

from scoresde.app.cli import picture

if __name__ == "__main__":
    sys.exit(picture("training", __doc__))
