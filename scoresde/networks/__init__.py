"""Networks: plain PyTorch, called as `network(x, c_noise, cond)`; they know nothing about SDEs."""

from scoresde.networks.base import Network
from scoresde.networks.classifiers import ClassifierNetwork, MLPClassifier, UNetClassifier
from scoresde.networks.mlp import MLP
from scoresde.networks.unet import UNet

__all__ = ["MLP", "ClassifierNetwork", "MLPClassifier", "Network", "UNet", "UNetClassifier"]
