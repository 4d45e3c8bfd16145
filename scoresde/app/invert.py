"""`--mode encode` and `--mode interpolate`: data to noise along the probability flow, and what lies between."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict

from samplers import decode, encode, slerp
from scoresde.app.device import choose_threads
from scoresde.app.pictures import save_picture
from scoresde.app.progress import Progress
from scoresde.app.run_folder import make_folder
from scoresde.app.sample import scaling_of
from scoresde.app.user_data import asked_data, labels_of
from scoresde.checkpoint import Checkpoint
from scoresde.errors import require
from sde_configs import build

EVALUATIONS = 64
COLUMNS = 9  # of an interpolation, both ends included
BATCH = 250


@torch.no_grad()
def encode_data(
    checkpoint: Checkpoint,
    config: ConfigDict,
    output: Path,
    *,
    path: str | None,
    num_samples: int | None,
    num_steps: int | None,
    device: torch.device,
) -> int:
    """Writes the noise of samples and what it is decoded to (.npz), and a picture of samples above their decodings."""
    require(num_samples is None or num_samples >= 1, f"num_samples={num_samples}: need at least 1")
    make_folder(output.parent, "output", output)
    data, source = asked_data(checkpoint, config, path)
    described, count = checkpoint.description["data"], len(data) if num_samples is None else min(num_samples, len(data))
    steps = EVALUATIONS if num_steps is None else num_steps
    model = build.build_sampling_model(
        config, checkpoint.model().to(device), scaling_of(described), described["low"], described["high"]
    )
    choose_threads(BATCH * math.prod(model.shape))
    x, cond = data.batch(torch.arange(count))[0].to(device), labels_of(data, checkpoint)
    cond = None if cond is None else cond[:count].to(device)
    batches = -(-count // BATCH)
    with Progress("encode", 2 * batches * steps, unit="evaluation") as progress:
        options = {"num_evaluations": steps, "sd": described["std"], "batch_size": BATCH, "tell": progress.advance}
        latent = encode(model, x, cond, **options)
        back = decode(model, latent, cond, **options)
    error = (back - x).square().mean().sqrt().item()
    raw, decoded = (data.scaling.to_raw(part.cpu()) for part in (x, back))
    rows = min(10, count)
    both = torch.cat([raw[:rows], decoded[:rows]])
    save_picture(output, both, None, described["low"], described["high"], rows)
    numbers = output.with_suffix(".npz")
    np.savez_compressed(
        numbers,
        latents=latent.cpu().numpy(),
        samples=raw.numpy(),
        decoded=decoded.numpy(),
        labels=np.full(count, -1) if cond is None else cond.cpu().numpy(),
    )
    of_prior = latent.std().item() / model.sde.prior_std()
    print(f"{count} samples ({source}), {steps} evaluations each way")
    print(f"round trip: RMS error {error:.2g} of a deviation of {x.std().item():.3g}, in units of the model")
    print(f"noise: its deviation is {of_prior:.3f} of the prior's")
    print(f"picture: {output}\nnumbers: {numbers}")
    return 0


@torch.no_grad()
def interpolate(
    checkpoint: Checkpoint,
    config: ConfigDict,
    output: Path,
    *,
    path: str | None,
    num_samples: int | None,
    num_steps: int | None,
    device: torch.device,
) -> int:
    """Draws rows from one sample to another, decoded from the great circle between their noises.

    A conditional model decodes each row in the class of its samples: pairs are of one class.
    """
    pairs = 8 if num_samples is None else num_samples
    require(pairs >= 1, f"num_samples={pairs}: need at least 1 pair")
    make_folder(output.parent, "output", output)
    data, source = asked_data(checkpoint, config, path)
    described, steps = checkpoint.description["data"], EVALUATIONS if num_steps is None else num_steps
    labels = labels_of(data, checkpoint)
    first, second = _pairs(torch.zeros(len(data), dtype=torch.long) if labels is None else labels, pairs)
    require(len(first) == pairs, f"num_samples={pairs}: there are only {len(first)} pairs among {len(data)} samples")
    model = build.build_sampling_model(
        config, checkpoint.model().to(device), scaling_of(described), described["low"], described["high"]
    )
    choose_threads(pairs * COLUMNS * math.prod(model.shape))
    both = data.batch(torch.cat([first, second]))[0].to(device)
    cond = None if labels is None else labels[torch.cat([first, second])].to(device)
    with Progress("interpolate", 2 * steps, unit="evaluation") as progress:
        options = {"num_evaluations": steps, "sd": described["std"], "batch_size": 10**6, "tell": progress.advance}
        first_end, second_end = encode(model, both, cond, **options).chunk(2)
        way = slerp(first_end, second_end, torch.linspace(0, 1, COLUMNS, device=device)).transpose(0, 1).flatten(0, 1)
        of_rows = None if cond is None else cond[:pairs].repeat_interleave(COLUMNS)
        decoded = decode(model, way, of_rows, **options)
    error = (decoded.unflatten(0, (pairs, COLUMNS))[:, 0] - both[:pairs]).square().mean().sqrt().item()
    raw = data.scaling.to_raw(decoded.cpu())
    save_picture(output, raw, torch.arange(len(raw)) // COLUMNS, described["low"], described["high"], COLUMNS)
    np.savez_compressed(output.with_suffix(".npz"), samples=raw.unflatten(0, (pairs, COLUMNS)).numpy())
    print(f"{pairs} pairs ({source}), {COLUMNS} samples a row; the ends are met with an RMS error of {error:.2g}")
    print(f"picture: {output}\nnumbers: {output.with_suffix('.npz')}")
    return 0


def _pairs(labels: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of samples of one class, the classes in turn."""
    by_class = [torch.nonzero(labels == k).flatten() for k in labels.unique()]
    found = [group[2 * i : 2 * i + 2] for i in range(len(labels) // 2) for group in by_class]
    chosen = [pair for pair in found if len(pair) == 2][:count]
    if not chosen:
        empty = torch.zeros(0, dtype=torch.long)
        return empty, empty
    first, second = torch.stack(chosen).unbind(1)
    return first, second
