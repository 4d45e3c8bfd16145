"""The distances of this library beside those of torchmetrics and torch-fidelity, on the same features.

    python -m benchmarks.metric_peers      (needs torchmetrics 1.9 and torch-fidelity 0.4)

1,000 and 1,200 samples of two Gaussians in 64 dimensions. Each peer gets the features themselves: torchmetrics through
a network that passes them on, torch-fidelity in the functions that it computes its numbers with.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

from scoresde.metrics import FeatureSet, compare

DIM = 64
ALL = 1000  # the size of a subset of a peer's kernel distance that takes all samples


class PassOn(nn.Module):
    """A network whose features are what it is given."""

    num_features = DIM

    def forward(self, x: Tensor) -> Tensor:
        return x


def draw(count: int, seed: int, shift: float, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(9)) / 8
    return (torch.randn(count, DIM, generator=generator) @ mix * scale + shift).relu()


def torchmetrics_numbers(first: Tensor, second: Tensor) -> dict[str, float]:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    found = {}
    distance = FrechetInceptionDistance(feature=PassOn(), normalize=False, input_img_size=(DIM,)).set_dtype(
        torch.float64
    )
    kernel = KernelInceptionDistance(feature=PassOn(), subsets=1, subset_size=ALL)
    for metric in (distance, kernel):
        metric.update(second, real=True)
        metric.update(first, real=False)
    found["Frechet distance"] = distance.compute().item()
    found["kernel distance"] = kernel.compute()[0].item()
    return found


def fidelity_numbers(first: Tensor, second: Tensor) -> dict[str, float]:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    found = {}
    statistics = [fid_features_to_statistics(each) for each in (first, second)]
    found["Frechet distance"] = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    kernel = kid_features_to_metric(first.double(), second.double(), kid_subsets=1, kid_subset_size=ALL, verbose=False)
    found["kernel distance"] = kernel["kernel_inception_distance_mean"]
    parts = prc_features_to_metric(first, second, prc_neighborhood=3, prc_batch_size=1000, verbose=False)
    found |= {"precision": parts["precision"], "recall": parts["recall"]}
    return found


def stand_in(*names: str) -> None:
    """Puts nothing in the place of torchvision, with which peers read images; they get features here."""
    if importlib.util.find_spec("torchvision") is None:
        for name in names:
            module = MagicMock()
            module.__spec__ = ModuleSpec(name, None)
            module.__path__ = []
            sys.modules[name] = module


def main() -> None:
    parts = ("datasets", "transforms", "transforms.functional", "models", "utils")
    stand_in("torchvision", *(f"torchvision.{part}" for part in parts))
    first, second = draw(1000, 1, 0.05, 1.0), draw(1000, 2, 0.0, 1.1)
    ours = compare(FeatureSet.of(first, "t"), FeatureSet.of(second, "t"), ["fid", "kid", "pr"])
    columns = {}
    for name, numbers in (("torchmetrics", torchmetrics_numbers), ("torch-fidelity", fidelity_numbers)):
        try:
            columns[name] = numbers(first, second)
        except ImportError as error:
            print(f"{name}: {error}")
    print(f"{'':20}{'scoresde':>16}" + "".join(f"{name:>16}" for name in columns))
    for name, estimate in ours.items():
        peers = "".join(f"{column.get(name, float('nan')):16.8g}" for column in columns.values())
        print(f"{name:20}{estimate.value:16.8g}{peers}")


if __name__ == "__main__":
    main()
