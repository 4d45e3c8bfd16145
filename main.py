"""Trains and samples: `python main.py --mode train --sde vp`, then `python main.py --mode sample --sampler pc`."""

import sys

from scoresde.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
