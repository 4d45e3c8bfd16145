"""Checkpoint files that tests share, and files that were tampered with."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from scoresde import NetworkScoreModel, checkpoint, named_sdes, networks, parametrization

DATA = {"low": -1.5, "high": 2.0, "num_classes": 3}


def make_model(device="cpu"):
    network = networks.UNet(1, channels=4, multipliers=(1, 2), num_classes=3)
    with torch.no_grad():
        for p in network.parameters():
            p.normal_()  # the last layer starts at zero and would hide the rest
    sde, emitted = named_sdes.VPSDE(beta_max=17.0), parametrization.EDMParametrization(sigma_data=0.6)
    return NetworkScoreModel(network, sde, emitted, (1, 5, 4)).to(device)


def write(path, model, other=None):
    """A run's checkpoint with `model` as the average and `other` (or it too) as the last weights."""
    tensors = {f"ema.score.{k}": v.clone() for k, v in model.state_dict().items()}
    tensors |= {f"weights.score.{k}": v for k, v in (other or model).state_dict().items()}
    description = {"models": {"score": checkpoint.describe_model(model)}, "data": DATA, "config": {"seed": 4}}
    checkpoint.save(path, 17, description, tensors)


def rewrite(path, header, tensors, digest=True):
    """Another header or other tensors in a file; with a digest that fits them if asked."""
    if digest:
        header = header | {"digest": checkpoint.digest(tensors, header)}
    save_file(tensors, path, metadata={"scoresde": json.dumps(header)})
