"""Images on their way to noise and back, samples by class, and the training samples nearest to them.

    python scripts/denoising.py --sde vp --output denoising.png

They are those of the exact score of handwritten digits, which can do no more than copy them. --workdir runs/vp takes a
trained model, --config.data.name=moons points in the plane. A .gif goes from noise to data.
"""

import sys

from scoresde.app.cli import picture

if __name__ == "__main__":
    sys.exit(picture("denoising", __doc__))
