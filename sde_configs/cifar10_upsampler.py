"""CIFAR-10 from 16 x 16 to 32 x 32: an upsampler with DDPM++ and EDM's preconditioning and noise levels.

Ho et al. 2022 and Saharia et al. 2022 train such second stages on ImageNet, with noise on the low resolution. The first
stage is any recipe with config.data.image_size=16, such as

    python main.py --mode train --config cifar10_edm --config.data.image_size=16 --workdir runs/cifar16
    python main.py --mode train --config cifar10_upsampler --workdir runs/cifar32
    python main.py --mode sample --cascade runs/cifar16,runs/cifar32 --sampler heun

The cost of a step is that of `cifar10_edm`. CIFAR-10 is had from Hugging Face's hub, unless config.data.path names it.
"""

from ml_collections import ConfigDict

from sde_configs import cifar10_edm
from sde_configs.upsampler import upsampling


def get_config() -> ConfigDict:
    return upsampling(cifar10_edm.get_config(), 2)
