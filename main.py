"""Trains and samples: `python main.py --mode train --sde vp`, then `python main.py --mode sample --sampler pc`."""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends imports at once: libraries go on half imported, and fail

from scoresde.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
