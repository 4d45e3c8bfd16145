"""Tensors as other projects name and shape them, written from the structure of their networks."""

from __future__ import annotations

import torch


class Song:
    """The modules of a network of score_sde_pytorch, numbered in the order in which it makes them."""

    def __init__(self, device="cpu", seed=0):
        self.tensors = {}
        self.count = 0
        self.device = device
        self.generator = torch.Generator().manual_seed(seed)

    def _add(self, **shapes):
        for name, shape in shapes.items():
            key = f"all_modules.{self.count}.{name.replace('__', '.')}"
            if self.device == "meta":
                self.tensors[key] = torch.empty(shape, device="meta")
            else:
                self.tensors[key] = 0.1 * torch.randn(shape, generator=self.generator)
        self.count += 1

    def fourier(self, size):
        self._add(W=(size,))

    def linear(self, c_in, c_out):
        self._add(weight=(c_out, c_in), bias=(c_out,))

    def conv(self, c_in, c_out):
        self._add(weight=(c_out, c_in, 3, 3), bias=(c_out,))

    def norm(self, c):
        self._add(weight=(c,), bias=(c,))

    def strided(self, c_in, c_out, name):
        self._add(**{f"{name}__weight": (c_out, c_in, 3, 3), f"{name}__bias": (c_out,)})

    def pixel(self, c_in, c_out):
        self._add(Conv_0__weight=(c_out, c_in, 1, 1), Conv_0__bias=(c_out,))

    def attention(self, c):
        nin = {f"NIN_{i}__{part}": shape for i in range(4) for part, shape in (("W", (c, c)), ("b", (c,)))}
        self._add(GroupNorm_0__weight=(c,), GroupNorm_0__bias=(c,), **nin)

    def block(self, c_in, c_out, width, resampling=False, nin=False):
        shapes = {
            "GroupNorm_0__weight": (c_in,),
            "GroupNorm_0__bias": (c_in,),
            "Conv_0__weight": (c_out, c_in, 3, 3),
            "Conv_0__bias": (c_out,),
            "Dense_0__weight": (c_out, width),
            "Dense_0__bias": (c_out,),
            "GroupNorm_1__weight": (c_out,),
            "GroupNorm_1__bias": (c_out,),
            "Conv_1__weight": (c_out, c_out, 3, 3),
            "Conv_1__bias": (c_out,),
        }
        if nin and c_in != c_out:
            shapes |= {"NIN_0__W": (c_in, c_out), "NIN_0__b": (c_out,)}
        elif c_in != c_out or resampling:
            shapes |= {"Conv_2__weight": (c_out, c_in, 1, 1), "Conv_2__bias": (c_out,)}
        self._add(**shapes)


def song(nf, mults, num_blocks, attention, fourier=False, pyramid="", painted="", biggan=True, device="cpu"):
    """The tensors of NCSN++ (with a pyramid), DDPM++ (without) or DDPM (`biggan` False)."""
    net = Song(device)
    width = 4 * nf
    if fourier:
        net.fourier(nf)
    net.linear(nf * (2 if fourier else 1), width)
    net.linear(width, width)
    net.conv(3, nf)
    skips, c, seen = [nf], nf, 3
    for level, mult in enumerate(mults):
        for _ in range(num_blocks):
            net.block(c, c := nf * mult, width, nin=not biggan)
            if level in attention:
                net.attention(c)
            skips.append(c)
        if level < len(mults) - 1:
            net.block(c, c, width, True) if biggan else net.strided(c, c, "Conv_0")
            if pyramid == "residual":
                net.strided(seen, c, "Conv2d_0")
                seen = c
            elif pyramid == "skip":
                net.pixel(3, c)
            skips.append(c)
    net.block(c, c, width)
    net.attention(c)
    net.block(c, c, width)
    for level, mult in reversed(list(enumerate(mults))):
        for _ in range(num_blocks + 1):
            net.block(c + skips.pop(), c := nf * mult, width, nin=not biggan)
        if level in attention:
            net.attention(c)
        if painted == "skip":
            net.norm(c)
            net.conv(c, 3)
        if level:
            net.block(c, c, width, True) if biggan else net.strided(c, c, "Conv_0")
    if painted != "skip":
        net.norm(c)
        net.conv(c, 3)
    return net.tensors


def song_checkpoint(tensors, sigma_min=0.01, sigma_max=50.0):
    """The file: averaged weights without names, and last weights, which differ from them."""
    sigmas = torch.logspace(torch.tensor(sigma_max).log10(), torch.tensor(sigma_min).log10(), 1000)
    model = {"module.sigmas": sigmas}
    model |= {f"module.{name}": value if name == "all_modules.0.W" else value + 1 for name, value in tensors.items()}
    trained = [value for name, value in tensors.items() if name != "all_modules.0.W"]
    ema = {"decay": 0.9999, "num_updates": 7, "shadow_params": trained}
    return {"optimizer": {}, "model": model, "ema": ema, "step": 7}


def adm(channels, mults, num_blocks, attention, num_classes, by_blocks=True, scale_shift=True, device="cpu"):
    """The tensors of guided-diffusion's U-Net with a learned variance."""
    generator = torch.Generator().manual_seed(0)
    shapes = {}
    width = 4 * channels

    def layer(name, *weight):
        shapes[f"{name}.weight"] = weight
        shapes[f"{name}.bias"] = weight[:1]

    def block(name, c_in, c_out):
        layer(f"{name}.in_layers.0", c_in)
        layer(f"{name}.in_layers.2", c_out, c_in, 3, 3)
        layer(f"{name}.emb_layers.1", c_out * (2 if scale_shift else 1), width)
        layer(f"{name}.out_layers.0", c_out)
        layer(f"{name}.out_layers.3", c_out, c_out, 3, 3)
        if c_in != c_out:
            layer(f"{name}.skip_connection", c_out, c_in, 1, 1)

    def attend(name, c):
        layer(f"{name}.norm", c)
        layer(f"{name}.qkv", 3 * c, c, 1)
        layer(f"{name}.proj_out", c, c, 1)

    layer("time_embed.0", width, channels)
    layer("time_embed.2", width, width)
    shapes["label_emb.weight"] = (num_classes, width)
    layer("input_blocks.0.0", channels, 3, 3, 3)
    number, c, skips = 1, channels, [channels]
    for level, mult in enumerate(mults):
        for _ in range(num_blocks):
            block(f"input_blocks.{number}.0", c, c := channels * mult)
            if level in attention:
                attend(f"input_blocks.{number}.1", c)
            skips.append(c)
            number += 1
        if level < len(mults) - 1:
            if by_blocks:
                block(f"input_blocks.{number}.0", c, c)
            else:
                layer(f"input_blocks.{number}.0.op", c, c, 3, 3)
            skips.append(c)
            number += 1
    block("middle_block.0", c, c)
    attend("middle_block.1", c)
    block("middle_block.2", c, c)
    number = 0
    for level, mult in reversed(list(enumerate(mults))):
        for i in range(num_blocks + 1):
            block(f"output_blocks.{number}.0", c + skips.pop(), c := channels * mult)
            place = 1
            if level in attention:
                attend(f"output_blocks.{number}.1", c)
                place = 2
            if level and i == num_blocks:
                if by_blocks:
                    block(f"output_blocks.{number}.{place}", c, c)
                else:
                    layer(f"output_blocks.{number}.{place}.conv", c, c, 3, 3)
            number += 1
    layer("out.0", c)
    layer("out.2", 6, c, 3, 3)
    if device == "meta":
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def dit(width, depth, num_classes=10, patch=2, channels=4, learned=True, table=None):
    """The tensors of a DiT by its authors' keys."""
    generator = torch.Generator().manual_seed(0)
    c_out = channels * (2 if learned else 1)
    layers = {
        "x_embedder.proj": (width, channels, patch, patch),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "final_layer.linear": (patch * patch * c_out, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for i in range(depth):
        layers |= {
            f"blocks.{i}.attn.qkv": (3 * width, width),
            f"blocks.{i}.attn.proj": (width, width),
            f"blocks.{i}.mlp.fc1": (4 * width, width),
            f"blocks.{i}.mlp.fc2": (width, 4 * width),
            f"blocks.{i}.adaLN_modulation.1": (6 * width, width),
        }
    shapes = {"y_embedder.embedding_table.weight": (num_classes + 1, width)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    tensors = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return tensors if table is None else {"pos_embed": table} | tensors
