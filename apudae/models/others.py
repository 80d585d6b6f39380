"""The networks of other defenses, and the convolutions that all networks of digits share.

- :class:`Layers`: a network of layers in a row
- :func:`squeeze`, :func:`decoder`: 28×28 digits to a code of few numbers, and back
- :class:`MagNet`, :class:`VAE`, :class:`Generator` and :class:`Critic`, :class:`SharedAutoencoder`,
  :class:`UNet`
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.arguments import checked


class Layers(nn.Module):
    """A network of layers in a row."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def squeeze(
    inputs: int, width: int, kernel: int, activation: Callable[[], nn.Module] = nn.ReLU
) -> list[nn.Module]:
    """28×28 pixels to ``2 · width · 49`` numbers: two convolutions, each halves the image."""
    return [
        nn.Conv2d(inputs, width, kernel, stride=2, padding=1),
        activation(),
        nn.Conv2d(width, 2 * width, kernel, stride=2, padding=1),
        activation(),
        nn.Flatten(),
    ]


def decoder(latent: int, width: int = 32, kernel: int = 4) -> nn.Sequential:
    """A code to 28×28 pixels in [0, 1]: two transposed convolutions, each doubles the image."""
    double = {"kernel_size": kernel, "stride": 2, "padding": 1, "output_padding": 4 - kernel}
    return nn.Sequential(
        nn.Linear(latent, 2 * width * 49),
        nn.ReLU(),
        nn.Unflatten(1, (2 * width, 7, 7)),
        nn.ConvTranspose2d(2 * width, width, **double),
        nn.ReLU(),
        nn.ConvTranspose2d(width, 1, **double),
        nn.Sigmoid(),
    )


class MagNet(Layers):
    """The autoencoder that reforms digits in MagNet (Meng & Chen 2017, table 3): images to images.

    Five convolutions with sigmoids, three features each, at full size and at half.
    """

    def __init__(self) -> None:
        def layer(inputs: int, outputs: int = 3) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Sigmoid()]

        super().__init__(
            *layer(1),
            nn.AvgPool2d(2),
            *layer(3),
            *layer(3),
            nn.Upsample(scale_factor=2),
            *layer(3),
            *layer(3, 1),
        )


@checked
class VAE(nn.Module):
    """A variational autoencoder, images to images: the code's mean is decoded (Li & Ji 2019).

    Args:
        latent: numbers of the code.
    """

    def __init__(self, latent: int = 64) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*squeeze(1, 32, 4), nn.Linear(64 * 49, 2 * latent))
        self.decoder = decoder(latent)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x)[0])

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of the code, ``[N, latent]`` each."""
        mean, spread = self.encoder(x).chunk(2, 1)
        return mean, spread.clamp(-10, 10)


@checked
class Generator(Layers):
    """Codes ``[N, latent]`` to digits ``[N, 1, 28, 28]``: half of a generative adversarial network.

    Args:
        latent: numbers of the code.
    """

    def __init__(self, latent: int = 64) -> None:
        super().__init__(*decoder(latent))
        self.latent = latent


class Critic(Layers):
    """Digits to a number ``[N]``, larger for real ones: the other half (Arjovsky et al. 2017)."""

    def __init__(self) -> None:
        super().__init__(
            *squeeze(1, 32, 4, lambda: nn.LeakyReLU(0.2)),
            nn.Linear(64 * 49, 128),
            nn.LeakyReLU(0.2),
            nn.Linear(128, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 0]


@checked
class SharedAutoencoder(nn.Module):
    """A classifier and a denoising autoencoder of 28×28 digits on one encoder (Shi et al. 2021).

    ``forward(x)`` gives the logits ``[N, 10]``, ``reconstruct(x)`` the images, ``forward(x,
    both=True)`` both. The layers are those of the authors' code, with a narrower code.

    Args:
        hidden: numbers of the code that both share; 1,024 in the authors' code.
    """

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*squeeze(1, 32, 3), nn.Linear(64 * 49, hidden), nn.ReLU())
        self.head = nn.Linear(hidden, 10)
        self.decoder = decoder(hidden, kernel=3)

    def forward(self, x: Tensor, *, both: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        code = self.encoder(x)
        return (self.head(code), self.decoder(code)) if both else self.head(code)

    def reconstruct(self, x: Tensor) -> Tensor:
        """What the decoder makes of the images."""
        return self.decoder(self.encoder(x))


def _normed(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.GroupNorm(8, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)]


class Block(nn.Module):
    """A residual block that is given the level of noise, embedded in so many numbers."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Sequential(*_normed(inputs, outputs))
        self.level = nn.Linear(embedding, outputs)
        self.second = nn.Sequential(*_normed(outputs, outputs))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        h = self.first(x) + self.level(level)[:, :, None, None]
        return self.skip(x) + self.second(h)


@checked
class UNet(nn.Module):
    """Noise in 28×28 digits: ``(images in [-1, 1] plus noise, levels [N])`` -> the noise.

    It sees 2×2 pixels as four features, which makes it about five times as fast.

    Args:
        width: features at 14×14; twice as many at 7×7.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width, embedding, wide = width, 4 * width, 2 * width
        self.tell = nn.Sequential(
            nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.begin = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4, width, 3, padding=1))
        self.down = Block(width, width, embedding)
        self.middle = nn.ModuleList([Block(width, wide, embedding), Block(wide, wide, embedding)])
        self.up = Block(wide + width, width, embedding)
        self.end = nn.Sequential(*_normed(width, 4), nn.PixelShuffle(2))

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        half = self.width // 2
        speeds = torch.exp(-math.log(10_000) * torch.arange(half, device=z.device) / half)
        angles = t[:, None].to(z.dtype) * speeds.to(z.dtype)
        level = self.tell(torch.cat([angles.sin(), angles.cos()], 1))
        kept = self.down(self.begin(z), level)
        h = F.avg_pool2d(kept, 2)
        for block in self.middle:
            h = block(h, level)
        return self.end(self.up(torch.cat([F.interpolate(h, scale_factor=2), kept], 1), level))
