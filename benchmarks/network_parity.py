"""Our networks beside those that they are: the same random weights in both, in float64.

A line gives the largest difference of the outputs, relative to the largest output. Each peer runs its own code; only
its embedding of times, which it computes in float32, is computed in float64, and attention and normalisation of
guided-diffusion, which go through float32. Three lines of score_sde_pytorch raise errors under today's PyTorch (a
negative step, a stride of four, `F.interpolate` with a mode in place of a factor) and are mended. The last line is of
50 steps of its predictor-corrector sampler under VE beside ours, with equal weights and noise.

The repositories are given by folders; peers that are not are left out:

    python -m benchmarks.network_parity SCORE_SDE_PYTORCH GUIDED_DIFFUSION DIT
"""

from __future__ import annotations

import importlib.util
import math
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samplers import NormPredictorCorrector, ReverseDiffusion, prepare
from scoresde import NetworkScoreModel
from scoresde.interop import load_published
from scoresde.noise import NoiseSource

SIZE = 16
SAME = 1e-6
STEPS = 50
SNR = 0.16
THEIRS = {  # NCSN++ of score_sde_pytorch, in small
    "nf": 32, "ch_mult": (1, 2, 2), "num_res_blocks": 2, "attn_resolutions": (8,), "dropout": 0.1,
    "resamp_with_conv": True, "conditional": True, "fir": True, "fir_kernel": [1, 3, 3, 1], "skip_rescale": True,
    "resblock_type": "biggan", "progressive": "none", "progressive_input": "residual", "progressive_combine": "sum",
    "embedding_type": "fourier", "init_scale": 0.0, "fourier_scale": 16, "scale_by_sigma": True,
    "nonlinearity": "swish", "normalization": "GroupNorm", "sigma_min": 0.01, "sigma_max": 50.0, "num_scales": 1000,
}  # fmt: skip


def main() -> None:
    """Prints a line for each network."""
    folders = dict(zip(("score_sde", "guided_diffusion", "dit"), sys.argv[1:], strict=False))
    if importlib.util.find_spec("diffusers"):
        show(of_diffusers())
    for name, compare in (("score_sde", of_score_sde), ("guided_diffusion", of_guided_diffusion), ("dit", of_dit)):
        if name in folders:
            sys.path.insert(0, folders[name])
            show(compare())


def show(found: Iterator[tuple[str, float]]) -> None:
    for name, difference in found:
        print(f"{name:74} {difference:.1e}", flush=True)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def randomized(network: nn.Module) -> nn.Module:
    """The network in float64 with all trained weights moved, so that no layer multiplies by zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network.double().eval()


def embedding(t: Tensor, size: int, shift: int, cosines_first: bool) -> Tensor:
    """Sines and cosines of times, in float64."""
    half = size // 2
    phase = t[:, None].double() * torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64) / (half - shift))
    return torch.cat((phase.cos(), phase.sin()) if cosines_first else (phase.sin(), phase.cos()), 1)


def loaded(content: Any, **arguments: Any) -> NetworkScoreModel:
    """Our model of a file with a content, in float64."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pt"
        torch.save(content, file)
        torch.set_default_dtype(torch.float64)
        try:
            return load_published(file, **arguments)
        finally:
            torch.set_default_dtype(torch.float32)


def native_upfirdn(x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """What the compiled operation of score_sde_pytorch computes, as its own fallback does."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch * channels, 1, height, 1, width, 1)
    x = F.pad(x, [0, up - 1, 0, 0, 0, up - 1]).reshape(batch * channels, 1, height * up, width * up)
    x = F.conv2d(F.pad(x, [*pad, *pad]), torch.flip(kernel, [0, 1]).to(x)[None, None])[:, :, ::down, ::down]
    return x.reshape(batch, channels, *x.shape[2:])


def native_operations() -> None:
    """Puts it in the place of the compiled operation."""
    operations = types.ModuleType("op")
    operations.upfirdn2d = native_upfirdn  # type: ignore[attr-defined]
    sys.modules["op"] = operations


def of_score_sde() -> Iterator[tuple[str, float]]:
    """NCSN++, DDPM++ and DDPM, their pyramids and blocks, and a chain of their sampler."""
    from ml_collections import ConfigDict

    native_operations()
    ncsnpp, ddpm, layers, resampling = (
        importlib.import_module(f"models.{name}") for name in ("ncsnpp", "ddpm", "layers", "up_or_down_sampling")
    )
    layers.get_timestep_embedding = lambda t, size: embedding(t, size, 1, cosines_first=False)
    functional = types.SimpleNamespace(**vars(F))
    functional.interpolate = lambda x, size, mode: F.interpolate(x, size, mode=mode)
    for module in (layers, importlib.import_module("models.layerspp")):
        module.F = functional  # type: ignore[attr-defined]

    def up_conv(x: Tensor, weight: Tensor, k: Sequence[float]) -> Tensor:
        kernel = torch.tensor(resampling._setup_kernel(list(k)) * 4, dtype=x.dtype)
        return native_upfirdn(F.conv_transpose2d(x, weight.flip(-1, -2).transpose(0, 1), stride=2), kernel, pad=(1, 1))

    resampling.upsample_conv_2d = lambda x, w, k=None, **_: up_conv(x, w, k)
    vp = {"embedding_type": "positional", "scale_by_sigma": False}
    pyramids = {"progressive": "output_skip", "progressive_input": "input_skip"}
    cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "NCSN++, VE": ({}, {}),
        "NCSN++, VP": (vp, {}),
        "DDPM++, VP": (vp | {"fir": False, "progressive_input": "none"}, {}),
        "NCSN++, skip pyramids": (pyramids, {}),
        "NCSN++, joined skip pyramids": (pyramids | {"progressive_combine": "cat"}, {}),
        "NCSN++, residual output": ({"progressive": "residual"}, {}),
        "NCSN++, DDPM blocks": (pyramids | {"resblock_type": "ddpm"}, {"rescale": True, "group_channels": 4}),
        "DDPM": (vp | {"fir": False, "progressive_input": "none"}, {}),
    }
    for name, (changes, settings) in cases.items():
        config = ConfigDict({"model": THEIRS | changes, "training": {"continuous": True}})
        ve = config.model.embedding_type == "fourier"
        config.data = {"image_size": SIZE, "num_channels": 3, "centered": not ve}
        torch.manual_seed(0)
        theirs = randomized(ddpm.DDPM(config) if name == "DDPM" else ncsnpp.NCSNpp(config))
        theirs.sigmas = theirs.sigmas.double()
        shadow = [parameter.detach() for parameter in theirs.parameters() if parameter.requires_grad]
        model = {f"module.{key}": value for key, value in theirs.state_dict().items()}
        ours = loaded(
            {"model": model, "ema": {"shadow_params": shadow}, "step": 0}, settings=settings, size=(SIZE, SIZE)
        )
        difference = score_difference(ours, theirs, ve)
        yield f"score_sde_pytorch: {name}", difference
        if name == "NCSN++, VE":
            chain = (ours, theirs)
    yield f"score_sde_pytorch: {STEPS} steps of predictor-corrector, NCSN++ under VE", chain_difference(*chain)


def score_difference(ours: NetworkScoreModel, theirs: nn.Module, ve: bool) -> float:
    """Scores at three times; the images of their VE networks are in [0, 1]."""
    sde_lib = importlib.import_module("sde_lib")
    utils = importlib.import_module("models.utils")
    sde = sde_lib.VESDE(0.01, 50.0, 1000) if ve else sde_lib.VPSDE(0.1, 20.0, 1000)
    score = utils.get_score_fn(sde, theirs, continuous=True)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(3, 3, SIZE, SIZE, dtype=torch.float64, generator=generator)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    with torch.no_grad():
        expected = score(x if ve else 2 * x - 1, t)
        return relative((2 if ve else 1) * ours.score(2 * x - 1, t), expected)


class Listed(NoiseSource):
    """Given draws."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self.draws = draws

    def normals(self, draws: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.stack([self.draws[k] for k in draws])


def chain_difference(ours: NetworkScoreModel, theirs: nn.Module) -> float:
    """Samples of their PC sampler and of ours, from the same state, with the same noise.

    They correct before each prediction, we after, so theirs is one correction at the largest noise and then ours. Their
    discrete levels and their times differ by the 1e-5 at which their times end.
    """
    sde_lib, sampling = (importlib.import_module(name) for name in ("sde_lib", "sampling"))
    sde = sde_lib.VESDE(0.01, 50.0, STEPS)
    generator = torch.Generator().manual_seed(2)
    shape = (4, 3, SIZE, SIZE)
    draws = [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(2 * STEPS + 1)]
    prior = 50 * torch.randn(shape, dtype=torch.float64, generator=generator)
    sde.prior_sampling = lambda _: prior
    queue = iter(draws)
    sampling.torch = types.SimpleNamespace(**vars(torch))
    sampling.torch.randn_like = lambda _: next(queue)
    sampler = sampling.get_pc_sampler(
        sde, shape, sampling.ReverseDiffusionPredictor, sampling.LangevinCorrector, lambda x: x, SNR,
        continuous=True, eps=1e-5, device="cpu",
    )  # fmt: skip
    expected = 2 * sampler(theirs)[0] - 1
    grid = torch.cat([torch.linspace(1, 1e-5, STEPS, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    x = 2 * prior - 1
    with torch.no_grad():
        score = ours.score(x, torch.full((4,), 1.0, dtype=torch.float64))
        z = draws[0]
        norms = [part.flatten(1).norm(dim=1).mean() for part in (z, score)]
        size = 2 * (SNR * norms[0] / norms[1]) ** 2
        x = x + size * score + torch.sqrt(2 * size) * z
        prepared = prepare(ours, NormPredictorCorrector(ReverseDiffusion(), snr=SNR), grid)
        return relative(prepared(x, Listed(draws)).x, expected)


def of_guided_diffusion() -> Iterator[tuple[str, float]]:
    """U-Nets with both orders of attention's rows, both ways of resampling and both uses of the embedding."""
    unet = importlib.import_module("guided_diffusion.unet")
    parts = importlib.import_module("guided_diffusion.nn")
    unet.timestep_embedding = lambda t, size: embedding(t, size, 0, cosines_first=True)
    parts.GroupNorm32.forward = nn.GroupNorm.forward

    def attention(split: Callable[[Tensor, int], Sequence[Tensor]]) -> Callable[[Any, Tensor], Tensor]:
        def forward(self: Any, qkv: Tensor) -> Tensor:
            q, k, v = (part.flatten(0, 1) for part in split(qkv, self.n_heads))
            weights = torch.softmax(q.mT @ k / math.sqrt(q.shape[1]), -1)
            return (v @ weights.mT).reshape(len(qkv), -1, qkv.shape[2])

        return forward

    unet.QKVAttention.forward = attention(lambda qkv, heads: qkv.unflatten(1, (3, heads, -1)).unbind(1))
    unet.QKVAttentionLegacy.forward = attention(lambda qkv, heads: qkv.unflatten(1, (heads, 3, -1)).unbind(2))
    base = {
        "image_size": SIZE, "in_channels": 3, "model_channels": 32, "out_channels": 6, "num_res_blocks": 2,
        "attention_resolutions": (2,), "channel_mult": (1, 2, 2), "num_classes": 7, "num_head_channels": 16,
        "use_scale_shift_norm": True, "resblock_updown": True,
    }  # fmt: skip
    cases: dict[str, dict[str, Any]] = {
        "ADM, new order": {"use_new_attention_order": True},
        "ADM, legacy order": {},
        "ADM, resampled by convolutions": {"resblock_updown": False},
        "ADM, embedding added, no classes": {"use_scale_shift_norm": False, "num_classes": None, "out_channels": 3},
        "ADM of 512 x 512, whose finest level is half as wide": {"channel_mult": (0.5, 1, 1), "model_channels": 64},
    }
    for name, changes in cases.items():
        torch.manual_seed(0)
        theirs = randomized(unet.UNetModel(**base | changes))
        theirs.dtype = torch.float64
        order = "new" if changes.get("use_new_attention_order") else "legacy"
        arguments: dict[str, Any] = {"qkv": order, "schedule": "linear", "settings": {"head_channels": 16}}
        ours = loaded(theirs.state_dict(), size=(SIZE, SIZE), **arguments)
        classes = None if changes.get("num_classes", 7) is None else torch.tensor([1, 6])
        yield f"guided-diffusion: {name}", output_difference(ours, theirs, (3, SIZE, SIZE), classes)


def output_difference(
    ours: NetworkScoreModel, theirs: nn.Module, shape: Sequence[int], classes: Tensor | None
) -> float:
    """The outputs of two networks at two labels of noise."""
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3.0, 700.0], dtype=torch.float64)
    with torch.no_grad():
        return relative(ours.network(x, t, classes), theirs(x, t, classes))


def of_dit() -> Iterator[tuple[str, float]]:
    """The transformer by its authors' code; timm's layers, of which it is made, are written out."""

    class PatchEmbed(nn.Module):
        def __init__(self, size: int, patch: int, channels: int, width: int, bias: bool = True) -> None:
            super().__init__()
            self.proj = nn.Conv2d(channels, width, patch, patch, bias=bias)
            self.patch_size, self.num_patches = (patch, patch), (size // patch) ** 2

        def forward(self, x: Tensor) -> Tensor:
            return self.proj(x).flatten(2).mT

    class Attention(nn.Module):
        def __init__(self, dim: int, num_heads: int, qkv_bias: bool) -> None:
            super().__init__()
            self.heads, self.qkv, self.proj = num_heads, nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    class Mlp(nn.Module):
        def __init__(
            self, in_features: int, hidden_features: int, act_layer: Callable[[], nn.Module], drop: float
        ) -> None:
            super().__init__()
            self.fc1, self.act = nn.Linear(in_features, hidden_features), act_layer()
            self.fc2 = nn.Linear(hidden_features, in_features)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.act(self.fc1(x)))

    layers = types.ModuleType("timm.models.vision_transformer")
    layers.PatchEmbed, layers.Attention, layers.Mlp = PatchEmbed, Attention, Mlp  # type: ignore[attr-defined]
    for name in ("timm", "timm.models"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules[layers.__name__] = layers
    sys.modules.pop("models", None)
    for name in [name for name in sys.modules if name.startswith("models.")]:
        del sys.modules[name]
    theirs_module = importlib.import_module("models")
    theirs_module.TimestepEmbedder.timestep_embedding = staticmethod(
        lambda t, size, max_period=10000: embedding(t, size, 0, cosines_first=True)
    )
    torch.manual_seed(0)
    theirs = randomized(theirs_module.DiT(SIZE, 2, 4, 384, 2, 6, num_classes=10))
    ours = loaded(theirs.state_dict(), sde="ddpm")
    ours.network.to(torch.float64)
    yield "DiT: DiT-S/2 of two blocks", output_difference(ours, theirs, (4, SIZE, SIZE), torch.tensor([1, 10]))


def of_diffusers() -> Iterator[tuple[str, float]]:
    """UNet2DModel and DiTTransformer2DModel, written by diffusers and read by us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers
        from diffusers.models import embeddings

    embeddings.get_timestep_embedding = lambda t, size, flip_sin_to_cos=False, downscale_freq_shift=1, **_: embedding(
        t, size, int(downscale_freq_shift), flip_sin_to_cos
    )
    down, attn_down, up, attn_up = "DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"
    plain = {"block_out_channels": (32, 64), "down_block_types": (down, attn_down), "up_block_types": (attn_up, up)}
    blocks = {"downsample_type": "resnet", "upsample_type": "resnet", "resnet_time_scale_shift": "scale_shift"}
    google = {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "attention_head_dim": None}
    unets: dict[str, dict[str, Any]] = {
        "UNet2DModel, as google/ddpm-cifar10-32": plain | google,
        "UNet2DModel with classes": plain | {"num_class_embeds": 5},
        "UNet2DModel, ADM-like": plain
        | blocks
        | {"down_block_types": (attn_down,) * 2, "up_block_types": (attn_up,) * 2}
        | {"out_channels": 6, "attn_norm_num_groups": 32},
    }
    for name, config in unets.items():
        theirs = randomized(diffusers.UNet2DModel(**config)).float()
        classes = torch.tensor([1, 4]) if "num_class_embeds" in config else None
        yield f"diffusers: {name}", diffusers_difference(theirs, "unet", (3, SIZE, SIZE), classes)
    theirs = randomized(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=32, num_layers=3, sample_size=8, out_channels=8, norm_eps=1e-6
        )
    ).float()
    state = theirs.state_dict()
    for name in state:  # published files hold copies of one embedding
        if ".norm1.emb." in name:
            state[name].copy_(state["transformer_blocks.0." + name.split(".", 2)[2]])
    yield (
        "diffusers: DiTTransformer2DModel",
        diffusers_difference(theirs, "transformer", (4, 8, 8), torch.tensor([5, 1000])),
    )


def diffusers_difference(theirs: Any, part: str, shape: Sequence[int], classes: Tensor | None) -> float:
    """The outputs of a network of diffusers, and of ours after it was saved."""
    import diffusers

    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(Path(folder) / part)
        diffusers.DDPMScheduler().save_pretrained(Path(folder) / "scheduler")
        ours = load_published(folder).double()
    theirs = theirs.double()
    return output_difference(ours, lambda x, t, y: theirs(x, t, class_labels=y).sample, shape, classes)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
