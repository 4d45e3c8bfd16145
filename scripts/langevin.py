"""Plain Langevin dynamics loses the weights of modes that lie far apart; annealing restores them.

    python scripts/langevin.py --sde ve --output langevin.png

The score is the exact one of three modes. A .gif goes through the steps.
"""

import sys

from scoresde.app.cli import picture

if __name__ == "__main__":
    sys.exit(picture("langevin", __doc__))
