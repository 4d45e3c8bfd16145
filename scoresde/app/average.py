"""`--mode average`: a checkpoint with an average of the weights of any length, from a run's snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scoresde import checkpoint
from scoresde._files import MARK
from scoresde.app.files import output_path
from scoresde.app.flags import AverageFlags
from scoresde.app.run_folder import RunFolder, newest_run
from scoresde.descriptions import AUTOENCODER
from scoresde.errors import UsageError, require
from scoresde.training import reconstruct
from scoresde.training.snapshots import AVERAGE


def average(flags: AverageFlags, overrides: Sequence[str]) -> int:
    """Writes the checkpoint that flags ask for; returns the exit status."""
    length = flags.length
    if length is None:
        raise UsageError("length: give the standard deviation of the average over the steps, as in --length 0.07")
    require(not overrides, f"unexpected argument {overrides[:1]}: --mode average takes no fields of the configuration")
    run = RunFolder(Path(flags.workdir)) if flags.workdir else newest_run(Path("runs"))
    snapshots = run.all_snapshots()
    require(
        bool(snapshots),
        f"workdir={str(run.path)!r}: holds no snapshots of averages; train a run with "
        '--config.training.ema_lengths="(0.05, 0.1)"',
    )
    require(
        AUTOENCODER not in checkpoint.read_header(snapshots[-1])["models"],
        f"workdir={str(run.path)!r}: is of an autoencoder, the scale of whose latents is measured in training alone; "
        "take its checkpoints, with another config.training.ema_decay",
    )
    made = reconstruct(snapshots, length, flags.step)
    name = f"length-{length:g}-step-{made.step:09d}.safetensors"
    output = output_path(flags.output, run.checkpoints / name)
    of = {**made.description[AVERAGE], "made": MARK}
    checkpoint.save(output, made.step, {**made.description, AVERAGE: of}, made.tensors)
    print(
        f"{output}: the average of length {length:g} at step {made.step}, from {of['snapshots']} snapshots, "
        f"with a relative error of its profile of {100 * of['error']:.2g} %; use it as --checkpoint {output}"
    )
    return 0
