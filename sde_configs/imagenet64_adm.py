"""ADM on ImageNet at 64 x 64: Dhariwal and Nichol 2021, with a learned variance (FID 2.07, their table 5).

Their cost: 540,000 steps of 2048 images; Karras et al. 2022 state about 13 days on 32 A100 for a network of this size.
config.data.path names the images, a folder for each class, and config.data.cache a folder for what is read from disk in
training, about 16 GB.
"""

from ml_collections import ConfigDict

from scoresde.named_sdes import cosine_betas
from scoresde.networks.presets import ADM
from sde_configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = "imagenet"  # which is given by its path
    config.data.image_size = (64,)
    config.data.from_disk = True
    config.data.held_out = 0.005
    config.network = ConfigDict({"name": "UNet", **ADM})
    config.sde = ConfigDict({"name": "DiscreteVPSDE", "betas": tuple(cosine_betas().tolist())})
    indices = {"name": "TimeInput", "scale": 1000.0, "offset": -1.0}
    config.parametrization = ConfigDict({"name": "NoiseParametrization", "sigma_data": 0.5, "input": indices})
    config.objective = ConfigDict(
        {"name": "HybridObjective", "times": {"name": "DiscreteTimes", "num_levels": 1000}, "num_steps": 1000}
    )
    config.training.num_steps = 540_000
    config.training.batch_size = 2048
    config.training.lr = 1e-4  # of their code
    config.training.lr_final = 1.0
    config.training.warmup_steps = 0
    config.training.ema_decay = 0.9999
    config.training.precision = "bfloat16"
    config.training.flip = True
    config.logging.checkpoint_every = 5000
    return config
