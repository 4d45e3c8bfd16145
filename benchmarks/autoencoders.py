"""Published autoencoders: their outputs beside diffusers', and how well they bring images back.

The first lines compare AutoencoderKL and AutoencoderTiny of diffusers with ours: the same random weights in both, in
float64, the largest difference relative to the largest output. The others are of one of the TAESD family. Photos are
cut to a square in the middle and brought to a size; the numbers are of their pixels in whole numbers from 0 to 255.
CIFAR-10's test images are given to it in three ways: as they are; enlarged four times by repeating pixels, and brought
back to 32 pixels by means, a round trip that alone would lose nothing; and enlarged by linear interpolation, and
compared so.

    python -m benchmarks.autoencoders FOLDER_OF_TAESD CIFAR10.parquet PHOTO PHOTO ...
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.network_parity import randomized, relative
from scoresde.data.sources import load
from scoresde.interop import load_published_autoencoder
from scoresde.models.autoencoder import Autoencoder

SIZES = (512, 256, 128)
COUNT = 128  # of CIFAR-10's images


def main() -> None:
    if importlib.util.find_spec("diffusers"):
        for name, differences in of_diffusers():
            print(f"{name:44} encoder {differences[0]:.1e}  decoder {differences[1]:.1e}", flush=True)
    if len(sys.argv) < 3:
        return
    folder, cifar, *photos = (Path(name) for name in sys.argv[1:])
    model = load_published_autoencoder(folder)
    for size in SIZES:
        found = [psnr(model, photo(file, size)) for file in photos]
        each = ", ".join(f"{file.stem} {value:.1f}" for file, value in zip(photos, found, strict=True))
        print(f"photos of {size} pixels: mean of PSNR {sum(found) / len(found):.1f} dB ({each})", flush=True)
    small = cifar_images(cifar)
    print(f"CIFAR-10, {COUNT} images of 32 pixels: {psnr(model, small):.1f} dB", flush=True)
    repeated = F.interpolate(small, scale_factor=4.0, mode="nearest")
    again = F.avg_pool2d(reconstructed(model, repeated), 4).round()
    print(f"the same, enlarged four times by repetition, and back: {decibels(again, small):.1f} dB", flush=True)
    large = F.interpolate(small, scale_factor=4.0, mode="bilinear").round()
    print(f"the same, enlarged four times by interpolation: {psnr(model, large):.1f} dB", flush=True)
    with torch.no_grad():
        z = model.network.encode(model.codec.encode(large)).mean.movedim(1, -1).flatten(0, -2)
    low, high = z.std(0).aminmax()
    print(f"latents of the last: mean {z.mean():.2f}, deviation {z.std():.2f}, {low:.2f} to {high:.2f} by channel")


def of_diffusers() -> Iterator[tuple[str, tuple[float, float]]]:
    """Both classes of diffusers, in small."""
    import diffusers

    small = {
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 2,
        "sample_size": 32,
    }
    bare = {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16}
    yield "AutoencoderKL, as Stable Diffusion", difference(diffusers.AutoencoderKL(**small), bytes_from_zero=False)
    yield "AutoencoderKL, as FLUX", difference(diffusers.AutoencoderKL(**small | bare), bytes_from_zero=False)
    yield "AutoencoderTiny", difference(diffusers.AutoencoderTiny(), bytes_from_zero=True)


@torch.no_grad()
def difference(theirs: Any, bytes_from_zero: bool) -> tuple[float, float]:
    """Of latents, and of what they are decoded to."""
    theirs = randomized(theirs).float()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_published_autoencoder(folder, size=(32, 32)).double()
    theirs = theirs.double()
    x = 2 * torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 1
    found = theirs.encode(x)
    z = found.latents if bytes_from_zero else found.latent_dist.mean
    mean = ours.network.encode((x + 1) / 2 if bytes_from_zero else x).mean
    again = ours.network.decode(z)
    return relative(mean, z), relative(2 * again - 1 if bytes_from_zero else again, theirs.decode(z).sample)


def photo(file: Path, size: int) -> Tensor:
    """The square in the middle of a photo, `(1, 3, size, size)`, whole numbers from 0 to 255."""
    import numpy as np
    from PIL import Image

    image = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None].float()
    side = min(image.shape[2:])
    top, left = ((length - side) // 2 for length in image.shape[2:])
    square = image[:, :, top : top + side, left : left + side]
    return F.interpolate(square, size=(size, size), mode="bilinear", antialias=True).round()


def cifar_images(file: Path) -> Tensor:
    """The first images of a file of CIFAR-10, `(COUNT, 3, 32, 32)`."""
    return load(path=str(file)).values[slice(COUNT)].float()


@torch.no_grad()
def reconstructed(model: Autoencoder, raw: Tensor) -> Tensor:
    parts = [model.network.decode(model.network.encode(model.codec.encode(part)).mean) for part in raw.split(16)]
    return model.codec.decode(torch.cat(parts)).clamp(0, 255).round()


def decibels(found: Tensor, raw: Tensor) -> float:
    return (10 * torch.log10(255**2 / (found - raw).square().mean())).item()


def psnr(model: Autoencoder, raw: Tensor) -> float:
    return decibels(reconstructed(model, raw), raw)


if __name__ == "__main__":
    main()
