"""What an autoencoder makes of held-out samples, its latents channel by channel, and their laws beside N(0, 1).

    python scripts/latents.py --workdir runs/vp-autoencoder --output latents.png

A run of a latent model shows its autoencoder.
"""

import sys

from scoresde.app.cli import picture

if __name__ == "__main__":
    sys.exit(picture("latents", __doc__))
