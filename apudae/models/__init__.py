"""Classifiers and autoencoders, built or loaded by name: ``models.load("mnist-cnn")``."""

from .checkpoints import WEIGHTS, about, load, names, save
from .networks import (
    MODELS,
    VAE,
    CifarResNet,
    ConvDAE,
    Critic,
    Generator,
    MagNet,
    MnistCNN,
    MnistMLP,
    Normalize,
    REDNet,
    SharedAutoencoder,
    UNet,
    build,
)

__all__ = [
    "MODELS",
    "VAE",
    "WEIGHTS",
    "CifarResNet",
    "ConvDAE",
    "Critic",
    "Generator",
    "MagNet",
    "MnistCNN",
    "MnistMLP",
    "Normalize",
    "REDNet",
    "SharedAutoencoder",
    "UNet",
    "about",
    "build",
    "load",
    "names",
    "save",
]
