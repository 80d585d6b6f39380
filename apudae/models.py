"""Classifiers and denoising autoencoders.

A classifier maps images in [0, 1] to logits; a DAE maps images to images of the same shape in
[0, 1]. Normalisation is the first layer of a model, so callers only ever handle plain pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, per channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class MnistCNN(nn.Module):
    """A small convolutional classifier for 28×28 digits: ``[N, 1, 28, 28]`` -> ``[N, 10]``.

    Two strided convolutions and two linear layers. No dropout and no batch norm: it behaves the
    same in training and evaluation mode.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(
            Normalize([0.1307], [0.3081]),
            nn.Conv2d(1, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 49, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class ConvDAE(nn.Module):
    """A convolutional denoising autoencoder for 28×28 digits, ``[N, 1, 28, 28]`` to the same.

    Two strided convolutions squeeze the image to 7×7, a linear layer to ``latent`` numbers; the
    decoder mirrors them. The bottleneck is what cleans: ``latent`` numbers cannot carry
    an arbitrary perturbation of 784 pixels. A sigmoid keeps the output in [0, 1].
    """

    def __init__(self, latent: int = 64, width: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 49, latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, 2 * width * 49),
            nn.ReLU(),
            nn.Unflatten(1, (2 * width, 7, 7)),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


MODELS: dict[str, Callable[..., nn.Module]] = {"mnist-cnn": MnistCNN, "mnist-dae": ConvDAE}


def build(name: str, *, seed: int = 0, **options: int) -> nn.Module:
    """A fresh model by architecture name, its random weights fixed by ``seed``.

    Args:
        name: a key of ``MODELS``.
        seed: of the initial weights; the global random state is left as it was.
        options: keyword arguments of the model's class, such as ``latent=32``.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(MODELS)}")
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # the CPU's alone
        return MODELS[name](**options)
