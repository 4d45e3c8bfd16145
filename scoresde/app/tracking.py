"""Weights & Biases, if the user asks for it; whatever goes wrong there never ends a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from scoresde.errors import require


@final
class Tracker:
    """Sends metrics to wandb in mode "online" or "offline"; does nothing in mode "disabled"."""

    def __init__(self, mode: Any, folder: Path, config: dict[str, Any]) -> None:
        require(
            mode in ("disabled", "offline", "online"),
            f"config.logging.wandb={mode!r}: need 'disabled', 'offline' or 'online'",
        )
        self._run: Any = None
        if mode == "disabled":
            return
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its error reports use the network even offline
        try:
            import wandb

            settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
            self._run = wandb.init(
                project="scoresde",
                name=folder.name,
                dir=folder,
                config=config,
                mode=mode,
                settings=settings,
            )
        except Exception as error:  # any failure of the service or the package: go on without it
            self._give_up(error)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """One line of metrics."""
        if self._run is not None:
            try:
                self._run.log(dict(metrics), step=metrics["step"])
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._run = None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"wandb: going on without it ({reason})", file=sys.stderr, flush=True)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._run is not None:
            try:
                self._run.finish()
            except Exception as error:
                self._give_up(error)
