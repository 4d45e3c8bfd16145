"""Alpha, sigma, beta and log-SNR of all SDEs, where each grid puts its steps, and the table of a solver.

    python scripts/schedule.py --sde vp --sampler unipc --num_steps 8 --output schedule.png

Grids and table are those under the SDE that is named.
"""

import sys

from scoresde.app.cli import picture

if __name__ == "__main__":
    sys.exit(picture("schedule", __doc__))
