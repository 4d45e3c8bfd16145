"""DDPM++ on CIFAR-10 under VP, as Song et al. 2021 trained it (FID 2.55, their table 3; bits/dim 3.16, table 2).

Their cost: 1.3 million steps of 128 images, 0.56 s each on 4 V100 for NCSN++, which costs about as much: 8 days.
CIFAR-10 is had from Hugging Face's hub, unless config.data.path names it.
"""

from ml_collections import ConfigDict

from scoresde.networks.presets import DDPMPP
from sde_configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = "hf:uoft-cs/cifar10"
    config.data.class_conditional = False
    config.data.held_out = 0.02
    config.network = ConfigDict({"name": "UNet", **DDPMPP})
    config.parametrization = ConfigDict(
        {"name": "NoiseParametrization", "sigma_data": 0.5, "input": {"name": "TimeInput", "scale": 999.0}}
    )
    config.training.num_steps = 1_300_000
    config.training.batch_size = 128
    config.training.lr = 2e-4
    config.training.lr_final = 1.0
    config.training.warmup_steps = 5000
    config.training.ema_decay = 0.9999
    config.training.flip = True
    config.training.tf32 = True
    config.logging.checkpoint_every = 10_000
    return config
