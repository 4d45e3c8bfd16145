"""The settings of published U-Nets, as arguments of `UNet`: `UNet(3, **NCSNPP)`, or `UNet(3, **NCSNPP | {"fir": ()})`.

Noise labels are those of the originals: the positional ones are for labels from 0 to 999 (`TimeInput`), the Fourier
features for log sigma (`LogSigmaInput`).
"""

from __future__ import annotations

from typing import Any

_SONG: dict[str, Any] = {  # what the CIFAR-10 networks of Ho et al. 2020 and Song et al. 2021 share
    "channels": 128,
    "multipliers": (1, 2, 2, 2),
    "attention_levels": (1,),  # 16 x 16 of 32 x 32
    "head_channels": 0,
    "noise_embedding": "positional",
    "frequency_shift": 1,
    "end_padding": True,
    "scale_shift": False,
    "norm_groups": 32,
    "norm_eps": 1e-6,
    "dropout": 0.1,
    "xavier": True,
}

DDPM: dict[str, Any] = _SONG | {"num_blocks": 2}  # Ho et al. 2020, appendix B: 35.7 M parameters

DDPMPP: dict[str, Any] = _SONG | {  # Song et al. 2021, appendix H: 61.8 M
    "num_blocks": 4,
    "attention_up": "last",
    "resample": "biggan",
    "rescale": True,
    "group_channels": 4,
}

NCSNPP: dict[str, Any] = DDPMPP | {  # Song et al. 2021, appendix H, for VE: 62.8 M
    "noise_embedding": "fourier",
    "frequency_shift": 0,
    "fir": (1.0, 3.0, 3.0, 1.0),
    "input_pyramid": "residual",
}

EDM: dict[str, Any] = DDPMPP | {"multipliers": (2, 2, 2), "dropout": 0.13}  # Karras et al. 2022, table 7: 55.7 M

ADM: dict[str, Any] = {  # Dhariwal and Nichol 2021, table 11, for ImageNet at 64 x 64: 295.9 M with 1000 classes
    "channels": 192,
    "multipliers": (1, 2, 3, 4),
    "num_blocks": 3,
    "learned_variance": True,
    "attention_levels": (1, 2, 3),  # 32, 16 and 8 of 64 x 64
    "head_channels": 64,
    "noise_embedding": "positional",
    "resample": "adm",
    "norm_groups": 32,
    "dropout": 0.1,
}
