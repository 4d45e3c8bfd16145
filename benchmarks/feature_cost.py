"""What evaluation by features costs: images per second beside a bare loop, and peak memory on 50,000 images.

    python -m benchmarks.feature_cost --data CIFAR.parquet [--images 256] [--pairs 5]

Speed: the features of some images by EfficientNet-lite0 as `extract` computes them, and by a bare loop over the same
batches of 32 bytes to float, resizing and forward pass, in pairs; the ratio is that of their rates. Memory, each in a
process of its own, is the peak of the resident set above that after the libraries are loaded:

    forward     EfficientNet on one batch of 32: what the network takes
    features    EfficientNet on the images, their features kept in files, as `--mode evaluate` does it
    distance    the Frechet distance with its interval of 50,000 images and the first 10,000 of them flipped, looked
                at a part at a time; their 1,280 features are random projections here, because the network's would
                take half an hour
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import torch

from scoresde._batches import batches
from scoresde.app.feature_files import features_of_data
from scoresde.data import load
from scoresde.data.arrays import ArrayData
from scoresde.metrics import compare
from scoresde.metrics.features import CallableFeatures, EfficientNetFeatures, extract
from scoresde.metrics.features.images import BYTES, resized
from scoresde.metrics.features.sets import BATCH
from scoresde.training.parallel import ALONE

CPU = torch.device("cpu")


def peak() -> float:
    """The peak of the resident set, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bare(network: EfficientNetFeatures, images: torch.Tensor) -> torch.Tensor:
    """The loop that one would write."""
    found = []
    with torch.no_grad():
        for rows in batches(len(images), BATCH):
            x = resized(BYTES.colour(images[rows]), 224)
            x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
            found.append(network._network.features(x))
    return torch.cat(found)


def speed(images: torch.Tensor, pairs: int) -> None:
    network = EfficientNetFeatures()
    bare(network, images[:BATCH])
    ratios = []
    for _ in range(pairs):
        start = time.process_time()
        expected = bare(network, images)
        middle = time.process_time()
        found = extract(network, images).features()
        ratios.append((middle - start) / (time.process_time() - middle))
        assert torch.allclose(found, expected, atol=1e-4)
    print(
        f"images per second of processor time, over a bare loop: {sorted(ratios)[pairs // 2]:.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f} in {pairs} pairs of {len(images)} images)",
        flush=True,
    )


def of_forward(data: ArrayData, results: multiprocessing.SimpleQueue) -> None:
    before = peak()
    bare(EfficientNetFeatures(), data.values[:BATCH])
    results.put(peak() - before)


def of_features(data: ArrayData, results: multiprocessing.SimpleQueue) -> None:
    before = peak()
    with tempfile.TemporaryDirectory() as folder:
        features_of_data(data, EfficientNetFeatures(), Path(folder), "images", ALONE, CPU)
    results.put(peak() - before)


def of_distance(data: ArrayData, results: multiprocessing.SimpleQueue) -> None:
    before = peak()
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(data.values[0].numel(), 1280, generator=generator) / 1000
    network = CallableFeatures(lambda x: (x.flatten(1).float() @ projection).relu(), 1280, "projections")
    with tempfile.TemporaryDirectory() as folder:
        where = network, Path(folder)
        real = features_of_data(data, *where, "50,000", ALONE, CPU)
        flipped = ArrayData(data.values[:10_000].flip(3))
        other = features_of_data(flipped, *where, "10,000", ALONE, CPU)
        print(len(real), len(other), compare(other, real, ["fid"]), flush=True)
    results.put(peak() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load(path=arguments.data)
    few = data.select(torch.arange(arguments.images))
    context = multiprocessing.get_context("fork")  # the images are shared, and not counted
    for name, function, of in (
        ("forward", of_forward, few),
        ("features", of_features, few),
        ("distance", of_distance, data),
    ):
        results = context.SimpleQueue()
        process = context.Process(target=function, args=(of, results))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{name}: failed")
        print(f"peak memory, {name}: {results.get():.0f} MB", flush=True)
    speed(few.values, arguments.pairs)


if __name__ == "__main__":
    main()
