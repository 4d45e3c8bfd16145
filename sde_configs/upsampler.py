"""The second stage of a cascade: digits of 8 x 8 from digits of 4 x 4. `upsampling` makes one of any recipe.

python main.py --mode train --config.data.image_size=4 --workdir runs/small
python main.py --mode train --config upsampler --workdir runs/upsampler
python main.py --mode sample --cascade runs/small,runs/upsampler
"""

from ml_collections import ConfigDict

from sde_configs import default


def get_config() -> ConfigDict:
    return upsampling(default.get_config(), 2)


def upsampling(config: ConfigDict, factor: int) -> ConfigDict:
    """The same recipe for an upsampler: its objective, with the low resolution of each sample as a condition."""
    config.objective = ConfigDict(
        {
            "name": "UpsamplingObjective",
            "objective": config.objective,
            "factor": factor,
            "kernel": "bicubic",
            "antialias": True,
            "largest_noise": 0.5,
        }
    )
    return config
