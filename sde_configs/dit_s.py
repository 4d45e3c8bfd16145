"""DiT-S/2 on CIFAR-10: the smallest of Peebles and Xie 2023's transformers, class-conditional, on pixels.

Theirs is trained on latents of ImageNet for 400,000 steps of 256, with 6.06 billion multiplications and additions for
a forward pass of 32 x 32 (table 4, which calls them Gflops), which is 12.1 GFLOP. A step then takes about 9.3 TFLOP and
all steps 3.7 EFLOP: three hours of one H100 at a third of its speed in bfloat16. CIFAR-10 is had from Hugging Face's
hub, unless config.data.path names it.
"""

from ml_collections import ConfigDict

from sde_configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = "hf:uoft-cs/cifar10"
    config.data.held_out = 0.02
    config.network = ConfigDict(
        {"name": "DiT", "patch_size": 2, "width": 384, "depth": 12, "num_heads": 6, "label_dropout": 0.1}
    )
    config.training.num_steps = 400_000
    config.training.batch_size = 256
    config.training.lr = 1e-4
    config.training.lr_final = 1.0
    config.training.warmup_steps = 0
    config.training.ema_decay = 0.9999
    config.training.precision = "bfloat16"
    config.training.flip = True
    config.logging.checkpoint_every = 10_000
    return config
