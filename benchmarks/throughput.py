"""Images per second of networks beside their peers, of about as many parameters, in the same run.

On a CPU: forward and backward passes of 8 images of 32x32x3 on one core, ours and the peer's in turn, medians of the
ratios of neighbours. On CUDA: DDPM++ of CIFAR-10's size (56 M) and UNet2DModel of diffusers with as many parameters, in
float32, bfloat16 and bfloat16 compiled; then sampling of small batches with and without a CUDA graph, and the time of a
loop over that of its network at batch 1. FLOP/s are those of convolutions and products, as torch counts them, beside
the largest rate of a product of matrices of 4096 (CUDA) or 2048 (CPU) in the same run and type; convolutions can need
fewer operations than are counted, so that the share can be above 100 %.

Peers that are not installed are left out; score_sde_pytorch is given by its folder:

    python -m benchmarks.throughput [SCORE_SDE_PYTORCH]
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from samplers import DDIM, prepare
from scoresde import VPSDE, EDMParametrization, NetworkScoreModel, Noise, UNet
from scoresde.networks.presets import DDPMPP, EDM, NCSNPP

REPEATS = 9
BATCH = 8
SHAPE = (3, 32, 32)
GPU_BATCH = 256
Call = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Pair(NamedTuple):
    """A network of ours and a peer's.

    Attributes:
        name: of the comparison.
        ours, theirs: the networks.
        call: how theirs is called.
    """

    name: str
    ours: nn.Module
    theirs: nn.Module
    call: Call


def main() -> None:
    """Prints the tables of the device that there is."""
    if torch.cuda.is_available():
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
        on_cuda()
    else:
        torch.set_num_threads(1)
        on_cpu(sys.argv[1] if len(sys.argv) > 1 else None)


def unet2d(widths: tuple[int, ...], layers: int, attention: tuple[int, ...], groups: int) -> nn.Module:
    """UNet2DModel of diffusers with attention at some levels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import UNet2DModel
    attends = [level in attention for level in range(len(widths))]
    network: nn.Module = UNet2DModel(
        sample_size=SHAPE[1],
        block_out_channels=widths,
        layers_per_block=layers,
        norm_num_groups=groups,
        down_block_types=tuple("AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends),
        up_block_types=tuple("AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)),
        attention_head_dim=None,
        dropout=0.1,
    )
    return network


def call_diffusers(network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    sample: Tensor = network(x, 1000 * t).sample
    return sample


def pairs(score_sde: str | None) -> Iterator[Pair]:
    """Networks of about 9 M parameters."""
    if importlib.util.find_spec("diffusers"):
        ddpm = unet2d((64, 128, 128, 128), 2, (1,), 32)
        name = "UNet(3, 48, (1, 2, 4), 2), and diffusers' of DDPM's shape"
        yield Pair(name, UNet(3, 48, (1, 2, 4), 2, dropout=0.1), ddpm, call_diffusers)
        name = "UNet(3, 64, (1, 2, 2, 2), 2), and diffusers' of the same shape"
        yield Pair(name, UNet(3, 64, (1, 2, 2, 2), 2, dropout=0.1), ddpm, call_diffusers)
        theirs = unet2d((68, 136, 136, 136), 2, (1,), 17)
        name = "DDPM++, and diffusers' of DDPM's shape"
        yield Pair(name, UNet(3, **DDPMPP | {"channels": 64, "num_blocks": 2}), theirs, call_diffusers)
    if score_sde is not None:
        ours = UNet(3, **NCSNPP | {"channels": 64, "num_blocks": 2})
        yield Pair(
            "NCSN++ with FIR, and score_sde_pytorch's", ours, ncsnpp(score_sde), lambda net, x, t: net(x, t + 0.1)
        )


def ncsnpp(folder: str) -> nn.Module:
    """NCSN++ of score_sde_pytorch, with its own fallback in place of the compiled operation."""
    from ml_collections import ConfigDict

    from benchmarks.network_parity import THEIRS, native_operations

    native_operations()
    sys.path.insert(0, folder)
    module = importlib.import_module("models.ncsnpp")
    model = THEIRS | {"nf": 64, "ch_mult": (1, 2, 2, 2), "attn_resolutions": (16,)}
    data = {"image_size": 32, "num_channels": 3, "centered": False}
    network: nn.Module = module.NCSNpp(ConfigDict({"model": model, "data": data, "training": {"continuous": True}}))
    return network


def on_cpu(score_sde: str | None) -> None:
    """Forward and backward passes on one core."""
    ceiling = product_rate(torch.device("cpu"), torch.float32, 2048)
    print(f"one core, batch {BATCH}, float32; product of matrices of 2048: {ceiling / 1e9:.0f} GFLOP/s")
    print(f"{'':60} {'':9} {'ours':>9} {'peer':>9} {'ratio':>6} {'parameters':>14} {'of the ceiling':>15}")
    x, t = torch.randn(BATCH, *SHAPE), torch.rand(BATCH)
    for pair in pairs(score_sde):
        sizes = [sum(p.numel() for p in network.parameters()) / 1e6 for network in (pair.ours, pair.theirs)]
        calls = ((pair.ours, lambda net, x, t: net(x, t)), (pair.theirs, pair.call))
        for mode in ("forward", "training"):
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(REPEATS + 1):
                for (network, call), spent in zip(calls, times, strict=True):
                    spent.append(timed(network, call, x, t, mode))
            ours, theirs = (statistics.median(spent[1:]) for spent in times)
            ratio = statistics.median(b / a for a, b in zip(times[0][1:], times[1][1:], strict=True))
            share = flops(pair.ours, x, t) * (3 if mode == "training" else 1) / ours / ceiling
            print(
                f"{pair.name:60} {mode:9} {BATCH / ours:9.2f} {BATCH / theirs:9.2f} {ratio:6.2f} "
                f"{sizes[0]:6.2f} {sizes[1]:5.2f} M {share:14.0%}",
                flush=True,
            )


def timed(network: nn.Module, call: Call, x: Tensor, t: Tensor, mode: str) -> float:
    """Seconds of a forward pass, or of a forward and a backward pass."""
    network.train(mode == "training")
    network.zero_grad()
    start = time.perf_counter()
    if mode == "training":
        call(network, x, t).square().mean().backward()
    else:
        with torch.no_grad():
            call(network, x, t)
    return time.perf_counter() - start


def flops(network: nn.Module, x: Tensor, t: Tensor) -> float:
    """Floating-point operations of a forward pass."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.eval()(x, t)
    return float(counter.get_total_flops())


def product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """FLOP/s of a product of two matrices; the best of some."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        best = min(best, seconds(lambda: a @ b, device))
    return 2 * size**3 / best


def seconds(run: Callable[[], Any], device: torch.device, count: int = 1) -> float:
    """Seconds of a call, the mean of some in a row."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def on_cuda() -> None:
    """Training of DDPM++ of CIFAR-10's size, and sampling of small batches."""
    device = torch.device("cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    x, t = torch.randn(GPU_BATCH, *SHAPE, device=device), torch.rand(GPU_BATCH, device=device)
    networks: dict[str, tuple[nn.Module, Call]] = {"DDPM++ (EDM's)": (UNet(3, **EDM), lambda net, x, t: net(x, t))}
    if importlib.util.find_spec("diffusers"):
        networks["diffusers UNet2DModel"] = (unet2d((160, 320, 320, 320), 2, (1,), 32), call_diffusers)
    print(f"{'':24} {'':24} {'images/s':>10} {'GiB':>6} {'of the ceiling':>15}   training, batch {GPU_BATCH}")
    for name, (network, call) in networks.items():
        network.to(device).train()
        operations = 3 * flops(network, x, t) if name.startswith("DDPM") else None
        for kind in ("float32 (TF32)", "bfloat16", "bfloat16, compiled"):
            run: nn.Module = torch.compile(network) if "compiled" in kind else network  # type: ignore[assignment]
            dtype = torch.float32 if kind.startswith("float32") else torch.bfloat16
            step = training_step(run, call, x, t, dtype)
            seconds(step, device, 5)
            torch.cuda.reset_peak_memory_stats()
            spent = seconds(step, device, 30)
            share = "" if operations is None else f"{operations / spent / product_rate(device, dtype, 4096):15.0%}"
            memory = torch.cuda.max_memory_allocated() / 2**30
            print(f"{name:24} {kind:24} {GPU_BATCH / spent:10.0f} {memory:6.1f} {share}", flush=True)
    small_batches(device)


def training_step(network: nn.Module, call: Call, x: Tensor, t: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """A step of AdamW on a squared output."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cuda", dtype, enabled=dtype == torch.bfloat16):
            loss = call(network, x, t).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@torch.no_grad()
def small_batches(device: torch.device) -> None:
    """A loop of 50 steps over small batches, with and without a graph, and over a network that does nothing."""
    model = NetworkScoreModel(UNet(3, 64, (1, 2, 2), 2), VPSDE(), EDMParametrization(), SHAPE).to(device).eval()
    steps = 50
    print(f"{'':24} {'':24} {'ms/step':>10}   DDIM, 50 steps, U-Net of {sum(p.numel() for p in model.parameters()):,}")
    for batch in (1, 4, 16):
        noise = Noise(0, torch.arange(batch, device=device))
        x, t = torch.randn(batch, *SHAPE, device=device), torch.zeros(batch, device=device)
        alone = min(seconds(lambda x=x, t=t: model.network(x, t), device, 50) for _ in range(3))
        print(f"{'network alone':24} {f'batch {batch}':24} {1e3 * alone:10.3f}")
        for graph in (False, True):
            prepared = prepare(model, DDIM(), num_steps=steps, cuda_graph=graph)
            prepared.draw(noise)
            spent = min(seconds(lambda p=prepared, n=noise: p.draw(n), device, 3) for _ in range(3)) / steps
            kind = "CUDA graph" if graph else "without a graph"
            print(f"{kind:24} {f'batch {batch}':24} {1e3 * spent:10.3f}", flush=True)


if __name__ == "__main__":
    main()
