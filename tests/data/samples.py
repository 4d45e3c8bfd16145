"""Pictures and files to read."""

import io
import struct

import numpy as np
from PIL import Image


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(seed=0, shape=(4, 5, 3)):
    file = io.BytesIO()
    Image.fromarray(noise(*shape, seed=seed)).save(file, "png")
    return file.getvalue()


def images(*seeds):
    return np.stack([noise(4, 5, 3, seed=s).transpose(2, 0, 1) for s in seeds])


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def idx(array, code=8, kind=">u1"):
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.astype(kind).tobytes()
