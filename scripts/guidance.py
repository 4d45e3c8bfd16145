"""What guided samplers draw, beside the distribution that guidance is said to draw from, and where guidance acts.

    python scripts/guidance.py --sde vp --output guidance.png

Of a run on images: samples of each class by weight.
"""

import sys

from scoresde.app.cli import picture

if __name__ == "__main__":
    sys.exit(picture("guidance", __doc__))
