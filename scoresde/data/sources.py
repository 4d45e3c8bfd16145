"""Where data comes from: a name, or a file of the user's."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import torch

from scoresde.data.arrays import ArrayData, Scaling
from scoresde.errors import UsageError, require, unknown_name
from scoresde.targets import GaussianMixture

NUM_TOY_SAMPLES = 10_000


def digits() -> ArrayData:
    """1,797 handwritten digits, 8x8, grey levels 0..16 (UCI; they come with scikit-learn)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    values = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    return ArrayData(values, torch.from_numpy(bunch.target), Scaling(center=8.0, scale=8.0))


def moons() -> ArrayData:
    """Two interleaved half circles in the plane, one class each."""
    from sklearn.datasets import make_moons

    points, labels = make_moons(NUM_TOY_SAMPLES, noise=0.05, random_state=0)
    return ArrayData(torch.from_numpy(points).float(), torch.from_numpy(labels), Scaling(center=0.4, scale=1.0))


def nine_modes() -> GaussianMixture:
    """Eight modes on the unit circle and one at the origin, standard deviation 0.05, weights as 1 : 2 : ... : 9."""
    angle = torch.arange(8) * (math.pi / 4)
    means = torch.cat([torch.stack([angle.cos(), angle.sin()], 1), torch.zeros(1, 2)])
    return GaussianMixture(torch.arange(1.0, 10.0), means, torch.full((9,), 0.05**2))


def modes() -> ArrayData:
    """Draws from `nine_modes`."""
    return ArrayData(nine_modes().sample(NUM_TOY_SAMPLES, torch.Generator().manual_seed(0)))


SOURCES = {"digits": digits, "moons": moons, "modes": modes}


def load(name: str, path: str = "") -> ArrayData:
    """Data by name, or from a file if `path` is given: .npy, or .npz with arrays `x` and, if there are, `labels`.

    Arrays of bytes are taken as images with values 0..255 and mapped to [-1, 1]; others are shifted and scaled to mean
    0 and deviation 1 over all entries.
    """
    if path:
        return _read_arrays(Path(path))
    if name not in SOURCES:
        raise unknown_name("data.name", name, SOURCES)
    return SOURCES[name]()


def _read_arrays(path: Path) -> ArrayData:
    import numpy as np

    require(path.suffix in (".npy", ".npz"), f"data.path={str(path)!r}: need a .npy or .npz file")
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)  # tells the two formats apart by content
            arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"data.path={str(path)!r}: cannot be read as arrays of numbers ({error})") from error
    require("x" in arrays, f"data.path={str(path)!r}: holds {sorted(arrays)}; need an array named 'x'")
    kind = arrays["x"].dtype
    require(kind.kind in "fiu", f"data.path={str(path)!r}: 'x' is of type {kind}; need numbers")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
        values = torch.from_numpy(arrays["x"] if arrays["x"].dtype == np.uint8 else arrays["x"].astype(np.float32))
    label_kind = arrays["labels"].dtype if "labels" in arrays else np.dtype(int)
    require(label_kind.kind in "iu", f"data.path={str(path)!r}: 'labels' is of type {label_kind}; need integers")
    labels = torch.from_numpy(arrays["labels"].astype(np.int64)) if "labels" in arrays else None
    try:
        data = ArrayData(values, labels)
    except UsageError as error:
        raise UsageError(f"data.path={str(path)!r}: {error}") from error
    equal = bool(values.min() == values.max())
    require(not equal, f"data.path={str(path)!r}: all values are equal; there is nothing to learn")
    if values.dtype == torch.uint8:
        return ArrayData(values, labels, Scaling(center=127.5, scale=127.5))
    return ArrayData(values, labels, Scaling(center=values.mean().item(), scale=data.std()))
