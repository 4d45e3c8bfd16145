"""What the places of an image attended to while it was drawn: a map for each word of a prompt.

The weights of every attention to tokens are averaged over its heads, brought to one size, and averaged over the layers
and over all evaluations of the network on the way from noise to data (Tang et al. 2023, "DAAM"). Evaluations without
the prompt, as guidance makes them, do not count. The network's own token, to which it can attend in place of a word,
is "(none)". So the maps of all words together are 1 at each place.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers import TableSampler, sample
from scoresde import plots
from scoresde.app.figures.subject import FigureOptions, Subject
from scoresde.app.parts import examples_of
from scoresde.errors import require
from scoresde.networks.attention_weights import watching
from sde_configs import build

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLER = "heun"
STEPS = 30
NONE = "(none)"


@final
class AttentionMaps:
    """The mean of the weights that are shown to it, as maps `(L, *size)`.

    Args:
        sample_size: height and width of the samples, in the model's units.
        num_words: L, with the network's own token.
    """

    def __init__(self, sample_size: tuple[int, int], num_words: int) -> None:
        self.sample_size = sample_size
        self.sum = torch.zeros(num_words, *sample_size)
        self.count = 0

    def __call__(self, weights: Tensor, mask: Tensor | None) -> None:
        if mask is None:
            return
        shown = weights[mask[:, 1:].any(1)]
        if len(shown) == 0:
            return
        words = shown.mean((0, 1)).mT
        maps = words.reshape(1, len(words), *grid_of(words.shape[1], self.sample_size))
        self.sum += F.interpolate(maps, size=self.sample_size, mode="bilinear")[0].cpu()
        self.count += 1

    def mean(self) -> Tensor:
        """The maps.

        Raises:
            UsageError: if nothing was shown.
        """
        require(self.count > 0, "attention: the network attended to no token; of those here UNet and DiT do")
        return self.sum / self.count


def grid_of(count: int, size: tuple[int, int]) -> tuple[int, int]:
    """The height and the width whose product is a number of places, and whose ratio is nearest to that of a size."""
    wanted = math.log(size[0] / size[1])
    heights = [height for height in range(1, count + 1) if count % height == 0]
    height = min(heights, key=lambda height: abs(math.log(height * height / count) - wanted))
    return height, count // height


def draw(subject: Subject, options: FigureOptions) -> Figure:
    """The image that is drawn for a prompt, and the maps of its words."""
    trained = subject.trained
    assert trained is not None
    require(
        trained.guiding.other is None,
        "guide_with: another network attends too; leave it out of the picture attention, or use --guidance alone",
    )
    shape = subject.model.shape
    prompt = options.prompt
    if prompt is None and trained.captioned:
        prompt = examples_of(trained.checkpoint)[0]
    require(prompt is None or "|" not in prompt, f"prompt={prompt!r}: a picture is of one prompt; leave out the |")
    cond = trained.of_texts([prompt or ""], 1)
    require(len(shape) == 3, f"attention: draws images, and this model makes samples of {shape}")
    words = trained.text_encoder.tokenise(prompt).words if prompt and prompt.strip() else ()
    require(len(words) > 0, f"prompt={prompt!r}: has no words to attend to; give a text")
    maps = AttentionMaps((shape[1], shape[2]), 1 + len(words))
    sampler = build.build_sampler(subject.config, options.sampler or SAMPLER, options.num_steps)
    steps = STEPS if options.num_steps is None else options.num_steps
    grid = sampler.grid(subject.model, steps) if isinstance(sampler, TableSampler) else None
    with watching(maps):
        x, _ = sample(subject.model, sampler, 1, grid=grid, cond=cond, seed=options.seed)
    image = subject.info.to_unit(trained.decode(x).float())[0]
    return plots.attention(image[: 3 if len(image) >= 3 else 1], maps.mean(), [NONE, *words], f"“{prompt}”")
