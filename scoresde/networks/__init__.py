"""Networks: plain PyTorch, called as `network(x, c_noise, cond)`; they know nothing about SDEs."""

from scoresde.networks.autoencoder import AutoencoderNetwork, Latents, LinearAutoencoder
from scoresde.networks.base import Network
from scoresde.networks.classifiers import ClassifierNetwork, MLPClassifier, UNetClassifier
from scoresde.networks.conv_autoencoder import ConvAutoencoder
from scoresde.networks.discriminator import PatchDiscriminator
from scoresde.networks.dit import DiT
from scoresde.networks.magnitude_preserving import MPUNet
from scoresde.networks.mlp import MLP
from scoresde.networks.text import ContrastiveNetwork, ImageEncoder, TextTransformer
from scoresde.networks.tiny_autoencoder import TinyAutoencoder
from scoresde.networks.unet import UNet

__all__ = [
    "MLP",
    "AutoencoderNetwork",
    "ClassifierNetwork",
    "ContrastiveNetwork",
    "ConvAutoencoder",
    "DiT",
    "ImageEncoder",
    "Latents",
    "LinearAutoencoder",
    "MLPClassifier",
    "MPUNet",
    "Network",
    "PatchDiscriminator",
    "TextTransformer",
    "TinyAutoencoder",
    "UNet",
    "UNetClassifier",
]
