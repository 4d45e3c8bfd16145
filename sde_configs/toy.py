"""Two moons in the plane with an MLP; `--sde` chooses the SDE."""

from ml_collections import ConfigDict

from sde_configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = "moons"
    config.network = ConfigDict(
        {"name": "MLP", "width": 128, "depth": 3, "label_dropout": 0.0, "learned_variance": False}
    )
    config.training.num_steps = 4000
    config.training.batch_size = 512
    config.training.lr = 1e-3
    return config
