"""What the places of an image attended to while it was drawn: a map for each word of a prompt.

python scripts/attention.py --workdir runs/digits_text --prompt "a thick slanted seven" --output attention.png
"""

import sys

from scoresde.app.cli import picture

if __name__ == "__main__":
    sys.exit(picture("attention", __doc__))
