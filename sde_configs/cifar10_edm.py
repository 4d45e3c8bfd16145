"""EDM on CIFAR-10: DDPM++ with Karras et al. 2022's preconditioning and noise levels (FID 1.97 without classes).

Their cost: 200 million images, about 2 days on 8 V100. CIFAR-10 is had from Hugging Face's hub, unless config.data.path
names it. Their images are also augmented in 12 % of cases, with a label of how; here they are mirrored only. Their
average of weights has a half-life of 500,000 images.
"""

import math

from ml_collections import ConfigDict

from scoresde.networks.presets import EDM
from sde_configs import cifar10_ddpmpp_vp, edm


def get_config() -> ConfigDict:
    config = cifar10_ddpmpp_vp.get_config()
    published = edm.get_config()
    config.network = ConfigDict({"name": "UNet", **EDM})
    config.sde = published.sde
    config.parametrization = ConfigDict({"name": "EDMParametrization", "sigma_data": 0.5})
    config.objective = published.objective
    config.training.batch_size = 512
    config.training.num_steps = 200_000_000 // 512
    config.training.lr = 1e-3
    config.training.warmup_steps = 10_000_000 // 512
    config.training.grad_clip = math.inf
    config.training.ema_decay = 0.5 ** (512 / 500_000)
    config.training.ema_lengths = (0.05, 0.1)
    return config
