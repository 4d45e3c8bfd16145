"""Digits from captions, such as "a thick slanted seven": a U-Net that attends to words, on latents of 6 x 6.

Its parts are trained apart, each on two CPU cores in some minutes, in this order:

    python main.py --mode train_autoencoder --config digits_text
    python main.py --mode train_text_encoder --config digits_text
    python main.py --mode train --config digits_text
    python main.py --mode sample --workdir runs/digits_text --guidance 3 --prompt "a thick slanted seven"
"""

from ml_collections import ConfigDict

from sde_configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = "digits_text"
    config.data.held_out = 0.1
    config.data.autoencoder = "runs/digits_text-autoencoder"
    config.data.text_encoder = "runs/digits_text-text"
    config.network = ConfigDict(
        {
            "name": "UNet",
            "channels": 48,
            "multipliers": (1, 2),
            "num_blocks": 1,
            "attention_levels": (0, 1),
            "label_dropout": 0.1,
            "learned_variance": False,
            "context_depth": 2,
        }
    )
    config.training.num_steps = 4000
    config.training.batch_size = 64
    return config
