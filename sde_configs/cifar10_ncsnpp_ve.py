"""NCSN++ on CIFAR-10 under VE, as Song et al. 2021 trained it (FID 2.38 by predictor-corrector, their table 3).

Their cost: 1.3 million steps of 128 images, 0.56 s each on 4 V100: 8 days. CIFAR-10 is had from Hugging Face's hub,
unless config.data.path names it. Images are in [-1, 1] here, so that sigma is twice theirs, which are in [0, 1].
"""

from ml_collections import ConfigDict

from scoresde.networks.presets import NCSNPP
from sde_configs import cifar10_ddpmpp_vp


def get_config() -> ConfigDict:
    config = cifar10_ddpmpp_vp.get_config()
    config.network = ConfigDict({"name": "UNet", **NCSNPP})
    config.sde = ConfigDict({"name": "VESDE", "sigma_min": 0.02, "sigma_max": 100.0})
    config.parametrization.input = ConfigDict({"name": "LogSigmaInput", "unit": 2.0})
    config.training.ema_decay = 0.999
    return config
